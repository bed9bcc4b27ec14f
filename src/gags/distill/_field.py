"""The language field: Gaussians, a small feature on each, and the decoders to the encoder's space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from gags.devices import multiplies_bfloat16
from gags.distill._codes import PackedCodes
from gags.distill._decoders import DECODE_ROWS, FeatureDecoder, GranularityDecoder, LinearDecoder
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.rasterize import render_values

_LEADING = 20
"""Coordinates of a lifted field that are rendered for the length of blended features."""


@dataclass(frozen=True)
class FieldMeta:
    """Where a field comes from. Everything here is JSON."""

    kind: Literal["gad", "lift", "galift"]
    """Learned (granularity-aware distillation), or lifted in closed form, levels alike or as far as they are trusted."""
    feature_width: int
    """d, numbers on a Gaussian."""
    embedding_width: int
    """D, numbers in a vector of the encoder."""
    encoder: str = ""
    """Name of the encoder in whose space the field decodes; empty if it was not told."""
    statistics: dict[str, Any] = field(default_factory=dict)
    """What was measured while making it: the loss history, the explained energy."""


@dataclass(frozen=True)
class LanguageField:
    """A scene that can be asked what is where: features on frozen Gaussians and their decoders."""

    gaussians: Gaussians
    features: Float[Tensor, "gaussian d"]
    feature_decoder: nn.Module
    """Maps features [..., d] to unit vectors [..., D]."""
    granularity_decoder: GranularityDecoder | None
    """Maps features [..., d] to weights of subpart, part, whole; None where none was learned."""
    meta: FieldMeta
    level_weights: Float[Tensor, "gaussian 3"] | None = None
    """How much each Gaussian trusts subpart, part and whole: adds to 1, or 0 where unseen; None where not known."""

    def render(self, camera: Camera) -> Float[Tensor, "height width d"]:
        """The feature map seen by a camera: alpha-blended features over a background of 0."""
        return render_values(self.gaussians, camera, self.features)

    @torch.inference_mode()
    def decode(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch embedding"]:
        """Unit vectors in the encoder's space, for a feature map or a list of features."""
        rows = features.reshape(-1, features.shape[-1])
        decoded = torch.cat([self.feature_decoder(chunk) for chunk in rows.split(DECODE_ROWS)])
        return decoded.reshape(*features.shape[:-1], self.meta.embedding_width)

    @torch.inference_mode()
    def similarity(self, vectors: Float[Tensor, "vector embedding"], exact: bool) -> Float[Tensor, "gaussian vector"]:
        """Dot products of every Gaussian's own decoded feature with vectors.

        Args:
            exact: decode. Else the first call decodes, and keeps codes of 8 bits: later ones need a product with those.
        """
        if exact:
            return self._decoder.products(self.features, vectors, rounded=False)
        return self._codes.times(self._decoder.fold(vectors))

    @torch.inference_mode()
    def similarity_map(
        self, camera: Camera, vectors: Float[Tensor, "vector embedding"], exact: bool
    ) -> Float[Tensor, "height width vector"]:
        """Dot products of a view's decoded features with vectors.

        Args:
            exact: render the features, decode every pixel. Else lifted fields are rendered in ``blended_lengths``'s way, in
                as many channels as there are vectors and 22: a few per cent off where a pixel sees unlike things; learned
                decoders compute in bfloat16 where the processor can.
        """
        if exact or not isinstance(self.feature_decoder, LinearDecoder) or self._is_narrow(len(vectors)):
            rows = self.render(camera).flatten(0, 1)
            # rounding to bfloat16 moved relevancy by 0.003 at most
            products = self._decoder.products(rows, vectors, not exact and multiplies_bfloat16(rows.device))
            return products.unflatten(0, (camera.height, camera.width))
        # transposed, a product of a tall matrix with a few columns takes two thirds of the time
        products = (self._decoder.fold(vectors).T @ self.features.T).T
        channels = torch.cat([products, self._leading], dim=1)
        blended, leading = render_values(self.gaussians, camera, channels).tensor_split((len(vectors),), dim=-1)
        # As in normalize: where nothing is rendered 0 / 0 is to be 0.
        return blended / blended_lengths(leading)[..., None].clamp(min=1e-12)

    @property
    def _decoder(self) -> FeatureDecoder | LinearDecoder:
        assert isinstance(self.feature_decoder, FeatureDecoder | LinearDecoder)
        return self.feature_decoder

    @cached_property
    def _codes(self) -> PackedCodes:
        return PackedCodes.of(self._decoder.codes, self.features)

    @cached_property
    def _leading(self) -> Float[Tensor, "gaussian leading_and_two"]:
        return leading_coordinates(self.features, _LEADING)

    def _is_narrow(self, vector_count: int) -> bool:
        """Whether the features themselves are as few channels as what replaces them."""
        return self.features.shape[1] <= vector_count + _LEADING + 2

    @property
    def knows_granularity(self) -> bool:
        """Whether ``granularity`` has an answer."""
        return self.level_weights is not None or self.granularity_decoder is not None

    @torch.inference_mode()
    def granularity(self, camera: Camera) -> Float[Tensor, "height width 3"] | None:
        """How much subpart, part and whole are trusted at each pixel; None where the field knows no such weights.

        The weights add to 1, but to 0 where no Gaussian that has any is seen.
        """
        if self.level_weights is not None:
            blended = render_values(self.gaussians, camera, self.level_weights)
            return functional.normalize(blended, p=1.0, dim=-1)
        if self.granularity_decoder is None:
            return None
        return self.granularity_decoder(self.render(camera))

    def to_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Named tensors and a JSON value from which ``from_state`` makes the field again, given the Gaussians."""
        tensors = {"features": self.features}
        if self.level_weights is not None:
            tensors["level_weights"] = self.level_weights
        for name, decoder in (
            ("feature_decoder", self.feature_decoder),
            ("granularity_decoder", self.granularity_decoder),
        ):
            if decoder is not None:
                tensors |= {f"{name}.{entry}": value for entry, value in decoder.state_dict().items()}
        return tensors, asdict(self.meta)

    @classmethod
    def from_state(
        cls, gaussians: Gaussians, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
    ) -> LanguageField:
        """The field that ``to_state`` described, on the Gaussians it was made for.

        Raises:
            GagsError: it was made for another number of Gaussians.
        """
        meta = FieldMeta(**metadata)
        features = tensors["features"]
        if len(features) != len(gaussians):
            raise GagsError(
                f"language field: expected a feature for each of {len(gaussians)} Gaussians, found {len(features)}: "
                "it belongs to another scene, make it again"
            )
        if meta.kind in ("lift", "galift"):
            decoder = LinearDecoder(tensors["feature_decoder.basis"])
            return cls(gaussians, features, decoder, None, meta, tensors.get("level_weights"))
        feature_decoder = FeatureDecoder(meta.feature_width, meta.embedding_width)
        feature_decoder.load_state_dict(_entries(tensors, "feature_decoder."))
        granularity_decoder = None
        entries = _entries(tensors, "granularity_decoder.")
        if entries:
            granularity_decoder = GranularityDecoder(meta.feature_width)
            granularity_decoder.load_state_dict(entries)
        return cls(gaussians, features, feature_decoder, granularity_decoder, meta)


def leading_coordinates(features: Float[Tensor, "gaussian d"], count: int) -> Float[Tensor, "gaussian leading_and_two"]:
    """The features' coordinates along their ``count`` strongest directions (uncentred PCA), the length of those, and the
    length of what they leave out."""
    _, directions = torch.linalg.eigh(features.T @ features)
    turned = features @ directions.flip(1)
    leading, rest = turned[:, :count], turned[:, count:]
    return torch.cat([leading, leading.norm(dim=1, keepdim=True), rest.norm(dim=1, keepdim=True)], dim=1)


def blended_lengths(blended: Float[Tensor, "*batch leading_and_two"]) -> Float[Tensor, "*batch"]:
    """The lengths of blended features, from their blended ``leading_coordinates``.

    A blend is as long as its parts together where they point one way, and shorter where they do not. How much shorter is
    known of the leading part; the rest is taken to shorten alike.
    """
    leading, sum_of_leading, sum_of_rest = blended.tensor_split((blended.shape[-1] - 2, blended.shape[-1] - 1), dim=-1)
    # Where nothing is rendered all sums are 0, and so is the length.
    ratio = sum_of_rest / sum_of_leading.clamp(min=1e-12)
    return leading.norm(dim=-1) * (1 + ratio[..., 0].square()).sqrt()


def _entries(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
