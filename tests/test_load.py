"""gags.load: a run as one object, and an import that costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gags
import tiny
from gags.errors import GagsError
from gags.query import QueryConfig, query, query_3d
from gags.runs import open_run


@pytest.fixture(scope="module")
def field(tiny_run: Path) -> gags.Field:
    return gags.load(tiny_run, config=QueryConfig(kernel_px=5), encoder=tiny.TrueEncoder())


def test_it_answers_as_the_functions_behind_it_do(field: gags.Field, tiny_run: Path) -> None:
    run = open_run(tiny_run, tiny.TrueEncoder())
    camera = field.camera(tiny.HELD_OUT)
    hit = field.query("red ball", camera)
    (expected,) = query(run.field(), camera, ["red ball"], run.encoder, QueryConfig(kernel_px=5))
    assert torch.equal(hit.relevancy, expected.relevancy) and hit.box_xyxy_px == expected.box_xyxy_px
    x, y = hit.point_xy_px
    assert tiny.ray_cast(camera)[int(y), int(x)] in (1, 2)
    selection = field.query_3d("red ball")
    (expected_3d,) = query_3d(run.field(), ["red ball"], run.encoder, QueryConfig(kernel_px=5))
    assert torch.equal(selection.gaussian_ids, expected_3d.gaussian_ids)
    assert field.best_view(selection).name in {view.name for view in field.views}


def test_it_renders(field: gags.Field) -> None:
    camera = field.camera("view_02.png")
    for mode in ("rgb", "depth", "feature", "granularity"):
        assert field.render(camera, mode).shape == (tiny.HEIGHT, tiny.WIDTH, 3)
    photo = field.run.scene.view("view_02.png").image()
    assert float((field.render(camera).float() - photo.float()).abs().mean()) < 25
    assert not torch.equal(
        field.render(camera, "relevancy", "red ball"), field.render(camera, "relevancy", "blue ball")
    )


def test_it_edits_and_lists(field: gags.Field) -> None:
    alone, rest = field.select("red ball"), field.remove("red ball")
    assert len(alone) + len(rest) == len(field.gaussians) and len(alone) > 50
    tinted = field.recolor("red ball", (0, 255, 0), strength=1.0)
    assert torch.equal(tinted.means, field.gaussians.means)
    assert int((tinted.sh != field.gaussians.sh).flatten(1).any(dim=1).sum()) == len(alone)
    names = {thing.phrases[0][0] for thing in field.inventory(("floor", *tiny.BALLS)).things}
    assert "red ball" in names


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"expected a run folder with a run\.json"):
        gags.load(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        gags.lode  # noqa: B018 - the access is the test


def test_import_gags_loads_nothing_heavy() -> None:
    code = "import sys, gags; sys.exit(bool({'torch', 'numpy', 'numba', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
