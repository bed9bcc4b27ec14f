"""Relevancy, map arithmetic, queries in 2D and 3D, the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera, look_at
from gags.query import (
    QueryConfig,
    best_view,
    find,
    gaussian_heat,
    heat,
    majority_filter,
    mean_filter,
    peak,
    query,
    query_3d,
    relevancy,
    relevancy_maps,
    render_selection,
    teacher_relevancy,
)
from gags.rasterize import render
from gags.scene import View
from gags.segment import Granularity, ViewMasks

THINGS = ("ball", "cup")
WORDS = (*THINGS, *QueryConfig().negatives)


class AxisEncoder:
    """Every known phrase is an axis."""

    name, width, tile_px = "axes", len(WORDS), 1

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        raise AssertionError("a query encodes no tiles")

    def encode_phrases(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        return torch.eye(self.width)[[WORDS.index(phrase) for phrase in phrases]]


@dataclass(frozen=True)
class FakeField:
    """Features are vectors of the encoder already, of any length."""

    gaussians: Gaussians
    features: Tensor
    picture: Tensor

    def render(self, camera: Camera) -> Tensor:
        assert self.picture.shape[:2] == (camera.height, camera.width)
        return self.picture

    def decode(self, features: Tensor) -> Tensor:
        return torch.nn.functional.normalize(features, dim=-1)

    def similarity(self, vectors: Tensor, exact: bool) -> Tensor:
        return self.decode(self.features) @ vectors.T

    def similarity_map(self, camera: Camera, vectors: Tensor, exact: bool) -> Tensor:
        return self.decode(self.render(camera)) @ vectors.T


def _gaussians(means: Tensor) -> Gaussians:
    count = len(means)
    quats = torch.tensor([1.0, 0, 0, 0]).expand(count, 4)
    return Gaussians(means, quats, torch.full((count, 3), -3.0), torch.full((count,), 3.0), torch.zeros(count, 1, 3))


def _axis(word: str) -> Tensor:
    return torch.eye(len(WORDS))[WORDS.index(word)]


def _field_of_a_ball_and_a_cup(height: int = 61, width: int = 83) -> FakeField:
    """A picture of "stuff" with a ball (30 x 20) and a smaller cup (12 x 14)."""
    picture = _axis("stuff").repeat(height, width, 1)
    picture[10:30, 5:35] = _axis("ball")
    picture[40:54, 60:72] = _axis("cup")
    return FakeField(_gaussians(torch.zeros(1, 3)), torch.zeros(1, len(WORDS)), picture)


def _camera(height: int = 61, width: int = 83) -> Camera:
    return Camera(torch.eye(4), 50.0, 50.0, width / 2, height / 2, width, height)


def _random_maps(seed: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


@given(seed=st.integers(0, 99), temperature=st.floats(0.1, 100))
def test_relevancy_is_the_hardest_two_way_softmax(seed: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = torch.from_numpy(rng.normal(size=(5 + 3 + 4, 7))).float()
    points, positives, negatives = torch.nn.functional.normalize(vectors, dim=1).split([5, 3, 4])
    scores = relevancy(points, positives, negatives, temperature)
    assert scores.shape == (3, 5)
    assert (scores >= 0).all() and (scores <= 1).all()
    for row, positive in enumerate(positives):
        for column, point in enumerate(points):
            pairs = [torch.stack([point @ positive, point @ negative]) * temperature for negative in negatives]
            slow = min(float(pair.softmax(dim=0)[0]) for pair in pairs)
            assert float(scores[row, column]) == pytest.approx(slow, abs=1e-5)


def test_relevancy_is_a_half_at_the_hardest_negative_and_has_the_points_axes() -> None:
    points = _random_maps(0, 4, 3, len(WORDS))
    negatives = torch.stack([_axis("object"), _axis("stuff")])
    scores = relevancy(points, negatives, negatives)
    assert scores.shape == (2, 4, 3)
    torch.testing.assert_close(scores.amax(dim=0), torch.full((4, 3), 0.5))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 6), (2, 9), (5, 3), (33, 47)])
@pytest.mark.parametrize("kernel_px", [1, 2, 5, 30])
def test_mean_filter_equals_a_slow_twin(height: int, width: int, kernel_px: int) -> None:
    maps = _random_maps(1, 2, height, width)

    def mirrored(i: int, size: int) -> int:
        while not 0 <= i < size:
            i = 0 if size == 1 else -i if i < 0 else 2 * (size - 1) - i
        return i

    slow = np.zeros((2, height, width))
    reach = range(-(kernel_px // 2), kernel_px - kernel_px // 2)
    for v in range(height):
        rows = [mirrored(v + i, height) for i in reach]
        for u in range(width):
            columns = [mirrored(u + i, width) for i in reach]
            slow[:, v, u] = maps.double().numpy()[:, rows][:, :, columns].mean(axis=(1, 2))
    np.testing.assert_allclose(mean_filter(maps, kernel_px).numpy(), slow, atol=1e-6)


def test_an_even_mean_filter_ties_at_the_left_and_top_border() -> None:
    filtered = mean_filter(_random_maps(2, 40, 50).double(), 30)
    torch.testing.assert_close(filtered[:, 0], filtered[:, 1])
    torch.testing.assert_close(filtered[0], filtered[1])


@pytest.mark.parametrize(("height", "width"), [(1, 7), (6, 1), (2, 2), (9, 16)])
@pytest.mark.parametrize("radius_px", [0, 1, 3])
def test_majority_filter_equals_a_slow_twin(height: int, width: int, radius_px: int) -> None:
    masks = _random_maps(3, 2, height, width) < 0.5
    slow = np.zeros((2, height, width), dtype=bool)
    for v in range(height):
        for u in range(width):
            window = masks.numpy()[
                :,
                max(v - radius_px, 0) : min(v + radius_px + 1, max(height - 1, 1)),
                max(u - radius_px, 0) : min(u + radius_px + 1, max(width - 1, 1)),
            ]
            slow[:, v, u] = 2 * window.sum(axis=(1, 2)) > window[0].size
    np.testing.assert_array_equal(majority_filter(masks, radius_px).numpy(), slow)


def test_heat_is_between_0_and_1_and_ignores_scale_and_offset() -> None:
    maps = _random_maps(4, 3, 37, 52)
    maps[2] = 0.3
    warm = heat(maps, 5)
    assert (warm >= 0).all() and (warm <= 1).all()
    torch.testing.assert_close(warm[:2].amax(dim=(1, 2)), torch.ones(2))
    assert warm[2].max() == 0  # a constant map is nowhere hot
    torch.testing.assert_close(heat(0.1 + 0.5 * maps[:2], 5), warm[:2], atol=1e-5, rtol=0)


def test_peak_names_all_ties() -> None:
    flat = torch.zeros(5, 8)
    flat[3, 6] = flat[1, 2] = 0.75
    assert peak(flat).tolist() == [[2, 1], [6, 3]]


def test_query_finds_the_ball_and_the_cup() -> None:
    hits = query(_field_of_a_ball_and_a_cup(), _camera(), THINGS, AxisEncoder(), QueryConfig(kernel_px=5))
    assert [hit.phrase for hit in hits] == list(THINGS)
    for hit, (x0, y0, x1, y1) in zip(hits, [(5, 10, 35, 30), (60, 40, 72, 54)], strict=True):
        x, y = hit.point_xy_px
        assert x0 < x < x1 and y0 < y < y1
        assert hit.box_xyxy_px == pytest.approx((x0, y0, x1, y1), abs=1)
        assert hit.score == pytest.approx(1 / (1 + np.exp(-10)), abs=1e-4)
        assert hit.relevancy.shape == hit.heat.shape == hit.mask.shape == (61, 83)
        truth = torch.zeros(61, 83, dtype=torch.bool)
        truth[y0:y1, x0:x1] = True
        assert (hit.mask & truth).sum() / (hit.mask | truth).sum() > 0.85


def test_phrases_do_not_influence_each_other() -> None:
    field, config = _field_of_a_ball_and_a_cup(), QueryConfig()
    both = relevancy_maps(field, _camera(), THINGS, AxisEncoder(), config)
    alone = relevancy_maps(field, _camera(), THINGS[1:], AxisEncoder(), config)
    assert torch.equal(both[1:], alone)


@pytest.mark.parametrize("phrases", [[], ["ball", "  "]])
def test_an_empty_phrase_is_an_error(phrases: list[str]) -> None:
    with pytest.raises(GagsError, match=r"expected phrases with at least one word each, found (an empty|no) phrase"):
        query(_field_of_a_ball_and_a_cup(), _camera(), phrases, AxisEncoder(), QueryConfig())


def test_a_box_is_around_the_part_that_holds_the_peak() -> None:
    relevancy_map = torch.zeros(40, 60)
    relevancy_map[5:15, 5:15] = 0.9
    relevancy_map[20:35, 30:55] = 0.8
    hit = find("thing", relevancy_map, QueryConfig(kernel_px=3, majority_radius_px=0))
    assert hit.box_xyxy_px == (5, 5, 15, 15)
    assert hit.mask[25, 40]
    assert find("thing", torch.full((9, 7), 0.2), QueryConfig()).box_xyxy_px is None


def _view_masks() -> tuple[ViewMasks, Tensor]:
    """Two columns that are a ball, two that are a cup, one that no level labels; levels disagree in column 1."""
    labels = torch.tensor([[-1] * 5, [0, 0, 1, -1, -1], [0, 1, 1, -1, -1], [0, 0, 1, 1, -1]], dtype=torch.int32)
    label_maps = labels[:, None].repeat(1, 3, 1)
    embeddings = torch.stack([_axis("ball"), _axis("cup")])
    masks = torch.stack([label_maps[3] == 0, label_maps[3] == 1])
    return ViewMasks(
        masks, torch.tensor([3, 3]), torch.ones(2), torch.ones(2), label_maps, torch.zeros(0, 2)
    ), embeddings


def test_the_teacher_scores_masks_where_they_are() -> None:
    view_masks, embeddings = _view_masks()
    encoder, config = AxisEncoder(), QueryConfig()
    sure, unsure = 1 / (1 + np.exp(-10)), 0.5
    whole = teacher_relevancy(view_masks, embeddings, THINGS, encoder, config, Granularity.WHOLE)
    assert whole.shape == (2, 3, 5)
    np.testing.assert_allclose(whole[0, 0], [sure, sure, unsure, unsure, 0], atol=1e-6)
    subpart = teacher_relevancy(view_masks, embeddings, THINGS, encoder, config, Granularity.SUBPART)
    np.testing.assert_allclose(subpart[1, 2], [unsure, unsure, sure, 0, 0], atol=1e-6)
    mean = teacher_relevancy(view_masks, embeddings, THINGS, encoder, config)
    mixed = 1 / (1 + np.exp(-10 * 2 / np.sqrt(5)))
    np.testing.assert_allclose(mean[0, 1], [sure, mixed, unsure, unsure, 0], atol=1e-6)


def _clusters(scale: float = 1.0) -> FakeField:
    """A dense ball, a sparse cup, stuff around, and one stray Gaussian with the ball's feature among the stuff."""
    rng = np.random.default_rng(5)
    ball = rng.normal([0, 0, 0], 0.2, (200, 3))
    cup = rng.normal([5, 0, 0], 0.5, (60, 3))
    stuff = rng.uniform([-3, 2, -3], [8, 4, 3], (400, 3))
    means = scale * torch.from_numpy(np.concatenate([ball, cup, stuff])).float()
    features = torch.cat([_axis("ball").repeat(200, 1), _axis("cup").repeat(60, 1), _axis("stuff").repeat(400, 1)])
    features[300] = _axis("ball")
    return FakeField(_gaussians(means), features, torch.zeros(0))


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_3d_selections_do_not_depend_on_the_scenes_scale(scale: float) -> None:
    ball, cup = query_3d(_clusters(scale), THINGS, AxisEncoder(), QueryConfig())
    assert ball.gaussian_ids.tolist() == list(range(200))  # the stray one is outvoted
    assert cup.gaussian_ids.tolist() == list(range(200, 260))
    assert ball.relevancy.shape == (660,) and ball.score > 0.99
    means = _clusters(scale).gaussians.means[:200]
    torch.testing.assert_close(ball.centroid_world, means.mean(dim=0))
    torch.testing.assert_close(ball.box_world, torch.stack([means.amin(dim=0), means.amax(dim=0)]))


def test_the_reference_loses_objects_in_large_scenes() -> None:
    config = QueryConfig(reference_quirks=True, smooth_radius=0.5)
    small = query_3d(_clusters(), THINGS, AxisEncoder(), config)
    large = query_3d(_clusters(300.0), THINGS, AxisEncoder(), config)
    assert small[0].gaussian_ids.tolist() == list(range(200))
    assert len(large[0].gaussian_ids) == 0
    assert large[0].centroid_world is None and large[0].box_world is None and large[0].score == 0


def test_a_few_hot_splats_do_not_hide_the_rest() -> None:
    scores = torch.zeros(1, 5000)
    scores[0, :400], scores[0, :5] = 0.6, 0.9
    config = QueryConfig()
    assert int((gaussian_heat(scores, config) > config.threshold).sum()) == 400
    # the reference stretches to the single hottest: 0.6 is less than 0.7 of it
    assert int((gaussian_heat(scores, replace(config, reference_quirks=True)) > config.threshold).sum()) == 5
    # of fewer than a thousand the hottest is the top
    assert gaussian_heat(scores[:, :999], config)[0, 5] < config.threshold


def test_the_best_view_sees_the_selection_large_and_unoccluded() -> None:
    rng = np.random.default_rng(6)
    ball = rng.normal([0, 0, 0], 0.1, (50, 3))
    wall = np.stack([*np.meshgrid(np.linspace(-1, 1, 41), np.linspace(-1, 1, 41)), np.full((41, 41), -1.0)], axis=-1)
    means = torch.from_numpy(np.concatenate([ball, wall.reshape(-1, 3)])).float()
    features = torch.cat([_axis("ball").repeat(50, 1), _axis("stuff").repeat(41 * 41, 1)])
    field = FakeField(_gaussians(means), features, torch.zeros(0))
    eyes = {"behind the wall": (0, 0, -1.8), "near": (0, 0, 3.0), "far": (0, 0.1, 9.0), "beside": (3.0, 0, 3.0)}
    targets = {"beside": (6.0, 0, 3.0)}
    views = []
    for name, eye in eyes.items():
        target = torch.tensor(targets.get(name, (0, 0, 0)), dtype=torch.float32)
        pose = look_at(torch.tensor(eye, dtype=torch.float32), target, torch.tensor([0.0, -1.0, 0.0]))
        views.append(View(name, replace(_camera(), T_camera_world=pose), Path(name)))
    (selection,) = query_3d(field, ["ball"], AxisEncoder(), QueryConfig())
    assert best_view(field.gaussians, selection, views).name == "near"
    # nothing selected: what comes nearest to the phrase is looked for
    assert best_view(field.gaussians, replace(selection, gaussian_ids=torch.zeros(0).long()), views).name == "near"
    with pytest.raises(GagsError, match="expected at least one view"):
        best_view(field.gaussians, selection, [])


def test_a_selection_is_rendered_alone_and_nothing_hides_it() -> None:
    rng = np.random.default_rng(6)
    ball = rng.normal([0, 0, 4], [0.5, 0.3, 0.1], (300, 3))
    wall = np.stack([*np.meshgrid(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61)), np.full((61, 61), 2.0)], axis=-1)
    means = torch.from_numpy(np.concatenate([ball, wall.reshape(-1, 3)])).float()
    features = torch.cat([_axis("ball").repeat(300, 1), _axis("stuff").repeat(61 * 61, 1)])
    field = FakeField(_gaussians(means), features, torch.zeros(0))
    (selection,) = query_3d(field, ["ball"], AxisEncoder(), QueryConfig())
    assert selection.gaussian_ids.tolist() == list(range(300))
    camera, config = _camera(), QueryConfig(kernel_px=5)
    hit = render_selection(field.gaussians, selection, camera, config)
    alone = render(field.gaussians.subset(torch.arange(300)), camera)
    assert torch.equal(hit.heat, alone.alpha) and torch.equal(hit.mask, alone.alpha > 0.5)
    assert 50 < hit.mask.sum() < 61 * 83 / 2
    torch.testing.assert_close(hit.relevancy, alone.alpha * selection.relevancy[0])
    x, y = hit.point_xy_px
    assert hit.mask[int(y), int(x)] and hit.score == pytest.approx(float(mean_filter(hit.relevancy, 5).max()))
    wider = render_selection(field.gaussians, selection, camera, replace(config, min_alpha=0.1))
    assert wider.mask.sum() > hit.mask.sum() and (wider.mask | ~hit.mask).all()
    left, top, right, bottom = hit.box_xyxy_px
    assert left < x < right and top < y < bottom


def test_an_empty_selection_is_nowhere() -> None:
    field = _clusters()
    nothing = replace(query_3d(field, ["ball"], AxisEncoder(), QueryConfig())[0], gaussian_ids=torch.zeros(0).long())
    hit = render_selection(field.gaussians, nothing, _camera(), QueryConfig())
    assert hit.score == 0 and not hit.mask.any() and hit.box_xyxy_px is None and hit.heat.shape == (61, 83)
