"""Training logs: every row once, also after a kill; TensorBoard shows the same numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from blobs import blob_scene
from gags.distill import DistillConfig, DistillState, distill
from gags.errors import GagsError
from gags.logs import read_log, require_tensorboard, training_log
from gags.pipeline import run
from gags.presets import TINY
from gags.reconstruct import ReconstructConfig, ReconstructState, reconstruct
from gags.scene import SceneConfig, load_scene


def row(iteration: int) -> dict[str, float]:
    return {"iteration": iteration, "loss": 1 / iteration}


def test_rows_are_on_disk_at_once_and_a_new_training_starts_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "a.jsonl"
    assert read_log(path) == []
    with training_log(path, 0) as log:
        log(row(5))
        assert read_log(path) == [row(5)]
        log(row(10))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row(5), row(10)]
    with training_log(path, 0) as log:
        log(row(3))
    assert read_log(path) == [row(3)]


def test_what_comes_again_after_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row(iteration)) + "\n" for iteration in (5, 10, 15)) + '{"iteration": 20, "lo')
    assert read_log(path) == [row(5), row(10), row(15)], "half a row is no row"
    with training_log(path, 10) as log:
        log(row(15))
    assert read_log(path) == [row(5), row(10), row(15)]


def test_an_interrupted_reconstruction_logs_what_an_uninterrupted_one_does(tiny_scene: Path, tmp_path: Path) -> None:
    scene = load_scene(tiny_scene, SceneConfig(), tmp_path)
    config = ReconstructConfig(
        iterations=130, max_side_px=64, sh_degree=0, refine_start=40, refine_every=20, checkpoint_every=70
    )
    whole: list[dict[str, float]] = []
    states: list[ReconstructState] = []
    reconstruct(scene, config, None, states.append, whole.append)
    assert [entry["iteration"] for entry in whole] == [50, 100, 130]
    assert whole[-1]["psnr_db"] > whole[0]["psnr_db"] + 1 and whole[-1]["loss"] < whole[0]["loss"]
    assert whole[0]["gaussians"] > 100
    rest: list[dict[str, float]] = []
    state = ReconstructState.from_state(*states[0].to_state())
    reconstruct(scene, config, state, None, rest.append)
    assert rest == whole[1:], "iterations 51 to 70 are in the checkpoint"


def test_an_interrupted_distillation_logs_what_an_uninterrupted_one_does() -> None:
    blobs = blob_scene()
    config = DistillConfig(iterations=24, downscale=1, pixels_per_iteration=64, log_every=10, checkpoint_every=13)
    products = (blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings, config)
    whole: list[dict[str, float]] = []
    states: list[DistillState] = []
    field = distill(*products, None, states.append, "", whole.append)
    assert whole == field.meta.statistics["history"]
    assert [entry["iteration"] for entry in whole] == [10, 20, 24]
    rest: list[dict[str, float]] = []
    distill(*products, states[0], None, "", rest.append)
    assert rest == whole[1:]


def test_a_run_logs_both_trainings(tiny_run: Path) -> None:
    reconstruction = read_log(tiny_run / "logs/reconstruct.jsonl")
    assert [entry["iteration"] for entry in reconstruction] == [50, 100, 150]
    distillation = read_log(tiny_run / "logs/distill.jsonl")
    assert [entry["iteration"] for entry in distillation] == [50, 100, 150, 200]
    assert set(distillation[0]) == {"iteration", "total", "distill", "entropy", "region"}


def test_tensorboard_is_asked_for_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gags.logs.find_spec", lambda name: None)
    with pytest.raises(GagsError, match=r"pip install 'gags\[tensorboard\]'"):
        require_tensorboard()
    with pytest.raises(GagsError, match="--tensorboard"):
        run(tmp_path / "nowhere", tmp_path / "out", dataclasses.replace(TINY, tensorboard=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_shows_every_row_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path, events = tmp_path / "a.jsonl", tmp_path / "tensorboard" / "a"
    with training_log(path, 0, events) as log:
        for iteration in (5, 10, 15):
            log(row(iteration))
    with training_log(path, 10, events) as log:
        log(row(15))
        log(row(20))
    shown = EventAccumulator(str(events)).Reload()
    assert [(event.step, pytest.approx(event.value)) for event in shown.Scalars("loss")] == [
        (iteration, 1 / iteration) for iteration in (5, 10, 15, 20)
    ]
