"""MobileSAM: its image encoder against a plain one, its file behind the segmenter, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import tiny_checkpoints
from gags.errors import GagsError
from gags.segment import SamSegmenter, make_segmenter
from gags.segment._meta_sam import MOBILE_SIDE_PX
from gags.segment._tiny_vit import TinyVit
from gags.segment.sam import IMAGENET_DEVIATION, IMAGENET_MEAN, Frame

HEIGHT, WIDTH = 30, 43


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mobile_sam.pt with tiny random weights."""
    folder = tmp_path_factory.mktemp("mobile")
    sam = tiny_checkpoints.write_meta_sam(folder / "meta.pth", tiny_checkpoints.make_sam(folder / "sam"))
    tiny_checkpoints.write_mobile_sam(folder / "mobile_sam.pt", sam)
    return folder / "mobile_sam.pt"


def picture() -> Tensor:
    coarse = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(3))
    return (255 * functional.interpolate(coarse, size=(HEIGHT, WIDTH))[0].permute(1, 2, 0)).to(torch.uint8)


def plain_encoder(tensors: dict[str, Tensor], picture: Tensor) -> Tensor:
    """TinyViT by definition: batch norms by themselves, one window and one head at a time."""

    def convolution(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = tensors[f"{name}.c.weight"]
        groups = x.shape[1] // weight.shape[1]
        x = functional.conv2d(x, weight, None, stride, weight.shape[-1] // 2, groups=groups)
        norm = [tensors[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *norm, eps=1e-5)

    def expanded(x: Tensor, name: str, stride: int = 1) -> Tensor:
        x = functional.gelu(convolution(x, f"{name}.conv1"))
        return convolution(functional.gelu(convolution(x, f"{name}.conv2", stride)), f"{name}.conv3")

    def norm(x: Tensor, name: str, eps: float = 1e-5) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps)

    def linear(x: Tensor, name: str) -> Tensor:
        return functional.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def attention(window: Tensor, name: str) -> Tensor:
        """Of the cells of one window."""
        biases = tensors[f"{name}.attention_biases"]
        side = round(biases.shape[1] ** 0.5)
        cells = [(row, column) for row in range(side) for column in range(side)]
        apart = torch.tensor([[abs(a[0] - b[0]) * side + abs(a[1] - b[1]) for b in cells] for a in cells])
        mixed = []
        for head, of_head in enumerate(linear(norm(window, f"{name}.norm"), f"{name}.qkv").chunk(len(biases), dim=1)):
            query, key, value = of_head.chunk(3, dim=1)
            likeness = query @ key.T / key.shape[1] ** 0.5 + biases[head][apart]
            mixed.append(likeness.softmax(dim=1) @ value)
        return linear(torch.cat(mixed, dim=1), f"{name}.proj")

    def attended(x: Tensor, name: str) -> Tensor:
        cells = x[0].permute(1, 2, 0)
        height, width, channels = cells.shape
        side = round(tensors[f"{name}.attn.attention_biases"].shape[1] ** 0.5)
        padded = torch.zeros(-(-height // side) * side, -(-width // side) * side, channels)
        padded[:height, :width] = cells
        for top in range(0, len(padded), side):
            for left in range(0, padded.shape[1], side):
                window = padded[top : top + side, left : left + side].reshape(-1, channels)
                padded[top : top + side, left : left + side] = attention(window, f"{name}.attn").reshape(side, side, -1)
        cells = cells + padded[:height, :width]
        cells = convolution(cells.permute(2, 0, 1)[None], f"{name}.local_conv")[0].permute(1, 2, 0)
        inner = functional.gelu(linear(norm(cells, f"{name}.mlp.norm"), f"{name}.mlp.fc1"))
        return (cells + linear(inner, f"{name}.mlp.fc2")).permute(2, 0, 1)[None]

    x = functional.gelu(convolution(picture, "patch_embed.seq.0", 2))
    x = convolution(x, "patch_embed.seq.2", 2)
    x = functional.gelu(x + expanded(x, "layers.0.blocks.0"))
    x = expanded(x, "layers.0.downsample", 2)
    x = attended(x, "layers.1.blocks.0")
    x = expanded(x, "layers.1.downsample", 2)
    x = attended(attended(x, "layers.2.blocks.0"), "layers.2.blocks.1")
    # the decoder's grid is reached
    x = expanded(x, "layers.2.downsample", 1)
    x = attended(x, "layers.3.blocks.0")
    x = functional.conv2d(x, tensors["neck.0.weight"])
    x = norm(x.permute(0, 2, 3, 1), "neck.1", 1e-6).permute(0, 3, 1, 2)
    x = functional.conv2d(x, tensors["neck.2.weight"], padding=1)
    return norm(x.permute(0, 2, 3, 1), "neck.3", 1e-6).permute(0, 3, 1, 2)


def encoder_tensors(weights: Path) -> dict[str, Tensor]:
    found = torch.load(weights, weights_only=True)
    return {name.removeprefix("image_encoder."): t for name, t in found.items() if name.startswith("image_encoder.")}


def test_the_encoder_is_tiny_vit(weights: Path) -> None:
    tensors = encoder_tensors(weights)
    picture = torch.randn(1, 3, 192, 208, generator=torch.Generator().manual_seed(1))
    (embedding,) = TinyVit(tensors).eval()(picture)
    expected = plain_encoder(tensors, picture)
    assert embedding.shape == (1, 32, 12, 13)
    assert expected.std() > 0.3
    torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=1e-4)


def test_its_file_answers_prompts(weights: Path) -> None:
    points = torch.rand(7, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([WIDTH, HEIGHT])
    segmenter = make_segmenter("sam", weights)
    assert isinstance(segmenter, SamSegmenter)
    prepared = segmenter.prepare(picture(), None)
    # a cell for every 16 pixels of the model's own input size
    assert prepared._embeddings.shape == (1, 32, MOBILE_SIDE_PX // 16, MOBILE_SIDE_PX // 16)
    frame = Frame.padded(WIDTH, HEIGHT, MOBILE_SIDE_PX)
    tensors = encoder_tensors(weights)
    expected = plain_encoder(tensors, frame.pixels(picture(), IMAGENET_MEAN, IMAGENET_DEVIATION))
    torch.testing.assert_close(prepared._embeddings, expected, atol=1e-4, rtol=1e-4)
    found = prepared.propose(points)
    assert found.masks.shape == (7, 3, HEIGHT, WIDTH)
    assert len({mask.numpy().tobytes() for mask in found.masks[:, 0]}) > 3
    # the picture decides, through the encoder
    other = segmenter.prepare(255 - picture(), None).propose(points)
    assert not torch.equal(found.predicted_iou, other.predicted_iou)


Change = Callable[[dict[str, Tensor]], object]


@pytest.mark.parametrize(
    ("change", "at_once"),
    [
        (lambda tensors: tensors.pop("mask_decoder.iou_token.weight"), False),
        (lambda tensors: tensors.pop("mask_decoder.mask_tokens.weight"), True),
        (lambda tensors: tensors.pop("image_encoder.layers.1.blocks.0.attn.qkv.bias"), False),
        (lambda tensors: tensors.pop("image_encoder.layers.1.blocks.0.local_conv.bn.weight"), False),
        (lambda tensors: tensors.update({"image_encoder.layers.1.blocks.0.more": torch.zeros(3)}), False),
        (lambda tensors: tensors.update({"image_encoder.neck.0.weight": torch.zeros(32, 9, 1, 1)}), False),
        (
            lambda tensors: tensors.update({"image_encoder.layers.1.blocks.0.attn.attention_biases": torch.zeros(2)}),
            False,
        ),
        (lambda tensors: tensors.update({"prompt_encoder.point_embeddings.0.weight": "none"}), True),
    ],
)
def test_tensors_of_another_model_are_refused(change: Change, at_once: bool, weights: Path, tmp_path: Path) -> None:
    tensors = torch.load(weights, weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / "other.pt")
    with pytest.raises(
        GagsError, match=r"other\.pt: expected a SAM checkpoint .* tensors of another model .*--segmenter-w"
    ):
        segmenter = make_segmenter("sam", tmp_path / "other.pt")
        assert not at_once
        segmenter.prepare(picture(), None)


def test_a_tensor_too_many_is_named(weights: Path) -> None:
    tensors = encoder_tensors(weights) | {"layers.1.blocks.0.more": torch.zeros(3)}
    with pytest.raises(
        ValueError, match=r"^1 tensors that TinyViT has not, such as image_encoder\.layers\.1\.blocks\.0\.more$"
    ):
        TinyVit(tensors)


def test_a_foreign_file_is_refused_before_the_first_image(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about this model")
    with pytest.raises(
        GagsError, match=r"README\.md: expected a SAM checkpoint .* cannot be read .*--segmenter-weights"
    ):
        make_segmenter("sam", tmp_path / "README.md")
