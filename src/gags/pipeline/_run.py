"""The chain from photographs to a searchable field: every stage in order, and what the user brings in place of one."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from gags.encode import ImageTextEncoder, make_encoder
from gags.errors import GagsError
from gags.evaluate import load_labels
from gags.exchange import LanguageFeatures, read_field
from gags.gaussians import Gaussians, read_splats
from gags.logs import require_tensorboard
from gags.pipeline._config import RunConfig
from gags.pipeline._stages import (
    Watcher,
    make_depths,
    make_features,
    make_field,
    make_masks,
    make_scene,
    make_splats,
    require_photographs,
)
from gags.progress import track
from gags.runs import FIELD_KINDS, Run, file_name, stored_depths, stored_embeddings, stored_masks
from gags.scene import Scene, read_scene
from gags.segment import (
    Segmenter,
    make_segmenter,
    view_masks_to_arrays,
)
from gags.store import (
    RunFolder,
    Stage,
    fingerprint_files,
    read_record,
    write_arrays,
    write_tensors,
)

STAGES = ("scene", "splats", "depth", "masks", "features", *(f"field/{kind}" for kind in FIELD_KINDS))
"""The folders of a run, in the order in which they are made."""


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
    scene_stage = make_scene(folder, source, config, excluded)
    _describe(folder, source, config, segmenter, encoder)
    scene = read_scene(scene_stage.folder)
    if config.labels is not None and not config.reference_quirks:
        # before hours of work
        require_photographs(source, scene, load_labels(config.labels).image_names)
    features = _language_features(scene, encoder, config)
    if watcher is not None:
        watcher.scene(scene)
    splats_stage = make_splats(folder, scene_stage, scene, config, watcher)
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
            depth_stage = make_depths(folder, splats_stage, scene, gaussians, config)
            depths = stored_depths(depth_stage, scene)
            masks_stage = make_masks(folder, depth_stage, scene, gaussians, depths, segmenter, config)
            features_stage = make_features(
                folder, masks_stage, scene, stored_masks(masks_stage, scene), encoder, config
            )
        products = stored_masks(masks_stage, scene), stored_embeddings(features_stage, scene)
        for kind in FIELD_KINDS if config.field == "all" else (config.field,):
            make_field(kind, folder, features_stage, scene, gaussians, *products, encoder.name, config, watcher)
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


def _kind(path: Path) -> str:
    return "a file" if path.exists() else "nothing"
