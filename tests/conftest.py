"""Options and scenes that all tests share."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import settings

# the first example compiles or imports: a time limit per example would measure that; a fixed seed keeps CI repeatable
settings.register_profile("gags", deadline=None, derandomize=True)
settings.load_profile("gags")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-dir", type=Path, default=None, help="folder of reference fixtures (*.npz)")
    parser.addoption("--scenes-dir", type=Path, default=None, help="folder of real scenes (bonsai/, garden_points/)")
    parser.addoption("--chromium", type=Path, default=None, help="Chromium's program, where it is not on the path")


@pytest.fixture(scope="session")
def parity_dir(request: pytest.FixtureRequest) -> Path:
    """The folder with the reference's inputs and outputs."""
    folder = request.config.getoption("--parity-dir")
    if folder is None:
        pytest.skip("no --parity-dir given: the reference fixtures are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def scenes_dir(request: pytest.FixtureRequest) -> Path:
    """The folder with real photographs."""
    folder = request.config.getoption("--scenes-dir")
    if folder is None:
        pytest.skip("no --scenes-dir given: real photographs are not part of the repository")
    return folder


@pytest.fixture(scope="session")
def tiny_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny analytic scene of tests/tiny.py on disk; treat it as read-only."""
    from tiny import write_scene

    return write_scene(tmp_path_factory.mktemp("tiny") / "scene")


@pytest.fixture(scope="session")
def tiny_run(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny scene with all fields, its labelled view held out, by models that know its truth; read-only.

    Commands open it through ``true_models``.
    """
    import tiny
    from gags.pipeline import run
    from gags.presets import TINY

    out = tmp_path_factory.mktemp("tiny_run") / "run"
    config = dataclasses.replace(TINY, field="all", exclude_labelled=True)
    run(tiny_scene, out, config, segmenter=tiny.TrueSegmenter(), encoder=tiny.TrueEncoder())
    return out


@pytest.fixture
def true_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands find the true models behind whatever names flags and run.json give."""
    import tiny

    monkeypatch.setattr("gags.runs.make_encoder", lambda *_: tiny.TrueEncoder())
    monkeypatch.setattr("gags.pipeline._run.make_encoder", lambda *_: tiny.TrueEncoder())
    monkeypatch.setattr("gags.pipeline._run.make_segmenter", lambda *_: tiny.TrueSegmenter())
