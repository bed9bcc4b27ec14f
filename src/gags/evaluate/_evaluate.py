"""evaluate(): mIoU and localisation accuracy against LERF-OVS labels."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from torch import Tensor

from gags.errors import GagsError
from gags.evaluate._labels import FrameLabels, Labels
from gags.evaluate._metrics import iou, localised
from gags.progress import track
from gags.query import Hit, QueryConfig, find, mean_filter, peak

Protocol = Literal["rendered", "selected"]
"""How a field answers: features rendered, then scored (LangSplat, GAGS); or Gaussians selected in 3D, then rendered alone
(OpenGaussian). Numbers of the two must never be mixed."""

RelevancyOf = Callable[[str, int, int, Sequence[str]], Float[Tensor, "phrase height width"]]
"""Image name, width, height, phrases -> relevancy maps of that view at that size."""

HitsOf = Callable[[str, int, int, Sequence[str]], Sequence[Hit]]
"""Image name, width, height, phrases -> a hit for each phrase in that view at that size."""


@dataclass(frozen=True)
class PairScore:
    """One phrase in one frame."""

    image_name: str
    phrase: str
    iou: float
    """Of the predicted mask and the label's; 1 when both are empty (not-a-number with ``reference_quirks``)."""
    localised: bool
    """The peak lies in one of the label's boxes; never where nothing was found (score 0)."""
    score: float
    """Mean-filtered relevancy at the peak."""


@dataclass(frozen=True)
class Evaluation:
    """The scores of a scene. Its headline numbers are plain means over (frame, phrase) pairs."""

    pairs: tuple[PairScore, ...]
    """In the labels' order."""
    protocol: str
    """A ``Protocol``, or "teacher": each view's own masks and features, no 3D."""
    split: str
    """Whether the labelled views were trained on: "published" (all, as published numbers are made), "strict" (none) or
    "mixed" (some)."""

    @property
    def miou(self) -> float:
        """Mean IoU."""
        return mean([pair.iou for pair in self.pairs])

    @property
    def miou_interval(self) -> tuple[float, float]:
        """95 % bootstrap interval of the mIoU: how far another choice of frames and phrases might move it."""
        return bootstrap([self.pairs])

    @property
    def localisation_accuracy(self) -> float:
        """Share of pairs whose peak is in a box."""
        return mean([pair.localised for pair in self.pairs])

    @property
    def accuracy_at_25(self) -> float:
        """Share of pairs with an IoU above 0.25: OpenGaussian's mAcc@0.25."""
        return mean([pair.iou > 0.25 for pair in self.pairs])

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

    @classmethod
    def from_json(cls, report: Mapping[str, Any]) -> Evaluation:
        """The evaluation that ``to_json`` described."""
        pairs = tuple(
            PairScore(name, phrase, **scores)
            for name, frame in report["per_frame"].items()
            for phrase, scores in frame["phrases"].items()
        )
        return cls(pairs, report["protocol"], report["split"])

    def to_json(self) -> dict[str, Any]:
        """What ``metrics/evaluation.json`` holds."""
        return {
            "miou": self.miou,
            "miou_interval_95": list(self.miou_interval),
            "localisation_accuracy": self.localisation_accuracy,
            "accuracy_at_iou_25": self.accuracy_at_25,
            "protocol": self.protocol,
            "split": self.split,
            "n_frames": len(self.by_frame),
            "n_phrases": len(self.by_phrase),
            "n_pairs": len(self.pairs),
            "per_phrase": {phrase: summary(pairs) for phrase, pairs in self.by_phrase.items()},
            "per_frame": {
                name: {
                    **summary(pairs),
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
) -> Evaluation:
    """Score relevancy maps on labels (docs/method.md, Evaluation; fixtures 02 and 03).

    Args:
        relevancy_of: makes the maps of a frame's phrases.

    The rest is as in ``evaluate_hits``.
    """

    def hits_of(name: str, width: int, height: int, phrases: Sequence[str]) -> list[Hit]:
        maps = relevancy_of(name, width, height, phrases)
        return [find(phrase, found.cpu(), config) for phrase, found in zip(phrases, maps, strict=True)]

    return evaluate_hits(hits_of, labels, protocol=protocol, split=split, config=config, image_names=image_names)


def evaluate_hits(
    hits_of: HitsOf,
    labels: Labels,
    *,
    protocol: str,
    split: str,
    config: QueryConfig,
    image_names: Collection[str] | None = None,
) -> Evaluation:
    """Score answers on labels, whatever made them.

    Frames meet images by exact file name, never by number or position, and each is scored at its own size.

    Args:
        hits_of: answers a frame's phrases.
        labels: the ground truth; every category of a frame is queried in it.
        protocol: what ``hits_of`` does (``Evaluation.protocol``).
        split: what it was trained on (``Evaluation.split``).
        config: of the localisation; what the hits were made with.
        image_names: the images that exist, to check the labels against before any work is done.

    Raises:
        GagsError: nothing is labelled, or a label's image does not exist.
    """
    if image_names is not None:
        _check_names(labels, image_names)
    pairs = [pair for frame in track(labels.frames, "evaluate") for pair in _score_frame(hits_of, frame, config)]
    if not pairs:
        raise GagsError(
            f"labels: expected at least one labelled object, found none in {len(labels.frames)} files; check --labels"
        )
    return Evaluation(tuple(pairs), protocol, split)


def _score_frame(hits_of: HitsOf, frame: FrameLabels, config: QueryConfig) -> list[PairScore]:
    """The scores of a frame's categories."""
    phrases = [label.category for label in frame.labels]
    hits = hits_of(frame.image_name, frame.width, frame.height, phrases) if phrases else []
    scores = []
    for label, hit in zip(frame.labels, hits, strict=True):
        if hit.mask.shape != label.mask.shape:
            raise ValueError(
                f"{frame.image_name}: expected answers of shape {tuple(label.mask.shape)}, found {tuple(hit.mask.shape)}"
            )
        # All tied peaks count, where a hit names one: at the left and top border ties are the rule.
        candidates = peak(mean_filter(hit.relevancy, config.kernel_px))
        scores.append(
            PairScore(
                image_name=frame.image_name,
                phrase=label.category,
                iou=iou(hit.mask, label.mask, config.reference_quirks),
                # a map of zeros peaks everywhere
                localised=hit.score > 0 and localised(candidates, label.boxes_xyxy_px),
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


def summary(pairs: Sequence[PairScore]) -> dict[str, float]:
    """The two numbers of the benchmark over some pairs, and how many pairs these are."""
    return {
        "miou": mean([pair.iou for pair in pairs]),
        "localisation_accuracy": mean([pair.localised for pair in pairs]),
        "n_pairs": len(pairs),
    }


def mean(values: Sequence[float]) -> float:
    """The plain mean."""
    return float(np.mean(values))


def bootstrap(scenes: Sequence[Sequence[PairScore]], seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over scenes of their mIoU.

    Frames and phrases are drawn anew, each by themselves, inside each scene, and a pair counts as often as both of it were drawn
    (pigeonhole bootstrap; Owen, Annals of Applied Statistics 2007): the pairs of a phrase are hard or easy together, and so are
    those of a frame. Drawing pair by pair would call the interval narrower than it is.
    """
    generator = np.random.default_rng(seed)
    low, high = np.quantile(
        np.mean([_drawn_mious(pairs, draws, generator) for pairs in scenes], axis=0), [0.025, 0.975]
    )
    return float(low), float(high)


def _drawn_mious(pairs: Sequence[PairScore], draws: int, generator: np.random.Generator) -> Float[np.ndarray, " draw"]:
    ious = np.array([pair.iou for pair in pairs])
    weights = np.ones((draws, len(pairs)))
    for names in ([pair.image_name for pair in pairs], [pair.phrase for pair in pairs]):
        distinct, positions = np.unique(names, return_inverse=True)
        times_drawn = generator.multinomial(len(distinct), np.full(len(distinct), 1 / len(distinct)), size=draws)
        weights *= times_drawn[:, positions]
    # the frames and phrases of a draw may have no pair in common: it says nothing, all pairs stand in for it
    weights[weights.sum(axis=1) == 0] = 1
    return weights @ ious / weights.sum(axis=1)
