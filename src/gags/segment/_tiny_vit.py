"""TinyViT as MobileSAM's image encoder: what SAM's decoder reads, from five million weights instead of 630.

Wu et al., *TinyViT: Fast Pretraining Distillation for Small Vision Transformers*, ECCV 2022; Zhang et al., *Faster Segment
Anything: Towards Lightweight SAM for Mobile Applications*, 2023 (MobileSAM). Sizes are read off the weights' shapes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, pad, scaled_dot_product_attention

GRID_STRIDE = 16
"""Pixels of the model's input to a side of a cell of its embedding, which the decoder expects: the stages stop shrinking there."""

Tensors = Mapping[str, Tensor]


class TinyVit(nn.Module):
    """Pictures to SAM's image embedding; in the place of a transformers SAM's ``vision_encoder``."""

    def __init__(self, tensors: Tensors) -> None:
        """Build it from MobileSAM's tensors (``patch_embed...``, ``layers...``, ``neck...``).

        Raises:
            IndexError, KeyError, RuntimeError, ValueError: tensors that make no TinyViT.
        """
        super().__init__()
        tensors = _Taken(tensors)
        self.stem = nn.Sequential(
            _convolution(tensors, "patch_embed.seq.0", 2), nn.GELU(), _convolution(tensors, "patch_embed.seq.2", 2)
        )
        # the stem has halved the picture twice
        stride, stages = 4, list[nn.Module]()
        for stage in range(count_numbers(tensors, r"layers\.(\d+)\.")):
            name = f"layers.{stage}"
            kind = _Convolved if f"{name}.blocks.0.conv1.c.weight" in tensors else _Attended
            blocks = count_numbers(tensors, rf"layers\.{stage}\.blocks\.(\d+)\.")
            stages += [kind(tensors, f"{name}.blocks.{block}") for block in range(blocks)]
            if f"{name}.downsample.conv1.c.weight" in tensors:
                step = 2 if stride < GRID_STRIDE else 1
                stages.append(_Expanded(tensors, f"{name}.downsample", step))
                stride *= step
        self.stages = nn.Sequential(*stages)
        self.neck = nn.Sequential(
            _convolution(tensors, "neck.0"),
            _ChannelNorm(tensors, "neck.1"),
            _convolution(tensors, "neck.2"),
            _ChannelNorm(tensors, "neck.3"),
        )
        # the classifier that it was before
        of_classifier = {f"{layer}.{part}" for layer in ("norm_head", "head") for part in ("weight", "bias")}
        left = {name for name in tensors if not name.endswith("num_batches_tracked")} - tensors.names - of_classifier
        if left:
            raise ValueError(f"{len(left)} tensors that TinyViT has not, such as image_encoder.{min(left)}")
        with torch.no_grad():
            # whether the widths fit each other shows here
            self(torch.zeros(1, 3, GRID_STRIDE, GRID_STRIDE))

    def forward(
        self, pixel_values: Float[Tensor, "image 3 height width"]
    ) -> tuple[Float[Tensor, "image channel row column"]]:
        """The embedding, first of a tuple as transformers' encoders have it."""
        return (self.neck(self.stages(self.stem(pixel_values))),)


class _Taken(dict[str, Tensor]):
    """Tensors that remember which of them were asked for."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__(tensors)
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        self.names.add(name)
        return super().__getitem__(name)


def count_numbers(tensors: Tensors, pattern: str) -> int:
    """How many different numbers stand in the tensors' names where the pattern's group is."""
    found = (re.match(pattern, name) for name in tensors)
    return len({match.group(1) for match in found if match})


def _convolution(tensors: Tensors, name: str, stride: int = 1) -> nn.Conv2d:
    """A convolution that keeps the size (before its stride), the batch norm after it folded in where it has one."""
    has_norm = f"{name}.c.weight" in tensors
    weight = tensors[f"{name}.c.weight" if has_norm else f"{name}.weight"]
    out, per_group, size, _ = weight.shape
    # all that is grouped is depthwise
    groups = out if per_group == 1 else 1
    layer = nn.Conv2d(per_group * groups, out, size, stride, size // 2, groups=groups)
    bias = torch.zeros(out)
    if has_norm:
        mean, variance = tensors[f"{name}.bn.running_mean"], tensors[f"{name}.bn.running_var"]
        # torch's own epsilon of batch norms
        gain = tensors[f"{name}.bn.weight"] * (variance + 1e-5).rsqrt()
        weight, bias = weight * gain[:, None, None, None], tensors[f"{name}.bn.bias"] - mean * gain
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def _linear(tensors: Tensors, name: str) -> nn.Linear:
    weight = tensors[f"{name}.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": weight, "bias": tensors[f"{name}.bias"]})
    return layer


def _norm(tensors: Tensors, name: str) -> nn.LayerNorm:
    layer = nn.LayerNorm(len(tensors[f"{name}.weight"]))
    layer.load_state_dict({"weight": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]})
    return layer


class _ChannelNorm(nn.Module):
    """Layer norm over the channels of each cell."""

    def __init__(self, tensors: Tensors, name: str) -> None:
        super().__init__()
        self.norm = _norm(tensors, name)
        # SAM's own epsilon
        self.norm.eps = 1e-6

    def forward(self, x: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image channel row column"]:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class _Expanded(nn.Module):
    """Three convolutions: to more channels, depthwise, to the next stage's channels."""

    def __init__(self, tensors: Tensors, name: str, stride: int = 1) -> None:
        super().__init__()
        self.widen = _convolution(tensors, f"{name}.conv1")
        self.spread = _convolution(tensors, f"{name}.conv2", stride)
        self.narrow = _convolution(tensors, f"{name}.conv3")

    def forward(self, x: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image out new_row new_column"]:
        return self.narrow(gelu(self.spread(gelu(self.widen(x)))))


class _Convolved(_Expanded):
    """A block of the first stage: the same, with its input added."""

    def forward(self, x: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image channel row column"]:
        return gelu(x + super().forward(x))


class _Attended(nn.Module):
    """A block of the later stages: attention within windows, a depthwise convolution across them, a perceptron for each cell."""

    biases: Tensor

    def __init__(self, tensors: Tensors, name: str) -> None:
        super().__init__()
        biases = tensors[f"{name}.attn.attention_biases"]
        self.heads, self.window = len(biases), round(biases.shape[1] ** 0.5)
        # one bias for every distance down and across, whatever its sign
        row, column = (
            torch.arange(self.window).repeat_interleave(self.window),
            torch.arange(self.window).repeat(self.window),
        )
        apart = (row[:, None] - row).abs() * self.window + (column[:, None] - column).abs()
        self.register_buffer("biases", biases[:, apart])
        self.attention_norm = _norm(tensors, f"{name}.attn.norm")
        self.qkv = _linear(tensors, f"{name}.attn.qkv")
        self.proj = _linear(tensors, f"{name}.attn.proj")
        self.across = _convolution(tensors, f"{name}.local_conv")
        self.perceptron = nn.Sequential(
            _norm(tensors, f"{name}.mlp.norm"),
            _linear(tensors, f"{name}.mlp.fc1"),
            nn.GELU(),
            _linear(tensors, f"{name}.mlp.fc2"),
        )

    def forward(self, x: Float[Tensor, "image channel row column"]) -> Float[Tensor, "image channel row column"]:
        x = self.across(x + self._attention(x.movedim(1, -1)).movedim(-1, 1))
        return x + self.perceptron(x.movedim(1, -1)).movedim(-1, 1)

    def _attention(self, x: Float[Tensor, "image row column channel"]) -> Float[Tensor, "image row column channel"]:
        n, height, width, channels = x.shape
        side = self.window
        # zeros fill the last windows, and are attended to: so it was trained
        x = pad(x, (0, 0, 0, -width % side, 0, -height % side))
        down, across = x.shape[1] // side, x.shape[2] // side
        windows = x.reshape(n, down, side, across, side, channels).transpose(2, 3).reshape(-1, side * side, channels)
        # query, key and value of a head lie side by side
        qkv = self.qkv(self.attention_norm(windows)).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        query, key, value = qkv.unbind()
        mixed = scaled_dot_product_attention(query, key, value, self.biases.to(qkv.dtype))
        mixed = self.proj(mixed.transpose(1, 2).flatten(2))
        mixed = mixed.reshape(n, down, across, side, side, channels).transpose(2, 3).reshape(x.shape)
        return mixed[:, :height, :width]
