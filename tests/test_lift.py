"""The lift: a slow twin, and what it should recover."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from blobs import EMBEDDING, BlobScene, blob_scene
from gags.distill import LanguageField, LiftConfig, LinearDecoder, lift
from gags.distill._targets import downscaled
from gags.errors import GagsError
from gags.rasterize import blend_weights


def _lift(blobs: BlobScene, config: LiftConfig) -> LanguageField:
    return lift(blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings, config)


def _slow_lift(blobs: BlobScene, downscale: int) -> tuple[Tensor, Tensor]:
    """Mean direction of each Gaussian over views, levels and pixels, in all dimensions; and its length."""
    total, weight = torch.zeros(len(blobs.gaussians), EMBEDDING), torch.zeros(len(blobs.gaussians), 1)
    for view in blobs.scene.views:
        maps = blobs.masks[view.name].label_maps[1:]
        height, width = (downscaled(side, downscale) for side in maps.shape[1:])
        blend = blend_weights(blobs.gaussians, view.camera.resized(width, height))
        matrix = blend.render(torch.eye(len(blobs.gaussians)))
        for row in range(height):
            for column in range(width):
                labels = maps[:, row * maps.shape[1] // height, column * maps.shape[2] // width]
                vectors = [blobs.embeddings[view.name][label] for label in labels.tolist() if label >= 0]
                if vectors:
                    b = matrix[row, column][:, None]
                    total += b * torch.stack(vectors).mean(dim=0)
                    weight += b
    mean = total / weight.clamp(min=1e-12)
    return functional.normalize(mean, dim=1), mean.norm(dim=1)


def test_against_a_loop_over_pixels() -> None:
    blobs = blob_scene(damaged=True)
    for masks in blobs.masks.values():
        masks.label_maps[2, :12] = -1  # some pixels with two levels
    field = _lift(blobs, LiftConfig(feature_width=EMBEDDING, downscale=3, min_blend_weight=0.0))
    directions, lengths = _slow_lift(blobs, downscale=3)
    torch.testing.assert_close(field.decode(field.features), directions, rtol=0, atol=2e-5)
    statistics = field.meta.statistics
    assert abs(statistics["mean_resultant_length"] - float(lengths.mean())) < 1e-4
    assert abs(statistics["explained_energy"] - 1) < 1e-5 and statistics["seen_fraction"] == 1


def test_recovers_the_truth() -> None:
    blobs = blob_scene()
    field = _lift(blobs, LiftConfig(feature_width=8, downscale=1))
    assert isinstance(field.feature_decoder, LinearDecoder) and field.granularity(blobs.scene.views[0].camera) is None
    scores = field.decode(field.features) @ blobs.truth.T
    assert (scores.argmax(dim=1) == blobs.blob_of_gaussian).all()
    assert scores.max(dim=1).values.mean() > 0.97
    view = blobs.scene.views[3]
    decoded = field.decode(field.render(view.camera))
    blob = blobs.masks[view.name].label_maps[0]
    assert ((decoded @ blobs.truth.T).argmax(dim=-1) == blob)[blob >= 0].float().mean() > 0.97


def test_a_level_alone_ignores_the_others() -> None:
    blobs = blob_scene(damaged=True)
    field = _lift(blobs, LiftConfig(levels="m"))
    scores = (field.decode(field.features) * blobs.truth[blobs.blob_of_gaussian]).sum(dim=1)
    clean = (blobs.clean_level == 1)[blobs.blob_of_gaussian]
    assert scores[clean].mean() > 0.9 > 0.6 > scores[~clean].mean()


def test_narrow_subspace_keeps_most_of_the_energy() -> None:
    blobs = blob_scene(damaged=True)
    energies = []
    for width in (3, 9, 100):
        field = _lift(blobs, LiftConfig(feature_width=width))
        assert field.features.shape == (len(blobs.gaussians), min(width, EMBEDDING))
        basis = field.feature_decoder.basis
        torch.testing.assert_close(basis @ basis.T, torch.eye(len(basis)), rtol=0, atol=1e-5)
        energies.append(field.meta.statistics["explained_energy"])
    assert energies[0] < energies[1] < energies[2] < 1 + 1e-5


def test_unseen_gaussians_decode_to_zero() -> None:
    blobs = blob_scene()
    means = blobs.gaussians.means.clone()
    means[4] += 1000
    field = _lift(replace(blobs, gaussians=replace(blobs.gaussians, means=means)), LiftConfig(feature_width=5))
    assert not field.decode(field.features)[4].any()
    assert field.meta.statistics["seen_fraction"] == pytest.approx(1 - 1 / len(means))


def test_nothing_to_lift() -> None:
    blobs = blob_scene()
    for masks in blobs.masks.values():
        masks.label_maps.fill_(-1)
    with pytest.raises(GagsError, match="lift: expected labelled pixels, found none"):
        _lift(blobs, LiftConfig())
    nothing = replace(blobs, scene=blobs.scene.holding_out({view.name for view in blobs.scene.views}))
    with pytest.raises(GagsError, match="lift: expected training views, found none"):
        _lift(nothing, LiftConfig())
    del blobs.embeddings["v1.png"]
    with pytest.raises(GagsError, match=r"embeddings: expected those of every training view, found none of v1\.png"):
        _lift(blobs, LiftConfig())
