"""SAM's published checkpoints (sam_vit_h_4b8939.pth and its like, mobile_sam.pt) as transformers' SamModel.

Such a file is a plain dictionary of tensors. Nothing in it says how large the model is: that is read off the shapes, so that
ViT-B, -L, -H and anything built alike are one case. MobileSAM is SAM with a smaller image encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gags.errors import GagsError
from gags.segment._tiny_vit import GRID_STRIDE, TinyVit, count_numbers

DECODER_HEADS = 8
"""Attention heads of the mask decoder: the one number that no shape tells, and the same in every SAM."""

MOBILE_SIDE_PX = 1024
"""Side of MobileSAM's input, which no shape tells."""

_RENAMED = (
    (r"^image_encoder\.patch_embed\.proj\.", "vision_encoder.patch_embed.projection."),
    (r"^image_encoder\.blocks\.", "vision_encoder.layers."),
    (r"^image_encoder\.neck\.0\.", "vision_encoder.neck.conv1."),
    (r"^image_encoder\.neck\.1\.", "vision_encoder.neck.layer_norm1."),
    (r"^image_encoder\.neck\.2\.", "vision_encoder.neck.conv2."),
    (r"^image_encoder\.neck\.3\.", "vision_encoder.neck.layer_norm2."),
    (r"^image_encoder\.", "vision_encoder."),
    (r"\.pe_layer\.positional_encoding_gaussian_matrix$", ".shared_embedding.positional_embedding"),
    (r"\.point_embeddings\.", ".point_embed."),
    (r"\.mask_downscaling\.0\.", ".mask_embed.conv1."),
    (r"\.mask_downscaling\.1\.", ".mask_embed.layer_norm1."),
    (r"\.mask_downscaling\.3\.", ".mask_embed.conv2."),
    (r"\.mask_downscaling\.4\.", ".mask_embed.layer_norm2."),
    (r"\.mask_downscaling\.6\.", ".mask_embed.conv3."),
    (r"\.output_upscaling\.0\.", ".upscale_conv1."),
    (r"\.output_upscaling\.1\.", ".upscale_layer_norm."),
    (r"\.output_upscaling\.3\.", ".upscale_conv2."),
    (r"\.norm_final_attn\.", ".layer_norm_final_attn."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
)
"""Meta's names and transformers' (regular expressions), applied one after the other."""

_ENCODER = "image_encoder."
_MOBILE = "image_encoder.patch_embed.seq.0.c.weight"
"""A tensor that MobileSAM has and SAM has not."""

_MLP = re.compile(r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\.(.*)$")


def check_meta_sam(path: Path) -> None:
    """Refuse what is no such file, without reading its weights.

    Raises:
        GagsError: the file is no SAM checkpoint of Meta's or MobileSAM's.
    """
    with _named(path):
        _config(_read(path, "meta"))


def load_meta_sam(path: Path) -> Any:
    """A ``SamModel`` with the weights of a file of Meta's or MobileSAM's, in float32, for inference.

    Raises:
        GagsError: the file is no such checkpoint.
    """
    from transformers import SamModel

    with _named(path):
        tensors = _read(path, "cpu")
        model: Any = SamModel(_config(tensors))
        if _MOBILE in tensors:
            encoder = {name.removeprefix(_ENCODER): t for name, t in tensors.items() if name.startswith(_ENCODER)}
            model.vision_encoder = TinyVit(encoder)
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_ENCODER)}
            # it has its tensors already, and has checked them
            tensors |= {f"vision_encoder.{name}": t for name, t in model.vision_encoder.state_dict().items()}
        model.load_state_dict(_renamed(tensors))
    return model.eval().requires_grad_(False)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turns what tensors of another model raise into a GagsError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise GagsError(
            f"{path}: expected a SAM checkpoint of Meta's or MobileSAM's, found tensors of another model "
            f"({str(error).splitlines()[0]}); give --segmenter-weights such a file, or a folder in transformers form"
        ) from error


def _read(path: Path, device: str) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged or foreign file shows as any of a dozen types
        raise GagsError(
            f"{path}: expected a SAM checkpoint of Meta's or MobileSAM's (.pth, .pt), found a file that cannot be read as such; "
            "check --segmenter-weights, or download it again"
        ) from error
    if not isinstance(found, dict) or not ({"image_encoder.pos_embed", _MOBILE} & found.keys()):
        raise GagsError(
            f"{path}: expected a SAM checkpoint of Meta's or MobileSAM's (tensors named image_encoder..., prompt_encoder..., "
            "mask_decoder...), found something else; SAM 2 and other models come as a folder in transformers form"
        )
    return {name: tensor.float() for name, tensor in found.items()}


def _config(tensors: Mapping[str, Tensor]) -> Any:
    """The model's sizes, from the shapes of its tensors."""
    from transformers import SamConfig

    neck = tensors["image_encoder.neck.0.weight"].shape[0]
    if _MOBILE in tensors:
        # its encoder takes the place of transformers', of which as little as can be is made
        patch, side = GRID_STRIDE, MOBILE_SIDE_PX
        vision = {"num_hidden_layers": 0, "hidden_size": 1, "num_attention_heads": 1, "mlp_dim": 1}
    else:
        vision = _vision_config(tensors)
        patch, side = vision["patch_size"], vision["image_size"]
    decoder_mlp, decoder_hidden = tensors["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape
    narrowed = tensors["mask_decoder.transformer.final_attn_token_to_image.q_proj.weight"].shape[0]
    vision |= {
        "image_size": side,
        "output_channels": neck,
        "num_pos_feats": tensors["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].shape[1],
    }
    prompt = {
        "hidden_size": neck,
        "patch_size": patch,
        "image_size": side,
        "image_embedding_size": side // patch,
        "mask_input_channels": tensors["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        "num_point_embeddings": count_numbers(tensors, r"prompt_encoder\.point_embeddings\.(\d+)\."),
    }
    decoder = {
        "hidden_size": decoder_hidden,
        "mlp_dim": decoder_mlp,
        "num_hidden_layers": count_numbers(tensors, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "num_attention_heads": DECODER_HEADS,
        "attention_downsample_rate": decoder_hidden // narrowed,
        # one token more answers when a single mask is asked for
        "num_multimask_outputs": tensors["mask_decoder.mask_tokens.weight"].shape[0] - 1,
        "iou_head_depth": count_numbers(tensors, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        "iou_head_hidden_dim": tensors["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
    }
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def _vision_config(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of Meta's image encoder."""
    hidden, channels, patch, _ = tensors["image_encoder.patch_embed.proj.weight"].shape
    grid = tensors["image_encoder.pos_embed"].shape[1]
    depth = count_numbers(tensors, r"image_encoder\.blocks\.(\d+)\.")
    # a block's relative positions run from -(n - 1) to n - 1 in a window of n patches a side; in a global block that is the grid
    windows = [(tensors[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape[0] + 1) // 2 for i in range(depth)]
    return {
        "hidden_size": hidden,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": grid * patch,
        "num_hidden_layers": depth,
        "num_attention_heads": hidden // tensors["image_encoder.blocks.0.attn.rel_pos_h"].shape[1],
        "global_attn_indexes": [i for i, window in enumerate(windows) if window == grid],
        # where every block is global, no window is made
        "window_size": min(windows),
        "qkv_bias": "image_encoder.blocks.0.attn.qkv.bias" in tensors,
        "mlp_dim": tensors["image_encoder.blocks.0.mlp.lin1.weight"].shape[0],
    }


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under transformers' names."""
    renamed = {}
    for meta_name, tensor in tensors.items():
        name = meta_name
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        mlp = _MLP.match(name)
        if mlp:
            prefix, index, rest = mlp.group(1), int(mlp.group(2)), mlp.group(3)
            last = count_numbers(tensors, re.escape(prefix) + r"\.layers\.(\d+)\.") - 1
            layer = "proj_in" if index == 0 else "proj_out" if index == last else f"layers.{index - 1}"
            name = f"{prefix}.{layer}.{rest}"
        renamed[name] = tensor
    # transformers holds the matrix twice: for the prompts and for the image
    shared = renamed["prompt_encoder.shared_embedding.positional_embedding"]
    return {**renamed, "shared_image_embedding.positional_embedding": shared}
