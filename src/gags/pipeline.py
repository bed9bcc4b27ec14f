"""The chain from photographs to a searchable field: joins stage functions to the run folder, in order."""

from __future__ import annotations

import dataclasses
import logging
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gags.distill import DistillConfig, DistillState, LanguageField, LiftConfig, distill, lift
from gags.encode import EncodeConfig, ImageTextEncoder, encode, make_encoder
from gags.errors import GagsError
from gags.evaluate import Evaluation, Labels, evaluate, load_labels
from gags.gaussians import Gaussians, read_splats, write_splats
from gags.progress import track
from gags.query import QueryConfig, relevancy_maps, teacher_relevancy
from gags.rasterize import render
from gags.reconstruct import ReconstructConfig, ReconstructState, measure_views, reconstruct
from gags.scene import Scene, SceneConfig, load_scene, read_scene, save_scene
from gags.segment import (
    SegmentConfig,
    Segmenter,
    ViewMasks,
    arrays_to_view_masks,
    make_segmenter,
    segment,
    view_masks_to_arrays,
)
from gags.store import (
    RunFolder,
    Stage,
    fingerprint_files,
    read_arrays,
    read_json,
    read_tensors,
    write_arrays,
    write_json,
    write_tensors,
)

logger = logging.getLogger(__name__)

FieldKind = Literal["gad", "lift"]
Product = TypeVar("Product")


@dataclass(frozen=True)
class RunConfig:
    """Every setting of the whole chain."""

    scene: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    """Which photographs, at which size."""
    reconstruct: ReconstructConfig = dataclasses.field(default_factory=ReconstructConfig)
    """Training of the Gaussians on colour."""
    segment: SegmentConfig = dataclasses.field(default_factory=SegmentConfig)
    """GaS: masks at three granularities."""
    encode: EncodeConfig = dataclasses.field(default_factory=EncodeConfig)
    """Masks to unit features."""
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    """GaD: the learned language field."""
    lift: LiftConfig = dataclasses.field(default_factory=LiftConfig)
    """The training-free language field."""
    segmenter: Literal["hierarchy"] = "hierarchy"
    """Segmentation model: hierarchy is built in."""
    encoder: Literal["conse"] = "conse"
    """Vision-language model: conse is built in."""
    field: Literal["gad", "lift", "both"] = "gad"
    """The field to make: gad (learned), lift (closed form), or both."""
    splats: Path | None = None
    """A trained .ply scene (Inria layout) to use instead of reconstructing."""
    labels: Path | None = None
    """Folder of LERF-OVS labels; SCENE/labels is used where it exists."""
    exclude_labelled: bool = False
    """Use the labelled views for nothing but evaluation (the strict split)."""


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
        return _stored_depths(self.folder.finished_stage("depth"), self.scene)

    @property
    def masks(self) -> Mapping[str, ViewMasks]:
        """Masks of every training view, read on access."""
        return _stored_masks(self.folder.finished_stage("masks"), self.scene)

    @property
    def embeddings(self) -> Mapping[str, Float[Tensor, "mask width"]]:
        """Features of every mask, read on access."""
        return _stored_embeddings(self.folder.finished_stage("features"), self.scene)

    @property
    def field_kinds(self) -> tuple[FieldKind, ...]:
        """The fields that this run holds."""
        kinds: tuple[FieldKind, ...] = ("gad", "lift")
        return tuple(kind for kind in kinds if self.folder.path(f"field/{kind}/field.safetensors").exists())

    def field(self, kind: FieldKind | None = None) -> LanguageField:
        """The language field (None: the one that run.json names, or else the only one)."""
        named = self.description["config"]["field"]
        wanted = kind or ("gad" if named == "both" else named)
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


def run(
    source: Path,
    out: Path,
    config: RunConfig,
    *,
    segmenter: Segmenter | None = None,
    encoder: ImageTextEncoder | None = None,
) -> Run:
    """Make everything a query needs from photographs, resuming what an earlier call left.

    Args:
        source: a COLMAP scene or a folder of photographs.
        out: the run folder.
        segmenter, encoder: models to use instead of those that the config names.

    Raises GagsError for input that cannot be used; what was finished before it stays.
    """
    labels_folder = config.labels or (source / "labels" if (source / "labels").is_dir() else None)
    excluded = _labelled_names(labels_folder) if config.exclude_labelled else []
    folder = RunFolder.create(out)
    segmenter = segmenter or make_segmenter(config.segmenter)
    encoder = encoder or make_encoder(config.encoder)

    scene_stage = _make_scene(folder, source, config, excluded)
    _describe(folder, source, config, segmenter, encoder)
    scene = read_scene(scene_stage.folder)
    splats_stage = _make_splats(folder, scene_stage, scene, config)
    gaussians = read_splats(splats_stage.path("splats.ply"))
    depth_stage = _make_depths(folder, splats_stage, scene, gaussians, config)
    depths = _stored_depths(depth_stage, scene)
    masks_stage = _make_masks(folder, depth_stage, scene, gaussians, depths, segmenter, config)
    masks = _stored_masks(masks_stage, scene)
    features_stage = _make_features(folder, masks_stage, scene, masks, encoder, config)
    embeddings = _stored_embeddings(features_stage, scene)
    if config.field in ("gad", "both"):
        _make_gad(folder, features_stage, scene, gaussians, masks, embeddings, encoder.name, config)
    if config.field in ("lift", "both"):
        _make_lift(folder, features_stage, scene, gaussians, masks, embeddings, encoder.name, config)
    _describe(folder, source, config, segmenter, encoder)
    return Run(folder, encoder, segmenter)


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
        protocol="rendered",
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


def _labelled_names(labels_folder: Path | None) -> list[str]:
    if labels_folder is None:
        raise GagsError("--exclude-labelled: expected labels in SCENE/labels or --labels DIR, found neither")
    return sorted(load_labels(labels_folder).image_names)


def _describe(
    folder: RunFolder, source: Path, config: RunConfig, segmenter: Segmenter, encoder: ImageTextEncoder
) -> None:
    """Write run.json: what was asked for, with what, and what each stage cost."""
    stages = {}
    for record in sorted(folder.root.glob("*/stage.json")) + sorted(folder.root.glob("field/*/stage.json")):
        found = read_json(record)
        keys = ("fingerprint", "complete", "seconds", "peak_memory_mb")
        stages[found["stage"]] = {key: found[key] for key in keys if key in found}
    folder.describe(
        {
            "gags": package_version("gags"),
            "source": str(source.resolve()),
            "config": config,
            "segmenter": segmenter.name,
            "encoder": encoder.name,
            "versions": {
                "python": platform.python_version(),
                **{name: package_version(name) for name in ("torch", "numba", "numpy", "gsplat", "transformers")},
            },
            "machine": {"system": platform.platform(), "threads": torch.get_num_threads()},
            "stages": stages,
        }
    )


def package_version(name: str) -> str:
    """The installed version of a package, or ``not installed``."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _make_scene(folder: RunFolder, source: Path, config: RunConfig, excluded: list[str]) -> Stage:
    if not source.is_dir():
        raise GagsError(f"{source}: expected a folder (a COLMAP scene or photographs), found {_kind(source)}")
    parts = [part for part in ("sparse", "colmap", config.scene.images_folder) if (source / part).is_dir()]
    content = {part: fingerprint_files(source / part) for part in parts} or {"photos": fingerprint_files(source, "*")}
    stage = folder.stage("scene", {"source": content, "scene": config.scene, "excluded": excluded})
    if not stage.complete:
        with stage.building():
            scene = load_scene(source, config.scene, stage.path("work"))
            unknown = set(excluded) - {view.name for view in scene.views}
            if unknown:
                raise GagsError(
                    f"{source}: expected an image for every label, found none named {', '.join(sorted(unknown))}; "
                    "labels are matched by exact file name"
                )
            save_scene(scene.holding_out(set(excluded)), stage.folder)
            # made cameras and undistorted pictures: the saved scene holds what is needed of them
            shutil.rmtree(stage.path("work"), ignore_errors=True)
    return stage


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"


def _make_splats(folder: RunFolder, scene_stage: Stage, scene: Scene, config: RunConfig) -> Stage:
    ingredients: dict[str, Any] = {"scene": scene_stage.fingerprint}
    if config.splats is None:
        ingredients["reconstruct"] = config.reconstruct
    else:
        if not config.splats.is_file():
            raise GagsError(f"{config.splats}: expected a .ply file of Gaussians, found {_kind(config.splats)}")
        ingredients["splats"] = fingerprint_files(config.splats)
    stage = folder.stage("splats", ingredients)
    if not stage.complete:
        with stage.building():
            if config.splats is not None:
                gaussians = read_splats(config.splats)
            else:
                resume, save, clear = _checkpoint(stage, ReconstructState.from_state)
                gaussians = reconstruct(scene, config.reconstruct, resume, save)
                clear()
            write_splats(stage.path("splats.ply"), gaussians)
            quality = measure_views(gaussians, scene.held_out_views, config.reconstruct.max_side_px)
            if quality:
                write_json(folder.path("metrics/reconstruction.json"), _quality(quality, len(gaussians)))
    return stage


def _quality(quality: Sequence[Any], n_gaussians: int) -> dict[str, Any]:
    return {
        "n_gaussians": n_gaussians,
        "n_held_out": len(quality),
        "psnr_db": sum(view.psnr for view in quality) / len(quality),
        "ssim": sum(view.ssim for view in quality) / len(quality),
        "per_view": quality,
    }


def _make_depths(
    folder: RunFolder, splats_stage: Stage, scene: Scene, gaussians: Gaussians, config: RunConfig
) -> Stage:
    max_side_px = config.segment.max_side_px
    stage = folder.stage("depth", {"splats": splats_stage.fingerprint, "max_side_px": max_side_px})
    if not stage.complete:
        with stage.building():
            for view in track(scene.training_views, "depth"):
                path = stage.path(_file_name(view.name))
                if not path.exists():
                    depth = render(gaussians, view.camera.limited(max_side_px)).depth
                    write_tensors(path, {"depth": depth})
    return stage


def _make_masks(
    folder: RunFolder,
    depth_stage: Stage,
    scene: Scene,
    gaussians: Gaussians,
    depths: Mapping[str, Float[Tensor, "height width"]],
    segmenter: Segmenter,
    config: RunConfig,
) -> Stage:
    ingredients = {"depth": depth_stage.fingerprint, "segment": config.segment, "segmenter": segmenter.name}
    stage = folder.stage("masks", ingredients)
    if not stage.complete:
        with stage.building():
            done = _done(stage, scene, ".npz")
            results = segment(scene, gaussians, depths, segmenter, config.segment, skip=done)
            for name, masks in track(results, "segment", total=len(scene.training_views) - len(done)):
                write_arrays(stage.path(_file_name(name, ".npz")), view_masks_to_arrays(masks))
    return stage


def _make_features(
    folder: RunFolder,
    masks_stage: Stage,
    scene: Scene,
    masks: Mapping[str, ViewMasks],
    encoder: ImageTextEncoder,
    config: RunConfig,
) -> Stage:
    ingredients = {"masks": masks_stage.fingerprint, "encode": config.encode, "encoder": encoder.name}
    stage = folder.stage("features", ingredients)
    if not stage.complete:
        with stage.building():
            done = _done(stage, scene)
            results = encode(scene, masks, encoder, config.encode, skip=done)
            for name, embeddings in track(results, "encode", total=len(scene.training_views) - len(done)):
                write_tensors(stage.path(_file_name(name)), {"embeddings": embeddings})
    return stage


def _make_gad(
    folder: RunFolder,
    features_stage: Stage,
    scene: Scene,
    gaussians: Gaussians,
    masks: Mapping[str, ViewMasks],
    embeddings: Mapping[str, Float[Tensor, "mask width"]],
    encoder_name: str,
    config: RunConfig,
) -> Stage:
    stage = folder.stage("field/gad", {"features": features_stage.fingerprint, "distill": config.distill})
    if not stage.complete:
        with stage.building():
            resume, save, clear = _checkpoint(stage, DistillState.from_state)
            language_field = distill(scene, gaussians, masks, embeddings, config.distill, resume, save, encoder_name)
            clear()
            write_tensors(stage.path("field.safetensors"), *language_field.to_state())
    return stage


def _make_lift(
    folder: RunFolder,
    features_stage: Stage,
    scene: Scene,
    gaussians: Gaussians,
    masks: Mapping[str, ViewMasks],
    embeddings: Mapping[str, Float[Tensor, "mask width"]],
    encoder_name: str,
    config: RunConfig,
) -> Stage:
    stage = folder.stage("field/lift", {"features": features_stage.fingerprint, "lift": config.lift})
    if not stage.complete:
        with stage.building():
            language_field = lift(scene, gaussians, masks, embeddings, config.lift, encoder_name)
            write_tensors(stage.path("field.safetensors"), *language_field.to_state())
    return stage


def _checkpoint(
    stage: Stage, from_state: Callable[[dict[str, Tensor], dict[str, Any]], Product]
) -> tuple[Product | None, Callable[[Any], None], Callable[[], None]]:
    """A training's way to go on after a kill: the state to resume from, how to save one, how to drop it."""
    path = stage.path("checkpoint.safetensors")
    resume = from_state(*read_tensors(path)) if path.exists() else None
    return resume, lambda state: write_tensors(path, *state.to_state()), lambda: path.unlink(missing_ok=True)


def _file_name(view_name: str, suffix: str = ".safetensors") -> str:
    """The file of a view in a stage's folder; view names may contain folders, which stay distinct."""
    return view_name.replace("/", "__") + suffix


def _done(stage: Stage, scene: Scene, suffix: str = ".safetensors") -> set[str]:
    return {view.name for view in scene.training_views if stage.path(_file_name(view.name, suffix)).exists()}


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


def _stored_depths(stage: Stage, scene: Scene) -> Mapping[str, Float[Tensor, "height width"]]:
    return _PerView(scene, lambda name: read_tensors(stage.path(_file_name(name)))[0]["depth"])


def _stored_masks(stage: Stage, scene: Scene) -> Mapping[str, ViewMasks]:
    return _PerView(scene, lambda name: arrays_to_view_masks(read_arrays(stage.path(_file_name(name, ".npz")))))


def _stored_embeddings(stage: Stage, scene: Scene) -> Mapping[str, Float[Tensor, "mask width"]]:
    return _PerView(scene, lambda name: read_tensors(stage.path(_file_name(name)))[0]["embeddings"])
