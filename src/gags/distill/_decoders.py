"""The networks that a Gaussian's small feature passes through: to the encoder's space, and to granularity weights.

Features are channels-last, ``[..., d]``, with any number of leading axes (the reference has ``[d, height, width]``
and 1x1 convolutions: the same numbers).
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from gags.devices import multiplies_bfloat16
from gags.errors import GagsError

_HIDDEN_WIDTH = 256
_FEATURE_LAYERS = 9
_GRANULARITY_WIDTHS = (64, 128, 64, 32, 16, 3)
DECODE_ROWS = 16384
"""Features decoded at a time where all of what they decode to is kept: the hidden layers stay at 16 MB each."""
_ROWS_TOGETHER = 4096
"""Features multiplied at a time: what one layer hands to the next stays in the processor's cache."""


class FeatureDecoder(nn.Module):
    """The 1x1 network of docs/method.md, stage 3: a d-wide feature to a unit vector of the encoder's space.

    Nine linear layers of width 256, ReLU after each but the last, and two residual sums: the output of layer 0 plus
    that of layer 2 enters layer 3, the output of 3 plus that of 5 enters 6.
    """

    def __init__(self, feature_width: int, embedding_width: int) -> None:
        super().__init__()
        self.feature_width, self.embedding_width = feature_width, embedding_width
        widths = (feature_width, *[_HIDDEN_WIDTH] * (_FEATURE_LAYERS - 1), embedding_width)
        self.layers = _linear_layers(widths)

    def forward(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch embedding"]:
        """Unit vectors (a zero vector stays zero)."""
        return functional.normalize(self.unnormalised(features), dim=-1)

    def unnormalised(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch embedding"]:
        """The output of the last layer."""
        return self.layers[8](self._hidden(features))

    def codes(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch code"]:
        """What the last layer sees, and 1 for its bias, divided by the length of what it gives.

        With A = [weight, bias] of that layer the decoded vector is A c, and its product with v is c . (A^T v)
        (``fold``): the widest layer is applied to the few vectors instead of to all features. Lengths are those of R h,
        A = Q R: R is smaller than A, and nothing cancels as it would with A^T A.
        """
        hidden = functional.pad(self._hidden(features), (0, 1), value=1.0)
        # the floor of torch's normalize: a zero vector gives zeros
        return hidden / (hidden @ self._triangle().T).norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def fold(self, vectors: Float[Tensor, "vector embedding"]) -> Float[Tensor, "code vector"]:
        """The matrix that turns ``codes`` into the dot products of decoded features with vectors."""
        return self._last_layer().T @ vectors.T

    def products(
        self, features: Float[Tensor, "row d"], vectors: Float[Tensor, "vector embedding"], rounded: bool
    ) -> Float[Tensor, "row vector"]:
        """The dot products of decoded features with vectors, of many features at the speed of the matrix products.

        Args:
            rounded: hidden layers are bfloat16.
        """
        folded, triangle, decoder = self.fold(vectors), self._triangle(), self
        if rounded:
            decoder, features, triangle = copy.deepcopy(self).bfloat16(), features.bfloat16(), triangle.bfloat16()
        parts = []
        for chunk in features.split(_ROWS_TOGETHER):
            hidden = decoder._hidden(chunk)
            # sums of 256 squares, and what follows, would lose in bfloat16 what relevancy needs
            lengths = functional.linear(hidden, triangle[:, :-1], triangle[:, -1]).norm(
                dim=1, keepdim=True, dtype=torch.float32
            )
            # the floor of torch's normalize: a zero vector gives zeros
            parts.append((hidden.float() @ folded[:-1] + folded[-1]) / lengths.clamp(min=1e-12))
        return torch.cat(parts)

    def out_of_subspace(self, basis: Float[Tensor, "subspace embedding"]) -> FeatureDecoder:
        """The decoder to the space in which this one's unit vectors are coordinates along orthonormal rows: their lengths stay."""
        layers = [layer for layer in self.layers if isinstance(layer, nn.Linear)]
        # what was learned is not learned on
        weights, biases = [layer.weight.detach() for layer in layers], [layer.bias.detach() for layer in layers]
        weights[-1], biases[-1] = basis.T @ weights[-1], biases[-1] @ basis
        return FeatureDecoder.from_layers(weights, biases).to(basis.device).requires_grad_(False)

    def _last_layer(self) -> Float[Tensor, "embedding code"]:
        layer = self.layers[8]
        assert isinstance(layer, nn.Linear)
        return torch.cat([layer.weight, layer.bias[:, None]], dim=1)

    def _triangle(self) -> Float[Tensor, "shorter code"]:
        """R of the last layer's QR decomposition."""
        return torch.linalg.qr(self._last_layer(), mode="r").R

    def _hidden(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch hidden"]:
        """The input of the last layer."""
        layer = self.layers
        first = _positive(layer[0], features)
        first = first + _positive(layer[2], _positive(layer[1], first))
        second = _positive(layer[3], first)
        second = second + _positive(layer[5], _positive(layer[4], second))
        return _positive(layer[7], _positive(layer[6], second))

    @classmethod
    def from_layers(
        cls, weights: Sequence[Float[Tensor, "out in"]], biases: Sequence[Float[Tensor, " out"]]
    ) -> FeatureDecoder:
        """A decoder with these parameters, one weight and one bias a layer; the last one gives the embedding width."""
        _check_layers("feature decoder", weights, _FEATURE_LAYERS)
        decoder = cls(weights[0].shape[1], weights[-1].shape[0])
        _copy_layers("feature decoder", decoder.layers, weights, biases)
        return decoder

    @classmethod
    def from_reference(cls, module_state_dict: Mapping[str, Tensor]) -> FeatureDecoder:
        """A decoder from the reference implementation's checkpoint: ``decoder.N.weight`` [out, in, 1, 1] and so on."""
        return cls.from_layers(*_reference_layers(module_state_dict))

    def to_reference(self) -> dict[str, Tensor]:
        """The inverse of ``from_reference``."""
        return _reference_entries(self.layers)


class GranularityDecoder(nn.Module):
    """The 1x1 network d-64-128-64-32-16-3 with ReLU and softmax: how much subpart, part and whole are trusted."""

    def __init__(self, feature_width: int) -> None:
        super().__init__()
        self.feature_width = feature_width
        self.layers = _linear_layers((feature_width, *_GRANULARITY_WIDTHS))

    def forward(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 3"]:
        """Weights of subpart, part and whole; they add to 1."""
        return self.logits(features).softmax(dim=-1)

    def logits(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch 3"]:
        """The weights before the softmax."""
        hidden = features
        for layer in self.layers[:-1]:
            hidden = _positive(layer, hidden)
        return self.layers[-1](hidden)

    @classmethod
    def from_layers(
        cls, weights: Sequence[Float[Tensor, "out in"]], biases: Sequence[Float[Tensor, " out"]]
    ) -> GranularityDecoder:
        """A decoder with these parameters, one weight and one bias a layer."""
        _check_layers("granularity decoder", weights, len(_GRANULARITY_WIDTHS))
        decoder = cls(weights[0].shape[1])
        _copy_layers("granularity decoder", decoder.layers, weights, biases)
        return decoder

    @classmethod
    def from_reference(cls, module_state_dict: Mapping[str, Tensor]) -> GranularityDecoder:
        """A decoder from the reference implementation's checkpoint: ``decoder.N.weight`` [out, in, 1, 1] and so on."""
        return cls.from_layers(*_reference_layers(module_state_dict))

    def to_reference(self) -> dict[str, Tensor]:
        """The inverse of ``from_reference``."""
        return _reference_entries(self.layers)


class LinearDecoder(nn.Module):
    """Coordinates in a linear subspace of the encoder's space to unit vectors: the decoder of lifted fields."""

    basis: Float[Tensor, "d embedding"]
    """Orthonormal rows."""

    def __init__(self, basis: Float[Tensor, "d embedding"]) -> None:
        super().__init__()
        self.register_buffer("basis", basis)

    def forward(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch embedding"]:
        """Unit vectors (a zero vector stays zero)."""
        return functional.normalize(features @ self.basis, dim=-1)

    def codes(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The features, normalised: ``codes(features) @ fold(vectors)`` are the dot products of decoded features."""
        return functional.normalize(features, dim=-1)

    def fold(self, vectors: Float[Tensor, "vector embedding"]) -> Float[Tensor, "d vector"]:
        """The vectors in the subspace's coordinates."""
        return self.basis @ vectors.T

    def products(
        self, features: Float[Tensor, "row d"], vectors: Float[Tensor, "vector embedding"], rounded: bool
    ) -> Float[Tensor, "row vector"]:
        """The dot products of decoded features with vectors; nothing is rounded."""
        folded = self.fold(vectors)
        return torch.cat([self.codes(chunk) @ folded for chunk in features.split(_ROWS_TOGETHER)])


def _linear_layers(widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(inner, outer) for inner, outer in itertools.pairwise(widths))


def _positive(layer: nn.Module, features: Float[Tensor, "*batch inner"]) -> Float[Tensor, "*batch outer"]:
    """ReLU of a linear layer."""
    assert isinstance(layer, nn.Linear)
    has_both = features.device.type == "cpu" and multiplies_bfloat16(features.device)
    if layer.weight.dtype == torch.bfloat16 and has_both and not torch.is_grad_enabled():
        # both in one pass over memory, which takes as long as the product; torch has it for its own compiler alone
        return torch.ops.mkldnn._linear_pointwise(features, layer.weight, layer.bias, "relu", [], "")
    # not in place, which is slower in bfloat16
    return layer(features).relu()


def _check_layers(name: str, weights: Sequence[Tensor], expected: int) -> None:
    if len(weights) != expected:
        raise GagsError(f"{name}: expected {expected} layers, found {len(weights)}; is it the other decoder's file?")


def _copy_layers(name: str, layers: nn.ModuleList, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for number, (layer, weight, bias) in enumerate(zip(layers, weights, biases, strict=True)):
            assert isinstance(layer, nn.Linear)
            if layer.weight.shape != weight.shape or layer.bias.shape != bias.shape:
                raise GagsError(
                    f"{name}: expected layer {number} to be {list(layer.weight.shape)} with {list(layer.bias.shape)} "
                    f"biases, found {list(weight.shape)} with {list(bias.shape)}; is it the other decoder's file?"
                )
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)


def _reference_entries(layers: nn.ModuleList) -> dict[str, Tensor]:
    """Layers under the names of the reference's checkpoints, where an activation has every odd number."""
    entries = {}
    for number, layer in enumerate(layers):
        assert isinstance(layer, nn.Linear)
        entries[f"decoder.{2 * number}.weight"] = layer.weight.detach().cpu()[:, :, None, None].clone()
        entries[f"decoder.{2 * number}.bias"] = layer.bias.detach().cpu().clone()
    return entries


def _reference_layers(entries: Mapping[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Weights [out, in] and biases [out] in the order of the numbers in the entries' names."""
    numbered = {}
    for name, value in entries.items():
        match = re.fullmatch(r"(?:.*\.)?(\d+)\.(weight|bias)", name)
        if match is None:
            raise GagsError(
                f"decoder checkpoint: expected entries such as decoder.0.weight, found {name!r}; pass the dictionary "
                "under the checkpoint's key module_state_dict"
            )
        numbered[int(match[1]), match[2]] = value
    order = sorted({number for number, _ in numbered})
    missing = [f"{number}.{part}" for number in order for part in ("weight", "bias") if (number, part) not in numbered]
    if missing:
        raise GagsError(f"decoder checkpoint: expected a weight and a bias for every layer, found no {missing[0]}")
    weights = [numbered[number, "weight"] for number in order]
    return [weight.reshape(weight.shape[:2]) for weight in weights], [numbered[number, "bias"] for number in order]
