"""The chain from photographs to a searchable field: joins stage functions to the run folder, in order."""

from __future__ import annotations

import dataclasses
import logging
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gags.distill import DistillConfig, DistillState, GaliftConfig, LiftConfig, distill, galift, lift
from gags.encode import EncodeConfig, EncoderName, ImageTextEncoder, encode, make_encoder
from gags.errors import GagsError
from gags.evaluate import load_labels
from gags.exchange import LanguageFeatures, read_field
from gags.gaussians import Gaussians, read_splats, write_splats
from gags.logs import LogRow, require_tensorboard, training_log
from gags.progress import track
from gags.rasterize import render
from gags.reconstruct import ReconstructConfig, ReconstructState, measure_views, reconstruct
from gags.runs import FIELD_KINDS, FieldKind, Run, file_name, stored_depths, stored_embeddings, stored_masks
from gags.scene import Scene, SceneConfig, load_scene, read_scene, save_scene
from gags.segment import (
    SegmentConfig,
    Segmenter,
    SegmenterName,
    ViewMasks,
    make_segmenter,
    segment,
    view_masks_to_arrays,
)
from gags.settings import check_settings
from gags.store import (
    RunFolder,
    Stage,
    fingerprint_files,
    read_record,
    read_tensors,
    write_arrays,
    write_json,
    write_tensors,
)

logger = logging.getLogger(__name__)

Product = TypeVar("Product")

STAGES = ("scene", "splats", "depth", "masks", "features", *(f"field/{kind}" for kind in FIELD_KINDS))
"""The folders of a run, in the order in which they are made."""


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
    galift: GaliftConfig = dataclasses.field(default_factory=GaliftConfig)
    """The training-free language field of the level that each Gaussian trusts."""
    segmenter: SegmenterName = "hierarchy"
    """Segmentation model: hierarchy is built in; sam and sam2 need weights."""
    segmenter_weights: str | None = None
    """Weights of sam or sam2: a folder in transformers form, a hub name or (sam) Meta's .pth; None: the largest model."""
    encoder: EncoderName = "conse"
    """Vision-language model: conse is built in; clip (the paper's) and siglip need weights."""
    encoder_weights: str | None = None
    """Weights of clip or siglip: a folder in transformers form or a hub name; None: the paper's CLIP, or SigLIP 2."""
    field: FieldKind | Literal["all"] = "gad"
    """The field to make: gad (learned; the paper's), lift (closed form), galift (closed form, granularity-aware), or all."""
    splats: Path | None = None
    """A trained .ply scene (Inria layout) to use instead of reconstructing."""
    language_features: Path | None = None
    """Folder with a *_s.npy and a *_f.npy file for each photograph (the reference implementation's label maps and mask
    features) to use instead of segmenting and encoding; --encoder must name the model that made them."""
    decoders: Path | None = None
    """Folder with feature_decoder.pth and perhaps granularity_decoder.pth, checkpoints of the reference implementation: the
    field is taken from them and the semantic_* properties of --splats instead of being made."""
    labels: Path | None = None
    """Folder of LERF-OVS labels; SCENE/labels is used where it exists."""
    exclude_labelled: bool = False
    """Use the labelled views for nothing but evaluation (the strict split)."""
    tensorboard: bool = False
    """Write the training logs (RUN/logs/*.jsonl) for TensorBoard as well, into RUN/logs/tensorboard."""
    reference_quirks: bool = False
    """Do everything as the reference implementation does, queries and evaluation of the run included, also what cannot be
    meant (docs/method.md has the list)."""

    def check(self) -> None:
        """Raise a GagsError for a setting of any stage that no work can be done with."""
        for field in dataclasses.fields(self):
            settings = getattr(self, field.name)
            if dataclasses.is_dataclass(settings):
                check_settings(settings, f"{field.name}.")

    def with_quirks(self) -> RunConfig:
        """This config with ``reference_quirks`` passed on to every stage that has them."""
        if not self.reference_quirks:
            return self
        stages = {
            name: dataclasses.replace(getattr(self, name), reference_quirks=True)
            for name in ("segment", "encode", "distill")
        }
        return dataclasses.replace(self, **stages)


class Watcher(Protocol):
    """Somebody who looks on while a run is made (``view.LiveView``); what is made does not depend on it."""

    def scene(self, scene: Scene) -> None:
        """The cameras are known."""
        ...

    def splats(self, gaussians: Gaussians, words: str) -> None:
        """The Gaussians at some step of their training."""
        ...

    def features(self, gaussians: Gaussians, features: Float[Tensor, "gaussian d"], words: str) -> None:
        """The features at some step of their training."""
        ...

    def words(self, words: str) -> None:
        """What is being done."""
        ...


def run(
    source: Path,
    out: Path,
    config: RunConfig,
    *,
    segmenter: Segmenter | None = None,
    encoder: ImageTextEncoder | None = None,
    watcher: Watcher | None = None,
) -> Run:
    """Make everything a query needs from photographs, resuming what an earlier call left.

    Args:
        source: a COLMAP scene or a folder of photographs.
        out: the run folder.
        segmenter, encoder: models to use instead of those that the config names.
        watcher: is shown the trainings at their checkpoints.

    Raises GagsError for input that cannot be used; what was finished before it stays.
    """
    config.check()
    if config.tensorboard:
        require_tensorboard()
    if not source.is_dir():
        raise GagsError(
            f"{source}: expected a folder (a COLMAP scene or photographs), found {_kind(source)}; check the path"
        )
    if config.labels is not None:
        # they are used after hours of work
        load_labels(config.labels)
    labels_folder = config.labels or (source / "labels" if (source / "labels").is_dir() else None)
    excluded = _labelled_names(labels_folder) if config.exclude_labelled else []
    _check_brought_files(config)
    config = dataclasses.replace(
        config.with_quirks(),
        segmenter_weights=_absolute(config.segmenter_weights),
        encoder_weights=_absolute(config.encoder_weights),
        language_features=config.language_features and config.language_features.resolve(),
    )
    segmenter = segmenter or make_segmenter(config.segmenter, config.segmenter_weights)
    encoder = encoder or make_encoder(config.encoder, config.encoder_weights)
    folder = RunFolder.create(out)
    with folder.locked():
        _make_all(folder, source, excluded, config, segmenter, encoder, watcher)
    return Run(folder, encoder, segmenter)


def _make_all(
    folder: RunFolder,
    source: Path,
    excluded: Sequence[str],
    config: RunConfig,
    segmenter: Segmenter,
    encoder: ImageTextEncoder,
    watcher: Watcher | None,
) -> None:
    """Every stage in turn, from the products of those before."""
    scene_stage = _make_scene(folder, source, config, excluded)
    _describe(folder, source, config, segmenter, encoder)
    scene = read_scene(scene_stage.folder)
    if config.labels is not None and not config.reference_quirks:
        _check_labels(scene, config.labels)
    features = _language_features(scene, encoder, config)
    if watcher is not None:
        watcher.scene(scene)
    splats_stage = _make_splats(folder, scene_stage, scene, config, watcher)
    gaussians = read_splats(splats_stage.path("splats.ply"))
    if watcher is not None:
        watcher.splats(gaussians, "the splats are trained")
        watcher.words("the splats are trained; masks and their features are made")
    if config.decoders is not None:
        _take_field(folder, splats_stage, gaussians, encoder, config)
    else:
        if features is not None:
            masks_stage, features_stage = _take_features(folder, splats_stage, scene, features, encoder)
        else:
            depth_stage = _make_depths(folder, splats_stage, scene, gaussians, config)
            depths = stored_depths(depth_stage, scene)
            masks_stage = _make_masks(folder, depth_stage, scene, gaussians, depths, segmenter, config)
            features_stage = _make_features(
                folder, masks_stage, scene, stored_masks(masks_stage, scene), encoder, config
            )
        products = stored_masks(masks_stage, scene), stored_embeddings(features_stage, scene)
        for kind in FIELD_KINDS if config.field == "all" else (config.field,):
            _make_field(kind, folder, features_stage, scene, gaussians, *products, encoder.name, config, watcher)
    _describe(folder, source, config, segmenter, encoder)


def _absolute(weights: str | None) -> str | None:
    """A path that run.json can be opened with from anywhere; hub names stay."""
    path = Path(weights or "").expanduser()
    return str(path.resolve()) if weights and path.exists() else weights


def _check_brought_files(config: RunConfig) -> None:
    """Raise a GagsError for files that are to be used and are not there, before anything is made."""
    if config.splats is not None and not config.splats.is_file():
        raise GagsError(f"{config.splats}: expected a .ply file of Gaussians, found {_kind(config.splats)}")
    if config.decoders is not None and (config.splats is None or config.field != "gad"):
        raise GagsError(
            f"--decoders {config.decoders}: expected --splats FILE.ply with semantic_* properties and --field gad, found "
            f"{'no --splats' if config.splats is None else f'--field {config.field}'}; the features are in the .ply"
        )


def _language_features(scene: Scene, encoder: ImageTextEncoder, config: RunConfig) -> LanguageFeatures | None:
    """The features that the user brings along, if any; a GagsError if they do not fit the scene or the encoder."""
    if config.language_features is None:
        return None
    features = LanguageFeatures.open(config.language_features, [view.name for view in scene.training_views])
    _check_width(config.language_features, features.width, encoder)
    return features


def _check_width(source: Path, width: int, encoder: ImageTextEncoder) -> None:
    if width != encoder.width:
        raise GagsError(
            f"{source}: expected features of width {encoder.width}, in the space of encoder {encoder.name}, found width "
            f"{width}; name the model that made them, for instance --encoder clip --encoder-weights FOLDER"
        )


def _take_features(
    folder: RunFolder, splats_stage: Stage, scene: Scene, features: LanguageFeatures, encoder: ImageTextEncoder
) -> tuple[Stage, Stage]:
    """The masks and features stages from files that the user brings along."""
    files = fingerprint_files(features.folder, "*.npy")
    masks_stage = folder.stage("masks", {"splats": splats_stage.fingerprint, "language_features": files})
    features_stage = folder.stage("features", {"masks": masks_stage.fingerprint, "encoder": encoder.name})
    if not (masks_stage.complete and features_stage.complete):
        with masks_stage.building(), features_stage.building():
            for view in track(scene.training_views, "read features"):
                masks, embeddings = features.read(view.name, view.camera)
                write_arrays(masks_stage.path(file_name(view.name, ".npz")), view_masks_to_arrays(masks))
                write_tensors(features_stage.path(file_name(view.name)), {"embeddings": embeddings})
    return masks_stage, features_stage


def _take_field(
    folder: RunFolder, splats_stage: Stage, gaussians: Gaussians, encoder: ImageTextEncoder, config: RunConfig
) -> None:
    """The gad field from the files of a training that the reference implementation did."""
    assert config.splats is not None and config.decoders is not None
    ingredients = {
        "splats": splats_stage.fingerprint,
        "decoders": fingerprint_files(config.decoders, "*.pth"),
        "encoder": encoder.name,
    }
    stage = folder.stage("field/gad", ingredients)
    if not stage.complete:
        with stage.building():
            language_field = read_field(gaussians, config.splats, config.decoders, encoder.name)
            _check_width(config.decoders, language_field.meta.embedding_width, encoder)
            write_tensors(stage.path("field.safetensors"), *language_field.to_state())


def _labelled_names(labels_folder: Path | None) -> list[str]:
    if labels_folder is None:
        raise GagsError("--exclude-labelled: expected labels in SCENE/labels or --labels DIR, found neither")
    return sorted(load_labels(labels_folder).image_names)


def _check_labels(scene: Scene, labels_folder: Path) -> None:
    """Raise a GagsError for labels of photographs that are none of the scene's, before hours are spent."""
    unknown = set(load_labels(labels_folder).image_names) - {view.name for view in scene.views} - set(scene.left_out)
    if unknown:
        raise GagsError(
            f"{labels_folder}: expected labels of the scene's photographs, found labels of {', '.join(sorted(unknown))}; correct "
            "the names in their info, or leave these files out"
        )


def _describe(
    folder: RunFolder, source: Path, config: RunConfig, segmenter: Segmenter, encoder: ImageTextEncoder
) -> None:
    """Write run.json: what was asked for, with what, and what each stage cost."""
    stages = {}
    for name in STAGES:
        record = read_record(folder.path(name))
        if record is not None:
            keys = ("fingerprint", "complete", "seconds", "peak_memory_mb")
            stages[name] = {key: record[key] for key in keys if key in record}
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


def _make_scene(folder: RunFolder, source: Path, config: RunConfig, excluded: Sequence[str]) -> Stage:
    parts = [part for part in ("sparse", "colmap", config.scene.images_folder) if (source / part).is_dir()]
    content = {part: fingerprint_files(source / part) for part in parts} or {"photos": fingerprint_files(source, "*")}
    stage = folder.stage("scene", {"source": content, "scene": config.scene, "excluded": excluded})
    if not stage.complete:
        try:
            _build_scene(stage, source, config, excluded)
        except GagsError:
            # nothing half-written stays, but cameras that took long to make do
            if not stage.path("work/model").exists():
                shutil.rmtree(stage.folder)
            raise
    return stage


def _build_scene(stage: Stage, source: Path, config: RunConfig, excluded: Sequence[str]) -> None:
    with stage.building():
        scene = load_scene(source, config.scene, stage.path("work"))
        unknown = set(excluded) - {view.name for view in scene.views} - set(scene.left_out)
        if unknown:
            raise GagsError(
                f"{source}: expected an image for every label, found none named {', '.join(sorted(unknown))}; "
                "labels are matched by exact file name"
            )
        save_scene(scene.holding_out(set(excluded)), stage.folder)
        # made cameras and undistorted pictures: the saved scene holds what is needed of them
        shutil.rmtree(stage.path("work"), ignore_errors=True)


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"


def _make_splats(
    folder: RunFolder, scene_stage: Stage, scene: Scene, config: RunConfig, watcher: Watcher | None
) -> Stage:
    ingredients: dict[str, Any] = {"scene": scene_stage.fingerprint}
    if config.splats is None:
        ingredients["reconstruct"] = config.reconstruct
    else:
        ingredients["splats"] = fingerprint_files(config.splats)
    stage = folder.stage("splats", ingredients)
    if not stage.complete:
        with stage.building():
            path = stage.path("splats.ply")
            quality_path = folder.path("metrics/reconstruction.json")
            quality_path.unlink(missing_ok=True)
            if not path.exists():
                resume, save, clear = _checkpoint(stage, ReconstructState.from_state)

                def save_and_show(state: ReconstructState) -> None:
                    save(state)
                    if watcher is not None:
                        words = f"training the splats: {state.step} of {config.reconstruct.iterations} iterations"
                        watcher.splats(state.gaussians(), words)

                if config.splats is None:
                    with _training_log(folder, "reconstruct", resume.step if resume else 0, config) as log:
                        write_splats(path, reconstruct(scene, config.reconstruct, resume, save_and_show, log))
                else:
                    folder.path("logs/reconstruct.jsonl").unlink(missing_ok=True)
                    write_splats(path, read_splats(config.splats))
                clear()
            gaussians = read_splats(path)
            quality = measure_views(gaussians, scene.held_out_views, config.reconstruct.max_side_px)
            if quality:
                write_json(quality_path, _quality(quality, len(gaussians)))
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
                path = stage.path(file_name(view.name))
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
                write_arrays(stage.path(file_name(name, ".npz")), view_masks_to_arrays(masks))
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
                write_tensors(stage.path(file_name(name)), {"embeddings": embeddings})
    return stage


def _make_field(
    kind: FieldKind,
    folder: RunFolder,
    features_stage: Stage,
    scene: Scene,
    gaussians: Gaussians,
    masks: Mapping[str, ViewMasks],
    embeddings: Mapping[str, Float[Tensor, "mask width"]],
    encoder_name: str,
    config: RunConfig,
    watcher: Watcher | None,
) -> Stage:
    settings: dict[FieldKind, Any] = {
        "gad": {"distill": config.distill},
        "lift": {"lift": config.lift},
        "galift": {"galift": config.galift},
    }
    stage = folder.stage(f"field/{kind}", {"features": features_stage.fingerprint, **settings[kind]})
    if not stage.complete:
        with stage.building():
            resume, save, clear = _checkpoint(stage, DistillState.from_state)

            def save_and_show(state: DistillState) -> None:
                save(state)
                if watcher is not None:
                    words = f"learning features: {state.iteration} of {config.distill.iterations} iterations"
                    watcher.features(gaussians, state.tensors["features"], words)

            products = (scene, gaussians, masks, embeddings)
            if kind == "gad":
                with _training_log(folder, "distill", resume.iteration if resume else 0, config) as log:
                    language_field = distill(*products, config.distill, resume, save_and_show, encoder_name, log)
            elif kind == "lift":
                language_field = lift(*products, config.lift, encoder_name)
            else:
                language_field = galift(*products, config.galift, encoder_name)
            write_tensors(stage.path("field.safetensors"), *language_field.to_state())
            clear()
    return stage


def _training_log(
    folder: RunFolder, name: str, done: int, config: RunConfig
) -> AbstractContextManager[Callable[[LogRow], None]]:
    """Where a training's numbers go: RUN/logs/NAME.jsonl."""
    tensorboard = folder.path(f"logs/tensorboard/{name}") if config.tensorboard else None
    return training_log(folder.path(f"logs/{name}.jsonl"), done, tensorboard)


def _checkpoint(
    stage: Stage, from_state: Callable[[dict[str, Tensor], dict[str, Any]], Product]
) -> tuple[Product | None, Callable[[Any], None], Callable[[], None]]:
    """A training's way to go on after a kill: the state to resume from, how to save one, how to drop it."""
    path = stage.path("checkpoint.safetensors")
    resume = from_state(*read_tensors(path)) if path.exists() else None
    return resume, lambda state: write_tensors(path, *state.to_state()), lambda: path.unlink(missing_ok=True)


def _done(stage: Stage, scene: Scene, suffix: str = ".safetensors") -> set[str]:
    return {view.name for view in scene.training_views if stage.path(file_name(view.name, suffix)).exists()}
