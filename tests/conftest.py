"""Options and scenes that all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# the first example compiles or imports: a time limit per example would measure that; a fixed seed keeps CI repeatable
settings.register_profile("gags", deadline=None, derandomize=True)
settings.load_profile("gags")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-dir", type=Path, default=None, help="folder of reference fixtures (*.npz)")
    parser.addoption("--scenes-dir", type=Path, default=None, help="folder of real scenes (bonsai/, garden_points/)")


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
