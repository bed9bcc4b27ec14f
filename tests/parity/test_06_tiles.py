"""Fixture 06, first half: masks to tiles and raw embeddings to features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gags.encode import make_tiles
from gags.encode._tiles import square_crop
from gags.errors import GagsError
from gags.segment import mask_boxes


def _masks(fixture: np.lib.npyio.NpzFile) -> tuple[torch.Tensor, np.ndarray]:
    """Masks and boxes of all levels, in the order of the merged index."""
    levels = fixture["level_names"].tolist()
    kept = [fixture[f"{level}_kept"] for level in levels]
    masks = np.concatenate([fixture[f"{level}_masks"][rows] for level, rows in zip(levels, kept, strict=True)])
    boxes = np.concatenate([fixture[f"{level}_boxes_xywh"][rows] for level, rows in zip(levels, kept, strict=True)])
    return torch.from_numpy(masks).bool(), boxes


def test_boxes_and_squares(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "06_tiles_and_segmap.npz", allow_pickle=False)
    masks, boxes_xywh = _masks(fixture)
    image = torch.from_numpy(fixture["image_rgb"])
    boxes = mask_boxes(masks)
    np.testing.assert_array_equal(torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).numpy(), boxes_xywh)
    squares = [key for key in fixture.files if key.startswith("square_")]
    assert squares
    for key in squares:
        row = int(key.removeprefix("square_"))
        square = square_crop(image, masks[row], tuple(boxes[row].tolist()))
        np.testing.assert_array_equal(square.numpy(), fixture[key])


def test_tiles(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "06_tiles_and_segmap.npz", allow_pickle=False)
    masks, _ = _masks(fixture)
    size_px = fixture["tiles_u8"].shape[-1]
    tiles = make_tiles(torch.from_numpy(fixture["image_rgb"]), masks, size_px)[fixture["tile_global_index"]]
    np.testing.assert_allclose(255 * tiles.numpy(), fixture["tiles_u8"], rtol=0, atol=1)


def test_a_crop_larger_than_the_tile_is_not_antialiased(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "06_tiles_and_segmap.npz", allow_pickle=False)
    square = torch.from_numpy(fixture["down_square"])
    side = square.shape[0]
    # A mask one pixel larger each way, whose crop is the square again (SAM's boxes lose a row and a column).
    image = torch.zeros(side + 1, side + 1, 3, dtype=torch.uint8)
    image[:side, :side] = square
    tiles = make_tiles(image, torch.ones(1, side + 1, side + 1, dtype=torch.bool), fixture["down_tile_u8"].shape[-1])
    np.testing.assert_allclose(255 * tiles[0].numpy(), fixture["down_tile_u8"], rtol=0, atol=1)


def test_a_mask_one_pixel_wide_is_seen_by_us_and_black_in_the_reference(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "06_tiles_and_segmap.npz", allow_pickle=False)
    image, size_px = torch.from_numpy(fixture["image_rgb"]), fixture["tiles_u8"].shape[-1]
    line, point = torch.zeros(2, *image.shape[:2], dtype=torch.bool)
    line[3:20, 5], point[3, 5] = True, True
    for quirks in (False, True):
        tile = make_tiles(image, line[None], size_px, reference_quirks=quirks)
        assert bool(tile.any()) != quirks
    assert make_tiles(image, point[None], size_px).any()
    with pytest.raises(GagsError, match="expected masks of at least two pixels, found one of a single pixel"):
        make_tiles(image, point[None], size_px, reference_quirks=True)


def test_features_are_normalised_embeddings(parity_dir: Path) -> None:
    fixture = np.load(parity_dir / "06_tiles_and_segmap.npz", allow_pickle=False)
    raw = torch.from_numpy(fixture["raw_embeds"]).to(torch.float32)
    features = torch.nn.functional.normalize(raw, dim=1)
    np.testing.assert_allclose(features.numpy(), fixture["feature"], rtol=0, atol=2.5e-4)
