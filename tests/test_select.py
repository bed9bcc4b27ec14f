"""Edited scenes: what a phrase names changes, every other byte stays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from gags.cli import main
from gags.edits import ChoiceConfig, choose, parse_color, recolored
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.inventory import group_masks
from gags.query import QueryConfig, largest_part, nearest_gaussians, smooth_within
from gags.runs import open_run


def rows(path: Path) -> np.ndarray:
    """The vertices of a .ply as bytes, a row each."""
    data = path.read_bytes()
    header, body = data.split(b"end_header\n", 1)
    count = int(header.split(b"element vertex ")[1].split()[0])
    return np.frombuffer(body, np.uint8).reshape(count, -1)


@pytest.fixture(scope="module")
def chosen(tiny_run: Path) -> torch.Tensor:
    run = open_run(tiny_run, tiny.TrueEncoder())
    return choose(run.field("lift"), ["red ball"], run.encoder, QueryConfig(), ChoiceConfig())


@pytest.mark.usefixtures("true_models")
def test_the_files_hold_the_very_bytes_of_the_rows_they_keep(
    tiny_run: Path, chosen: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene, keep = rows(tiny_run / "splats/splats.ply"), ~chosen.numpy()
    for command in ("select", "remove", "recolor"):
        out = tmp_path / f"{command}.ply"
        assert main([command, str(tiny_run), "red ball", "--field", "lift", "--out", str(out)]) == 0
        assert capsys.readouterr().out == f"{out}\n"
    assert 50 < chosen.sum() < 0.5 * len(chosen)
    assert np.array_equal(rows(tmp_path / "select.ply"), scene[~keep])
    assert np.array_equal(rows(tmp_path / "remove.ply"), scene[keep])
    tinted = rows(tmp_path / "recolor.ply")
    assert np.array_equal(tinted[keep], scene[keep])
    # of a tinted row nothing but the colour changes: floats 6 to 8 of x y z, normal, f_dc
    changed = (tinted[~keep] != scene[~keep]).any(axis=0)
    assert changed[24:36].any() and not changed[:24].any() and not changed[36:].any()


def test_the_find_covers_the_ball(tiny_run: Path, chosen: torch.Tensor) -> None:
    gaussians = open_run(tiny_run).gaussians
    x, z = tiny.BALLS["red ball"]
    distance = (gaussians.means[chosen] - torch.tensor([x, -tiny.RADIUS, z])).norm(dim=1)
    assert float(distance.median()) < 1.5 * tiny.RADIUS
    for camera in tiny.cameras()[::3]:
        tone = tiny.ray_cast(camera)
        truth = torch.from_numpy((tone == 1) | (tone == 2))
        (mask,) = group_masks(gaussians, [chosen.nonzero()[:, 0]], camera)
        assert float((mask & truth).sum() / truth.sum()) > 0.8


@pytest.mark.usefixtures("true_models")
def test_inverted_and_joined_choices(tiny_run: Path, chosen: torch.Tensor) -> None:
    run = open_run(tiny_run)
    field, encoder = run.field("lift"), run.encoder
    inverted = choose(field, ["red ball"], encoder, QueryConfig(), ChoiceConfig(invert=True))
    assert torch.equal(inverted, ~chosen)
    blue = choose(field, ["blue ball"], encoder, QueryConfig(), ChoiceConfig())
    both = choose(field, ["red ball", "blue ball"], encoder, QueryConfig(), ChoiceConfig())
    assert torch.equal(both, chosen | blue) and not bool((chosen & blue).any())
    with pytest.raises(
        GagsError, match=r"expected some of the \d+ splats, found none of them; try another --threshold"
    ):
        choose(field, ["red ball"], encoder, QueryConfig(threshold=1.0), ChoiceConfig())


def two_heaps() -> tuple[torch.Tensor, torch.Tensor]:
    """Centres and the selection: a heap of 60 with 3 holes, a heap of 30 all selected, one stray among 40 others."""
    generator = torch.Generator().manual_seed(0)
    places = torch.tensor([0.0, 5.0, 10.0]).repeat_interleave(torch.tensor([60, 30, 40]))
    means = torch.randn(130, 3, generator=generator) * 0.2
    means[:, 0] += places
    selected = places < 7
    selected[torch.tensor([4, 17, 33])] = False
    selected[100] = True
    return means, selected


def test_the_largest_part_is_the_larger_heap() -> None:
    means, selected = two_heaps()
    part = largest_part(selected, nearest_gaussians(means, 11))
    assert torch.equal(part.nonzero()[:, 0], selected[:60].nonzero()[:, 0])
    nothing = torch.zeros_like(selected)
    assert torch.equal(largest_part(nothing, nearest_gaussians(means, 11)), nothing)


def test_smoothing_closes_holes_and_drops_strays_as_a_slow_count_does() -> None:
    means, selected = two_heaps()
    radius = 0.35
    smooth = smooth_within(means, selected, radius)
    for index in range(len(means)):
        near = [other for other in range(len(means)) if float((means[index] - means[other]).norm()) <= radius]
        votes = sum(bool(selected[other]) for other in near)
        expected = bool(selected[index]) if 2 * votes == len(near) else 2 * votes > len(near)
        assert bool(smooth[index]) == expected
    assert not bool(smooth[100]) and int(smooth[:60].sum()) > int(selected[:60].sum())


def test_colours_and_highlights_are_mixed() -> None:
    generator = torch.Generator().manual_seed(1)
    sh = torch.randn(7, 4, 3, generator=generator)
    gaussians = Gaussians(torch.zeros(7, 3), torch.ones(7, 4), torch.zeros(7, 3), torch.zeros(7), sh)
    which = torch.tensor([True, False, True, False, False, False, True])
    full = recolored(gaussians, which, (255, 0, 102), 1.0)
    colors = 0.5 + 0.28209479177387814 * full.sh[which, 0]
    assert torch.allclose(colors, torch.tensor([1.0, 0.0, 0.4]).expand(3, 3), atol=1e-6)
    assert not bool(full.sh[which, 1:].any()) and torch.equal(full.sh[~which], sh[~which])
    half = recolored(gaussians, which, (255, 0, 102), 0.5)
    assert torch.allclose(half.sh, (sh + full.sh) / 2)
    assert torch.equal(recolored(gaussians, which, (1, 2, 3), 0.0).sh, sh)
    assert torch.equal(half.means, gaussians.means)


def test_colours_are_parsed_and_refused(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_color("#ff3C1e") == (255, 60, 30) and parse_color("010203") == (1, 2, 3)
    out = str(tmp_path / "a.ply")
    for name, found in (("a.obj", ".obj"), ("a", "no ending"), ("", "a folder")):
        assert main(["select", str(tiny_run), "x", "--out", str(tmp_path / name)]) == 1
        assert f"ending in .ply, .spz or .splat, found {found}" in capsys.readouterr().err
    assert main(["recolor", str(tiny_run), "x", "--out", out, "--color", "red"]) == 1
    assert "--color red: expected a colour as #rrggbb" in capsys.readouterr().err
    assert main(["recolor", str(tiny_run), "x", "--out", out, "--strength", "2"]) == 1
    assert "--strength" in capsys.readouterr().err
