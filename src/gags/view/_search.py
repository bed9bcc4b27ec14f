"""A field made ready for many questions: what does not depend on the question is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from gags.distill import LanguageField
from gags.encode import ImageTextEncoder
from gags.geometry import Camera, look_at
from gags.query import (
    QueryConfig,
    Selection,
    describe_selection,
    gaussian_heat,
    gaussian_relevancy,
    largest_part,
    nearest_gaussians,
    rank_phrases,
    smooth_selection,
)
from gags.rasterize import blend_weights
from gags.view._state import Question

# Gaussians that the scene's mean feature is taken from.
_SAMPLE = 65536
# What ``largest_part`` needs.
_LINKING = 11


@dataclass(frozen=True)
class Answer:
    """What a question found, whatever the threshold."""

    question: Question
    relevancy: Float[Tensor, "phrase gaussian"]
    """0..1, as ``Selection.relevancy``."""
    heat: Float[Tensor, "phrase gaussian"]
    """0..1, as ``gaussian_heat``: what the threshold cuts."""


@dataclass(frozen=True)
class SearchIndex:
    """What every question to a field needs: its decoded features (``LanguageField.similarity`` keeps them) and neighbours."""

    field: LanguageField
    encoder: ImageTextEncoder
    config: QueryConfig
    mean_embedding: Float[Tensor, " width"]
    """Of a sample of the Gaussians, not normalised."""
    nearest: Int32[Tensor, "gaussian neighbour"]
    """Ids of the nearest, itself first: as many as vote (``config.smooth_neighbours``) or link parts."""

    @classmethod
    def build(cls, field: LanguageField, encoder: ImageTextEncoder, config: QueryConfig) -> SearchIndex:
        """Decode every Gaussian's feature and find its neighbours: the slow part of a search, done once."""
        mean = field.decode(field.features[:: -(-len(field.features) // _SAMPLE)]).mean(dim=0)
        nearest = nearest_gaussians(field.gaussians.means, max(config.smooth_neighbours, _LINKING))
        index = cls(field, encoder, config, mean, nearest)
        # models are loaded, features decoded and kernels compiled when they are first used: not by the first person's question
        index.select(index.ask(Question(("object",))), config.threshold, largest=False)
        return index

    def ask(self, question: Question) -> Answer:
        """Relevancy of every Gaussian to each phrase; negatives count beside the canonical ones.

        Raises:
            GagsError: as ``query.query``.
        """
        config = replace(self.config, negatives=(*self.config.negatives, *question.negatives))
        relevancy = gaussian_relevancy(self.field, question.phrases, self.encoder, config)
        return Answer(question, relevancy, gaussian_heat(relevancy, config))

    def select(self, answer: Answer, threshold: float, largest: bool) -> Bool[Tensor, "phrase gaussian"]:
        """The Gaussians that ``query_3d`` selects at this threshold; of them the largest connected part, if asked for."""
        means = self.field.gaussians.means
        selected = smooth_selection(
            means, answer.heat > threshold, self.config, self.nearest[:, : self.config.smooth_neighbours]
        )
        if largest:
            return torch.stack([largest_part(chosen, self.nearest) for chosen in selected])
        return selected

    def describe(self, answer: Answer, selected: Bool[Tensor, "phrase gaussian"]) -> list[Selection]:
        """Centre, box and score of what is selected for each phrase."""
        rows = zip(answer.question.phrases, answer.relevancy, selected, strict=True)
        means = self.field.gaussians.means
        return [describe_selection(phrase, means, scores, chosen) for phrase, scores, chosen in rows]

    def name(self, gaussian_id: int, vocabulary: Sequence[str], count: int) -> list[tuple[str, float]]:
        """The phrases of a vocabulary that fit a Gaussian best, best first, with the scores of ``rank_phrases``."""
        feature = self.field.decode(self.field.features[gaussian_id, None])
        return rank_phrases(feature, self.mean_embedding, vocabulary, self.encoder, self.config)[0][:count]

    def level_weights(self, gaussian_ids: Int[Tensor, " chosen"] | None = None) -> Float[Tensor, "chosen 3"] | None:
        """How much Gaussians (None: all) trust subpart, part and whole; None where the field does not know."""
        chosen = slice(None) if gaussian_ids is None else gaussian_ids
        if self.field.level_weights is not None:
            return self.field.level_weights[chosen]
        if self.field.granularity_decoder is None:
            return None
        with torch.inference_mode():
            return self.field.granularity_decoder(self.field.features[chosen])

    def first_hit(
        self,
        origin_world: Float[Tensor, " 3"],
        direction_world: Float[Tensor, " 3"],
        focal_px: float,
        visible: Bool[Tensor, " gaussian"],
    ) -> int | None:
        """The Gaussian that colours most of the pixel that a ray goes through; None where nothing visible is.

        Args:
            focal_px: of the camera that the pixel belongs to: says how wide the pixel is.
        """
        ids = visible.nonzero()[:, 0]
        if len(ids) == 0:
            return None
        up = torch.eye(3)[int(direction_world.abs().argmin())]
        pose = look_at(origin_world, origin_world + direction_world, up)
        pixel = Camera(pose, focal_px, focal_px, 0.5, 0.5, 1, 1)
        row = blend_weights(self.field.gaussians.subset(ids), pixel).rows
        return int(ids[int(row.ids[row.weights.argmax()])]) if len(row.ids) else None
