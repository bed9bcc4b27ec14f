"""Slow twins of what the reference implementation does, and fixtures made with them: other sizes than the recorded ones.

Everything is written as the rules read, in NumPy (gradients: torch, float64), without a look at the package under test.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slow_reference._distill import feature_decoder, granularity_decoder, losses_fixture, target_fixture
from slow_reference._query import labels_fixture, postprocess_fixture, query3d_fixture, relevancy_fixture
from slow_reference._segment import nms_fixture, prompts_fixture, tiles_fixture


def write_fixtures(folder: Path) -> Path:
    """All fixtures, 01 to 10."""
    decoder = feature_decoder(np.random.default_rng(9))
    made = {
        "01_relevancy": relevancy_fixture(np.random.default_rng(1)),
        "02_eval_postprocess": postprocess_fixture(np.random.default_rng(2)),
        "03_lerf_labels": labels_fixture(folder / "03_labels"),
        "04_prompt_density": prompts_fixture(np.random.default_rng(41)),
        "05_mask_nms": nms_fixture(np.random.default_rng(5)),
        "06_tiles_and_segmap": tiles_fixture(np.random.default_rng(6)),
        "07_target_feature_map": target_fixture(np.random.default_rng(7)),
        "08_distill_losses": losses_fixture(np.random.default_rng(8)),
        "09a_feature_decoder": decoder,
        "09b_scale_decoder": granularity_decoder(np.random.default_rng(19)),
        "10_query3d": query3d_fixture(np.random.default_rng(11), decoder),
    }
    for name, arrays in made.items():
        np.savez(folder / f"{name}.npz", **arrays)
    return folder
