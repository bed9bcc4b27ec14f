"""A finished run folder: its products, read when asked for, and how good its answers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gags.distill import LanguageField
from gags.encode import EncodeConfig, ImageTextEncoder, encode, make_encoder
from gags.evaluate import Evaluation, Labels, evaluate, load_labels
from gags.gaussians import Gaussians, read_splats
from gags.query import QueryConfig, relevancy_maps, teacher_relevancy
from gags.rasterize import render
from gags.scene import Scene, read_scene
from gags.segment import SegmentConfig, Segmenter, ViewMasks, arrays_to_view_masks, make_segmenter, segment
from gags.store import RunFolder, Stage, read_arrays, read_tensors

FieldKind = Literal["gad", "lift"]
Product = TypeVar("Product")


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
        kinds: tuple[FieldKind, ...] = ("gad", "lift")
        return tuple(kind for kind in kinds if self.folder.path(f"field/{kind}/field.safetensors").exists())

    @property
    def default_field(self) -> FieldKind:
        """The field that the run was made with; gad of both."""
        named = self.description["config"]["field"]
        return "gad" if named == "both" else named

    def field(self, kind: FieldKind | None = None) -> LanguageField:
        """The language field (None: ``default_field``)."""
        wanted = kind or self.default_field
        stage = self.folder.finished_stage(f"field/{wanted}")
        tensors, metadata = read_tensors(stage.path("field.safetensors"))
        return LanguageField.from_state(self.gaussians, tensors, metadata)

    @cached_property
    def encoder(self) -> ImageTextEncoder:
        """The encoder whose space the field is in."""
        return self.encoder_override or make_encoder(self.description["config"]["encoder"])

    def split(self, labels: Labels) -> Literal["published", "strict", "mixed"]:
        """``strict`` if every labelled view is held out, ``published`` if none is, else ``mixed``."""
        held_out_names = {view.name for view in self.scene.held_out_views}
        held_out = [name in held_out_names for name in labels.image_names]
        return "strict" if all(held_out) else "mixed" if any(held_out) else "published"


def open_run(path: Path, encoder: ImageTextEncoder | None = None) -> Run:
    """Open a finished run folder; ``encoder`` replaces the one it names."""
    return Run(RunFolder.open(path), encoder)


def evaluate_run(
    run: Run, labels_folder: Path, what: Literal["gad", "lift", "teacher"] | None, query_config: QueryConfig
) -> Evaluation:
    """The paper's metrics of a field (None: the run's own), or of the 2D teacher: each view's own masks and features."""
    labels = load_labels(labels_folder)
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
        protocol="teacher" if what == "teacher" else "rendered",
        split=run.split(labels),
        config=query_config,
        image_names={view.name for view in run.scene.views},
    )


def _teacher(run: Run, names: set[str]) -> tuple[Mapping[str, ViewMasks], Mapping[str, Float[Tensor, "mask width"]]]:
    """Masks and features of these views; those that were held out are segmented and encoded now, for evaluation alone."""
    held_out = {view.name for view in run.scene.held_out_views} & names
    if not held_out:
        return run.masks, run.embeddings
    views = tuple(replace(view, held_out=view.held_out and view.name not in names) for view in run.scene.views)
    scene = replace(run.scene, views=views)
    others = {view.name for view in scene.training_views} - held_out
    made_by = run.folder.finished_stage("masks").ingredients
    segment_config = SegmentConfig(**made_by["segment"])
    encode_config = EncodeConfig(**run.folder.finished_stage("features").ingredients["encode"])
    segmenter = run.segmenter_override or make_segmenter(run.description["config"]["segmenter"])
    depths = dict(run.depths) | {
        view.name: render(run.gaussians, view.camera.limited(segment_config.max_side_px)).depth
        for view in scene.training_views
        if view.name in held_out
    }
    masks = dict(segment(scene, run.gaussians, depths, segmenter, segment_config, skip=others))
    embeddings = dict(encode(scene, masks, run.encoder, encode_config, skip=others))
    trained = names & set(run.masks)
    return (
        masks | {name: run.masks[name] for name in trained},
        embeddings | {name: run.embeddings[name] for name in trained},
    )


def file_name(view_name: str, suffix: str = ".safetensors") -> str:
    """The file of a view in a stage's folder; view names may contain folders, which stay distinct."""
    return view_name.replace("/", "__") + suffix


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
