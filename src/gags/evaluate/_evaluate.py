"""evaluate(): mIoU and localisation accuracy against LERF-OVS labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gags.errors import GagsError
from gags.evaluate._labels import FrameLabels, Labels
from gags.evaluate._metrics import iou, localised
from gags.progress import track
from gags.query import QueryConfig, find, mean_filter, peak

RelevancyOf = Callable[[str, int, int, Sequence[str]], Float[Tensor, "phrase height width"]]
"""Image name, width, height, phrases -> relevancy maps of that view at that size."""


@dataclass(frozen=True)
class PairScore:
    """One phrase in one frame."""

    image_name: str
    phrase: str
    iou: float
    """Of the predicted mask and the label's; 1 when both are empty."""
    localised: bool
    """The peak lies in one of the label's boxes."""
    score: float
    """Mean-filtered relevancy at the peak."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a scene. Its headline numbers are plain means over (frame, phrase) pairs."""

    pairs: tuple[PairScore, ...]
    """In the labels' order."""
    protocol: str
    """What made the maps: "rendered" (features rendered, then scored: LangSplat, GAGS) or "selected" (Gaussians
    selected in 3D, then rendered: OpenGaussian). Numbers of the two must never be mixed."""
    split: str
    """Whether the labelled views were trained on: "published" (all, as published numbers are made), "strict" (none) or
    "mixed" (some)."""
    miou_interval: tuple[float, float]
    """95 % bootstrap interval of the mIoU over pairs: how far another choice of labels might move it."""

    @property
    def miou(self) -> float:
        """Mean IoU."""
        return _mean([pair.iou for pair in self.pairs])

    @property
    def localisation_accuracy(self) -> float:
        """Share of pairs whose peak is in a box."""
        return _mean([pair.localised for pair in self.pairs])

    @property
    def by_phrase(self) -> dict[str, list[PairScore]]:
        """Pairs of each phrase, in order of first appearance."""
        return {
            phrase: [pair for pair in self.pairs if pair.phrase == phrase]
            for phrase in dict.fromkeys(pair.phrase for pair in self.pairs)
        }

    @property
    def by_frame(self) -> dict[str, list[PairScore]]:
        """Pairs of each frame, in order."""
        return {
            name: [pair for pair in self.pairs if pair.image_name == name]
            for name in dict.fromkeys(pair.image_name for pair in self.pairs)
        }

    def to_json(self) -> dict[str, Any]:
        """What ``metrics/evaluation.json`` holds."""
        return {
            "miou": self.miou,
            "miou_interval_95": list(self.miou_interval),
            "localisation_accuracy": self.localisation_accuracy,
            "protocol": self.protocol,
            "split": self.split,
            "n_frames": len(self.by_frame),
            "n_phrases": len(self.by_phrase),
            "n_pairs": len(self.pairs),
            "per_phrase": {phrase: _summary(pairs) for phrase, pairs in self.by_phrase.items()},
            "per_frame": {
                name: {
                    **_summary(pairs),
                    "phrases": {
                        pair.phrase: {"iou": pair.iou, "localised": pair.localised, "score": pair.score}
                        for pair in pairs
                    },
                }
                for name, pairs in self.by_frame.items()
            },
        }


def evaluate(
    relevancy_of: RelevancyOf,
    labels: Labels,
    *,
    protocol: str,
    split: str,
    config: QueryConfig,
    image_names: Collection[str] | None = None,
    seed: int = 0,
) -> Evaluation:
    """Score relevancy maps on labels (docs/method.md, Evaluation; fixtures 02 and 03).

    Frames meet images by exact file name, never by number or position, and each is scored at its own size.

    Args:
        relevancy_of: makes the maps of a frame's phrases.
        labels: the ground truth; every category of a frame is queried in it.
        protocol: what ``relevancy_of`` does (``Evaluation.protocol``).
        split: what it was trained on (``Evaluation.split``).
        config: post-processing of the maps.
        image_names: the images that exist, to check the labels against before any work is done.
        seed: of the bootstrap interval.

    Raises:
        GagsError: nothing is labelled, or a label's image does not exist.
    """
    if image_names is not None:
        _check_names(labels, image_names)
    pairs = [pair for frame in track(labels.frames, "evaluate") for pair in _score_frame(relevancy_of, frame, config)]
    if not pairs:
        raise GagsError(
            f"labels: expected at least one labelled object, found none in {len(labels.frames)} files; check --labels"
        )
    return Evaluation(tuple(pairs), protocol, split, _bootstrap([pair.iou for pair in pairs], seed))


def _score_frame(relevancy_of: RelevancyOf, frame: FrameLabels, config: QueryConfig) -> list[PairScore]:
    """The scores of a frame's categories."""
    phrases = [label.category for label in frame.labels]
    if not phrases:
        return []
    maps = relevancy_of(frame.image_name, frame.width, frame.height, phrases)
    if tuple(maps.shape) != (len(phrases), frame.height, frame.width):
        raise ValueError(
            f"{frame.image_name}: expected maps of shape {(len(phrases), frame.height, frame.width)}, "
            f"found {tuple(maps.shape)}"
        )
    scores = []
    for label, relevancy_map in zip(frame.labels, maps.cpu(), strict=True):
        hit = find(label.category, relevancy_map, config)
        # All tied peaks count, where a hit names one: at the left and top border ties are the rule.
        candidates = peak(mean_filter(relevancy_map, config.kernel_px))
        scores.append(
            PairScore(
                image_name=frame.image_name,
                phrase=label.category,
                iou=iou(hit.mask, label.mask),
                localised=localised(candidates, label.boxes_xyxy_px),
                score=hit.score,
            )
        )
    return scores


def _check_names(labels: Labels, image_names: Collection[str]) -> None:
    """Raise GagsError when a label's image is not among these."""
    known = sorted(image_names)
    for frame in labels.frames:
        if frame.image_name not in image_names:
            shown = ", ".join(known if len(known) <= 8 else [*known[:4], "...", *known[-3:]])
            raise GagsError(
                f"{frame.path}: expected the exact name of one of the scene's {len(known)} images ({shown}), "
                f"found {frame.image_name!r}; correct info.name or take the file out of the folder"
            )


def _summary(pairs: Sequence[PairScore]) -> dict[str, float]:
    return {
        "miou": _mean([pair.iou for pair in pairs]),
        "localisation_accuracy": _mean([pair.localised for pair in pairs]),
        "n_pairs": len(pairs),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _bootstrap(values: Sequence[float], seed: int, draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap of the mean (Efron 1979): its 2.5 % and 97.5 % points over resamples of the pairs."""
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(np.asarray(values)[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)
