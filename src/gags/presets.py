"""The numbers behind ``--preset``, of the demo, and of the tests' tiny scene."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from gags.distill import DistillConfig
from gags.encode import EncodeConfig
from gags.pipeline import RunConfig
from gags.reconstruct import ReconstructConfig
from gags.segment import SegmentConfig

PresetName = Literal["fast", "balanced", "paper"]

PAPER = RunConfig()
"""The publication's numbers: every config's own defaults."""

FAST = RunConfig(
    reconstruct=ReconstructConfig(
        iterations=5000,
        max_side_px=404,
        num_downscales=2,
        resolution_schedule=400,
        sh_degree=2,
        means_lr=6.4e-4,
        scales_lr=1e-2,
        quats_lr=2e-3,
        sh0_lr=5e-3,
        sh_rest_lr=5e-4,
        refine_start=200,
        refine_stop=3200,
        # a short training has no time to recover from transparent Gaussians
        reset_every=0,
        max_gaussians=100_000,
        checkpoint_every=500,
    ),
    segment=SegmentConfig(max_side_px=404),
    encode=EncodeConfig(scene_prior=0.5),
    distill=DistillConfig(
        iterations=3000,
        pixels_per_iteration=2048,
        # of the built-in encoder's 1011 numbers: an iteration takes two thirds of its time (benchmarks/README.md)
        subspace_width=256,
        feature_lr=5e-2,
        decoder_lr=1e-3,
        final_lr=0.05,
        decoder_dtype="auto",
        checkpoint_every=500,
    ),
    # seconds instead of minutes, and better answers with the built-in models (benchmarks/README.md)
    field="galift",
)
"""Minutes on a laptop: small images, few iterations with larger steps, the granularity-aware lift; where GaD is asked for,
distillation on sampled pixels."""

BALANCED = replace(
    FAST,
    reconstruct=replace(
        FAST.reconstruct,
        iterations=8000,
        max_side_px=808,
        resolution_schedule=1000,
        sh_degree=3,
        means_lr=3.2e-4,
        refine_start=300,
        refine_stop=5500,
        max_gaussians=200_000,
    ),
    segment=SegmentConfig(max_side_px=808),
    distill=replace(FAST.distill, iterations=8000),
)
"""An hour or two on a laptop, for photographs of about 800 pixels."""

DEMO = replace(
    FAST,
    reconstruct=replace(
        FAST.reconstruct,
        iterations=1100,
        max_side_px=400,
        resolution_schedule=150,
        sh_degree=0,
        refine_start=100,
        refine_every=50,
        refine_stop=750,
        max_gaussians=50_000,
    ),
    distill=replace(FAST.distill, iterations=700),
)
"""The built-in scene: 30 small pictures of a matt room."""

TINY = RunConfig(
    reconstruct=ReconstructConfig(
        iterations=150,
        sh_degree=0,
        refine_start=50,
        refine_stop=100,
        refine_every=25,
        reset_every=0,
        checkpoint_every=50,
    ),
    segment=SegmentConfig(min_region_px=4),
    distill=DistillConfig(
        iterations=200, downscale=1, pixels_per_iteration=512, feature_lr=3e-2, decoder_lr=1e-3, checkpoint_every=50
    ),
)
"""A handful of thumbnails, in seconds: for tests and first steps in code."""

PRESETS: dict[PresetName, RunConfig] = {"fast": FAST, "balanced": BALANCED, "paper": PAPER}
