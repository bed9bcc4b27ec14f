"""How far other views confirm a mask: a slow twin with sets, and what it says of objects and of accidents."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from blobs import BLOBS, blob_scene
from gags.distill import GaliftConfig, galift
from gags.distill._confirmation import confirmations, shown_labels
from gags.geometry import project
from gags.rasterize import blend_weights


def _random_labels(seed: int) -> tuple[list[torch.Tensor], list[int]]:
    """Five views of 40 Gaussians, three levels, 7 to 11 masks a view; a third unlabelled."""
    generator = np.random.default_rng(seed)
    labels, counts = [], [7, 9, 11, 8, 10]
    for count in counts:
        drawn = generator.integers(0, count // 3, (3, 40)) + count // 3 * np.arange(3)[:, None]
        labels.append(torch.from_numpy(np.where(generator.random((3, 40)) < 0.3, -1, drawn).astype(np.int32)))
    return labels, counts


def _slow_confirmations(labels: list[torch.Tensor], counts: list[int]) -> list[list[float]]:
    """The same with sets of Gaussians."""
    sets = [
        [{int(i) for i in (of_view == mask).any(dim=0).nonzero()[:, 0]} for mask in range(count)]
        for of_view, count in zip(labels, counts, strict=True)
    ]
    seen = [set().union(*of_view) for of_view in sets]
    found: list[list[float]] = []
    judged = []
    for view, of_view in enumerate(sets):
        found.append([])
        for mask in of_view:
            scores = []
            for other in range(len(sets)):
                if other == view or not mask or len(mask & seen[other]) <= 0.5 * len(mask):
                    continue
                unions = [(mask & seen[other]) | (each & seen[view]) for each in sets[other]]
                scores.append(
                    max(len(mask & each) / max(len(u), 1) for each, u in zip(sets[other], unions, strict=True))
                )
            found[-1].append(float(np.mean(scores)) if len(scores) >= 3 else np.nan)
            judged += found[-1][-1:] if len(scores) >= 3 else []
    return [[max(float(np.median(judged)) if np.isnan(x) else x, 0.05) for x in row] for row in found]


@pytest.mark.parametrize("seed", [0, 1])
def test_against_sets(seed: int) -> None:
    labels, counts = _random_labels(seed)
    found = confirmations(labels, counts)
    for values, slow in zip(found, _slow_confirmations(labels, counts), strict=True):
        np.testing.assert_allclose(values.numpy(), slow, rtol=1e-6)


def test_objects_are_confirmed_and_accidents_are_not() -> None:
    objects = torch.arange(60).div(10, rounding_mode="floor").int()
    labels = [torch.stack([objects, torch.full((60,), -1), torch.full((60,), -1)]) for _ in range(5)]
    # in the first view alone one mask spills over half of the next object
    labels[0][0, 10:15] = 0
    spilled, *clean = confirmations(labels, [6] * 5)
    assert all((values[2:] == 1).all() for values in clean)
    assert spilled[0] == pytest.approx(10 / 15) and spilled[1] == pytest.approx(5 / 10)


def test_what_few_views_judge_takes_the_median() -> None:
    labels, counts = _random_labels(3)
    assert all((values == 1).all() for values in confirmations(labels[:3], counts[:3]))


def test_labels_at_the_centres_of_what_is_seen() -> None:
    blobs = blob_scene()
    view = blobs.scene.views[1]
    label_maps = blobs.masks[view.name].label_maps[1:]
    means = blobs.gaussians.means.clone()
    means[4] += 1000
    gaussians = replace(blobs.gaussians, means=means)
    rows = torch.arange(0, len(means), 2)
    shown = shown_labels(means, blend_weights(gaussians, view.camera), view.camera, label_maps, rows)
    assert shown.shape == (3, len(rows)) and (shown[:, 2] == -1).all() and (shown >= 0).any()
    xy_px, _ = project(view.camera, means[rows])
    for sample, (x, y) in enumerate(xy_px.tolist()):
        if shown[0, sample] >= 0:
            assert (shown[:, sample] == label_maps[:, int(y), int(x)]).all()


def test_confirmation_mends_what_spills() -> None:
    blobs = blob_scene()
    # in two of seven views the first blob's masks take in the second blob
    for name in ("v1.png", "v4.png"):
        for level, of_level in enumerate(blobs.masks[name].label_maps):
            of_level[of_level == level * BLOBS + 1] = level * BLOBS
    truth = blobs.truth[blobs.blob_of_gaussian]
    cosines = []
    for power in (0.0, 2.0):
        config = GaliftConfig(size_prior=0.0, confirmation_power=power)
        field = galift(blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings, config)
        cosines.append((field.decode(field.features) * truth).sum(dim=1)[blobs.blob_of_gaussian == 1].mean())
    assert cosines[0] < 0.95 < cosines[1]
