"""gags inventory: what is in this scene?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from gags.commands._report import print_json, print_rows, say
from gags.inventory import Inventory, InventoryConfig, inventory_recall, take_inventory
from gags.pictures import write_thing_crops
from gags.query import VOCABULARY, QueryConfig, read_vocabulary
from gags.runs import FieldKind, Frames, Run, labelled_views, open_run
from gags.store import to_json, write_json


@dataclass(frozen=True)
class Arguments:
    """What is in this scene? Clusters of the language field, each with its best phrases, place, size, best view and a crop of it.

    Where the scene has labels (or --labels names some), recall is measured: a labelled object is found when a cluster, rendered
    into the frames that label it, has a mean IoU of 0.25 or more with its masks and the object's name among its first three.
    """

    run: tyro.conf.Positional[Path]
    """A run folder made by 'gags run'."""
    vocabulary: Path | None = None
    """Text file of the phrases to choose from, one a line; without it, a hundred everyday things."""
    labels: Path | None = None
    """Folder of LERF-OVS labels to measure recall with; without it, those of the run, if it has any."""
    inventory: tyro.conf.OmitArgPrefixes[InventoryConfig] = dataclasses.field(default_factory=InventoryConfig)
    """What counts as a thing."""
    query: tyro.conf.OmitArgPrefixes[QueryConfig] = dataclasses.field(default_factory=QueryConfig)
    """How phrases are compared."""
    field: FieldKind | None = None
    """Which of the run's fields to list; without it, the one the run was made with."""
    out: Path | None = None
    """Folder for inventory.json and the crops (default: RUN/renders/inventory)."""
    json: bool = False
    """Print JSON instead of a table."""


def main(arguments: Sequence[str]) -> None:
    """Parse the flags, list the things, write the crops."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags inventory")
    vocabulary = VOCABULARY if options.vocabulary is None else read_vocabulary(options.vocabulary)
    run = open_run(options.run)
    query_config = run.query_config(options.query)
    field = run.field(options.field)
    labels = options.labels or run.labels_folder
    frames = None if labels is None else labelled_views(run, labels)
    inventory = take_inventory(field, run.scene.views, vocabulary, run.encoder, query_config, options.inventory)
    result: dict[str, Any] = {"field": options.field or run.default_field}
    if frames is not None:
        result["recall"] = _recall(run, inventory, frames, query_config)
    out = options.out or options.run / "renders" / "inventory"
    crops = write_thing_crops(run.scene, inventory.things, out)
    rows = result["things"] = [
        {**thing.to_json(), "crop": crop and str(crop)} for thing, crop in zip(inventory.things, crops, strict=True)
    ]
    write_json(out / "inventory.json", {**result, "config": to_json(options.inventory), "vocabulary": vocabulary})
    if options.json:
        print_json(result)
        return
    print_rows([_table_row(row) for row in rows])
    if "recall" in result:
        print_rows(result["recall"]["objects"])
        say(f"{result['recall']['found']} of {result['recall']['labelled']} labelled objects found")
    say(f"crops: {out}")


def _recall(run: Run, inventory: Inventory, frames: Frames, query_config: QueryConfig) -> dict[str, Any]:
    objects = inventory_recall(inventory, run.gaussians, frames, run.encoder, query_config)
    return {
        "found": sum(each.found for each in objects),
        "labelled": len(objects),
        "objects": [{**to_json(each), "iou": round(each.iou, 4)} for each in objects],
    }


def _table_row(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row["box_world"]
    return {
        "score": f"{row['score']:.2f}",
        "phrases": ", ".join(entry["phrase"] for entry in row["phrases"][:3]),
        "splats": row["n_splats"],
        "centre": " ".join(f"{value:.2f}" for value in row["centroid_world"]),
        "size": " ".join(f"{b - a:.2f}" for a, b in zip(low, high, strict=True)),
        "best view": row["view"],
    }
