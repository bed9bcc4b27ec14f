"""Tiny random checkpoints of the foundation models, in the formats in which the real ones come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

SIDE = 64
"""Side of the square that the tiny SAMs look at."""
TILE = 24
"""Side of the tiles of the tiny CLIPs."""


def _random(model_class: Any, config: Any, seed: int) -> Any:
    """A model with random weights large enough that its answers depend on what it is asked."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():
            parameter.data += 0.15 * torch.randn(parameter.shape)
    return model.eval()


def sam_config() -> Any:
    """Every size differs from the others that it could be taken for."""
    return transformers.SamConfig(
        vision_config={
            "hidden_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": SIDE,
            "patch_size": 8,
            "window_size": 3,
            "global_attn_indexes": [1, 3],
            "mlp_dim": 40,
            "output_channels": 32,
            "num_pos_feats": 16,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": 8, "mask_input_channels": 8},
        mask_decoder_config={
            "hidden_size": 32,
            "mlp_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "iou_head_hidden_dim": 20,
        },
    )


def _decided(model: Any) -> None:
    """Logits of some size and predicted IoUs around 0.8, as those of a trained model, instead of all around 0."""
    for mlp in model.mask_decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.data *= 100
        mlp.proj_out.bias.data *= 100
    head = model.mask_decoder.iou_prediction_head.proj_out
    head.weight.data *= 3
    points = torch.stack(torch.meshgrid(*[torch.arange(4.0, SIDE, 8)] * 2, indexing="xy"), dim=-1).reshape(1, -1, 1, 2)
    with torch.no_grad():
        answer = model(pixel_values=torch.zeros(1, 3, SIDE, SIDE), input_points=points)
    head.bias.data[1:] += 0.8 - answer.iou_scores.mean((0, 1))


def make_sam(folder: Path, seed: int = 1) -> Any:
    """A SAM, saved in transformers form; returns the model."""
    model = _random(transformers.SamModel, sam_config(), seed)
    _decided(model)
    model.save_pretrained(folder)
    return model


def make_sam2(folder: Path, seed: int = 0) -> Any:
    """A SAM 2, saved in transformers form; returns the model."""
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": 8,
        "num_attention_heads": 1,
        "image_size": [SIDE, SIDE],
        "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 24, 40],
        "num_attention_heads_per_stage": [1, 1, 1, 2],
        "window_size_per_stage": [4, 2, 2, 2],
        "global_attention_blocks": [3],
    }
    vision = {
        "model_type": "sam2_vision_model",
        "backbone_config": backbone,
        "backbone_channel_list": [40, 24, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]],
        "fpn_hidden_size": 32,
    }
    config = transformers.Sam2Config(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 32, "image_size": SIDE, "patch_size": 16, "mask_input_channels": 8},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 48, "num_attention_heads": 4, "iou_head_hidden_dim": 20},
    )
    model = _random(transformers.Sam2Model, config, seed)
    _decided(model)
    model.save_pretrained(folder)
    return model


def make_sam2_video(folder: Path, model: Any) -> None:
    """The same SAM 2 as it is published: with the parts that follow objects through films."""
    images = model.config.to_dict()
    config = transformers.Sam2VideoConfig(
        **{part: images[part] for part in ("vision_config", "prompt_encoder_config", "mask_decoder_config")},
        image_size=SIDE,
        memory_attention_hidden_size=32,
        memory_attention_feed_forward_hidden_size=40,
        memory_attention_num_layers=1,
        memory_encoder_hidden_size=32,
        memory_encoder_output_channels=8,
        mask_downsampler_embed_dim=32,
        memory_fuser_embed_dim=32,
        memory_fuser_intermediate_dim=40,
        memory_fuser_num_layers=1,
    )
    video = transformers.Sam2VideoModel(config)
    video.load_state_dict(model.state_dict(), strict=False)
    video.save_pretrained(folder)


def write_meta_sam(path: Path, model: Any) -> dict[str, Tensor]:
    """The weights of a SamModel as Meta's file has them, module by module in the order of Meta's own model."""
    vision, prompt, decoder = model.vision_encoder, model.prompt_encoder, model.mask_decoder
    modules: dict[str, Any] = {"image_encoder.patch_embed.proj": vision.patch_embed.projection}
    plain = {"image_encoder.pos_embed": vision.pos_embed}
    for i, block in enumerate(vision.layers):
        name = f"image_encoder.blocks.{i}"
        modules |= {f"{name}.norm1": block.layer_norm1, f"{name}.norm2": block.layer_norm2}
        modules |= {f"{name}.attn.qkv": block.attn.qkv, f"{name}.attn.proj": block.attn.proj}
        modules |= {f"{name}.mlp.lin1": block.mlp.lin1, f"{name}.mlp.lin2": block.mlp.lin2}
        plain |= {f"{name}.attn.rel_pos_h": block.attn.rel_pos_h, f"{name}.attn.rel_pos_w": block.attn.rel_pos_w}
    neck = (vision.neck.conv1, vision.neck.layer_norm1, vision.neck.conv2, vision.neck.layer_norm2)
    modules |= {f"image_encoder.neck.{i}": module for i, module in enumerate(neck)}

    plain["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = prompt.shared_embedding.positional_embedding
    modules |= {f"prompt_encoder.point_embeddings.{i}": module for i, module in enumerate(prompt.point_embed)}
    modules["prompt_encoder.not_a_point_embed"] = prompt.not_a_point_embed
    modules["prompt_encoder.no_mask_embed"] = prompt.no_mask_embed
    mask = prompt.mask_embed
    # 2 and 5 are activations
    down = {0: mask.conv1, 1: mask.layer_norm1, 3: mask.conv2, 4: mask.layer_norm2, 6: mask.conv3}
    modules |= {f"prompt_encoder.mask_downscaling.{i}": module for i, module in down.items()}

    for i, layer in enumerate(decoder.transformer.layers):
        name = f"mask_decoder.transformer.layers.{i}"
        norms = (layer.layer_norm1, layer.layer_norm2, layer.layer_norm3, layer.layer_norm4)
        modules |= {f"{name}.norm{n + 1}": norm for n, norm in enumerate(norms)}
        modules |= {f"{name}.mlp.lin1": layer.mlp.lin1, f"{name}.mlp.lin2": layer.mlp.lin2}
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                modules[f"{name}.{attention}.{part}"] = getattr(getattr(layer, attention), part)
    final = decoder.transformer.final_attn_token_to_image
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        modules[f"mask_decoder.transformer.final_attn_token_to_image.{part}"] = getattr(final, part)
    modules["mask_decoder.transformer.norm_final_attn"] = decoder.transformer.layer_norm_final_attn
    modules |= {"mask_decoder.iou_token": decoder.iou_token, "mask_decoder.mask_tokens": decoder.mask_tokens}
    modules["mask_decoder.output_upscaling.0"] = decoder.upscale_conv1
    modules["mask_decoder.output_upscaling.1"] = decoder.upscale_layer_norm
    modules["mask_decoder.output_upscaling.3"] = decoder.upscale_conv2
    heads = {f"output_hypernetworks_mlps.{i}": head for i, head in enumerate(decoder.output_hypernetworks_mlps)}
    for name, head in {**heads, "iou_prediction_head": decoder.iou_prediction_head}.items():
        for i, layer in enumerate((head.proj_in, *head.layers, head.proj_out)):
            modules[f"mask_decoder.{name}.layers.{i}"] = layer

    tensors = {name: tensor.detach() for name, tensor in plain.items()}
    tensors |= {
        f"{name}.{key}": value for name, module in modules.items() for key, value in module.state_dict().items()
    }
    # transformers holds the matrix of the positional encoding twice, Meta once
    assert len(tensors) == len(model.state_dict()) - 1
    torch.save(tensors, path)
    return tensors


def write_mobile_sam(path: Path, sam: dict[str, Tensor], seed: int = 0) -> dict[str, Tensor]:
    """MobileSAM's file: a random TinyViT in the place of the image encoder of these tensors of a file of Meta's.

    Every size differs from the others that it could be taken for, and no window divides its grid (192, 96, 48, 48 a side).
    """
    generator = torch.Generator().manual_seed(seed)
    encoder: dict[str, Tensor] = {}

    def layer(name: str, *shape: int, scale: float = 1.0) -> None:
        encoder[name] = scale * torch.randn(*shape, generator=generator)

    def convolution(name: str, out: int, per_group: int, size: int) -> None:
        layer(f"{name}.c.weight", out, per_group, size, size, scale=(per_group * size * size) ** -0.5)
        for part in ("weight", "bias", "running_mean"):
            layer(f"{name}.bn.{part}", out, scale=0.3)
        encoder[f"{name}.bn.weight"] += 1
        encoder[f"{name}.bn.running_var"] = 0.5 + torch.rand(out, generator=generator)
        encoder[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)

    def linear(name: str, out: int, width: int) -> None:
        layer(f"{name}.weight", out, width, scale=width**-0.5)
        layer(f"{name}.bias", out, scale=0.1)

    def norm(name: str, width: int) -> None:
        encoder[f"{name}.weight"] = 1 + 0.1 * torch.randn(width, generator=generator)
        layer(f"{name}.bias", width, scale=0.1)

    def expanded(name: str, width: int, inner: int, out: int) -> None:
        convolution(f"{name}.conv1", inner, width, 1)
        convolution(f"{name}.conv2", inner, 1, 3)
        convolution(f"{name}.conv3", out, inner, 1)

    widths = (8, 12, 15, 20)
    convolution("patch_embed.seq.0", 4, 3, 3)
    convolution("patch_embed.seq.2", widths[0], 4, 3)
    expanded("layers.0.blocks.0", 8, 32, 8)
    for stage, (blocks, heads, window) in enumerate(((1, 2, 5), (2, 3, 7), (1, 4, 5)), start=1):
        expanded(f"layers.{stage - 1}.downsample", widths[stage - 1], widths[stage], widths[stage])
        for block in range(blocks):
            name, width = f"layers.{stage}.blocks.{block}", widths[stage]
            layer(f"{name}.attn.attention_biases", heads, window * window)
            norm(f"{name}.attn.norm", width)
            linear(f"{name}.attn.qkv", 3 * width, width)
            linear(f"{name}.attn.proj", width, width)
            convolution(f"{name}.local_conv", width, 1, 3)
            norm(f"{name}.mlp.norm", width)
            linear(f"{name}.mlp.fc1", 2 * width, width)
            linear(f"{name}.mlp.fc2", width, 2 * width)
    # what it was trained with as a classifier is still in the file
    norm("norm_head", widths[-1])
    linear("head", 10, widths[-1])
    out = len(sam["image_encoder.neck.0.weight"])
    layer("neck.0.weight", out, widths[-1], 1, 1, scale=widths[-1] ** -0.5)
    norm("neck.1", out)
    layer("neck.2.weight", out, out, 3, 3, scale=(9 * out) ** -0.5)
    norm("neck.3", out)
    tensors = {name: tensor for name, tensor in sam.items() if not name.startswith("image_encoder.")}
    tensors |= {f"image_encoder.{name}": tensor for name, tensor in encoder.items()}
    torch.save(tensors, path)
    return tensors


PIECES = ("red", "mug", "ball", "blue")


def make_clip(folder: Path, seed: int = 0) -> Any:
    """A CLIP with vocab.json and merges.txt, saved in transformers form; returns the model."""
    config = transformers.CLIPConfig(
        text_config={
            "vocab_size": 100,
            "hidden_size": 16,
            "intermediate_size": 20,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 9,
            "bos_token_id": 0,
            "eos_token_id": 1,
        },
        vision_config={
            "hidden_size": 24,
            "intermediate_size": 28,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": TILE,
            "patch_size": 8,
        },
        projection_dim=12,
    )
    model = _random(transformers.CLIPModel, config, seed)
    model.save_pretrained(folder)
    vocabulary, merges = ["<|startoftext|>", "<|endoftext|>"], ["#version: 0.2"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary += letters + [f"{letter}</w>" for letter in letters]
    for piece in PIECES:
        symbols = [*piece[:-1], f"{piece[-1]}</w>"]
        while len(symbols) > 1:
            merges.append(f"{symbols[0]} {symbols[1]}")
            symbols = [symbols[0] + symbols[1], *symbols[2:]]
            vocabulary.append(symbols[0])
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    return model


def make_siglip(folder: Path, version: int, seed: int = 0) -> Any:
    """A SigLIP (1 or 2) with the tokenizer.json of its kind, saved in transformers form; returns the model."""
    config = transformers.SiglipConfig(
        text_config={
            "vocab_size": 60,
            "hidden_size": 20,
            "intermediate_size": 28,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": 11,
            "projection_size": 20,
        },
        vision_config={
            "hidden_size": 20,
            "intermediate_size": 28,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": 8,
        },
    )
    model = _random(transformers.SiglipModel, config, seed)
    model.save_pretrained(folder)
    (_siglip_1_tokenizer if version == 1 else _siglip_2_tokenizer)(folder)
    return model


def _siglip_1_tokenizer(folder: Path) -> None:
    """A unigram model as that of T5: the end token closes a text and fills it up."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = [(chr(code), -9.0) for code in range(ord("a"), ord("z") + 1)]
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -8.0), *letters, *((f"▁{piece}", -3.0) for piece in PIECES)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "SiglipTokenizer", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def _siglip_2_tokenizer(folder: Path) -> None:
    """A byte-pair model as that of Gemma."""
    letters = ["▁", *(chr(code) for code in range(ord("a"), ord("z") + 1))]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *letters, "re", "red"]
    tokenizer = transformers.Siglip2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[("r", "e"), ("re", "d")],
        add_eos_token=True,
        padding_side="right",
    )
    tokenizer.save_pretrained(folder)
