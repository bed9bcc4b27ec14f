"""What settings may be: every number has bounds, the message names the flag as it is typed, and nothing is made before."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch

from gags.cli import main
from gags.distill import DistillConfig, GaliftConfig
from gags.encode import EncodeConfig
from gags.errors import GagsError
from gags.pipeline import RunConfig
from gags.presets import DEMO, PRESETS, TINY
from gags.query import QueryConfig
from gags.reconstruct import ReconstructConfig
from gags.scene import SceneConfig
from gags.segment import SegmentConfig
from gags.settings import check_settings, decisive

STAGES = {
    field.name: getattr(RunConfig(), field.name)
    for field in dataclasses.fields(RunConfig)
    if dataclasses.is_dataclass(getattr(RunConfig(), field.name))
}
CONFIGS = {f"{name}.": config for name, config in STAGES.items()} | {"": QueryConfig()}


def kinds(hint: Any) -> set[Any]:
    """The plain types inside an annotation."""
    return {hint}.union(*map(kinds, get_args(hint))) if get_args(hint) else {hint}


NUMBERS = [
    (prefix, name)
    for prefix, config in CONFIGS.items()
    for name, hint in get_type_hints(type(config)).items()
    if kinds(hint) & {int, float}
]


@pytest.mark.parametrize(("prefix", "name"), NUMBERS, ids="".join)
def test_every_number_has_bounds(prefix: str, name: str) -> None:
    config = CONFIGS[prefix]
    is_tuple = isinstance(getattr(config, name), tuple)
    with pytest.raises(GagsError) as caught:
        check_settings(dataclasses.replace(config, **{name: (math.nan, math.nan) if is_tuple else math.nan}), prefix)
    assert str(caught.value).startswith(f"--{prefix}{name.replace('_', '-')}: expected ")


def test_numbers_are_named_as_their_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{prefix}{name.replace('_', '-')}" in shown for prefix, name in NUMBERS if prefix)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EncodeConfig(batch_size=0), "--batch-size: expected at least 1, found 0"),
        (QueryConfig(kernel_px=0), "--kernel-px: expected at least 1, found 0"),
        (QueryConfig(threshold=1.5), "--threshold: expected at least 0 and at most 1, found 1.5"),
        (QueryConfig(temperature=0.0), "--temperature: expected more than 0, found 0.0"),
        (QueryConfig(negatives=()), "--negatives: expected phrases of at least one word each, found ()"),
        (
            QueryConfig(negatives=("a", " ")),
            "--negatives: expected phrases of at least one word each, found ('a', ' ')",
        ),
        (ReconstructConfig(sh_degree=4), "--sh-degree: expected at least 0 and at most 3, found 4"),
        (ReconstructConfig(iterations=-5), "--iterations: expected at least 1, found -5"),
        (ReconstructConfig(initial_opacity=1.0), "--initial-opacity: expected more than 0 and less than 1, found 1.0"),
        (SceneConfig(hold_out_every=1), "--hold-out-every: expected 0, or at least 2, found 1"),
        (SceneConfig(max_side_px=3), "--max-side-px: expected at least 16, found 3"),
        (SegmentConfig(min_stability=-0.1), "--min-stability: expected at least 0 and at most 1, found -0.1"),
        (DistillConfig(entropy_weight=(0.1, -1)), "--entropy-weight: expected at least 0, found (0.1, -1)"),
        (DistillConfig(feature_lr=math.inf), "--feature-lr: expected a finite number, found inf"),
    ],
)
def test_settings_that_cannot_be(config: Any, message: str) -> None:
    with pytest.raises(GagsError) as caught:
        check_settings(config)
    assert str(caught.value) == message


@pytest.mark.parametrize("config", [*PRESETS.values(), DEMO, TINY])
def test_what_is_shipped_can_be(config: RunConfig) -> None:
    config.check()
    check_settings(QueryConfig())
    check_settings(dataclasses.replace(config.scene, max_side_px=None, hold_out_every=0))


def test_devices_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: dataclasses.replace(ReconstructConfig(), device=name) for name in ("cpu", "cuda", "cuda:1", "gpu")}
    for cards, good in ((0, {"cpu"}), (1, {"cpu", "cuda"}), (2, {"cpu", "cuda", "cuda:1"})):
        monkeypatch.setattr(torch.cuda, "device_count", lambda cards=cards: cards)
        for name, config in wanted.items():
            if name in good:
                check_settings(config)
            else:
                with pytest.raises(GagsError, match=rf"--device: expected one of .* \(cpu.*\), found '{name}'"):
                    check_settings(config)


def test_nothing_is_made_for_settings_that_cannot_be(tiny_scene: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    assert main(["run", str(tiny_scene), "--out", str(out), "--encode.batch-size", "0"]) == 1
    assert "error: --encode.batch-size: expected at least 1, found 0" in capsys.readouterr().err
    assert not out.exists()


def test_fingerprints_leave_out_what_does_not_change_the_result() -> None:
    """Those that each have a test that the result stays the same: add one before adding a setting here."""
    neutral = {
        f"{stage}.{field.name}"
        for stage, config in STAGES.items()
        for field in dataclasses.fields(config)
        if field.name not in decisive(config)
    }
    assert neutral == {
        "reconstruct.checkpoint_every",
        "segment.prompts_per_batch",
        "distill.checkpoint_every",
        "galift.memory_mb",
    }
    assert decisive(GaliftConfig(memory_mb=1.0)) == decisive(GaliftConfig())
    assert decisive(GaliftConfig(temperature=1.0)) != decisive(GaliftConfig())
