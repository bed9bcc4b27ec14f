"""A finished run as one HTML file: pictures, curves, costs, numbers, answers. It needs no network and no other file."""

from __future__ import annotations

import base64
import colorsys
import dataclasses
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from gags.charts import line_chart
from gags.encode import ImageTextEncoder
from gags.errors import GagsError
from gags.evaluate import Evaluation
from gags.images import draw_box, draw_mask, draw_point, encode_jpeg, overlay, resize_image
from gags.inventory import Inventory, InventoryConfig, NothingFoundError, inventory_recall, take_inventory
from gags.logs import read_log
from gags.pictures import FOUND_COLOR, RenderMode, painter, thing_crop
from gags.query import VOCABULARY, QueryConfig, best_views, query, query_3d
from gags.runs import HELD_OUT_QUALITY, TRAINING_QUALITY, FieldKind, Frames, Run, labelled_views
from gags.scene import View
from gags.segment import LEVELS
from gags.settings import Count, Side, check_settings
from gags.store import read_json

Picture = UInt8[Tensor, "height width 3"]

# Small files; what they show survives it.
_JPEG_QUALITY = 82
# Views are searched at this size: decoding their pixels is where a report's time goes.
_QUERY_SIDE_PX = 256
_CROP_SIDE_PX = 160
_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:1180px;margin:0 auto;padding:1.5rem}
h1{margin:0}h2{margin:2.2rem 0 .3rem;border-bottom:1px solid #8884}p{margin:.3rem 0 .8rem;opacity:.8}
.row{display:grid;gap:10px;margin:10px 0}.charts{display:flex;flex-wrap:wrap;gap:14px}
figure{margin:0}figure img{display:block;border-radius:4px;width:100%;height:auto}figcaption{font-size:13px;opacity:.75}
table{border-collapse:collapse;font-size:14px}td,th{padding:3px 12px 3px 0;text-align:left;vertical-align:top}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td img{border-radius:4px;display:block}
.bar{background:#d9480f;height:10px;border-radius:2px;min-width:1px}summary{cursor:pointer}
.facts{display:flex;flex-wrap:wrap;gap:6px 28px;margin:.6rem 0}.facts b{font-size:1.25rem;display:block}
"""


@dataclass(frozen=True)
class ReportConfig:
    """What goes into a report, and how large."""

    phrases: tuple[str, ...] = ()
    """Queries to show; without any, the labelled objects, else the best-named things of the inventory (at most six)."""
    n_views: Count = 3
    """Photographs shown beside their renders, evenly spread."""
    side_px: Side = 340
    """Longer side of the pictures in pixels."""
    max_things: Count = 16
    """Things of the inventory that are listed."""


def make_report(run: Run, kind: FieldKind | None, query_config: QueryConfig, config: ReportConfig) -> str:
    """The HTML of a run's report. What the run does not hold (masks that were brought along, say) is left out.

    Raises:
        GagsError: a setting out of range, a run without the field.
    """
    check_settings(config)
    query_config = run.query_config(query_config)
    views = _spread(run.scene.views, config.n_views)
    frames = _labelled(run)
    inventory = _inventory(run, kind, run.encoder, query_config, config)
    sections = [
        _head(run, kind),
        _metrics(run),
        _queries(run, kind, _phrases(frames, inventory, config), query_config, config),
        _inventory_section(run, inventory, frames, query_config),
        _view_section(run, kind, views, query_config, config),
        _mask_section(run, _spread(run.scene.training_views, 2), config),
        _training(run, kind),
        _costs(run),
        _settings(run),
    ]
    title = html.escape(f"gags: {run.folder.root.resolve().name}")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    return f'<!doctype html><html lang="en"><head>{head}<style>{_STYLE}</style></head><body>{"".join(sections)}</body></html>\n'


def _section(title: str, words: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(words)}</p>{''.join(parts)}</section>"


def _image(picture: Picture, words: str, side_px: int) -> str:
    """A picture inside the page, its longer side at most ``side_px``."""
    height, width = picture.shape[:2]
    scale = min(1.0, side_px / max(height, width))
    small = resize_image(picture, max(1, round(width * scale)), max(1, round(height * scale)))
    data = base64.b64encode(encode_jpeg(small, _JPEG_QUALITY)).decode()
    size = f'width="{small.shape[1]}" height="{small.shape[0]}"'
    return f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(words)}" {size} loading="lazy">'


def _row(pictures: Sequence[tuple[str, Picture]], side_px: int, columns: int | None = None) -> str:
    """Pictures with their captions, all beside each other where no number of columns is given."""
    figures = (
        f"<figure>{_image(picture, words, side_px)}<figcaption>{html.escape(words)}</figcaption></figure>"
        for words, picture in pictures
    )
    style = f"grid-template-columns:repeat({columns or len(pictures)},minmax(0,1fr))"
    return f'<div class="row" style="{style}">{"".join(figures)}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numeric: Sequence[int] = ()) -> str:
    """A table of cells that are HTML already; the columns ``numeric`` are set flush right."""

    def line(cells: Sequence[str], tag: str) -> str:
        marks = ((' class="n"' if index in numeric else "", cell) for index, cell in enumerate(cells))
        return f"<tr>{''.join(f'<{tag}{mark}>{cell}</{tag}>' for mark, cell in marks)}</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    cells = (f"<div><b>{html.escape(value)}</b>{html.escape(name)}</div>" for name, value in facts)
    return f'<div class="facts">{"".join(cells)}</div>'


def _spread(views: Sequence[View], count: int) -> list[View]:
    """So many views, evenly spread."""
    places = torch.linspace(0, len(views) - 1, min(count, len(views))).round().long()
    return [views[index] for index in places.tolist()]


def _head(run: Run, kind: FieldKind | None) -> str:
    description = run.description
    seconds = sum(stage.get("seconds", 0.0) for stage in description["stages"].values())
    facts = [
        ("photographs", str(len(run.scene.views))),
        ("splats", f"{len(run.gaussians):,}".replace(",", " ")),
        ("field", kind or run.default_field),
        ("minutes of work", f"{seconds / 60:.1f}"),
    ]
    made_with = f"segmenter: {description['segmenter'].split(',')[0]}; encoder: {description['encoder'].split(',')[0]}"
    name = html.escape(run.folder.root.resolve().name)
    return f"<h1>{name}</h1><p>{html.escape(description['source'])}<br>{html.escape(made_with)}</p>{_facts(facts)}"


def _metrics(run: Run) -> str:
    parts = []
    for name, kind in ((HELD_OUT_QUALITY, "held-out views"), (TRAINING_QUALITY, "training views")):
        quality = run.folder.path(name)
        if quality.exists():
            found = read_json(quality)
            facts = [("PSNR, dB", f"{found['psnr_db']:.2f}"), ("SSIM", f"{found['ssim']:.3f}")]
            facts.append((kind, str(len(found["per_view"]))))
            parts.append(_facts(facts))
            if found.get("badly_explained"):
                parts.append(f"<p>badly explained: {html.escape(', '.join(found['badly_explained']))}</p>")
    rows = []
    for path in sorted(run.folder.path("metrics").glob("evaluation*.json")):
        entry = read_json(path)
        evaluation = Evaluation.from_json(entry)
        numbers = (f"{100 * evaluation.miou:.1f}", f"{100 * evaluation.localisation_accuracy:.1f}")
        words = (entry.get("field", run.default_field), evaluation.protocol, evaluation.split)
        rows.append([*map(html.escape, words), *numbers, str(len(evaluation.pairs))])
    if rows:
        parts.append(_table(("field", "protocol", "split", "mIoU %", "localised %", "pairs"), rows, (3, 4, 5)))
    if not parts:
        return ""
    return _section(
        "Metrics", "As 'gags evaluate' measured them; numbers of different protocols must not be compared.", *parts
    )


def _labelled(run: Run) -> Frames:
    """Labels of the run's views; none where there are no labels, or only of photographs that are no views."""
    try:
        return [] if run.labels_folder is None else labelled_views(run, run.labels_folder)
    except GagsError:
        return []


def _inventory(
    run: Run, kind: FieldKind | None, encoder: ImageTextEncoder, query_config: QueryConfig, config: ReportConfig
) -> Inventory | None:
    """None where no cluster is large enough, as in a scene of a few dozen splats."""
    field = run.field(kind)
    try:
        things = InventoryConfig(max_things=config.max_things)
        return take_inventory(field, run.scene.views, VOCABULARY, encoder, query_config, things)
    except NothingFoundError:
        return None


def _phrases(frames: Frames, inventory: Inventory | None, config: ReportConfig) -> list[str]:
    if config.phrases:
        return list(config.phrases)
    phrases = [label.category for _, frame in frames for label in frame.labels]
    if not phrases and inventory is not None:
        phrases = [thing.phrases[0][0] for thing in inventory.things]
    return list(dict.fromkeys(phrases))[:6]


def _queries(
    run: Run, kind: FieldKind | None, phrases: Sequence[str], query_config: QueryConfig, config: ReportConfig
) -> str:
    if not phrases:
        return ""
    field = run.field(kind)
    selections = query_3d(field, phrases, run.encoder, query_config)
    # where nothing is selected, the most relevant splats show where to look
    groups = [
        selection.gaussian_ids if len(selection.gaussian_ids) else selection.relevancy.topk(1).indices
        for selection in selections
    ]
    rows = []
    for phrase, view in zip(phrases, best_views(run.gaussians, groups, run.scene.views), strict=True):
        camera = view.camera.limited(_QUERY_SIDE_PX)
        # filters as wide as they are in the whole photograph
        kernel_px = max(1, round(query_config.kernel_px * camera.width / view.camera.width))
        (hit,) = query(field, camera, [phrase], run.encoder, dataclasses.replace(query_config, kernel_px=kernel_px))
        photo = view.image(_QUERY_SIDE_PX)
        found = draw_mask(photo, hit.mask, FOUND_COLOR)
        if hit.box_xyxy_px is not None:
            found = draw_box(found, hit.box_xyxy_px, FOUND_COLOR)
        found = draw_point(found, hit.point_xy_px, (255, 255, 255))
        rows.append((f"{phrase}: {view.name}, score {hit.score:.2f}", found))
        rows.append((f"{phrase}: heat", overlay(photo, hit.heat)))
    words = "Each phrase in the view that shows its splats best: mask, box and point, and where the view fits it more or less."
    return _section("Queries", words, _row(rows, config.side_px, columns=4))


def _inventory_section(run: Run, inventory: Inventory | None, frames: Frames, query_config: QueryConfig) -> str:
    if inventory is None:
        return ""
    rows = []
    for thing in inventory.things:
        crop = thing_crop(run.scene, thing)
        names = "<br>".join(f"{html.escape(phrase)} {score:.2f}" for phrase, score in thing.phrases[:3])
        size = thing.box_world[1] - thing.box_world[0]
        rows.append(
            [
                "" if crop is None else _image(crop, thing.phrases[0][0], _CROP_SIDE_PX),
                names,
                str(len(thing.gaussian_ids)),
                _numbers(thing.centroid_world),
                _numbers(size),
                html.escape(thing.view_name),
            ]
        )
    words = (
        "Clusters of splats that are near each other and mean the same, with the phrases of the vocabulary that fit them better "
        "than they fit the scene; 0.5 is what the canonical negatives get. Places and sizes in scene units."
    )
    head = ("best view", "phrases", "splats", "centre", "size", "view")
    return _section("Inventory", words, _recall(run, inventory, frames, query_config), _table(head, rows, (2,)))


def _recall(run: Run, inventory: Inventory, frames: Frames, query_config: QueryConfig) -> str:
    if not frames:
        return ""
    objects = inventory_recall(inventory, run.gaussians, frames, run.encoder, query_config)
    missing = ", ".join(each.phrase for each in objects if not each.found)
    words = (
        f"{sum(each.found for each in objects)} of {len(objects)} labelled objects are in this list by place and name"
    )
    return f"<p>{html.escape(words + (f'; missing: {missing}' if missing else ''))}.</p>"


def _view_section(
    run: Run, kind: FieldKind | None, views: Sequence[View], query_config: QueryConfig, config: ReportConfig
) -> str:
    cameras = [view.camera.limited(config.side_px) for view in views]
    modes: dict[str, RenderMode] = {"splats": "rgb", "depth": "depth", "features (3 components)": "feature"}
    if run.field(kind).knows_granularity:
        modes["granularity: red subpart, green part, blue whole"] = "granularity"
    painters = {words: painter(run, cameras, mode, None, kind, query_config) for words, mode in modes.items()}
    rows = []
    for view, camera in zip(views, cameras, strict=True):
        pictures = [(f"{view.name}{' (held out)' if view.held_out else ''}", view.image(config.side_px))]
        pictures += [(words, paint(camera)) for words, paint in painters.items()]
        rows.append(_row(pictures, config.side_px))
    words = "Photographs and what the splats show from the same place. Colours mean the same in all rows."
    return _section("Views", words, *rows)


def _mask_section(run: Run, views: Sequence[View], config: ReportConfig) -> str:
    if not run.folder.path("masks/stage.json").exists():
        return ""
    rows = []
    for view in views:
        masks = run.masks[view.name]
        photo = view.image(config.side_px)
        height, width = photo.shape[:2]
        label_height, label_width = masks.label_maps.shape[1:]
        pictures = []
        if len(masks.prompts_xy_px):
            scaled = masks.prompts_xy_px * torch.tensor([width / label_width, height / label_height])
            pictures.append((f"{view.name}: {len(scaled)} prompt points", _dotted(photo, scaled)))
        for level in LEVELS:
            labels = torch.nn.functional.interpolate(masks.label_maps[level][None, None].float(), (height, width))[0, 0]
            count = int((masks.granularity == level).sum())
            pictures.append((f"{level.name.lower()}: {count} masks", _tinted(photo, labels.long())))
        rows.append(_row(pictures, config.side_px))
    words = "Where the segmenter was asked (denser where things are far away), and the masks at three levels; grey is unlabelled."
    return _section("Masks", words, *rows)


def _dotted(photo: Picture, xy_px: Float[Tensor, "point 2"]) -> Picture:
    """A dot of 2 x 2 pixels at every point."""
    height, width = photo.shape[:2]
    dotted = photo.clone()
    for dy in (0, -1):
        for dx in (0, -1):
            column = (xy_px[:, 0].round().long() + dx).clamp(0, width - 1)
            row = (xy_px[:, 1].round().long() + dy).clamp(0, height - 1)
            dotted[row, column] = torch.tensor([255, 235, 60], dtype=torch.uint8)
    return dotted


def _tinted(photo: Picture, labels: Int[Tensor, "height width"]) -> Picture:
    """Every label in a colour of its own over the photograph, the unlabelled in grey."""
    grey = photo.float().mean(dim=-1, keepdim=True)
    # steps of the golden section: neighbouring numbers get hues far apart
    count = int(labels.max()) + 1
    hues = [colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.75, 1.0) for index in range(max(count, 1))]
    colors = torch.tensor(hues)[labels.clamp(min=0)] * 255
    tinted = torch.where((labels >= 0)[..., None], 0.4 * grey + 0.6 * colors, 0.5 * grey)
    return tinted.clamp(0, 255).round().to(torch.uint8)


def _training(run: Run, kind: FieldKind | None) -> str:
    parts = []
    reconstruction = read_log(run.folder.path("logs/reconstruct.jsonl"))
    if reconstruction:
        parts.append(_curves("reconstruction", reconstruction))
    distillation = read_log(run.folder.path("logs/distill.jsonl"))
    if (kind or run.default_field) == "gad":
        # runs without logs have the same rows in the field itself
        distillation = distillation or run.field(kind).meta.statistics.get("history", [])
    if distillation:
        parts.append(_curves("distillation", distillation))
    return (
        _section("Training", "Each point is the mean since the one before it, by iteration.", *parts) if parts else ""
    )


def _curves(stage: str, rows: Sequence[dict[str, float]]) -> str:
    names = dict.fromkeys(name for row in rows for name in row if name != "iteration")
    xs = [row["iteration"] for row in rows]
    charts = (line_chart(f"{stage}: {name}", xs, [row.get(name, float("nan")) for row in rows]) for name in names)
    return f'<div class="charts">{"".join(charts)}</div>'


def _costs(run: Run) -> str:
    stages = run.description["stages"]
    longest = max((stage.get("seconds", 0.0) for stage in stages.values()), default=0.0) or 1.0
    rows = [
        [
            html.escape(name),
            f"{stage.get('seconds', 0.0):.1f}",
            f'<div class="bar" style="width:{260 * stage.get("seconds", 0.0) / longest:.0f}px"></div>',
            f"{stage.get('peak_memory_mb', 0.0):.0f}",
        ]
        for name, stage in stages.items()
    ]
    total = sum(stage.get("seconds", 0.0) for stage in stages.values())
    rows.append(["<b>total</b>", f"<b>{total:.1f}</b>", "", ""])
    return _section("Time and memory", "Of each stage.", _table(("stage", "seconds", "", "peak MB"), rows, (1, 3)))


def _settings(run: Run) -> str:
    description = run.description
    told = {
        key: description[key] for key in ("gags", "source", "segmenter", "encoder", "versions", "machine", "config")
    }
    rows = [(html.escape(name), html.escape(value)) for name, value in _flat(told)]
    table = (
        f"<details><summary>all settings, models and versions</summary>{_table(('setting', 'value'), rows)}</details>"
    )
    return _section("Settings", "What this run can be made again with; run.json holds the same.", table)


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names and values."""
    if isinstance(value, dict):
        return [row for key, item in value.items() for row in _flat(item, f"{prefix}.{key}" if prefix else key)]
    return [(prefix, "none" if value is None else str(value))]


def _numbers(values: Float[Tensor, " 3"]) -> str:
    return " ".join(f"{value:.2f}" for value in values.tolist())
