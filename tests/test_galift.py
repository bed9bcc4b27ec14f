"""The granularity-aware lift: a slow twin, the level it should choose, and what may not change its result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from blobs import EMBEDDING, BlobScene, blob_scene
from gags.distill import GaliftConfig, LanguageField, LiftConfig, galift, lift
from gags.distill._galift import trusted_levels
from gags.distill._targets import downscaled
from gags.errors import GagsError
from gags.rasterize import blend_weights

FULL = GaliftConfig(feature_width=EMBEDDING, confirmation_power=0.0, downscale=3, min_blend_weight=0.0)
AGREEMENT = GaliftConfig(size_prior=0.0, temperature=0.0)


def _galift(blobs: BlobScene, config: GaliftConfig) -> LanguageField:
    return galift(blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings, config)


def _with_holes(blobs: BlobScene) -> BlobScene:
    """Some pixels are labelled on two levels, one view not at all on the finest."""
    for masks in blobs.masks.values():
        masks.label_maps[2, :12] = -1
    blobs.masks["v2.png"].label_maps[1] = -1
    return blobs


def _slow_means(blobs: BlobScene, downscale: int) -> np.ndarray:
    """m_g(i) [gaussian, level, embedding + 1] by a loop over views, levels and pixels; the last entry is the mean
    logarithm of the mask's share of the picture."""
    total = np.zeros((len(blobs.gaussians), 3, EMBEDDING + 1))
    weight = np.zeros((len(blobs.gaussians), 3, 1))
    for view in blobs.scene.views:
        maps = blobs.masks[view.name].label_maps[1:].numpy()
        height, width = (downscaled(side, downscale) for side in maps.shape[1:])
        blend = blend_weights(blobs.gaussians, view.camera.resized(width, height))
        matrix = blend.render(torch.eye(len(blobs.gaussians))).double().numpy()
        small = maps[:, np.arange(height)[:, None] * maps.shape[1] // height, np.arange(width) * maps.shape[2] // width]
        for level in range(3):
            for row in range(height):
                for column in range(width):
                    label = small[level, row, column]
                    if label >= 0:
                        b = matrix[row, column][:, None]
                        share = (small == label).sum() / (height * width)
                        feature = blobs.embeddings[view.name][label].double().numpy()
                        total[:, level] += b * np.append(feature, np.log(share))
                        weight[:, level] += b
    return total / np.maximum(weight, 1e-12)


def _slow_galift(means: np.ndarray, temperature: float, size_prior: float) -> tuple[np.ndarray, np.ndarray]:
    """Level weights [gaussian, level] and unit features [gaussian, embedding], one Gaussian at a time."""
    weights, features = np.zeros(means.shape[:2]), np.zeros((len(means), means.shape[2] - 1))
    for i, row in enumerate(means):
        levels, log_shares = row[:, :-1], row[:, -1]
        lengths = np.sqrt((levels**2).sum(axis=1))
        scores = np.where(lengths > 0, lengths + size_prior * log_shares, -np.inf)
        if temperature == 0:
            weights[i, scores.argmax()] = 1
        else:
            weights[i] = np.exp(scores / temperature)
            weights[i] /= weights[i].sum()
        mixed = sum(weight * level for weight, level in zip(weights[i], levels, strict=True))
        features[i] = mixed / np.linalg.norm(mixed)
    return weights, features


@pytest.mark.parametrize(("temperature", "size_prior"), [(0.0, 0.0), (0.0, 0.4), (0.2, 0.3)])
def test_against_a_loop_over_pixels(temperature: float, size_prior: float) -> None:
    blobs = _with_holes(blob_scene(damaged=True))
    field = _galift(blobs, replace(FULL, temperature=temperature, size_prior=size_prior))
    means = _slow_means(blobs, downscale=3)
    weights, features = _slow_galift(means, temperature, size_prior)
    np.testing.assert_allclose(field.level_weights.numpy(), weights, rtol=0, atol=2e-4)
    np.testing.assert_allclose(field.decode(field.features).numpy(), features, rtol=0, atol=2e-4)
    lengths = np.linalg.norm(means[..., :-1], axis=2)
    statistics = field.meta.statistics
    assert abs(statistics["mean_resultant_length"] - (weights * lengths).sum(axis=1).mean()) < 1e-4
    assert abs(statistics["mean_resultant_length_part"] - lengths[:, 1].mean()) < 1e-4
    assert abs(statistics["trusted_whole"] - weights[:, 2].mean()) < 1e-4
    assert statistics["seen_fraction"] == 1


@pytest.mark.parametrize("temperature", [0.0, 0.05])
def test_trusts_the_level_on_which_the_views_agree(temperature: float) -> None:
    blobs = blob_scene(damaged=True)
    field = _galift(blobs, replace(AGREEMENT, temperature=temperature))
    truth = blobs.truth[blobs.blob_of_gaussian]
    assert (field.level_weights.argmax(dim=1) == blobs.clean_level[blobs.blob_of_gaussian]).all()
    mean = lift(blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings, LiftConfig())
    cosine, cosine_of_mean = ((each.decode(each.features) * truth).sum(dim=1).mean() for each in (field, mean))
    assert cosine > 0.97 and cosine > cosine_of_mean + 0.02


def test_granularity_is_the_blend_of_the_trusted_levels() -> None:
    blobs = blob_scene(damaged=True)
    field = _galift(blobs, AGREEMENT)
    view = blobs.scene.views[3]
    granularity = field.granularity(view.camera)
    blob = blobs.masks[view.name].label_maps[0].long()
    seen = blob >= 0
    torch.testing.assert_close(granularity[seen].sum(dim=-1), torch.ones(int(seen.sum())))
    assert (granularity.argmax(dim=-1)[seen] == blobs.clean_level[blob[seen]]).float().mean() > 0.97
    blend = blend_weights(blobs.gaussians, view.camera).render(field.level_weights)
    torch.testing.assert_close(granularity * blend.sum(dim=-1, keepdim=True), blend, rtol=0, atol=1e-4)


def test_blocks_of_gaussians_do_not_change_a_byte() -> None:
    blobs = _with_holes(blob_scene(damaged=True))
    config = GaliftConfig(feature_width=9)
    whole, blocks = (_galift(blobs, replace(config, memory_mb=memory)) for memory in (2000.0, 0.01))
    assert torch.equal(whole.features, blocks.features) and torch.equal(whole.level_weights, blocks.level_weights)
    assert whole.meta == blocks.meta


def test_a_subspace_shortens_resultants_by_no_more_than_what_it_leaves_out() -> None:
    blobs = blob_scene(damaged=True)
    full, narrow = (_galift(blobs, replace(FULL, feature_width=width)) for width in (EMBEDDING, 9))
    basis = narrow.feature_decoder.basis
    longest = max(
        float((vectors - vectors @ basis.T @ basis).norm(dim=1).max()) for vectors in blobs.embeddings.values()
    )
    for level in ("subpart", "part", "whole"):
        name = f"mean_resultant_length_{level}"
        loss = full.meta.statistics[name] - narrow.meta.statistics[name]
        assert 0 < loss < longest
    assert 0.5 < narrow.meta.statistics["explained_energy"] < full.meta.statistics["explained_energy"]


def test_levels_that_say_nothing_are_not_trusted() -> None:
    lengths = torch.tensor([[0.0, 0.4, 0.0], [0.3, 0.0, 0.3], [0.0, 0.0, 0.0]])
    for temperature in (0.0, 1.0):
        weights = trusted_levels(lengths, torch.tensor([0.9, -0.9, 0.9]).expand(3, 3), temperature)
        assert (weights[lengths == 0] == 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.tensor([1.0, 1.0, 0.0]))
    even = torch.zeros(3, 3)
    assert trusted_levels(lengths, even, 0.0)[1].tolist() == [1, 0, 0]
    torch.testing.assert_close(trusted_levels(lengths, even, 1.0)[1], torch.tensor([0.5, 0.0, 0.5]))


def test_a_head_start_is_worth_its_length() -> None:
    lengths, head_starts = torch.tensor([[0.9, 0.5, 0.7]] * 2), torch.tensor([[-0.3, 0.0, -0.15], [-0.3, 0.0, -0.3]])
    assert trusted_levels(lengths, head_starts, 0.0).argmax(dim=1).tolist() == [0, 0]
    assert trusted_levels(lengths, 3 * head_starts, 0.0).argmax(dim=1).tolist() == [1, 1]


def test_a_cold_softmax_is_the_choice() -> None:
    blobs = blob_scene(damaged=True)
    hard, cold = (_galift(blobs, replace(AGREEMENT, temperature=temperature)) for temperature in (0.0, 1e-4))
    torch.testing.assert_close(cold.level_weights, hard.level_weights, rtol=0, atol=1e-4)
    torch.testing.assert_close(cold.features, hard.features, rtol=0, atol=1e-4)


def test_unseen_gaussians_trust_nothing_and_decode_to_zero() -> None:
    blobs = blob_scene()
    means = blobs.gaussians.means.clone()
    means[4] += 1000
    field = _galift(replace(blobs, gaussians=replace(blobs.gaussians, means=means)), GaliftConfig(feature_width=5))
    assert not field.decode(field.features)[4].any() and not field.level_weights[4].any()
    assert field.meta.statistics["seen_fraction"] == pytest.approx(1 - 1 / len(means))


def test_a_saved_field_is_the_same_again() -> None:
    blobs = blob_scene(damaged=True)
    field = _galift(blobs, GaliftConfig(temperature=0.1))
    again = LanguageField.from_state(blobs.gaussians, *field.to_state())
    camera = blobs.scene.views[1].camera
    fields: list[Tensor] = [each.decode(each.render(camera)) for each in (field, again)]
    assert torch.equal(*fields) and torch.equal(field.granularity(camera), again.granularity(camera))
    assert again.meta == field.meta and again.meta.kind == "galift"


def test_nothing_to_lift() -> None:
    blobs = blob_scene()
    with pytest.raises(GagsError, match=r"--galift\.temperature: expected at least 0, found -1"):
        _galift(blobs, GaliftConfig(temperature=-1))
    for masks in blobs.masks.values():
        masks.label_maps.fill_(-1)
    with pytest.raises(GagsError, match="galift: expected labelled pixels, found none"):
        _galift(blobs, GaliftConfig())
    nothing = replace(blobs, scene=blobs.scene.holding_out({view.name for view in blobs.scene.views}))
    with pytest.raises(GagsError, match="galift: expected training views, found none"):
        _galift(nothing, GaliftConfig())
