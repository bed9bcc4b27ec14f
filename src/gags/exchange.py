"""The reference implementation's files: label maps, mask features, decoders. What others computed can be used here.

``language_features/`` holds two arrays for each photograph, under its name without the ending (fixture 06):

- ``<stem>_s.npy`` [4, height, width]: label maps (default, subpart, part, whole), floats or integers; -1 is unlabelled, any
  other label is a row of the features, unique over the four levels.
- ``<stem>_f.npy`` [mask, width]: the features, floats of any width.

A decoder's checkpoint is a torch file whose key ``module_state_dict`` holds entries such as ``decoder.2.weight`` [out, in, 1, 1].
The features of the Gaussians are vertex properties ``semantic_0 ...`` of a .ply (``gags.gaussians``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from gags.distill import FeatureDecoder, FieldMeta, GranularityDecoder, LanguageField
from gags.encode import MaskEmbeddings
from gags.errors import GagsError
from gags.gaussians import Gaussians, read_semantic, write_splats
from gags.geometry import Camera
from gags.progress import track
from gags.segment import Granularity, GranularMasks, ViewMasks
from gags.store import write_atomically

FEATURE_DECODER_FILE = "feature_decoder.pth"
GRANULARITY_DECODER_FILE = "granularity_decoder.pth"
"""The two checkpoints in a folder of decoders."""

Decoder = TypeVar("Decoder", FeatureDecoder, GranularityDecoder)


@dataclass(frozen=True)
class LanguageFeatures:
    """A folder of label maps and features."""

    folder: Path
    width: int
    """Numbers in a feature."""

    @classmethod
    def open(cls, folder: Path, image_names: Iterable[str]) -> LanguageFeatures:
        """Look whether the folder has both files of every image, all features being of one width.

        Raises:
            GagsError: no folder, an image without a file, two images that share one, features of different widths.
        """
        if not folder.is_dir():
            raise GagsError(f"{folder}: expected a folder of *_s.npy and *_f.npy files, found none; check the path")
        widths: dict[int, Path] = {}
        names = list(image_names)
        _check_stems(folder, names)
        for name in names:
            label_path, feature_path = _paths(folder, name)
            for path in (label_path, feature_path):
                if not path.is_file():
                    raise GagsError(
                        f"{path}: expected the features of image {name}, found no such file; encode this image as well, "
                        "or take it out of the scene"
                    )
            widths.setdefault(_read_array(feature_path, 2, "[mask, width]").shape[1], feature_path)
        if len(widths) != 1:
            found = " and ".join(f"{width} in {path.name}" for width, path in sorted(widths.items())) or "no image"
            raise GagsError(f"{folder}: expected features of one width, found {found}; encode all with one model")
        return cls(folder, next(iter(widths)))

    def read(self, image_name: str, camera: Camera) -> tuple[ViewMasks, Float[Tensor, "mask width"]]:
        """Masks and unit features of an image.

        The masks are what the label maps show: of a mask that others were painted over only the rest is known, and one
        that is hidden altogether is empty (it keeps its row). How good the masks were is not in the files: predicted IoU
        and stability are 1, and there are no prompts.

        Args:
            camera: of the image, to check the label maps' shape against; they may be of another size.

        Raises:
            GagsError: a file that is missing or no array, label maps of another shape, a label that is no row of the
                features or occurs in two levels, a feature of length 0.
        """
        label_path, feature_path = _paths(self.folder, image_name)
        features = _read_features(feature_path)
        label_maps = _read_label_maps(label_path, len(features), camera)
        return view_masks_of(label_maps, len(features), label_path), features


def write_language_features(folder: Path, masks: GranularMasks, embeddings: MaskEmbeddings) -> None:
    """Write the label maps and features (both float32) of every image as the reference implementation does.

    Raises:
        GagsError: two images that would share their files.
    """
    names = list(masks)
    _check_stems(folder, names)
    for name in track(names, "export"):
        label_path, feature_path = _paths(folder, name)
        _write_array(label_path, masks[name].label_maps.to(torch.float32).numpy())
        _write_array(feature_path, embeddings[name].to(torch.float32).numpy())


def _check_stems(folder: Path, image_names: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name in image_names:
        other = first.setdefault(Path(name).stem, name)
        if other != name:
            raise GagsError(
                f"{folder}: expected image names that differ before their ending, found {other} and {name}, which "
                "share their feature files; rename one of the photographs"
            )


def view_masks_of(label_maps: Int[Tensor, "4 height width"], count: int, source: Path) -> ViewMasks:
    """The masks that label maps show; see ``LanguageFeatures.read``.

    Args:
        count: masks there are; labels are below it.
        source: the file to name in an error.

    Raises:
        GagsError: a label that occurs in two levels.
    """
    level_of = torch.full((count,), -1)
    for level, label_map in enumerate(label_maps):
        shown = label_map[label_map >= 0].unique().long()
        twice = shown[level_of[shown] >= 0]
        if len(twice):
            raise GagsError(
                f"{source}: expected labels that are unique over the four levels, found {int(twice[0])} in two of them; "
                "number the masks of all levels through"
            )
        level_of[shown] = level
    # A hidden mask counts for the level of the one before it, so that levels ascend: the numbering goes level by level.
    granularity = level_of.cummax(dim=0).values.clamp(min=int(Granularity.DEFAULT))
    masks = torch.zeros(count, *label_maps.shape[1:], dtype=torch.bool)
    for level in Granularity:
        rows = (level_of == level).nonzero()[:, 0]
        masks[rows] = label_maps[level] == rows[:, None, None]
    good = torch.ones(count)
    return ViewMasks(masks, granularity, good, good, label_maps, torch.zeros(0, 2))


def _paths(folder: Path, image_name: str) -> tuple[Path, Path]:
    """The files of an image: label maps, features."""
    stem = Path(image_name).stem
    return folder / f"{stem}_s.npy", folder / f"{stem}_f.npy"


def _read_array(path: Path, n_axes: int, axes: str) -> Shaped[np.ndarray, ...]:
    """A numeric array of a .npy file, not read before it is used; a GagsError if it is missing or something else."""
    try:
        array = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError:
        raise GagsError(
            f"{path}: expected an array {axes}, found no such file; write both files of every image"
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise GagsError(
            f"{path}: expected an array {axes}, found no readable .npy file ({error}); write it again"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != n_axes or array.dtype.kind not in "fiu" or array.size == 0:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive of arrays"
        raise GagsError(
            f"{path}: expected an array {axes} of numbers, found {found}; is it the other file of the pair?"
        )
    return array


def _read_features(path: Path) -> Float[Tensor, "mask width"]:
    features = torch.from_numpy(np.array(_read_array(path, 2, "[mask, width]"), dtype=np.float32))
    lengths = features.norm(dim=1)
    if not (lengths > 0).all() or not lengths.isfinite().all():
        bad = int((~((lengths > 0) & lengths.isfinite())).nonzero()[0])
        raise GagsError(
            f"{path}: expected vectors with a direction, found length {float(lengths[bad])} in row {bad}; encode that mask again"
        )
    # The reference rounds its unit vectors to half precision: three digits.
    return features / lengths[:, None]


def _read_label_maps(path: Path, count: int, camera: Camera) -> Int[Tensor, "4 height width"]:
    array = _read_array(path, 3, "[4, height, width]")
    levels, height, width = array.shape
    # As many rows as the width asks for, give or take a pixel of rounding.
    expected_height = camera.height * width / camera.width
    if levels != 4 or abs(height - expected_height) > max(1, width / camera.width):
        raise GagsError(
            f"{path}: expected label maps [4, height, width] in the proportions of the photograph "
            f"({camera.height} x {camera.width}), found {list(array.shape)}; make them of the undistorted photographs"
        )
    labels = np.array(array)
    # Written so that NaN is refused as well.
    good = (labels >= -1) & (labels < count) & (labels == np.floor(labels))
    if not good.all():
        raise GagsError(
            f"{path}: expected labels of -1 (none) to {count - 1}, the rows of its features, found "
            f"{labels[~good].flat[0]:g}; are both files of one run?"
        )
    return torch.from_numpy(labels.astype(np.int32))


def _write_array(path: Path, array: Shaped[np.ndarray, ...]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)

    write_atomically(path, write)


def write_field(field: LanguageField, ply: Path | None = None, decoder_folder: Path | None = None) -> None:
    """Write a field as the reference implementation does: a .ply with ``semantic_*`` properties, decoder checkpoints.

    Raises:
        GagsError: checkpoints of a field that was lifted: its decoder is no network.
    """
    if decoder_folder is not None:
        if not isinstance(field.feature_decoder, FeatureDecoder):
            raise GagsError(
                f"{decoder_folder}: expected a field with learned decoders, found one of kind {field.meta.kind}; "
                "choose --field gad"
            )
        _write_decoder(decoder_folder / FEATURE_DECODER_FILE, field.feature_decoder)
        if field.granularity_decoder is not None:
            _write_decoder(decoder_folder / GRANULARITY_DECODER_FILE, field.granularity_decoder)
    if ply is not None:
        write_splats(ply, field.gaussians, semantic=field.features)


def read_field(gaussians: Gaussians, ply: Path, decoder_folder: Path, encoder_name: str = "") -> LanguageField:
    """The field that the reference implementation trained.

    Args:
        gaussians: the splats of ``ply``.
        ply: a .ply with ``semantic_*`` properties.
        decoder_folder: holds the checkpoint of the feature decoder, and perhaps that of the granularity decoder.
        encoder_name: is noted in the field: in whose space it decodes.

    Raises:
        GagsError: files that are missing, of another kind, or do not belong together.
    """
    features = read_semantic(ply)
    if features is None or len(features) != len(gaussians):
        found = "none" if features is None else f"those of {len(features)} Gaussians"
        raise GagsError(f"{ply}: expected semantic_* properties of {len(gaussians)} Gaussians, found {found}")
    path, granularity_path = decoder_folder / FEATURE_DECODER_FILE, decoder_folder / GRANULARITY_DECODER_FILE
    decoder = _read_decoder(path, FeatureDecoder)
    granularity = _read_decoder(granularity_path, GranularityDecoder) if granularity_path.exists() else None
    for found_decoder in (decoder, granularity):
        if found_decoder is not None and found_decoder.feature_width != features.shape[1]:
            raise GagsError(
                f"{decoder_folder}: expected decoders of {features.shape[1]} numbers, as {ply.name} has on each "
                f"Gaussian, found one of {found_decoder.feature_width}; take the files of one training"
            )
    meta = FieldMeta("gad", features.shape[1], decoder.embedding_width, encoder_name)
    return LanguageField(gaussians, features, decoder, granularity, meta)


def _write_decoder(path: Path, decoder: FeatureDecoder | GranularityDecoder) -> None:
    write_atomically(path, lambda temporary: torch.save({"module_state_dict": decoder.to_reference()}, temporary))


def _read_decoder(path: Path, kind: type[Decoder]) -> Decoder:
    try:
        # Only tensors and plain values are read: a checkpoint of others must not run code here.
        checkpoint: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise GagsError(f"{path}: expected a decoder checkpoint, found no such file; check the path") from None
    except Exception as error:
        # torch.load fails in many ways, none of which is documented: unpickling, zip, runtime and key errors
        raise GagsError(
            f"{path}: expected a decoder checkpoint, found a file that torch does not read ({type(error).__name__})"
        ) from error
    entries = checkpoint.get("module_state_dict") if isinstance(checkpoint, Mapping) else None
    if not isinstance(entries, Mapping):
        raise GagsError(f"{path}: expected a checkpoint with the key module_state_dict, found none")
    return kind.from_reference({name: value.float() for name, value in entries.items()}).requires_grad_(False)
