"""Weights of foundation models: found on this machine or fetched, identified by their content, loaded without surprises.

Every model is loaded from files: a hub name is first turned into its folder in the local cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gags.errors import GagsError
from gags.store import fingerprint, fingerprint_files, read_json

FamilyName = Literal["sam", "sam2", "clip", "siglip"]


@dataclass(frozen=True)
class Family:
    """A kind of foundation model, and what a person without its weights needs to know."""

    title: str
    default: str
    """The hub name that is used when none is given."""
    model_types: tuple[str, ...]
    """What ``config.json`` of such a checkpoint says."""
    flag: str
    """The flag that takes the weights."""
    offline: str
    """What to do without any download."""
    sizes_gb: Mapping[str, float]
    """Download sizes of the usual checkpoints."""
    file: str = ""
    """A single file that serves as well, and where it is."""

    def size(self, hub_name: str) -> str:
        """How much a checkpoint's download is."""
        return f"{self.sizes_gb[hub_name]} GB" if hub_name in self.sizes_gb else "its page says how large"


FAMILIES: dict[FamilyName, Family] = {
    "sam": Family(
        title="SAM",
        default="facebook/sam-vit-huge",
        model_types=("sam",),
        flag="--segmenter-weights",
        offline="--segmenter hierarchy",
        sizes_gb={"facebook/sam-vit-huge": 2.6, "facebook/sam-vit-large": 1.3, "facebook/sam-vit-base": 0.4},
        file="https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth, 2.6 GB",
    ),
    "sam2": Family(
        title="SAM 2",
        default="facebook/sam2.1-hiera-large",
        model_types=("sam2", "sam2_video"),
        flag="--segmenter-weights",
        offline="--segmenter hierarchy",
        sizes_gb={
            "facebook/sam2.1-hiera-large": 0.9,
            "facebook/sam2.1-hiera-base-plus": 0.3,
            "facebook/sam2.1-hiera-small": 0.2,
            "facebook/sam2.1-hiera-tiny": 0.2,
        },
    ),
    "clip": Family(
        title="CLIP",
        default="laion/CLIP-ViT-B-16-laion2B-s34B-b88K",
        model_types=("clip",),
        flag="--encoder-weights",
        offline="--encoder conse",
        sizes_gb={
            "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": 0.6,
            "openai/clip-vit-base-patch16": 0.6,
            "openai/clip-vit-large-patch14": 1.7,
        },
    ),
    "siglip": Family(
        title="SigLIP",
        default="google/siglip2-base-patch16-224",
        model_types=("siglip",),
        flag="--encoder-weights",
        offline="--encoder conse",
        sizes_gb={"google/siglip2-base-patch16-224": 1.5, "google/siglip-base-patch16-224": 0.8},
    ),
}

_TEXT_FILES = (
    "config.json",
    "*processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
_PICKLED = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def find_weights(family: Family, source: str | Path | None = None) -> Path:
    """The folder (or file) with a model's weights, downloaded if it must be.

    Args:
        source: a folder in transformers form, a file, or a hub name; None: the family's default.

    Raises:
        GagsError: they are neither here nor to be had; it says what to download, from where and how much.
    """
    wanted = str(source or family.default)
    path = Path(wanted).expanduser()
    if path.exists():
        return path.resolve()
    if not _HUB_NAME.fullmatch(wanted) or path.suffix in (".pth", ".pt", ".safetensors"):
        raise GagsError(
            f"{wanted}: expected {family.title} weights ({_accepted(family)}), found nothing there; check the path"
            f", or take {family.offline}, which is built in"
        )
    return cached(wanted) or _downloaded(family, wanted)


def cached(hub_name: str) -> Path | None:
    """The folder of a hub name in the local cache, if the model is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if _has_model(folder) else None


def cached_names(family: Family) -> list[str]:
    """Hub names of the family's models in the local cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    names = []
    for folder in sorted(Path(HF_HUB_CACHE).glob("models--*--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        snapshot = cached(name)
        if snapshot and read_json(snapshot / "config.json").get("model_type") in family.model_types:
            names.append(name)
    return names


def _downloaded(family: Family, hub_name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_name, allow_patterns=[*_TEXT_FILES, *_SAFETENSORS]))
        if not _has_model(folder):
            folder = Path(snapshot_download(hub_name, allow_patterns=[*_TEXT_FILES, *_PICKLED]))
    except Exception as error:  # no network, no such name, no right to it: a dozen types of two libraries
        # the first sentence says what happened; the others advise on another library's options
        reason = re.split(r"\. |\n", str(error).strip() or type(error).__name__)[0]
        raise GagsError(_missing(family, hub_name, reason)) from error
    if not _has_model(folder):
        raise GagsError(_missing(family, hub_name, "the repository holds no weights in transformers form"))
    return folder


def _has_model(folder: Path) -> bool:
    has_weights = any(next(folder.glob(pattern), None) for pattern in (_SAFETENSORS[0], _PICKLED[0]))
    return has_weights and (folder / "config.json").exists()


def _missing(family: Family, hub_name: str, reason: str) -> str:
    from huggingface_hub.constants import HF_HUB_CACHE

    file = f"; or the single file {family.file}" if family.file else ""
    return (
        f"{family.title} weights {hub_name!r}: expected them in the cache ({HF_HUB_CACHE}) or on the network, found neither "
        f"({reason}). Download https://huggingface.co/{hub_name} ({family.size(hub_name)}) where there is a network, with "
        f"'hf download {hub_name} --local-dir DIR'{file}; then give {family.flag} DIR{' or FILE' if family.file else ''}. "
        f"Without any download: {family.offline}, which is built in"
    )


def _accepted(family: Family) -> str:
    file = ", a .pth file of Meta, mobile_sam.pt" if family.file else ""
    return f"a folder in transformers form{file} or a hub name such as {family.default}"


def identify(path: Path) -> str:
    """A hash of everything in a file or folder that decides a model's output: equal for copies, wherever they lie."""
    if path.is_file():
        return fingerprint_files(path)
    safetensors = next(path.glob(_SAFETENSORS[0]), None) is not None
    patterns = (*_TEXT_FILES, *(_SAFETENSORS if safetensors else _PICKLED))
    return fingerprint({pattern: fingerprint_files(path, pattern) for pattern in patterns})


def check_folder(family: Family, folder: Path) -> None:
    """Refuse what is no checkpoint of the family in transformers form.

    Raises:
        GagsError: no folder, no ``config.json``, or one of another kind of model.
    """
    if not folder.is_dir():
        raise GagsError(f"{folder}: expected {family.title} weights ({_accepted(family)}), found a file")
    if not _has_model(folder):
        raise GagsError(
            f"{folder}: expected {family.title} weights in transformers form (config.json and model.safetensors), found no "
            f"such files; 'hf download {family.default} --local-dir DIR' makes such a folder"
        )
    found = read_json(folder / "config.json").get("model_type")
    if found in family.model_types:
        return
    remedy = f"give {family.flag} a {family.title} checkpoint, such as {family.default}"
    if found == "siglip2":
        remedy = f"that one takes pictures of any size (naflex); {remedy}"
    raise GagsError(
        f"{folder}/config.json: expected model_type {' or '.join(family.model_types)}, found {found}; {remedy}"
    )


def load_model(model_class: Any, folder: Path) -> Any:
    """A transformers model from a folder, in float32, for inference, on the processor.

    Raises:
        GagsError: the files cannot be read, or do not hold all of the model.
    """
    from safetensors import SafetensorError

    with quiet_transformers():
        try:
            model, report = model_class.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
            raise GagsError(
                f"{folder}: expected the weights of a {model_class.__name__}, found files that cannot be read as such "
                f"({str(error).strip().splitlines()[0]}); download them again"
            ) from error
    if report["missing_keys"]:
        raise GagsError(
            f"{folder}: expected the weights of a {model_class.__name__}, found {len(report['missing_keys'])} tensors missing "
            f"(such as {min(report['missing_keys'])}); download them again"
        )
    return model.eval().requires_grad_(False)


def image_statistics(
    folder: Path, mean: tuple[float, ...], deviation: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in 0..1 that a checkpoint's pictures are normalised with; else these."""
    processor: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            # what transformers 5 saves holds the picture's settings one level down
            processor |= found.get("image_processor") or found
    return tuple(processor.get("image_mean") or mean), tuple(processor.get("image_std") or deviation)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the progress bars and notices of loading: it takes seconds, and its bar would only cover ours."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
