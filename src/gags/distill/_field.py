"""The language field: Gaussians, a small feature on each, and the decoders to the encoder's space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from gags.distill._decoders import FeatureDecoder, GranularityDecoder, LinearDecoder
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.rasterize import render

_DECODE_ROWS = 16384
"""Features decoded at a time: the hidden layers stay at 16 MB each."""


@dataclass(frozen=True)
class FieldMeta:
    """Where a field comes from. Everything here is JSON."""

    kind: Literal["gad", "lift", "galift"]
    """Learned (granularity-aware distillation), or lifted in closed form from all levels alike or from the trusted one."""
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
        return render(self.gaussians, camera, colors=self.features).colors

    @torch.inference_mode()
    def decode(self, features: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch embedding"]:
        """Unit vectors in the encoder's space, for a feature map or a list of features."""
        rows = features.reshape(-1, features.shape[-1])
        decoded = torch.cat([self.feature_decoder(chunk) for chunk in rows.split(_DECODE_ROWS)])
        return decoded.reshape(*features.shape[:-1], self.meta.embedding_width)

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
            blended = render(self.gaussians, camera, colors=self.level_weights).colors
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


def _entries(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
