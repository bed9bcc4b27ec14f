"""Fixture 01: text relevancy of image features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gags.query import relevancy


def test_relevancy_of_features_and_of_a_map(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "01_relevancy.npz", allow_pickle=False)
    embeddings, positives, negatives = (
        torch.from_numpy(fixture[key]) for key in ("embeds", "pos_embeds", "neg_embeds")
    )
    scores = relevancy(embeddings, positives, negatives, float(fixture["temperature"])).numpy()
    np.testing.assert_allclose(scores, fixture["relevancy"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(scores, fixture["prob_pair"][..., 0], rtol=0, atol=2e-6)
    np.testing.assert_allclose(1 - scores, fixture["prob_pair"][..., 1], rtol=0, atol=2e-6)
    np.testing.assert_allclose(fixture["prob_pair"].sum(axis=-1), 1, rtol=0, atol=1e-6)

    height, width = fixture["map_hw"].tolist()
    maps = relevancy(embeddings.unflatten(0, (height, width)), positives, negatives, float(fixture["temperature"]))
    np.testing.assert_allclose(maps.numpy(), fixture["relevancy_map"][0], rtol=0, atol=2e-6)


def test_other_phrases_are_no_negatives(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "01_relevancy.npz", allow_pickle=False)
    embeddings, positives, negatives = (
        torch.from_numpy(fixture[key]) for key in ("embeds", "pos_embeds", "neg_embeds")
    )
    for row, positive in enumerate(positives):
        alone = relevancy(embeddings, positive[None], negatives, float(fixture["temperature"]))
        np.testing.assert_allclose(alone[0].numpy(), fixture["relevancy"][row], rtol=0, atol=2e-6)


def test_vectors_are_taken_as_they_are(parity_dir: Path) -> None:
    """Lengths differ from 1 by half precision; vectors twice as long are the same as twice the temperature."""
    fixture = np.load(parity_dir / "01_relevancy.npz", allow_pickle=False)
    embeddings, positives, negatives = (
        torch.from_numpy(fixture[key]) for key in ("embeds", "pos_embeds", "neg_embeds")
    )
    for twice in ((2 * embeddings, positives, negatives), (embeddings, 2 * positives, 2 * negatives)):
        scores = relevancy(*twice, float(fixture["temperature"]) / 2)
        np.testing.assert_allclose(scores.numpy(), fixture["relevancy"], rtol=0, atol=2e-6)
