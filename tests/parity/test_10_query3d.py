"""Fixture 10: querying the Gaussians themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gags.distill._decoders import FeatureDecoder
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.query import QueryConfig, query_3d
from gags.query._query3d import neighbour_counts, smooth_selection
from gags.query._relevancy import stretch


class _StoredPhrases:
    """Hands out the fixture's text vectors."""

    name, tile_px = "stored", 1

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        self.vectors = vectors
        self.width = len(next(iter(vectors.values())))

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        raise AssertionError("a query encodes no tiles")

    def encode_phrases(self, phrases: list[str]) -> Tensor:
        return torch.stack([self.vectors[phrase] for phrase in phrases])


@dataclass(frozen=True)
class _Field:
    gaussians: Gaussians
    features: Tensor
    decode: FeatureDecoder

    def render(self, camera: Camera) -> Tensor:
        raise AssertionError("a query in 3D renders nothing")

    @torch.no_grad()
    def similarity(self, vectors: Tensor, exact: bool) -> Tensor:
        return self.decode.codes(self.features) @ self.decode.fold(vectors)


def _negatives(fixture: np.lib.npyio.NpzFile) -> tuple[str, ...]:
    return tuple(f"negative {row}" for row in range(len(fixture["neg_embeds"])))


def _query(parity_dir: Path) -> tuple[np.lib.npyio.NpzFile, _Field, _StoredPhrases, list[str]]:
    fixture = np.load(parity_dir / "10_query3d.npz", allow_pickle=False)
    decoder = np.load(parity_dir / "09a_feature_decoder.npz", allow_pickle=False)
    layers = sum(key.startswith("w") and key[1:].isdigit() for key in decoder.files)
    weights, biases = (
        [torch.from_numpy(decoder[f"{kind}{index}"]).float() for index in range(layers)] for kind in ("w", "b")
    )
    means = torch.from_numpy(fixture["xyz"])
    count = len(means)
    gaussians = Gaussians(
        means, torch.ones(count, 4), torch.zeros(count, 3), torch.zeros(count), torch.zeros(count, 1, 3)
    )
    phrases = [f"phrase {row}" for row in range(len(fixture["pos_embeds"]))]
    names = [*phrases, *_negatives(fixture)]
    vectors = torch.from_numpy(np.concatenate([fixture["pos_embeds"], fixture["neg_embeds"]]))
    field = _Field(gaussians, torch.from_numpy(fixture["semantic"]), FeatureDecoder.from_layers(weights, biases))
    return fixture, field, _StoredPhrases(dict(zip(names, vectors, strict=True))), phrases


def test_selection(parity_dir: Path) -> None:
    fixture, field, encoder, phrases = _query(parity_dir)
    config = QueryConfig(
        negatives=_negatives(fixture),
        threshold=float(fixture["threshold"]),
        smooth_radius=float(fixture["smooth_radius"]),
        smooth_votes=int(fixture["smooth_threshold"]),
        smooth_min_votes=int(fixture["lower_count"]),
        reference_quirks=True,
    )
    for row, selection in enumerate(query_3d(field, phrases, encoder, config)):
        np.testing.assert_allclose(selection.relevancy.numpy(), fixture["relevancy"][row], rtol=0, atol=5e-6)
        heat = stretch(selection.relevancy, (-1,))
        np.testing.assert_allclose(heat.numpy(), fixture["relevancy_normalised"][row], rtol=0, atol=5e-5)
        np.testing.assert_array_equal((heat > config.threshold).numpy(), fixture["mask_raw"][row])
        np.testing.assert_array_equal(selection.gaussian_ids.numpy(), fixture["mask_smoothed"][row].nonzero()[0])


@pytest.mark.parametrize("setting", ["default", "low"])
def test_smoothing_at_other_settings(parity_dir: Path, setting: str) -> None:
    fixture = np.load(parity_dir / "10_query3d.npz", allow_pickle=False)
    means, raw = torch.from_numpy(fixture["xyz"]), torch.from_numpy(fixture["mask_raw"]).bool()
    radius, votes = fixture[f"smooth_{setting}_radius_threshold"].tolist()
    config = QueryConfig(
        reference_quirks=True,
        smooth_radius=radius,
        smooth_votes=int(votes),
        smooth_min_votes=int(fixture["lower_count"]),
    )
    np.testing.assert_array_equal(smooth_selection(means, raw, config).numpy(), fixture[f"mask_smoothed_{setting}"])


def test_our_selection_does_not_change_with_the_scale_of_the_scene_and_the_reference_s_does(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "10_query3d.npz", allow_pickle=False)
    means, raw = torch.from_numpy(fixture["xyz"]), torch.from_numpy(fixture["mask_raw"]).bool()
    # A power of two: distances keep their order to the last bit.
    ours, ours_larger = (smooth_selection(scale * means, raw, QueryConfig()) for scale in (1, 64))
    assert torch.equal(ours, ours_larger) and ours.any()
    config = QueryConfig(
        reference_quirks=True,
        smooth_radius=float(fixture["smooth_radius"]),
        smooth_votes=int(fixture["smooth_threshold"]),
        smooth_min_votes=int(fixture["lower_count"]),
    )
    theirs, theirs_larger = (smooth_selection(scale * means, raw, config) for scale in (1, 64))
    np.testing.assert_array_equal(theirs.numpy(), fixture["mask_smoothed"])
    assert theirs_larger.sum() < theirs.sum()


def test_neighbour_counts(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "10_query3d.npz", allow_pickle=False)
    means, raw = torch.from_numpy(fixture["xyz"]), torch.from_numpy(fixture["mask_raw"]).bool()
    counts = neighbour_counts(means, raw, float(fixture["smooth_radius"]))
    np.testing.assert_array_equal(counts.numpy(), fixture["neighbour_count"])
