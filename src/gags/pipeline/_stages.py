"""The stages, each joined to its folder of the run: made, or kept where its ingredients are the same."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jaxtyping import Float
from torch import Tensor

from gags.distill import DistillState, distill, galift, lift
from gags.encode import ImageTextEncoder, adapted, encode, scene_prior
from gags.errors import GagsError
from gags.gaussians import Gaussians, read_splats, write_splats
from gags.logs import LogRow, training_log
from gags.pipeline._config import RunConfig
from gags.progress import track
from gags.rasterize import render
from gags.reconstruct import FAR_BELOW_DB, ReconstructState, ViewQuality, badly_explained, measure_views, reconstruct
from gags.runs import HELD_OUT_QUALITY, PRIOR_FILE, TRAINING_QUALITY, FieldKind, file_name, stored_prior
from gags.scene import Scene, load_scene, save_scene
from gags.segment import (
    Segmenter,
    ViewMasks,
    segment,
    view_masks_to_arrays,
)
from gags.store import (
    RunFolder,
    Stage,
    fingerprint_files,
    read_tensors,
    write_arrays,
    write_json,
    write_tensors,
)

logger = logging.getLogger(__name__)

Product = TypeVar("Product")

_FEW_SUSPECTS = 0.05
"""Up to this share of photographs may come out badly without a word: a blurred one, somebody who walked by."""


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


def make_scene(folder: RunFolder, source: Path, config: RunConfig, excluded: Sequence[str]) -> Stage:
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
        require_photographs(source, scene, excluded)
        save_scene(scene.holding_out(set(excluded)), stage.folder)
        # made cameras and undistorted pictures: the saved scene holds what is needed of them
        shutil.rmtree(stage.path("work"), ignore_errors=True)


def require_photographs(source: Path, scene: Scene, names: Sequence[str]) -> None:
    """Raise a GagsError for labels of photographs that are none of the scene's."""
    unknown = set(names) - {view.name for view in scene.views} - set(scene.left_out)
    if unknown:
        raise GagsError(
            f"{source}: expected an image for every label, found none named {', '.join(sorted(unknown))}; "
            "labels are matched by exact file name"
        )


def make_splats(
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
            for name in (HELD_OUT_QUALITY, TRAINING_QUALITY):
                folder.path(name).unlink(missing_ok=True)
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
            _measure(folder, gaussians, scene, config)
    return stage


def _measure(folder: RunFolder, gaussians: Gaussians, scene: Scene, config: RunConfig) -> None:
    """How well the splats explain the photographs: those that were held out, and those that they were trained on."""
    max_side_px = config.reconstruct.max_side_px
    held_out = measure_views(gaussians, scene.held_out_views, max_side_px)
    if held_out:
        write_json(
            folder.path(HELD_OUT_QUALITY),
            {"n_gaussians": len(gaussians), "n_held_out": len(held_out)} | _means(held_out),
        )
    training = measure_views(gaussians, scene.training_views, max_side_px)
    if not training:
        return
    suspects = badly_explained(training)
    path = folder.path(TRAINING_QUALITY)
    write_json(path, {"n_views": len(training), "badly_explained": suspects} | _means(training))
    if len(suspects) > _FEW_SUSPECTS * len(training):
        logger.warning(
            "%d of %d photographs come out %g dB or more worse than the good ones (%s; all in %s), as they do where cameras are "
            "off or things moved: answers suffer there%s",
            len(suspects),
            len(training),
            FAR_BELOW_DB,
            ", ".join(suspects[:3]) + (", ..." if len(suspects) > 3 else ""),
            path,
            "" if config.scene.cameras == "photographs" else "; --scene.cameras photographs makes the cameras anew",
        )


def _means(qualities: Sequence[ViewQuality]) -> dict[str, Any]:
    return {
        "psnr_db": sum(view.psnr for view in qualities) / len(qualities),
        "ssim": sum(view.ssim for view in qualities) / len(qualities),
        "per_view": qualities,
    }


def make_depths(folder: RunFolder, splats_stage: Stage, scene: Scene, gaussians: Gaussians, config: RunConfig) -> Stage:
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


def make_masks(
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


def make_features(
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
            prior = stored_prior(stage)
            if prior is None and (prior := scene_prior(scene, masks, encoder, config.encode)) is not None:
                write_tensors(stage.path(PRIOR_FILE), {"prior": prior})
            results = encode(scene, masks, adapted(encoder, prior), config.encode, skip=done)
            for name, embeddings in track(results, "encode", total=len(scene.training_views) - len(done)):
                write_tensors(stage.path(file_name(name)), {"embeddings": embeddings})
    return stage


def make_field(
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
