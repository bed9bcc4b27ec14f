"""Every setting of the whole chain."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gags.distill import DistillConfig, GaliftConfig, LiftConfig
from gags.encode import EncodeConfig, EncoderName
from gags.reconstruct import ReconstructConfig
from gags.runs import FieldKind
from gags.scene import SceneConfig
from gags.segment import (
    SegmentConfig,
    SegmenterName,
)
from gags.settings import check_settings


@dataclass(frozen=True)
class RunConfig:
    """Every setting of the whole chain."""

    scene: SceneConfig = dataclasses.field(default_factory=SceneConfig)
    """Which photographs, at which size."""
    reconstruct: ReconstructConfig = dataclasses.field(default_factory=ReconstructConfig)
    """Training of the Gaussians on colour."""
    segment: SegmentConfig = dataclasses.field(default_factory=SegmentConfig)
    """GaS: masks at three granularities."""
    encode: EncodeConfig = dataclasses.field(default_factory=EncodeConfig)
    """Masks to unit features."""
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    """GaD: the learned language field."""
    lift: LiftConfig = dataclasses.field(default_factory=LiftConfig)
    """The training-free language field."""
    galift: GaliftConfig = dataclasses.field(default_factory=GaliftConfig)
    """The training-free language field of the level that each Gaussian trusts."""
    segmenter: SegmenterName = "hierarchy"
    """Segmentation model: hierarchy is built in; sam and sam2 need weights."""
    segmenter_weights: str | None = None
    """Weights of sam or sam2: a folder in transformers form, a hub name or (sam) Meta's .pth or MobileSAM's
    .pt; None: the largest model."""
    encoder: EncoderName = "conse"
    """Vision-language model: conse is built in; clip (the paper's) and siglip need weights."""
    encoder_weights: str | None = None
    """Weights of clip or siglip: a folder in transformers form or a hub name; None: the paper's CLIP, or SigLIP 2."""
    field: FieldKind | Literal["all"] = "gad"
    """The field to make: gad (learned; the paper's), lift (closed form), galift (closed form, granularity-aware), or all."""
    splats: Path | None = None
    """A trained .ply scene (Inria layout) to use instead of reconstructing."""
    language_features: Path | None = None
    """Folder with a *_s.npy and a *_f.npy file for each photograph (the reference implementation's label maps and mask
    features) to use instead of segmenting and encoding; --encoder must name the model that made them."""
    decoders: Path | None = None
    """Folder with feature_decoder.pth and perhaps granularity_decoder.pth, checkpoints of the reference implementation: the
    field is taken from them and the semantic_* properties of --splats instead of being made."""
    labels: Path | None = None
    """Folder of LERF-OVS labels; SCENE/labels is used where it exists."""
    exclude_labelled: bool = False
    """Use the labelled views for nothing but evaluation (the strict split)."""
    tensorboard: bool = False
    """Write the training logs (RUN/logs/*.jsonl) for TensorBoard as well, into RUN/logs/tensorboard."""
    reference_quirks: bool = False
    """Do everything as the reference implementation does, queries and evaluation of the run included, also what cannot be
    meant (docs/method.md has the list)."""

    def check(self) -> None:
        """Raise a GagsError for a setting of any stage that no work can be done with."""
        for field in dataclasses.fields(self):
            settings = getattr(self, field.name)
            if dataclasses.is_dataclass(settings):
                check_settings(settings, f"{field.name}.")

    def with_quirks(self) -> RunConfig:
        """This config with ``reference_quirks`` passed on to every stage that has them."""
        if not self.reference_quirks:
            return self
        stages = {
            name: dataclasses.replace(getattr(self, name), reference_quirks=True)
            for name in ("segment", "encode", "distill")
        }
        return dataclasses.replace(self, **stages)
