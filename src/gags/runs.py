"""A finished run folder: its products, read when asked for, and how good its answers are."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gags.distill import LanguageField
from gags.encode import EncodeConfig, ImageTextEncoder, adapted, encode, make_encoder
from gags.errors import GagsError
from gags.evaluate import (
    Consistency,
    ConsistencyConfig,
    Evaluation,
    FrameLabels,
    HitsOf,
    Labels,
    Protocol,
    consistency,
    evaluate,
    evaluate_hits,
    load_labels,
    moved_frame,
    reference_labels,
)
from gags.exchange import LanguageFeatures
from gags.gaussians import Gaussians, read_splats
from gags.geometry import Camera
from gags.query import Hit, QueryConfig, query_3d, relevancy_maps, render_selection, teacher_relevancy
from gags.rasterize import render
from gags.scene import Scene, positions_in_photograph, read_scene
from gags.segment import SegmentConfig, Segmenter, ViewMasks, arrays_to_view_masks, make_segmenter, segment
from gags.store import (
    RunFolder,
    Stage,
    fingerprint_files,
    read_arrays,
    read_json,
    read_record,
    read_tensors,
    to_json,
    write_json,
)

logger = logging.getLogger(__name__)

FieldKind = Literal["gad", "lift", "galift"]
"""Learned, lifted from all levels alike, lifted from the level each Gaussian trusts."""
FIELD_KINDS: tuple[FieldKind, ...] = ("gad", "lift", "galift")
HELD_OUT_QUALITY = "metrics/reconstruction.json"
TRAINING_QUALITY = "metrics/training_views.json"
PRIOR_FILE = "%prior.safetensors"
"""Beside the features: what their encoder was adapted by. No view's ``file_name`` has a percent sign before a letter."""
Product = TypeVar("Product")
Settings = TypeVar("Settings", SegmentConfig, EncodeConfig)


@dataclass(frozen=True)
class Run:
    """A run folder, opened: its products are read when asked for."""

    folder: RunFolder
    encoder_override: ImageTextEncoder | None = None
    """An encoder to use instead of the one named in run.json."""
    segmenter_override: Segmenter | None = None
    """A segmenter to use instead of the one named in run.json."""

    @cached_property
    def description(self) -> dict[str, Any]:
        """The contents of run.json."""
        return self.folder.description()

    @cached_property
    def scene(self) -> Scene:
        """The views at working resolution."""
        return read_scene(self.folder.finished_stage("scene").folder)

    @cached_property
    def gaussians(self) -> Gaussians:
        """The trained splats."""
        return read_splats(self.folder.finished_stage("splats").path("splats.ply"))

    @property
    def depths(self) -> Mapping[str, Float[Tensor, "height width"]]:
        """Rendered depth of every training view."""
        return stored_depths(self.folder.finished_stage("depth"), self.scene)

    @property
    def masks(self) -> Mapping[str, ViewMasks]:
        """Masks of every training view, read on access."""
        return stored_masks(self.folder.finished_stage("masks"), self.scene)

    @property
    def embeddings(self) -> Mapping[str, Float[Tensor, "mask width"]]:
        """Features of every mask, read on access."""
        return stored_embeddings(self.folder.finished_stage("features"), self.scene)

    @property
    def field_kinds(self) -> tuple[FieldKind, ...]:
        """The fields that this run holds."""
        return tuple(kind for kind in FIELD_KINDS if self.folder.path(f"field/{kind}/field.safetensors").exists())

    @property
    def default_field(self) -> FieldKind:
        """The field that the run was made with; galift of several, which is what the presets for everyday use make."""
        named = self.description["config"]["field"]
        return named if named in FIELD_KINDS else "galift"

    def field(self, kind: FieldKind | None = None) -> LanguageField:
        """The language field (None: ``default_field``)."""
        wanted = kind or self.default_field
        if self.field_kinds and wanted not in self.field_kinds:
            raise GagsError(
                f"{self.folder.root}: expected the field {wanted}, found {', '.join(self.field_kinds)}; name one of these with "
                f"--field, or make it: gags run ... --field {wanted}"
            )
        stage = self.folder.finished_stage(f"field/{wanted}")
        tensors, metadata = read_tensors(stage.path("field.safetensors"))
        return LanguageField.from_state(self.gaussians, tensors, metadata)

    @cached_property
    def encoder(self) -> ImageTextEncoder:
        """The encoder whose space the field is in."""
        if self.encoder_override is not None:
            return self.encoder_override
        config = self.description["config"]
        encoder = make_encoder(config["encoder"], config.get("encoder_weights"))
        self._require_same("encoder", encoder.name)
        return encoder

    @cached_property
    def tile_encoder(self) -> ImageTextEncoder:
        """``encoder`` as the run's masks were encoded with it: adapted to the scene."""
        return adapted(self.encoder, stored_prior(self.folder.finished_stage("features")))

    @property
    def segment_config(self) -> SegmentConfig:
        """What the masks were made with."""
        return self._settings("masks", "segment", SegmentConfig)

    @property
    def encode_config(self) -> EncodeConfig:
        """What the features were made with."""
        return self._settings("features", "encode", EncodeConfig)

    def _settings(self, stage: str, name: str, kind: type[Settings]) -> Settings:
        """Settings of a stage as it noted them."""
        noted = self.folder.finished_stage(stage).ingredients[name]
        if unknown := sorted(noted.keys() - {field.name for field in fields(kind)}):
            raise GagsError(
                f"{self.folder.root}: expected {stage} made with settings that this version of gags has, found "
                f"{', '.join(unknown)}; make them again: the command of 'gags run' that made the run"
            )
        return kind(**noted)

    @cached_property
    def segmenter(self) -> Segmenter:
        """The model that made the masks."""
        if self.segmenter_override is not None:
            return self.segmenter_override
        config = self.description["config"]
        segmenter = make_segmenter(config["segmenter"], config.get("segmenter_weights"))
        self._require_same("segmenter", segmenter.name)
        return segmenter

    def _require_same(self, model: Literal["encoder", "segmenter"], found: str) -> None:
        """Raise a GagsError where a model is not the one that the run was made with."""
        if found != self.description[model]:
            raise GagsError(
                f"{self.folder.path('run.json')}: expected the {model} that the run was made with "
                f"({self.description[model]}), found {found}; put its weights back, or run again"
            )

    def query_config(self, config: QueryConfig) -> QueryConfig:
        """``config``, with the reference's quirks where the run was made with them."""
        quirks = config.reference_quirks or bool(self.description["config"].get("reference_quirks"))
        return replace(config, reference_quirks=quirks)

    @property
    def labels_folder(self) -> Path | None:
        """The labels that the run was made with, where they still are; None if there are none."""
        named = self.description["config"].get("labels") or Path(self.description["source"]) / "labels"
        return Path(named) if Path(named).is_dir() else None

    def split(self, labels: Labels) -> Literal["published", "strict", "mixed"]:
        """``strict`` if every labelled view is held out, ``published`` if none is, else ``mixed``."""
        held_out_names = {view.name for view in self.scene.held_out_views}
        held_out = [name in held_out_names for name in labels.image_names]
        return "strict" if all(held_out) else "mixed" if any(held_out) else "published"


def open_run(path: Path, encoder: ImageTextEncoder | None = None) -> Run:
    """Open a finished run folder; ``encoder`` replaces the one it names."""
    return Run(RunFolder.open(path), encoder)


def evaluate_run(
    run: Run,
    labels_folder: Path,
    what: FieldKind | Literal["teacher"] | None,
    query_config: QueryConfig,
    protocol: Protocol = "rendered",
) -> Evaluation:
    """The paper's metrics of a field (None: the run's own), or of the 2D teacher: each view's own masks and features.

    Raises GagsError for the teacher with protocol ``selected``: it has no Gaussians to select.
    """
    labels = _labels_of_views(run.scene, load_labels(labels_folder))
    split = run.split(labels)
    query_config = replace(run.query_config(query_config), exact=True)
    if query_config.reference_quirks:
        labels = reference_labels(labels, [view.name for view in run.scene.training_views])
    labels = _undistorted_labels(run.scene, labels)
    image_names = {view.name for view in run.scene.views}
    if protocol == "selected":
        if what == "teacher":
            raise GagsError(
                "evaluate --field teacher --protocol selected: expected a field in 3D, found the 2D teacher; use --field gad"
            )
        hits_of = _selected_hits(run, run.field(what), labels, query_config)
        return evaluate_hits(
            hits_of, labels, protocol=protocol, split=split, config=query_config, image_names=image_names
        )
    if what == "teacher":
        masks, embeddings = _teacher(run, set(labels.image_names))

        def relevancy_of(
            name: str, width: int, height: int, phrases: Sequence[str]
        ) -> Float[Tensor, "phrase height width"]:
            maps = teacher_relevancy(masks[name], embeddings[name], phrases, run.encoder, query_config)
            return torch.nn.functional.interpolate(maps[None], size=(height, width), mode="bilinear")[0]
    else:
        language_field = run.field(what)

        def relevancy_of(
            name: str, width: int, height: int, phrases: Sequence[str]
        ) -> Float[Tensor, "phrase height width"]:
            camera = run.scene.view(name).camera.resized(width, height)
            return relevancy_maps(language_field, camera, phrases, run.encoder, query_config)

    return evaluate(
        relevancy_of,
        labels,
        protocol="teacher" if what == "teacher" else protocol,
        split=split,
        config=query_config,
        image_names=image_names,
    )


Frames = Sequence[tuple[Camera, FrameLabels]]
"""Labels of views, each with its camera at the labels' size."""


def labelled_views(run: Run, labels_folder: Path) -> Frames:
    """Labels of the run's views as the views show them.

    Raises a GagsError if none of the labelled photographs is a view.
    """
    labels = _undistorted_labels(run.scene, _labels_of_views(run.scene, load_labels(labels_folder)))
    views = {view.name: view for view in run.scene.views}
    return [
        (views[frame.image_name].camera.resized(frame.width, frame.height), frame)
        for frame in labels.frames
        if frame.image_name in views
    ]


def _labels_of_views(scene: Scene, labels: Labels) -> Labels:
    """Without the labels of photographs that the scene left out; a GagsError if none are left."""
    frames = tuple(frame for frame in labels.frames if frame.image_name not in scene.left_out)
    if not frames:
        raise GagsError(
            f"{labels.frames[0].path.parent}: expected labels of at least one of the run's views, found only labels of "
            "photographs that it left out; run with another --scene.every"
        )
    if len(frames) < len(labels.frames):
        logger.info(
            "%d of %d labelled photographs are no views of this run (--scene.every, or no camera): their labels do not count",
            len(labels.frames) - len(frames),
            len(labels.frames),
        )
    return Labels(frames)


def _undistorted_labels(scene: Scene, labels: Labels) -> Labels:
    """Labels as the views show them: those of photographs that were undistorted move with the pixels.

    Labels of exactly the size of a view were drawn on the run's own picture of it, and stay.
    """
    views = {view.name: view for view in scene.views if view.lens is not None}
    frames = list(labels.frames)
    for index, frame in enumerate(frames):
        view = views.get(frame.image_name)
        if view is not None and (frame.width, frame.height) != (view.camera.width, view.camera.height):
            frames[index] = moved_frame(frame, positions_in_photograph(view, frame.width, frame.height))
    return Labels(tuple(frames))


def _selected_hits(run: Run, language_field: LanguageField, labels: Labels, query_config: QueryConfig) -> HitsOf:
    """Every phrase is selected in 3D once, for all frames."""
    found = query_3d(language_field, labels.phrases, run.encoder, query_config) if labels.phrases else []
    selections = {selection.phrase: selection for selection in found}

    def hits_of(name: str, width: int, height: int, phrases: Sequence[str]) -> list[Hit]:
        camera = run.scene.view(name).camera.resized(width, height)
        return [render_selection(run.gaussians, selections[phrase], camera, query_config) for phrase in phrases]

    return hits_of


def evaluate_once(
    run: Run, labels_folder: Path, kind: FieldKind, query_config: QueryConfig, protocol: Protocol
) -> Evaluation:
    """``evaluate_run``, kept in the run folder's metrics: nothing is done again while field, labels and settings stay."""
    made_from = {
        "field": run.folder.finished_stage(f"field/{kind}").fingerprint,
        "labels": fingerprint_files(labels_folder, "*.json"),
        "protocol": protocol,
        "query": to_json(replace(run.query_config(query_config), exact=True)),
    }
    path = run.folder.path(f"metrics/evaluation_{kind}_{protocol}.json")
    if path.exists() and (kept := read_json(path)).get("made_from") == made_from:
        return Evaluation.from_json(kept)
    evaluation = evaluate_run(run, labels_folder, kind, query_config, protocol)
    write_json(path, {"field": kind, **evaluation.to_json(), "made_from": made_from})
    return evaluation


def run_consistency(run: Run, config: ConsistencyConfig) -> Consistency:
    """How well the views' mask features agree on a Gaussian, level by level and as the run's fields weigh the levels."""
    fields = {str(kind): run.field(kind) for kind in run.field_kinds}
    fields = {name: field for name, field in fields.items() if field.knows_granularity}
    return consistency(run.scene, run.gaussians, run.masks, run.embeddings, config, fields)


def share_stages(donor: RunFolder, root: Path, names: Sequence[str]) -> None:
    """Give the run folder ``root`` these finished stages of another, as hard links where the file system has them.

    Nothing is computed and next to nothing written; what ``root`` has already is kept. Files are replaced, never changed, so that
    neither run can spoil the other's.
    """
    for name in names:
        stage, target = donor.finished_stage(name), root / name
        record = read_record(target)
        if record is not None and record["fingerprint"] == stage.fingerprint and record.get("complete"):
            continue
        shutil.rmtree(target, ignore_errors=True)
        temporary = root / f"{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(stage.folder, temporary, copy_function=_link)
        temporary.rename(target)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # another file system, or one without hard links
        shutil.copyfile(source, target)


def _teacher(run: Run, names: set[str]) -> tuple[Mapping[str, ViewMasks], Mapping[str, Float[Tensor, "mask width"]]]:
    """Masks and features of these views; those that were held out are segmented and encoded now, for evaluation alone."""
    held_out = {view.name for view in run.scene.held_out_views} & names
    if not held_out:
        return run.masks, run.embeddings
    brought = run.description["config"].get("language_features")
    if brought is not None:
        features = LanguageFeatures.open(Path(brought), sorted(names))
        read = {name: features.read(name, run.scene.view(name).camera) for name in names}
        return {name: each[0] for name, each in read.items()}, {name: each[1] for name, each in read.items()}
    views = tuple(replace(view, held_out=view.held_out and view.name not in names) for view in run.scene.views)
    scene = replace(run.scene, views=views)
    others = {view.name for view in scene.training_views} - held_out
    segment_config, encode_config = run.segment_config, run.encode_config
    depths = dict(run.depths) | {
        view.name: render(run.gaussians, view.camera.limited(segment_config.max_side_px)).depth
        for view in scene.training_views
        if view.name in held_out
    }
    masks = dict(segment(scene, run.gaussians, depths, run.segmenter, segment_config, skip=others))
    embeddings = dict(encode(scene, masks, run.tile_encoder, encode_config, skip=others))
    trained = names & set(run.masks)
    return (
        masks | {name: run.masks[name] for name in trained},
        embeddings | {name: run.embeddings[name] for name in trained},
    )


def file_name(view_name: str, suffix: str = ".safetensors") -> str:
    """The file of a view in one folder; different names, with or without folders in them, give different files."""
    return view_name.replace("%", "%25").replace("/", "%2F") + suffix


class _PerView(Mapping[str, Product]):
    """Products of the training views, read from disk on access."""

    def __init__(self, scene: Scene, read: Callable[[str], Product]) -> None:
        self._names = tuple(view.name for view in scene.training_views)
        self._read = read

    def __getitem__(self, name: str) -> Product:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def stored_depths(stage: Stage, scene: Scene) -> Mapping[str, Float[Tensor, "height width"]]:
    return _PerView(scene, lambda name: read_tensors(stage.path(file_name(name)))[0]["depth"])


def stored_masks(stage: Stage, scene: Scene) -> Mapping[str, ViewMasks]:
    return _PerView(scene, lambda name: arrays_to_view_masks(read_arrays(stage.path(file_name(name, ".npz")))))


def stored_embeddings(stage: Stage, scene: Scene) -> Mapping[str, Float[Tensor, "mask width"]]:
    return _PerView(scene, lambda name: read_tensors(stage.path(file_name(name)))[0]["embeddings"])


def stored_prior(stage: Stage) -> Float[Tensor, " score"] | None:
    """What the features stage took from its encoder's scores; None: nothing."""
    path = stage.path(PRIOR_FILE)
    return read_tensors(path)[0]["prior"] if path.exists() else None
