"""SAM and SAM 2: the batched segmenter against the models asked point by point, Meta's files against folders, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from scipy import ndimage
from torch import Tensor

import tiny_checkpoints
from gags.errors import GagsError
from gags.pretrained import FAMILIES, find_weights, identify
from gags.segment import (
    Granularity,
    HierarchySegmenter,
    MaskProposals,
    SamSegmenter,
    SegmentConfig,
    make_segmenter,
    segment_view,
)
from gags.segment._meta_sam import _config
from gags.segment.sam import IMAGENET_DEVIATION, IMAGENET_MEAN, Frame, stability_scores

SIDE = tiny_checkpoints.SIDE
HEIGHT, WIDTH = 30, 43


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders sam/ and sam2/, and meta.pth with the weights of sam/."""
    folder = tmp_path_factory.mktemp("checkpoints")
    model = tiny_checkpoints.make_sam(folder / "sam")
    tiny_checkpoints.write_meta_sam(folder / "meta.pth", model)
    tiny_checkpoints.make_sam2(folder / "sam2")
    return folder


def picture(seed: int = 0) -> Tensor:
    """Random colours in blocks, so that resizing it keeps something of it."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return torch.from_numpy(np.array(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)))


def prompts(n: int, seed: int = 0) -> Tensor:
    return torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([WIDTH, HEIGHT])


def stability_twin(logits: Tensor) -> float:
    """IoU of the two masks, pixel by pixel."""
    inner = sum(value > 1 for value in logits.flatten().tolist())
    outer = sum(value > -1 for value in logits.flatten().tolist())
    return inner / outer if outer else 0.0


def asked_one_by_one(name: str, folder: Path, image: Tensor, points_xy_px: Tensor) -> MaskProposals:
    """The model from the pixels to the masks for one point at a time; SAM's pictures through transformers' own processor."""
    model = (transformers.SamModel if name == "sam" else transformers.Sam2Model).from_pretrained(folder).eval()
    height, width = image.shape[:2]
    if name == "sam":
        processor = transformers.SamImageProcessorPil(
            size={"longest_edge": SIDE}, pad_size={"height": SIDE, "width": SIDE}
        )
        inputs = processor(image.numpy(), return_tensors="pt")
        pixels, (rows, columns) = inputs["pixel_values"], inputs["reshaped_input_sizes"][0].tolist()
    else:
        rows = columns = SIDE
        resized = np.array(Image.fromarray(image.numpy()).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) / 255
        normalised = (resized - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
        pixels = torch.from_numpy(normalised).permute(2, 0, 1)[None].float()
    masks, ious, stabilities = [], [], []
    for x, y in points_xy_px.tolist():
        # both models add the half pixel again
        point = torch.tensor([[[[x * columns / width - 0.5, y * rows / height - 0.5]]]])
        with torch.no_grad():
            answer = model(pixel_values=pixels, input_points=point, multimask_output=True)
        if name == "sam":
            (logits,) = processor.post_process_masks(
                answer.pred_masks, [(height, width)], [(rows, columns)], binarize=False,
                pad_size={"height": SIDE, "width": SIDE},
            )  # fmt: skip
        else:
            logits = torch.nn.functional.interpolate(answer.pred_masks[0], (height, width), mode="bilinear")
        masks.append(logits[0] > 0)
        ious.append(answer.iou_scores[0, 0])
        stabilities.append(torch.tensor([stability_twin(level) for level in logits[0]]))
    return MaskProposals(torch.stack(masks), torch.stack(ious), torch.stack(stabilities))


@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_batched_prompts_equal_the_model_asked_point_by_point(name: str, checkpoints: Path) -> None:
    image, points = picture(), prompts(11)
    expected = asked_one_by_one(name, checkpoints / name, image, points)
    found = make_segmenter(name, checkpoints / name).prepare(image, None).propose(points)
    assert found.masks.shape == (11, 3, HEIGHT, WIDTH)
    assert 0.02 < found.masks.float().mean() < 0.98
    assert len({mask.numpy().tobytes() for mask in found.masks[:, 0]}) > 5
    # a logit within rounding of zero may fall on either side
    assert (found.masks != expected.masks).float().mean() < 1e-3
    torch.testing.assert_close(found.predicted_iou, expected.predicted_iou, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.stability, expected.stability, atol=3e-3, rtol=0)
    assert found.stability.std() > 0.05


def test_one_embedding_serves_all_prompts(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = SamSegmenter(checkpoints / "sam")
    prepared = segmenter.prepare(picture(), None)
    monkeypatch.setattr(segmenter._model, "vision_encoder", None)
    whole = prepared.propose(prompts(13))
    parts = [prepared.propose(batch) for batch in prompts(13).split(5)]
    assert (torch.cat([part.masks for part in parts]) != whole.masks).float().mean() < 1e-3
    torch.testing.assert_close(torch.cat([part.predicted_iou for part in parts]), whole.predicted_iou)


def test_points_are_asked_once_and_in_order(checkpoints: Path) -> None:
    prepared = SamSegmenter(checkpoints / "sam").prepare(picture(), None)
    points = torch.tensor([[3.5, 9.5], [1.5, 2.5], [3.5, 9.5], [0.5, 2.5], [1.5, 2.5]])
    assert prepared.distinct_prompts(points).tolist() == [[3.5, 9.5], [1.5, 2.5], [0.5, 2.5]]


@pytest.mark.parametrize(("width", "height", "resized"), [(43, 30, (64, 45)), (20, 41, (31, 64)), (64, 64, (64, 64))])
def test_a_picture_keeps_its_corners_and_its_shape(width: int, height: int, resized: tuple[int, int]) -> None:
    corners = torch.tensor([[0.0, 0.0], [width, height]])
    for frame, size in ((Frame.padded(width, height, 64), resized), (Frame.stretched(width, height, 64), (64, 64))):
        assert (frame.input_width, frame.input_height) == size
        # the models add half a pixel: corners stay corners
        torch.testing.assert_close(frame.points(corners)[0, :, 0] + 0.5, torch.tensor([[0.0, 0.0], size]))
        white = torch.full((height, width, 3), 255, dtype=torch.uint8)
        pixels = frame.pixels(white, IMAGENET_MEAN, IMAGENET_DEVIATION)
        assert pixels.shape == (1, 3, 64, 64)
        assert (pixels[0, 0] != 0).sum() == size[0] * size[1]
        # logits that are a ramp over the picture are the same ramp in its pixels, whatever lies in the padding
        ramp = (torch.arange(16) + 0.5)[None, None, None].expand(1, 3, 16, 16) * 4 / size[0] * width
        columns = (torch.arange(width) + 0.5)[3:-3]
        torch.testing.assert_close(frame.enlarged(ramp)[0, 1, height // 2, 3:-3], columns, atol=0.5, rtol=0)


def test_stability_counts_pixels() -> None:
    logits = torch.tensor([[[2.0, 0.5, -0.5], [-1.5, 1.5, -2.0]], [[-5.0] * 3] * 2])
    assert stability_scores(logits).tolist() == [0.5, 0.0]


def test_metas_file_equals_the_folder(checkpoints: Path) -> None:
    image, points = picture(), prompts(9)
    folder, file = (SamSegmenter(checkpoints / name).prepare(image, None) for name in ("sam", "meta.pth"))
    expected, found = folder.propose(points), file.propose(points)
    assert torch.equal(found.masks, expected.masks)
    assert torch.equal(found.predicted_iou, expected.predicted_iou)
    assert torch.equal(found.stability, expected.stability)


@pytest.mark.parametrize(
    ("hidden", "heads", "depth", "everywhere"),
    [(768, 12, 12, [2, 5, 8, 11]), (1024, 16, 24, [5, 11, 17, 23]), (1280, 16, 32, [7, 15, 23, 31])],
)
def test_sizes_of_metas_models_are_read_off_their_shapes(
    hidden: int, heads: int, depth: int, everywhere: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vision = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "global_attn_indexes": everywhere,
        "mlp_dim": 4 * hidden,
    }
    expected = transformers.SamConfig(vision_config=vision)
    with torch.device("meta"):
        model = transformers.SamModel(expected)
    monkeypatch.setattr(torch, "save", lambda tensors, path: None)
    found = _config(tiny_checkpoints.write_meta_sam(tmp_path / "unwritten.pth", model))
    for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config"):
        assert getattr(found, part).to_dict() == getattr(expected, part).to_dict()


def test_sam2_is_taken_out_of_the_published_video_model(checkpoints: Path, tmp_path: Path) -> None:
    model = transformers.Sam2Model.from_pretrained(checkpoints / "sam2")
    tiny_checkpoints.make_sam2_video(tmp_path / "video", model)
    assert json.loads((tmp_path / "video" / "config.json").read_text())["model_type"] == "sam2_video"
    expected, found = (
        make_segmenter("sam2", folder).prepare(picture(), None).propose(prompts(5))
        for folder in (checkpoints / "sam2", tmp_path / "video")
    )
    assert torch.equal(found.masks, expected.masks)
    assert torch.equal(found.predicted_iou, expected.predicted_iou)


def connected(mask: np.ndarray, min_px: int) -> np.ndarray:
    """Holes of fewer pixels filled, then islands of fewer dropped but for the largest, by plain definition."""
    filled = mask.copy()
    holes, n = ndimage.label(np.pad(~mask, 1, constant_values=True), np.ones((3, 3)))
    for hole in range(1, n + 1):
        part = (holes == hole)[1:-1, 1:-1]
        touches_border = hole == holes[0, 0]
        if not touches_border and part.sum() < min_px:
            filled |= part
    islands, n = ndimage.label(filled, np.ones((3, 3)))
    parts = [islands == i for i in range(1, n + 1)]
    largest = max(parts, key=lambda part: part.sum())
    kept = [part for part in parts if part.sum() >= min_px or part is largest]
    return np.any(kept, axis=0)


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(mask)
    return columns.min(), rows.min(), columns.max(), rows.max()


def box_iou(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def best_boxes(entries: list[tuple[np.ndarray, float]], ranks: list[float], max_iou: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(entries)), key=lambda i: -ranks[i]):
        if all(box_iou(box(entries[i][0]), box(entries[j][0])) <= max_iou for j in kept):
            kept.append(i)
    return sorted(kept)


def levels_by_definition(proposals: MaskProposals, config: SegmentConfig) -> list[set[bytes]]:
    """The masks of each level by the definition: prompt after prompt, mask after mask."""
    result = []
    for level in range(3):
        entries: dict[bytes, tuple[np.ndarray, float, float]] = {}
        for prompt in range(len(proposals.masks)):
            mask = proposals.masks[prompt, level].numpy()
            iou, stability = proposals.predicted_iou[prompt, level].item(), proposals.stability[prompt, level].item()
            if iou >= config.min_predicted_iou and stability >= config.min_stability and mask.any():
                entries.setdefault(mask.tobytes(), (mask, iou, stability))
        masks = list(entries.values())
        kept = best_boxes([m[:2] for m in masks], [m[1] for m in masks], config.max_box_iou)
        masks = [masks[i] for i in kept]
        cleaned = [(connected(mask, config.min_region_px), iou, stability) for mask, iou, stability in masks]
        untouched = [float((c[0] == m[0]).all()) for c, m in zip(cleaned, masks, strict=True)]
        kept = best_boxes([c[:2] for c in cleaned], untouched, config.max_box_iou)
        final = list({cleaned[i][0].tobytes(): cleaned[i] for i in reversed(kept)}.values())[::-1]
        scores = [iou * stability for _, iou, stability in final]
        survivors = set()
        for i, (mask, _, _) in enumerate(final):
            survives = scores[i] > config.min_score
            for j, (other, _, _) in enumerate(final):
                if i == j:
                    continue
                shared, inside, covered = (mask & other).sum(), mask.sum(), other.sum()
                better = scores[j] > scores[i] or (scores[j] == scores[i] and j < i)
                if better and shared / (mask | other).sum() > config.max_mask_iou:
                    survives = False
                if shared / inside >= 0.85 and shared / covered < 0.5:
                    survives = False
            if survives:
                survivors.add(mask.tobytes())
        result.append(survivors)
    return result


@pytest.mark.parametrize(("max_box_iou", "max_mask_iou", "at_least"), [(0.9, 0.8, 3), (1.0, 0.95, 20)])
def test_the_levels_of_sam_are_filtered_by_the_definition(
    checkpoints: Path, max_box_iou: float, max_mask_iou: float, at_least: int
) -> None:
    segmenter, image = SamSegmenter(checkpoints / "sam"), picture(3)
    depth = torch.full((HEIGHT, WIDTH), 2.0)
    # thresholds that bite on a model that was never trained
    config = SegmentConfig(
        min_per_side=2,
        min_predicted_iou=0.7,
        min_stability=0.7,
        max_box_iou=max_box_iou,
        min_region_px=12,
        max_mask_iou=max_mask_iou,
        min_score=0.5,
    )
    view = segment_view(image, depth, torch.zeros(HEIGHT, WIDTH), segmenter, config)
    prepared = segmenter.prepare(image, None)
    proposals = prepared.propose(view.prompts_xy_px)
    below = (
        (proposals.predicted_iou < config.min_predicted_iou).float().mean(),
        (proposals.stability < config.min_stability).float().mean(),
    )
    assert all(0.1 < share < 0.9 for share in below)
    expected = levels_by_definition(proposals, config)
    assert sum(len(level) for level in expected) >= at_least
    for level, masks in zip((Granularity.SUBPART, Granularity.PART, Granularity.WHOLE), expected, strict=True):
        found = view.masks[view.granularity == int(level)]
        assert {mask.numpy().tobytes() for mask in found} == masks
        assert len(found) == len(masks)


def test_a_half_precision_encoder_says_nearly_the_same(checkpoints: Path) -> None:
    for name in ("sam", "sam2"):
        whole, half = (
            SamSegmenter(checkpoints / name, name, torch.device("cpu"), dtype)
            .prepare(picture(), None)
            .propose(prompts(7))
            for dtype in (torch.float32, torch.bfloat16)
        )
        assert half.predicted_iou.dtype == torch.float32
        assert not torch.equal(half.predicted_iou, whole.predicted_iou)
        torch.testing.assert_close(half.predicted_iou, whole.predicted_iou, atol=0.1, rtol=0.1)
        assert (half.masks != whole.masks).float().mean() < 0.05


def test_a_name_follows_the_weights_and_nothing_else(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "sam", tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("about this model")
    name = SamSegmenter(checkpoints / "sam").name
    assert SamSegmenter(tmp_path / "copy").name == name
    tiny_checkpoints.make_sam(tmp_path / "copy", seed=2)
    assert SamSegmenter(tmp_path / "copy").name != name
    (tmp_path / "copy" / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    assert identify(tmp_path / "copy") != identify(checkpoints / "sam")
    assert SamSegmenter(checkpoints / "meta.pth").name.startswith("sam, weights ")


def test_the_checkpoints_own_mean_and_deviation_are_used(checkpoints: Path, tmp_path: Path) -> None:
    image, points = picture(), prompts(4)
    shutil.copytree(checkpoints / "sam", tmp_path / "copy")
    plain = SamSegmenter(tmp_path / "copy").prepare(image, None).propose(points)
    for name, settings in (
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}),
        ("processor_config.json", {"image_processor": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}}),
    ):
        (tmp_path / "copy" / name).write_text(json.dumps(settings))
        prepared = SamSegmenter(tmp_path / "copy").prepare(image, None)
        white = Frame.padded(WIDTH, HEIGHT, SIDE).pixels(image, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
        torch.testing.assert_close(prepared._embeddings, prepared._model.get_image_embeddings(white))
        assert not torch.equal(prepared.propose(points).predicted_iou, plain.predicted_iou)
        (tmp_path / "copy" / name).unlink()


def test_segmenters_by_name(checkpoints: Path) -> None:
    assert isinstance(make_segmenter(), HierarchySegmenter)
    with pytest.raises(GagsError, match="segmenter 'sum': expected 'hierarchy', 'sam' or 'sam2'"):
        make_segmenter("sum")  # type: ignore[arg-type]
    with pytest.raises(GagsError, match=r"segmenter 'hierarchy': expected no weights, found .*; give --segmenter sam"):
        make_segmenter("hierarchy", checkpoints / "sam")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("name", "weights", "hub_name", "size"),
    [
        ("sam", None, "facebook/sam-vit-huge", r"2\.6 GB"),
        ("sam", "facebook/sam-vit-base", "facebook/sam-vit-base", r"0\.4 GB"),
        ("sam2", None, r"facebook/sam2\.1-hiera-large", r"0\.9 GB"),
        ("sam", "someone/fine-sam", "someone/fine-sam", "its page says how large"),
    ],
)
def test_missing_weights_are_named_with_their_size_and_the_way_around(
    name: Any, weights: str | None, hub_name: str, size: str, offline: Path
) -> None:
    message = (
        rf"weights '{hub_name}': expected them in the cache \({offline}\) or on the network, found neither .*"
        rf"https://huggingface\.co/{hub_name} \({size}\).*--segmenter-weights DIR.*--segmenter hierarchy"
    )
    with pytest.raises(GagsError, match=message):
        make_segmenter(name, weights)


def test_the_single_file_is_offered_for_sam(offline: Path) -> None:
    with pytest.raises(GagsError, match=r"https://dl\.fbaipublicfiles\.com/segment_anything/sam_vit_h_4b8939\.pth"):
        make_segmenter("sam")


def test_weights_in_the_cache_are_found_without_a_network(checkpoints: Path, offline: Path) -> None:
    repository = offline / "models--someone--tiny-sam"
    shutil.copytree(checkpoints / "sam", repository / "snapshots" / "0123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    assert make_segmenter("sam", "someone/tiny-sam").name == make_segmenter("sam", checkpoints / "sam").name
    (repository / "snapshots" / "0123" / "model.safetensors").unlink()
    with pytest.raises(GagsError, match="found neither"):
        find_weights(FAMILIES["sam"], "someone/tiny-sam")


def test_what_is_no_checkpoint_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"none\.pth: expected SAM weights \(a folder .* found nothing there"):
        make_segmenter("sam", tmp_path / "none.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GagsError, match=r"empty: expected SAM weights in transformers form .* found no such files"):
        make_segmenter("sam", tmp_path / "empty")
    with pytest.raises(GagsError, match=r"config\.json: expected model_type sam2 or sam2_video, found sam; give"):
        make_segmenter("sam2", checkpoints / "sam")
    with pytest.raises(GagsError, match=r"meta\.pth: expected SAM 2 weights .* found a file"):
        make_segmenter("sam2", checkpoints / "meta.pth")

    (tmp_path / "cut.pth").write_bytes((checkpoints / "meta.pth").read_bytes()[:5000])
    with pytest.raises(GagsError, match=r"cut\.pth: expected a SAM checkpoint of Meta's .* cannot be read"):
        SamSegmenter(tmp_path / "cut.pth").prepare(picture(), None)
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(GagsError, match=r"other\.pth: expected a SAM checkpoint .* found something else; SAM 2"):
        SamSegmenter(tmp_path / "other.pth").prepare(picture(), None)
    tensors = torch.load(checkpoints / "meta.pth", weights_only=True)
    del tensors["mask_decoder.iou_token.weight"]
    torch.save(tensors, tmp_path / "lacking.pth")
    with pytest.raises(GagsError, match=r"lacking\.pth: expected a SAM checkpoint .* found tensors of another model"):
        SamSegmenter(tmp_path / "lacking.pth").prepare(picture(), None)

    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoints / "sam", tmp_path / "lacking")
    weights = tmp_path / "lacking" / "model.safetensors"
    kept = {
        name: tensor for name, tensor in load_file(weights).items() if not name.startswith("mask_decoder.iou_token")
    }
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(GagsError, match=r"found 1 tensors missing \(such as mask_decoder\.iou_token\.weight\)"):
        SamSegmenter(tmp_path / "lacking").prepare(picture(), None)
    weights.write_bytes(b"no tensors")
    with pytest.raises(GagsError, match="expected the weights of a SamModel, found files that cannot be read"):
        SamSegmenter(tmp_path / "lacking").prepare(picture(), None)
