"""Multiview consistency: a slow twin, answers that are known, and what may not change the result."""

from __future__ import annotations

import io
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from blobs import BLOBS, EMBEDDING, PER_BLOB, VIEWS, BlobScene, blob_scene
from gags.distill import (
    FeatureDecoder,
    FieldMeta,
    GaliftConfig,
    GranularityDecoder,
    LanguageField,
    LiftConfig,
    galift,
    lift,
    view_labels,
)
from gags.errors import GagsError
from gags.evaluate import Consistency, ConsistencyConfig, consistency, consistency_table
from gags.evaluate._consistency import assigned_masks
from gags.rasterize import blend_weights

CONFIG = ConsistencyConfig(downscale=3, min_pixels=0.1, min_blend_weight=0.0)


def _measure(blobs: BlobScene, config: ConsistencyConfig = CONFIG, **fields: LanguageField) -> Consistency:
    return consistency(blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings, config, fields)


def _learned(blobs: BlobScene) -> LanguageField:
    """A field as GaD makes it, untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = torch.randn(len(blobs.gaussians), 6)
        decoders = FeatureDecoder(6, EMBEDDING), GranularityDecoder(6)
        for layer in decoders[1].layers:
            # far from a third each, which torch's initial weights give
            layer.weight.data *= 3
    return LanguageField(blobs.gaussians, features, *decoders, FieldMeta("gad", 6, EMBEDDING))


def _with_holes(blobs: BlobScene) -> BlobScene:
    blobs.masks["v1.png"].label_maps[2, :15] = -1
    blobs.masks["v4.png"].label_maps[3] = -1
    return blobs


def _slow(
    blobs: BlobScene, trusts: dict[str, Tensor | LanguageField]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Mean cosines of each Gaussian and between Gaussians, by loops over views, Gaussians and pairs of unit vectors."""
    units: dict[str, dict[int, list[np.ndarray]]] = {name: {} for name in trusts}
    for view in blobs.scene.training_views:
        labels = view_labels(view, blobs.masks, blobs.embeddings, CONFIG.downscale)
        blend = blend_weights(blobs.gaussians, labels.camera).render(torch.eye(len(blobs.gaussians))).flatten(0, 1)
        maps = labels.label_maps.flatten(1)
        valid = (maps >= 0).all(dim=0)
        for i, b in enumerate(blend.T):
            if b[valid].sum() < CONFIG.min_pixels:
                continue
            chosen = [
                max(range(4 * BLOBS), key=lambda m, g=g: float(b[valid & (maps[g] == m)].sum())) for g in range(3)
            ]
            for name, trust in trusts.items():
                if isinstance(trust, LanguageField):
                    pixels = trust.granularity(labels.camera)
                    weights = (b[:, None] * pixels.flatten(0, 1)).sum(dim=0)
                else:
                    weights = trust[i] if trust.dim() == 2 else trust
                mixed = sum(weights[g] * labels.embeddings[chosen[g]] for g in range(3))
                units[name].setdefault(i, []).append((mixed / mixed.norm()).numpy())
    cosines, between = {}, {}
    for name, of_gaussian in units.items():
        cosines[name] = np.full(len(blobs.gaussians), np.nan)
        several = {i: np.stack(vectors) for i, vectors in of_gaussian.items() if len(vectors) >= 2}
        for i, vectors in several.items():
            cosines[name][i] = np.mean([a @ b for a, b in itertools.combinations(vectors, 2)])
        between[name] = np.mean([(a @ b.T).mean() for a, b in itertools.combinations(several.values(), 2)])
    return cosines, between


def test_against_loops_over_pairs_of_views() -> None:
    blobs = _with_holes(blob_scene(damaged=True, held_out="v6.png"))
    lifted = galift(
        blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings, GaliftConfig(temperature=0.3, downscale=3)
    )
    learned = _learned(blobs)
    found = _measure(blobs, gad=learned, galift=lifted)
    trusts = {"subpart": torch.eye(3)[0], "part": torch.eye(3)[1], "whole": torch.eye(3)[2], "mean": torch.ones(3)}
    hard = torch.eye(3)[lifted.level_weights.argmax(dim=1)]
    slow, between = _slow(blobs, {**trusts, "gad": learned, "galift": lifted.level_weights, "galift_hard": hard})
    assert set(found.cosines) == {*slow, "gad_hard"}
    for name, expected in slow.items():
        np.testing.assert_allclose(found.cosines[name].numpy(), expected, rtol=0, atol=1e-4, err_msg=name)
        assert found.between[name] == pytest.approx(between[name], abs=1e-5)
    finite = np.isfinite(slow["mean"])
    assert 50 < finite.sum() < BLOBS * PER_BLOB and found.mean("gad") == pytest.approx(
        np.nanmean(slow["gad"]), abs=1e-5
    )
    some = torch.arange(BLOBS * PER_BLOB) < 40
    assert found.mean("part", some) == pytest.approx(np.nanmean(slow["part"][:40]), abs=1e-5)


def test_views_that_agree_have_cosine_1_and_two_camps_what_counting_says() -> None:
    blobs = blob_scene()
    inside = _measure(blobs).view_counts == VIEWS
    assert inside.sum() > 20
    for view_index, view in enumerate(blobs.scene.views):
        # everything looks alike in a view, and different in the next one
        blobs.embeddings[view.name] = blobs.truth[view_index % 2].repeat(4 * BLOBS, 1)
    camps = _measure(blobs)
    # 4 and 3 views: 6 + 3 of 21 pairs agree
    for cosines in camps.cosines.values():
        torch.testing.assert_close(cosines[inside], torch.full((int(inside.sum()),), 3 / 7))
    for view in blobs.scene.views:
        blobs.embeddings[view.name] = blobs.truth[:1].repeat(4 * BLOBS, 1)
    alike = _measure(blobs)
    assert alike.mean("whole") == pytest.approx(1, abs=1e-6)
    assert alike.between["whole"] == pytest.approx(1, abs=1e-6)  # one mask over everything agrees, and says nothing


def test_the_level_that_a_field_trusts_is_more_consistent_than_any_one_level() -> None:
    blobs = blob_scene(damaged=True)
    products = (blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings)
    found = _measure(blobs, galift=galift(*products, GaliftConfig(downscale=3)))
    single = [found.mean(level) for level in ("subpart", "part", "whole")]
    assert found.mean("galift") > 0.9 > 0.7 > max(single)
    for blob, level in enumerate(blobs.clean_level.tolist()):
        name = ("subpart", "part", "whole")[level]
        assert found.mean(name, blobs.blob_of_gaussian == blob) > 0.9


def test_blocks_of_gaussians_do_not_change_the_result() -> None:
    blobs = blob_scene(damaged=True)
    # wide vectors: 1 MB holds the sums of 40 of the 150 Gaussians
    padding = torch.zeros(4 * BLOBS, 500)
    for name, vectors in blobs.embeddings.items():
        blobs.embeddings[name] = torch.cat([vectors, padding], dim=1)
    whole, blocks = _measure(blobs), _measure(blobs, replace(CONFIG, memory_mb=1))
    assert torch.equal(whole.view_counts, blocks.view_counts)
    for name, cosines in whole.cosines.items():
        torch.testing.assert_close(blocks.cosines[name], cosines, equal_nan=True)
        assert blocks.between[name] == pytest.approx(whole.between[name])


def test_a_gaussian_gets_the_mask_that_shows_most_of_it() -> None:
    blobs = _with_holes(blob_scene())
    view = blobs.scene.views[1]
    label_maps = blobs.masks[view.name].label_maps[1:]
    blend = blend_weights(blobs.gaussians, view.camera)
    ids = torch.arange(5, BLOBS * PER_BLOB, 7)
    rows, assigned = assigned_masks(blend, label_maps, ids, 2.0)
    dense = blend.render(torch.eye(blend.n_gaussians)).flatten(0, 1)[:, ids].double()
    valid = (label_maps >= 0).all(dim=0).flatten()
    assert rows.tolist() == (dense[valid].sum(dim=0) >= 2.0).nonzero()[:, 0].tolist()
    assert 0 < len(rows) < len(ids)
    for level in range(3):
        shares = torch.stack([dense[valid & (label_maps[level].flatten() == m)].sum(dim=0) for m in range(4 * BLOBS)])
        assert torch.equal(assigned[:, level], shares[:, rows].argmax(dim=0))
    nothing, _ = assigned_masks(blend, torch.full_like(label_maps, -1), ids, 0.0)
    assert len(nothing) == 0


def test_the_report_and_the_table_hold_both_cosines() -> None:
    blobs = blob_scene(damaged=True)
    found = _measure(blobs)
    report = json.loads(json.dumps(found.to_json()))
    assert report["n_gaussians"] == int((found.view_counts >= 2).sum())
    assert report["cosine"]["whole"]["same_gaussian"] == found.mean("whole")
    console = Console(width=100, file=io.StringIO())
    console.print(consistency_table(found))
    for number in report["cosine"]["mean"].values():
        assert f"{number:.4f}" in console.file.getvalue()


def test_what_cannot_be_measured_is_an_error() -> None:
    blobs = blob_scene()
    products = (blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings)
    with pytest.raises(GagsError, match="expected fields that know granularity, found lift"):
        _measure(blobs, lift=lift(*products, LiftConfig(downscale=3)))
    with pytest.raises(GagsError, match=r"--consistency\.downscale: expected at least 1, found 0"):
        _measure(blobs, replace(CONFIG, downscale=0))
    with pytest.raises(GagsError, match="expected Gaussians that two views show"):
        _measure(blobs, replace(CONFIG, min_pixels=1e6))
    with pytest.raises(GagsError, match="expected training views, found none"):
        _measure(replace(blobs, scene=blobs.scene.holding_out(set(blobs.masks))))
