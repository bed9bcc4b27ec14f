"""The whole chain on the tiny scene: answers are right, resume rebuilds what it must and nothing else, a kill changes nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import tiny
from gags.errors import GagsError
from gags.pipeline import RunConfig, run
from gags.presets import TINY
from gags.query import QueryConfig, query, query_3d
from gags.report import ReportConfig, make_report
from gags.runs import (
    HELD_OUT_QUALITY,
    PRIOR_FILE,
    TRAINING_QUALITY,
    Run,
    evaluate_run,
    file_name,
    open_run,
    stored_prior,
)
from gags.scene import SceneConfig
from gags.store import read_json, write_json, write_tensors

# the 30 px kernel of the paper is for photographs; here a whole ball is 28 px wide, and 56 px in the labels
QUERY = QueryConfig(kernel_px=5)


def make(scene: Path, out: Path, config: RunConfig) -> Run:
    return run(scene, out, config, segmenter=tiny.TrueSegmenter(), encoder=tiny.TrueEncoder())


@pytest.fixture(scope="module")
def finished(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A strict run with all fields."""
    config = dataclasses.replace(TINY, field="all", exclude_labelled=True)
    return make(tiny_scene, tmp_path_factory.mktemp("run") / "run", config)


def modification_times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kind", ["gad", "lift", "galift"])
def test_every_ball_is_found_in_a_view_that_was_held_out(finished: Run, tiny_scene: Path, kind: str) -> None:
    assert finished.scene.view(tiny.HELD_OUT).held_out
    evaluation = evaluate_run(finished, tiny_scene / "labels", kind, QUERY)
    result = evaluation.to_json()
    assert result["split"] == "strict" and result["protocol"] == "rendered"
    assert result["localisation_accuracy"] == 1.0
    assert result["miou"] > 0.9, result["per_phrase"]


def test_the_red_ball_peaks_on_the_red_ball(finished: Run) -> None:
    view = finished.scene.view(tiny.HELD_OUT)
    (hit,) = query(finished.field("gad"), view.camera, ["red ball"], finished.encoder, QUERY)
    x, y = hit.point_xy_px
    assert tiny.ray_cast(view.camera)[int(y), int(x)] in (1, 2)
    assert hit.score > 0.9


def test_the_splats_of_the_red_ball_lie_on_it(finished: Run) -> None:
    config = dataclasses.replace(QUERY, smooth_radius=0.0)
    (selection,) = query_3d(finished.field("lift"), ["red ball"], finished.encoder, config)
    x, z = tiny.BALLS["red ball"]
    assert len(selection.gaussian_ids) > 50
    assert abs(selection.centroid_world[0] - x) < 0.3 and abs(selection.centroid_world[2] - z) < 0.4


def test_run_json_records_everything(finished: Run) -> None:
    description = json.loads((finished.folder.root / "run.json").read_text())
    assert description["config"]["distill"]["iterations"] == TINY.distill.iterations
    assert description["encoder"] == "true" and description["versions"]["torch"]
    for stage in ("scene", "splats", "depth", "masks", "features", "field/gad", "field/lift", "field/galift"):
        assert description["stages"][stage]["complete"]
        assert description["stages"][stage]["peak_memory_mb"] > 0


def test_an_unchanged_run_rebuilds_nothing_and_a_changed_flag_only_what_follows(
    finished: Run, tiny_scene: Path, tmp_path: Path
) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.folder.root, out)
    config = dataclasses.replace(TINY, field="all", exclude_labelled=True)
    before = modification_times(out)
    make(tiny_scene, out, config)
    assert {name for name, at in modification_times(out).items() if before.get(name) != at} == {"run.json"}

    changed = dataclasses.replace(config, distill=dataclasses.replace(config.distill, iterations=5))
    make(tiny_scene, out, changed)
    touched = {name.rsplit("/", 1)[0] for name, at in modification_times(out).items() if before.get(name) != at}
    assert touched == {"run.json", "field/gad", "logs"}


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tiny_scene: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(TINY, field="gad")
    whole = make(tiny_scene, tmp_path / "whole", config)
    script = (
        "import sys, tiny, dataclasses; from pathlib import Path; from gags.pipeline import run; from gags.presets import TINY;"
        "run(Path(sys.argv[1]), Path(sys.argv[2]), dataclasses.replace(TINY, field='gad'),"
        " segmenter=tiny.TrueSegmenter(), encoder=tiny.TrueEncoder())"
    )
    out = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(Path(tiny.__file__).parent)}
    # killed in the middle of each long stage: as soon as its folder holds a first product
    for stage, pattern in (("splats", "checkpoint*"), ("masks", "*.npz"), ("field/gad", "checkpoint*")):
        process = subprocess.Popen([sys.executable, "-c", script, str(tiny_scene), str(out)], env=environment)
        deadline = time.monotonic() + 120
        while process.poll() is None and not any((out / stage).glob(pattern)) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
    again = make(tiny_scene, out, config)
    for name in ("splats/splats.ply", "field/gad/field.safetensors", "masks/view_00.png.npz"):
        assert digest(again.folder.path(name)) == digest(whole.folder.path(name)), name


class ToldEncoder(tiny.TrueEncoder):
    """Scores are the embeddings; notes what it is adapted by."""

    def __init__(self, prior: Tensor | None = None) -> None:
        self.prior = prior

    def scores(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile score"]:
        return super().encode_tiles(tiles)

    def encode_tiles(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile width"]:
        return self.scores(tiles) if self.prior is None else self.scores(tiles) - self.prior

    def adapted(self, prior: Float[Tensor, " score"]) -> ToldEncoder:
        return ToldEncoder(prior)


def test_an_encoder_is_adapted_to_the_scene_once(finished: Run, tiny_scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.folder.root, out)
    encode = dataclasses.replace(TINY.encode, scene_prior=0.5)
    config = dataclasses.replace(TINY, field="lift", exclude_labelled=True, encode=encode)
    result = run(tiny_scene, out, config, segmenter=tiny.TrueSegmenter(), encoder=ToldEncoder())
    prior = stored_prior(result.folder.finished_stage("features"))
    # scores are one-hot: of their mean half is taken
    assert prior is not None and prior.min() >= 0 and prior.sum() == pytest.approx(0.5)
    (first, *_) = result.scene.training_views
    raw = finished.embeddings[first.name]
    expected = torch.nn.functional.normalize(raw - prior, dim=1)
    torch.testing.assert_close(result.embeddings[first.name], expected)
    # the teacher's held-out views take it too
    again = open_run(out, ToldEncoder())
    assert isinstance(again.tile_encoder, ToldEncoder) and torch.equal(again.tile_encoder.prior, prior)
    assert finished.tile_encoder is finished.encoder
    # a stage that was cut off goes on with the prior that it began with, whatever that was
    stage = result.folder.finished_stage("features")
    write_tensors(stage.path(PRIOR_FILE), {"prior": torch.zeros(9)})
    stage.path(file_name(first.name)).unlink()
    write_json(stage.path("stage.json"), read_json(stage.path("stage.json")) | {"complete": False})
    resumed = run(tiny_scene, out, config, segmenter=tiny.TrueSegmenter(), encoder=ToldEncoder())
    torch.testing.assert_close(resumed.embeddings[first.name], raw)


def test_settings_of_another_version_are_named(finished: Run, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.folder.root, out)
    path = out / "masks" / "stage.json"
    record = read_json(path)
    record["ingredients"]["segment"]["of_the_future"] = 1
    write_json(path, record)
    copy = open_run(out, tiny.TrueEncoder())
    assert copy.encode_config == finished.encode_config == TINY.encode
    with pytest.raises(
        GagsError, match="expected masks made with settings that this version of gags has, found of_the_future"
    ):
        _ = copy.segment_config


def test_a_field_of_earlier_splats_is_not_asked(finished: Run, tiny_scene: Path, tmp_path: Path) -> None:
    out = tmp_path / "copy"
    shutil.copytree(finished.folder.root, out)
    config = dataclasses.replace(TINY, field="gad", exclude_labelled=True)
    make(tiny_scene, out, dataclasses.replace(config, segment=dataclasses.replace(config.segment, seed=9)))
    again = open_run(out, tiny.TrueEncoder())
    assert len(again.field("gad").features) == len(again.gaussians)
    with pytest.raises(
        GagsError, match="expected products of the present stage 'features', found products of an earlier"
    ):
        again.field("lift")


def test_trained_splats_can_be_brought_along(finished: Run, tiny_scene: Path, tmp_path: Path) -> None:
    splats = finished.folder.path("splats/splats.ply")
    config = dataclasses.replace(TINY, field="lift", splats=splats)
    result = make(tiny_scene, tmp_path / "run", config)
    assert len(result.gaussians) == len(finished.gaussians)
    with pytest.raises(GagsError, match=r"none\.ply: expected a \.ply file of Gaussians, found nothing"):
        make(tiny_scene, tmp_path / "other", dataclasses.replace(config, splats=tmp_path / "none.ply"))


def test_photographs_that_contradict_the_others_are_named(
    finished: Run, tiny_scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    swapped = {"view_01.png", "view_06.png"}
    assert not swapped & set(read_json(finished.folder.path(TRAINING_QUALITY))["badly_explained"])
    scene = shutil.copytree(tiny_scene, tmp_path / "swapped")
    first, last = scene / "images/view_01.png", scene / "images/view_06.png"
    first.rename(tmp_path / "first"), last.rename(first), (tmp_path / "first").rename(last)
    config = dataclasses.replace(TINY, splats=finished.folder.path("splats/splats.ply"))
    with caplog.at_level("WARNING", "gags.pipeline"):
        made = make(scene, tmp_path / "run", config)
    quality = read_json(made.folder.path(TRAINING_QUALITY))
    suspects = quality["badly_explained"]
    assert swapped <= set(suspects) and len(suspects) <= 3
    assert quality["n_views"] == len(quality["per_view"]) == 8
    said = f"{len(suspects)} of 8 photographs come out 8 dB or more worse than the good ones ({', '.join(suspects)}; all in"
    assert said in caplog.text and "--scene.cameras photographs" in caplog.text
    assert not made.folder.path(HELD_OUT_QUALITY).exists()
    assert f"badly explained: {', '.join(suspects)}" in make_report(made, None, QUERY, ReportConfig())


def test_the_split_is_named_by_what_was_held_out(tiny_scene: Path, finished: Run, tmp_path: Path) -> None:
    result = make(tiny_scene, tmp_path / "run", dataclasses.replace(TINY, field="lift"))
    assert evaluate_run(result, tiny_scene / "labels", "lift", QUERY).to_json()["split"] == "published"
    teacher = evaluate_run(result, tiny_scene / "labels", "teacher", QUERY).to_json()
    assert teacher["miou"] > 0.9
    # in a strict run the teacher's masks of the labelled views are made for the evaluation
    strict = evaluate_run(finished, tiny_scene / "labels", "teacher", QUERY).to_json()
    assert strict["split"] == "strict" and strict["miou"] > 0.9


def test_labels_of_photographs_that_were_left_out_do_not_count(
    finished: Run, tiny_scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    splats = finished.folder.path("splats/splats.ply")
    config = dataclasses.replace(
        TINY, field="lift", splats=splats, scene=SceneConfig(every=2), labels=tmp_path, exclude_labelled=True
    )
    for number, name in ((1, "view_03.png"), (2, "view_04.png")):
        camera = tiny.cameras()[number + 2]
        (tmp_path / f"{number}.json").write_text(json.dumps(tiny.label(tiny.ray_cast(camera, 2), name)))
    result = make(tiny_scene, tmp_path / "run", config)
    assert [view.name for view in result.scene.held_out_views] == ["view_04.png"]
    with caplog.at_level("INFO", "gags.runs"):
        evaluation = evaluate_run(result, tmp_path, "lift", QUERY).to_json()
    assert list(evaluation["per_frame"]) == ["view_04.png"] and evaluation["split"] == "strict"
    assert "1 of 2 labelled photographs are no views of this run (--scene.every, or no camera)" in caplog.text
    (tmp_path / "2.json").unlink()
    with pytest.raises(GagsError, match="expected labels of at least one of the run's views, found only labels of"):
        evaluate_run(result, tmp_path, "lift", QUERY)


def write_distorted_scene(source: Path, folder: Path) -> None:
    """The tiny scene as a lens with pincushion distortion shows it, its labels drawn on those photographs."""
    width, height, scale = tiny.WIDTH, tiny.HEIGHT, tiny.LABEL_SCALE
    shutil.copytree(source / "sparse", folder / "sparse")
    params = [124.0, width / 2, height / 2, 0.6]
    numbers = " ".join(map(str, params))
    (folder / "sparse/0/cameras.txt").write_text(f"1 SIMPLE_RADIAL {width} {height} {numbers}\n")
    lens = pycolmap.Camera(model="SIMPLE_RADIAL", width=width, height=height, params=params)
    v, u = np.mgrid[: height * scale, : width * scale].reshape(2, -1)
    rays = lens.cam_from_img(np.stack([u + 0.5, v + 0.5], axis=1) / scale)[:, :2]
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for i, camera in enumerate(tiny.cameras()):
        # a pinhole camera wide enough for all that the lens shows
        wide = dataclasses.replace(camera, width=2 * width, height=2 * height, cx_px=float(width), cy_px=float(height))
        columns, rows = np.floor(4 * (124.0 * rays + [width, height])).astype(int).T
        tone = tiny.ray_cast(wide, 4)[rows, columns].reshape(height * scale, width * scale)
        colors = tiny.TONES[tone].reshape(height, scale, width, scale, 3).mean((1, 3)).round().astype(np.uint8)
        name = f"view_{i:02d}.png"
        Image.fromarray(colors).save(folder / "images" / name)
        if name == tiny.HELD_OUT:
            (folder / "labels/view_03.json").write_text(json.dumps(tiny.label(tone, name)))


def test_labels_drawn_on_distorted_photographs_meet_undistorted_views(
    finished: Run, tiny_scene: Path, tmp_path: Path
) -> None:
    source = tmp_path / "scene"
    write_distorted_scene(tiny_scene, source)
    splats = finished.folder.path("splats/splats.ply")
    result = make(source, tmp_path / "run", dataclasses.replace(TINY, field="lift", splats=splats))
    view = result.scene.view(tiny.HELD_OUT)
    assert view.lens is not None and (view.camera.width, view.camera.height) != (tiny.WIDTH, tiny.HEIGHT)
    evaluation = evaluate_run(result, source / "labels", "lift", QUERY)
    assert evaluation.localisation_accuracy == 1.0 and evaluation.miou > 0.9
    # labels drawn on the run's own picture need no moving
    drawn = tmp_path / "drawn"
    drawn.mkdir()
    (drawn / "x.json").write_text(json.dumps(tiny.label(tiny.ray_cast(view.camera), view.name)))
    assert evaluate_run(result, drawn, "lift", QUERY).miou > 0.9


def test_labels_of_an_unknown_image_are_refused(finished: Run, tiny_scene: Path, tmp_path: Path) -> None:
    label = json.loads((tiny_scene / "labels/view_03.json").read_text())
    label["info"]["name"] = "elsewhere.png"
    (tmp_path / "x.json").write_text(json.dumps(label))
    with pytest.raises(
        GagsError, match=r"x\.json: expected the exact name of one of the scene's 8 images .* found 'elsewhere\.png'"
    ):
        evaluate_run(finished, tmp_path, "gad", QUERY)
    with pytest.raises(GagsError, match=r"expected an image for every label, found none named elsewhere\.png"):
        config = dataclasses.replace(TINY, labels=tmp_path, exclude_labelled=True)
        make(tiny_scene, tmp_path / "run", config)
    with pytest.raises(GagsError, match="--exclude-labelled: expected labels"):
        source = tmp_path / "bare"
        source.mkdir()
        make(source, tmp_path / "run", dataclasses.replace(TINY, exclude_labelled=True))


def test_a_run_folder_is_opened_again(finished: Run) -> None:
    again = open_run(finished.folder.root, tiny.TrueEncoder())
    assert len(again.scene.views) == tiny.N_VIEWS
    assert again.field_kinds == ("gad", "lift", "galift")
