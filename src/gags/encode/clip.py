"""CLIP, OpenCLIP, SigLIP and SigLIP 2 behind the encoder protocol, through transformers.

CLIP: Radford et al., ICML 2021; OpenCLIP: Cherti et al., CVPR 2023; SigLIP: Zhai et al., ICCV 2023; SigLIP 2: Tschannen et al.,
arXiv 2502.14786. All were trained to put a picture and its caption at the same place of a unit sphere.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gags.devices import best_device
from gags.encode._phrases import KnownPhrases
from gags.errors import GagsError
from gags.pretrained import (
    FAMILIES,
    check_folder,
    find_weights,
    identify,
    image_statistics,
    load_model,
    quiet_transformers,
)
from gags.store import read_json

_STATISTICS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and deviation of RGB that each family was trained with, where a checkpoint does not say."""


class ClipEncoder:
    """CLIP or SigLIP: an ``ImageTextEncoder``. The weights are found at once and loaded with the first tile or phrase.

    On a CUDA card the model runs in float16, as these models' features are usually published; elsewhere in float32.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        family: Literal["clip", "siglip"] = "clip",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Find the weights.

        Args:
            weights: a folder in transformers form or a hub name; None: the paper's (clip), or SigLIP 2 (siglip).
            device, dtype: None: by what the machine has.

        Raises:
            GagsError: the weights are not to be had, or are those of something else.
        """
        self._family = family
        self._path = find_weights(FAMILIES[family], weights)
        check_folder(FAMILIES[family], self._path)
        self._device = device or best_device()
        self._dtype = dtype or (torch.float16 if self._device.type == "cuda" else torch.float32)
        self._statistics = image_statistics(self._path, *_STATISTICS[family])
        self._phrases = KnownPhrases(self._encode_new)
        with quiet_transformers():
            config = self._model_class.config_class.from_pretrained(self._path, local_files_only=True)
        self.width: int = config.projection_dim if family == "clip" else config.vision_config.hidden_size
        self.tile_px: int = config.vision_config.image_size
        self.name = f"{family}, {self.width} wide, {self.tile_px} px, weights {identify(self._path)}"

    @torch.no_grad()
    def encode_tiles(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile width"]:
        """Unit vectors of RGB tiles in 0..1."""
        mean, deviation = (torch.tensor(values)[:, None, None] for values in self._statistics)
        pixels = ((tiles - mean) / deviation).to(self._device, self._dtype)
        return _unit(self._model.get_image_features(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def encode_phrases(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        """Unit vectors of phrases, as written. A phrase that was asked before is not encoded again."""
        return self._phrases.vectors(phrases)

    def _encode_new(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        tokens = {name: ids.to(self._device) for name, ids in self._tokens(phrases).items()}
        return _unit(self._model.get_text_features(**tokens).pooler_output)

    def _tokens(self, phrases: Sequence[str]) -> dict[str, Int[Tensor, "phrase token"]]:
        longest = self._model.config.text_config.max_position_embeddings
        if self._family == "clip":
            tokens = self._tokenizer(
                list(phrases), padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            return {name: tokens[name] for name in ("input_ids", "attention_mask")}
        # SigLIP was trained on lower case, padded to full length on the right, and looks at the padding too
        tokens = self._tokenizer(
            [self._as_trained(phrase) for phrase in phrases],
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        return {"input_ids": tokens["input_ids"]}

    def _as_trained(self, phrase: str) -> str:
        """A phrase as SigLIP's training texts were: lower case, and in the first SigLIP without punctuation."""
        phrase = phrase.lower()
        settings = self._path / "tokenizer_config.json"
        if settings.is_file() and str(read_json(settings).get("tokenizer_class")).startswith("SiglipTokenizer"):
            phrase = " ".join(phrase.translate(str.maketrans("", "", string.punctuation)).split())
        return phrase

    @property
    def _model_class(self) -> Any:
        import transformers

        return transformers.CLIPModel if self._family == "clip" else transformers.SiglipModel

    @cached_property
    def _model(self) -> Any:
        return load_model(self._model_class, self._path).to(self._device, self._dtype)

    @cached_property
    def _tokenizer(self) -> Any:
        import transformers

        whole = (self._path / "tokenizer.json").is_file()
        parts = all((self._path / name).is_file() for name in ("vocab.json", "merges.txt"))
        if not (whole or (parts and self._family == "clip")):
            raise GagsError(
                f"{self._path}: expected the tokenizer's files beside the weights (tokenizer.json"
                f"{', or vocab.json and merges.txt' if self._family == 'clip' else ''}), found none; "
                f"download the whole of {FAMILIES[self._family].default} or its like"
            )
        # SigLIP's own classes want a library more, or assume another padding: tokenizer.json holds all that is needed
        tokenizer_class = transformers.CLIPTokenizer if self._family == "clip" else transformers.PreTrainedTokenizerFast
        with quiet_transformers():
            return tokenizer_class.from_pretrained(self._path, local_files_only=True)


def _unit(vectors: Float[Tensor, "row width"]) -> Float[Tensor, "row width"]:
    """On the processor, in float32, of length 1."""
    return torch.nn.functional.normalize(vectors.to("cpu", torch.float32), dim=1)
