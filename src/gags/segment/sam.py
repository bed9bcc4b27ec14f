"""SAM, MobileSAM and SAM 2 behind the segmenter protocol, through transformers.

SAM: Kirillov et al., *Segment Anything*, ICCV 2023; SAM 2: Ravi et al., *SAM 2: Segment Anything in Images and Videos*, ICLR 2025;
MobileSAM: Zhang et al., *Faster Segment Anything*, 2023.
A point is ambiguous, so all answer it with three masks: subpart, part and whole are their three multimask outputs in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image as PilImage
from torch import Tensor
from torch.nn.functional import interpolate, pad

from gags.devices import best_device
from gags.pretrained import FAMILIES, check_folder, find_weights, identify, image_statistics, load_model
from gags.segment._meta_sam import check_meta_sam, load_meta_sam
from gags.segment._types import MaskProposals

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)
STABILITY_OFFSET = 1.0
"""Logits by which the threshold is moved up and down to see how stable a mask is (SAM's automatic mask generator)."""


class SamSegmenter:
    """SAM, MobileSAM or SAM 2: a ``Segmenter``. The weights are found at once and loaded with the first image.

    The image encoder runs in bfloat16 on a CUDA card (SAM 2's own choice) and in float32
    elsewhere; prompts and masks are always float32, for a half-precision coordinate would miss its pixel.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        generation: Literal["sam", "sam2"] = "sam",
        device: torch.device | None = None,
        encoder_dtype: torch.dtype | None = None,
    ) -> None:
        """Find the weights.

        Args:
            weights: a folder in transformers form, a hub name, or (SAM) a .pth file of Meta's or MobileSAM's .pt; None: the
                largest model.
            device, encoder_dtype: None: by what the machine has.

        Raises:
            GagsError: the weights are not to be had, or are those of something else.
        """
        family = FAMILIES[generation]
        self._generation = generation
        self._path = find_weights(family, weights)
        if generation == "sam" and self._path.is_file():
            # now, and not after the hours before the first image
            check_meta_sam(self._path)
        else:
            check_folder(family, self._path)
        self._device = device or best_device()
        self._encoder_dtype = encoder_dtype or (torch.bfloat16 if self._device.type == "cuda" else torch.float32)
        self.name = f"{generation}, weights {identify(self._path)}"

    @cached_property
    def _model(self) -> Any:
        import transformers

        if self._path.is_file():
            return load_meta_sam(self._path).to(self._device)
        model_class = transformers.SamModel if self._generation == "sam" else transformers.Sam2Model
        return load_model(model_class, self._path).to(self._device)

    @torch.no_grad()
    def prepare(
        self,
        image: UInt8[Tensor, "height width 3"],
        depth: Float[Tensor, "height width"] | None,
        relative_depth: Float[Tensor, "height width"] | None = None,
    ) -> SamImage:
        """The image's embedding, which serves all prompts. Depths are not looked at."""
        height, width = image.shape[:2]
        side = self._model.config.prompt_encoder_config.image_size
        frame = (
            Frame.stretched(width, height, side) if self._generation == "sam2" else Frame.padded(width, height, side)
        )
        mean, deviation = image_statistics(self._path, IMAGENET_MEAN, IMAGENET_DEVIATION)
        pixels = frame.pixels(image, mean, deviation).to(self._device)
        half = self._encoder_dtype != torch.float32
        with torch.autocast(self._device.type, self._encoder_dtype if half else torch.bfloat16, enabled=half):
            embeddings = self._model.get_image_embeddings(pixels)
        # SAM 2 has three, from fine to coarse
        embeddings = embeddings.float() if self._generation == "sam" else [level.float() for level in embeddings]
        return SamImage(self._model, embeddings, frame)


@dataclass(frozen=True)
class Frame:
    """How a picture lies in the model's square input: resized, in the upper left corner, zeros elsewhere."""

    width: int
    height: int
    """Of the picture, in pixels."""
    input_width: int
    input_height: int
    """Of the resized picture."""
    side_px: int
    """Of the square."""
    keeps_aspect: bool
    """SAM's way: what the picture does not fill is padding."""

    @classmethod
    def padded(cls, width: int, height: int, side_px: int) -> Frame:
        """SAM's: the longer side fills the square."""
        scale = side_px / max(width, height)
        return cls(width, height, int(width * scale + 0.5), int(height * scale + 0.5), side_px, True)

    @classmethod
    def stretched(cls, width: int, height: int, side_px: int) -> Frame:
        """SAM 2's: both sides fill the square."""
        return cls(width, height, side_px, side_px, side_px, False)

    def pixels(
        self, image: UInt8[Tensor, "height width 3"], mean: tuple[float, ...], deviation: tuple[float, ...]
    ) -> Float[Tensor, "1 3 side side"]:
        """The model's input: bilinear with antialiasing, normalised, then padded with zeros."""
        size = (self.input_width, self.input_height)
        resized = PilImage.fromarray(image.numpy()).resize(size, PilImage.Resampling.BILINEAR)
        rgb = torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255
        normalised = (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]
        return pad(normalised, (0, self.side_px - self.input_width, 0, self.side_px - self.input_height))[None]

    def points(self, points_xy_px: Float[Tensor, "prompt 2"]) -> Float[Tensor, "1 prompt 1 2"]:
        """Points of the picture as the model takes them: in pixels of the square whose centres are whole numbers."""
        scale = points_xy_px.new_tensor([self.input_width / self.width, self.input_height / self.height])
        return (points_xy_px * scale - 0.5)[None, :, None]

    def enlarged(self, logits: Float[Tensor, "prompt 3 rows columns"]) -> Float[Tensor, "prompt 3 height width"]:
        """Mask logits in the picture's pixels. SAM goes by way of the square, to cut off what was padded."""
        if self.keeps_aspect:
            square = interpolate(logits, size=(self.side_px, self.side_px), mode="bilinear")
            logits = square[..., : self.input_height, : self.input_width]
        return interpolate(logits, size=(self.height, self.width), mode="bilinear")


def stability_scores(logits: Float[Tensor, "*mask height width"]) -> Float[Tensor, "*mask"]:
    """IoU of the masks cut at ``STABILITY_OFFSET`` above and below zero; the upper lies within the lower. 0 if both are empty."""
    upper, lower = ((logits > offset).flatten(-2).sum(-1) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
    return upper / lower.clamp(min=1)


class SamImage:
    """An embedded image, ready for prompts (a ``PreparedImage``)."""

    def __init__(self, model: Any, embeddings: Any, frame: Frame) -> None:
        self._model = model
        self._embeddings = embeddings
        self._frame = frame

    def distinct_prompts(self, points_xy_px: Float[Tensor, "prompt 2"]) -> Float[Tensor, "distinct 2"]:
        """Every point is its own question, unless it is asked twice."""
        _, first = np.unique(points_xy_px.numpy(), axis=0, return_index=True)
        return points_xy_px[np.sort(first)]

    @torch.no_grad()
    def propose(self, points_xy_px: Float[Tensor, "prompt 2"]) -> MaskProposals:
        """Subpart, part and whole at each point.

        Predicted IoU is the model's own, which may lie a little outside 0..1 (SAM's is not squashed). Masks are logits above 0,
        and stability is counted on them, at the size of the picture, as SAM's automatic mask generator does.
        """
        points = self._frame.points(points_xy_px.float()).to(self._model.device)
        answer = self._model(image_embeddings=self._embeddings, input_points=points, multimask_output=True)
        masks: list[Bool[Tensor, "prompt 3 height width"]] = []
        stability: list[Float[Tensor, "prompt 3"]] = []
        # three masks of 1024 x 1024 logits stay in a processor's cache; those of 64 prompts take 800 MB and four times as long
        for logits in answer.pred_masks[0].split(1):
            enlarged = self._frame.enlarged(logits)
            masks.append((enlarged > 0).cpu())
            stability.append(stability_scores(enlarged).cpu())
        return MaskProposals(torch.cat(masks), answer.iou_scores[0].cpu(), torch.cat(stability))
