"""The built-in segmenter: nested masks around their prompts, and things found where things are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from gags.segment import HierarchyConfig, HierarchySegmenter, make_segmenter

HEIGHT, WIDTH = 90, 120


@pytest.fixture(scope="module")
def picture() -> tuple[UInt8[Tensor, "height width 3"], Bool[Tensor, "height width"]]:
    """A two-coloured disc on a noisy wall, and where the disc is."""
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    disc = (u - 70) ** 2 + (v - 40) ** 2 < 22**2
    image = np.full((HEIGHT, WIDTH, 3), (190, 190, 180), float)
    image[disc] = (200, 60, 40)
    image[disc & (u > 70)] = (180, 30, 60)
    image += np.random.default_rng(0).normal(0, 3, image.shape)
    return torch.from_numpy(image.clip(0, 255).astype(np.uint8)), torch.from_numpy(disc)


def segmenter() -> HierarchySegmenter:
    return HierarchySegmenter(HierarchyConfig(n_superpixels=200))


def test_masks_are_nested_around_their_prompt(picture: tuple[Tensor, Tensor]) -> None:
    points = torch.rand(37, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([WIDTH, HEIGHT])
    proposals = segmenter().prepare(picture[0], None).propose(points)
    assert proposals.masks.shape == (37, 3, HEIGHT, WIDTH)
    for (x, y), (subpart, part, whole) in zip(points.tolist(), proposals.masks, strict=True):
        assert subpart[int(y), int(x)]
        assert (subpart <= part).all() and (part <= whole).all()
    for quality in (proposals.predicted_iou, proposals.stability):
        assert quality.shape == (37, 3) and (quality >= 0).all() and (quality <= 1).all()


def test_the_disc_is_one_of_the_wholes(picture: tuple[Tensor, Tensor]) -> None:
    image, disc = picture
    (whole,) = segmenter().prepare(image, None).propose(torch.tensor([[62.0, 40.0]])).masks[:, 2]
    assert (whole & disc).sum() / (whole | disc).sum() > 0.85


def test_depth_separates_what_colour_does_not() -> None:
    image = torch.full((HEIGHT, WIDTH, 3), 120, dtype=torch.uint8)
    depth = torch.full((HEIGHT, WIDTH), 5.0)
    box = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    box[30:60, 40:80] = True
    depth[box] = 2.0
    (whole,) = segmenter().prepare(image, depth).propose(torch.tensor([[60.0, 45.0]])).masks[:, 2]
    # superpixels of a flat colour are squares, so the box's outline is met only roughly
    assert (whole & box).sum() / whole.sum() > 0.8
    assert (whole & box).sum() / box.sum() > 0.5


def test_what_is_far_is_cut_finer(picture: tuple[Tensor, Tensor]) -> None:
    image, disc = picture
    left_half = disc & (torch.arange(WIDTH) <= 70)

    def whole(relative_depth: float, exponent: float = 2.0) -> Bool[Tensor, "height width"]:
        config = HierarchyConfig(n_superpixels=200, depth_exponent=exponent)
        prepared = HierarchySegmenter(config).prepare(image, None, torch.full((HEIGHT, WIDTH), relative_depth))
        return prepared.propose(torch.tensor([[62.0, 40.0]])).masks[0, 2]

    def iou(a: Tensor, b: Tensor) -> float:
        return float((a & b).sum() / (a | b).sum())

    assert iou(whole(1.0), disc) > 0.85 and iou(whole(1.7), left_half) > 0.85
    assert torch.equal(whole(1.7, exponent=0.0), whole(1.0))
    (untold,) = segmenter().prepare(image, None).propose(torch.tensor([[62.0, 40.0]])).masks[:, 2]
    assert torch.equal(untold, whole(1.0))


def test_equal_images_give_equal_answers(picture: tuple[Tensor, Tensor]) -> None:
    points = torch.tensor([[5.5, 7.5], [70.5, 40.5]])
    first, second = (segmenter().prepare(picture[0], None).propose(points) for _ in range(2))
    assert torch.equal(first.masks, second.masks) and torch.equal(first.stability, second.stability)


def test_one_flat_colour_is_no_trouble() -> None:
    proposals = (
        segmenter().prepare(torch.zeros(24, 31, 3, dtype=torch.uint8), None).propose(torch.tensor([[30.9, 23.9]]))
    )
    assert torch.isfinite(proposals.predicted_iou).all() and proposals.masks.any()


def test_the_name_tells_the_settings() -> None:
    assert make_segmenter("hierarchy").name != HierarchySegmenter(HierarchyConfig(gamma=0.7)).name


def test_the_masks_of_a_level_tile_the_image(picture: tuple[Tensor, Tensor]) -> None:
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    points = torch.from_numpy(np.stack([u.ravel(), v.ravel()], axis=1)[::7]).float() + 0.5
    proposals = segmenter().prepare(picture[0], None).propose(points)
    for level in range(3):
        masks = torch.unique(proposals.masks[:, level].flatten(1), dim=0)
        assert (masks.sum(0) <= 1).all() and masks.any(0).float().mean() > 0.98


def test_a_picture_is_trusted_more_than_its_frame() -> None:
    image = np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    image[20:70, 30:90] = (40, 20, 20)
    image[24:66, 34:86] = (60, 120, 200)
    prompts = torch.tensor([[60.5, 45.5], [32.5, 45.5]])
    proposals = segmenter().prepare(torch.from_numpy(image), None).propose(prompts)
    picture, frame = proposals.predicted_iou[:, 0].tolist()
    assert not (proposals.masks[0, 0] & proposals.masks[1, 0]).any() and picture > frame


def test_distinct_prompts_get_every_answer_once(picture: tuple[Tensor, Tensor]) -> None:
    points = torch.rand(211, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([WIDTH, HEIGHT])
    prepared = segmenter().prepare(picture[0], None)
    kept = prepared.distinct_prompts(points)
    answers = [answer.tobytes() for answer in prepared.propose(points).masks.numpy()]
    assert [answer.tobytes() for answer in prepared.propose(kept).masks.numpy()] == list(dict.fromkeys(answers))
    assert 1 < len(kept) < len(points)
