"""query(): where in a view is what a phrase names?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from scipy import ndimage
from torch import Tensor

from gags.encode import ImageTextEncoder
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.query._relevancy import majority_filter, mean_filter, peak, relevancy, relevancy_of_similarity, stretch
from gags.segment import LEVELS, Granularity, ViewMasks
from gags.settings import Count, Natural, NonNegative, Phrases, Positive, Share, check_settings


@dataclass(frozen=True)
class QueryConfig:
    """Settings of queries and of evaluation."""

    negatives: Annotated[tuple[str, ...], Phrases()] = ("object", "things", "stuff", "texture")
    """Canonical phrases that a relevant feature must resemble less than the query (LERF)."""
    temperature: Positive = 10.0
    """Sharpness of relevancy: cosines are multiplied by it."""
    threshold: Share = 0.4
    """Heat (0..1) above this is in the mask. The hottest pixel is 1, the middle of the range 0: 0.4 is 0.7 of the range."""
    kernel_px: Count = 30
    """Side in pixels of the mean filter before localisation and segmentation."""
    majority_radius_px: Natural = 3
    """Reach in pixels of the majority filter that cleans masks."""
    min_alpha: Share = 0.5
    """Of a selection of Gaussians rendered alone: pixels that it covers more than this (share, 0..1) are its mask."""
    smooth_votes: Natural = 20
    """In 3D: a Gaussian is selected when more neighbours than this are."""
    smooth_min_votes: Natural = 10
    """In 3D: a Gaussian with fewer selected neighbours than this is dropped."""
    smooth_neighbours: Count = 40
    """In 3D: size of the neighbourhood that votes, the nearest Gaussians, itself included."""
    smooth_radius: NonNegative = 0.05
    """With ``reference_quirks``: radius of the neighbourhood instead, in scene units."""
    exact: bool = False
    """Decode every pixel and every Gaussian. Without it the maps of lifted fields are rendered in fewer channels, some 20 times
    faster: relevancy is off by 0.0016 in the mean and by 0.016 at most (benchmarks/README.md). Learned decoders then compute in
    bfloat16, twice as fast and 0.003 off at most, where the processor can; of Gaussians 8 bits are kept, 0.008 off at most.
    Evaluations are always exact."""
    reference_quirks: bool = False
    """3D neighbourhoods by absolute radius, labels matched to images by number, as in the reference implementation."""


class QueryableField(Protocol):
    """What queries need of ``gags.distill.LanguageField``."""

    @property
    def gaussians(self) -> Gaussians: ...

    @property
    def features(self) -> Float[Tensor, "gaussian d"]: ...

    def render(self, camera: Camera) -> Float[Tensor, "height width d"]:
        """The feature map of a view."""
        ...

    def decode(self, features: Float[Tensor, "*points d"]) -> Float[Tensor, "*points width"]:
        """Unit vectors in the encoder's space."""
        ...

    def similarity(self, vectors: Float[Tensor, "vector width"], exact: bool) -> Float[Tensor, "gaussian vector"]:
        """Dot products of every Gaussian's own decoded feature with vectors."""
        ...

    def similarity_map(
        self, camera: Camera, vectors: Float[Tensor, "vector width"], exact: bool
    ) -> Float[Tensor, "height width vector"]:
        """Dot products of a view's decoded features with vectors."""
        ...


@dataclass(frozen=True)
class Hit:
    """The answer to one phrase in one view."""

    phrase: str
    relevancy: Float[Tensor, "height width"]
    """0..1; above 0.5 where the feature is nearer to the phrase than to any negative."""
    heat: Float[Tensor, "height width"]
    """0..1, relative to this view: smoothed relevancy, upper half of its range."""
    mask: Bool[Tensor, "height width"]
    """Heat above the threshold, cleaned by a majority filter."""
    point_xy_px: tuple[float, float]
    """Centre of the pixel with the highest mean-filtered relevancy (pixel centres at +0.5)."""
    box_xyxy_px: tuple[float, float, float, float] | None
    """Around the connected part of the mask that holds the point, else around its largest part; outer pixel edges.
    None: the mask is empty."""
    score: float
    """Mean-filtered relevancy at the point: the number to compare views and phrases by."""


def query(
    field: QueryableField, camera: Camera, phrases: Sequence[str], encoder: ImageTextEncoder, config: QueryConfig
) -> list[Hit]:
    """Search a view for phrases, each on its own (docs/method.md, stage 4).

    Returns:
        A ``Hit`` for each phrase, in order, at the camera's size.

    Raises:
        GagsError: an empty phrase.
    """
    maps = relevancy_maps(field, camera, phrases, encoder, config)
    return [find(phrase, relevancy_map, config) for phrase, relevancy_map in zip(phrases, maps, strict=True)]


def find(phrase: str, relevancy_map: Float[Tensor, "height width"], config: QueryConfig) -> Hit:
    """Point, mask, box and score from a relevancy map."""
    filtered = mean_filter(relevancy_map, config.kernel_px)
    # ``heat`` of the map; its mean filter is at hand
    heat_map = stretch(0.5 * (relevancy_map + filtered), (-2, -1))
    mask = majority_filter(heat_map > config.threshold, config.majority_radius_px)
    x, y = peak(filtered)[0].tolist()
    return Hit(
        phrase=phrase,
        relevancy=relevancy_map,
        heat=heat_map,
        mask=mask,
        point_xy_px=(x + 0.5, y + 0.5),
        box_xyxy_px=box_around(mask, x, y),
        score=float(filtered[y, x]),
    )


def relevancy_maps(
    field: QueryableField, camera: Camera, phrases: Sequence[str], encoder: ImageTextEncoder, config: QueryConfig
) -> Float[Tensor, "phrase height width"]:
    """Relevancy of every pixel of a view to each phrase, in 0..1.

    Raises:
        GagsError: an empty phrase.
    """
    positives, negatives = phrase_vectors(phrases, encoder, config)
    similarity = field.similarity_map(camera, torch.cat([positives, negatives]), config.exact)
    return relevancy_of_similarity(similarity, len(positives), config.temperature)


def phrase_vectors(
    phrases: Sequence[str], encoder: ImageTextEncoder, config: QueryConfig
) -> tuple[Float[Tensor, "phrase width"], Float[Tensor, "negative width"]]:
    """Vectors of the phrases, as written, and of the negatives.

    Raises:
        GagsError: no phrase at all, an empty one, or a setting out of range.
    """
    check_settings(config)
    if not phrases or any(not phrase.strip() for phrase in phrases):
        raise GagsError(
            f"query {list(phrases)!r}: expected phrases with at least one word each, found "
            f'{"an empty phrase" if phrases else "no phrase"}; write what to look for, as in "red mug"'
        )
    vectors = encoder.encode_phrases([*phrases, *config.negatives])
    return vectors[: len(phrases)], vectors[len(phrases) :]


def teacher_relevancy(
    view_masks: ViewMasks,
    embeddings: Float[Tensor, "mask width"],
    phrases: Sequence[str],
    encoder: ImageTextEncoder,
    config: QueryConfig,
    level: Granularity | Literal["mean"] = "mean",
) -> Float[Tensor, "phrase height width"]:
    """Relevancy from a view's own masks and features, without 3D: what the field learns from.

    Args:
        level: a label set, or "mean": a pixel's feature is the mean over the levels that label it, normalised.

    Returns:
        Maps of the label maps' size; 0 where no level in question labels the pixel.

    Raises:
        GagsError: an empty phrase.
    """
    positives, negatives = phrase_vectors(phrases, encoder, config)
    rows = list(LEVELS) if level == "mean" else [level]
    labels = view_masks.label_maps[rows].flatten(1).to(torch.int64)
    # A view holds few distinct triples of labels: score those, then gather.
    distinct, inverse = labels.unique(dim=1, return_inverse=True)
    scores = relevancy(_mean_feature(distinct, embeddings), positives, negatives, config.temperature)
    scores = scores * (distinct >= 0).any(dim=0)
    return scores[:, inverse].unflatten(1, view_masks.label_maps.shape[1:])


def _mean_feature(
    labels: Int[Tensor, "level point"], embeddings: Float[Tensor, "mask width"]
) -> Float[Tensor, "point width"]:
    """The normalised sum of the features of the labels that are set."""
    labelled = labels >= 0
    # The row of an unlabelled pixel is read and multiplied by 0: -1 itself would read the last feature.
    features = embeddings[labels.clamp(min=0)] * labelled[:, :, None]
    return torch.nn.functional.normalize(features.sum(dim=0), dim=1)


def box_around(mask: Bool[Tensor, "height width"], x: int, y: int) -> tuple[float, float, float, float] | None:
    """Outer edges of the connected part of the mask at pixel (x, y), or of its largest part."""
    parts, count = ndimage.label(mask.cpu().numpy())
    if count == 0:
        return None
    part = int(parts[y, x]) or 1 + int(ndimage.sum_labels(parts > 0, parts, range(1, count + 1)).argmax())
    rows, columns = ndimage.find_objects(parts)[part - 1]
    return float(columns.start), float(rows.start), float(columns.stop), float(rows.stop)
