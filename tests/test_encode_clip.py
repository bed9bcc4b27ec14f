"""CLIP, SigLIP and SigLIP 2 against transformers' own features, one at a time; a whole run with SAM and CLIP."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

import tiny_checkpoints
from gags.cli import main
from gags.encode import ClipEncoder, ImageTextEncoder, make_encoder
from gags.errors import GagsError
from gags.query import QueryConfig, query
from gags.runs import open_run
from gags.segment import make_segmenter
from gags.store import read_json

TILE = tiny_checkpoints.TILE
PHRASES = ("red mug", "ball", "a Blue, red ball!", "red mug", "a blue ball in a red mug on a red ball")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders clip/, siglip1/ and siglip2/."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tiny_checkpoints.make_clip(folder / "clip")
    tiny_checkpoints.make_siglip(folder / "siglip1", version=1)
    tiny_checkpoints.make_siglip(folder / "siglip2", version=2)
    return folder


@pytest.fixture(params=["clip", "siglip1", "siglip2"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def encoder_of(kind: str, checkpoints: Path) -> ImageTextEncoder:
    return make_encoder("clip" if kind == "clip" else "siglip", checkpoints / kind)


def transformers_model(kind: str, checkpoints: Path) -> Any:
    model_class = transformers.CLIPModel if kind == "clip" else transformers.SiglipModel
    return model_class.from_pretrained(checkpoints / kind).eval()


def pictures(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, TILE, TILE, 3), dtype=np.uint8)


def tiles(n: int) -> Tensor:
    return torch.from_numpy(pictures(n)).permute(0, 3, 1, 2) / 255


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(-1, keepdim=True).sqrt()


def test_tile_features_are_transformers_own(kind: str, checkpoints: Path) -> None:
    model, encoder = transformers_model(kind, checkpoints), encoder_of(kind, checkpoints)
    assert encoder.tile_px == TILE
    processor_class = transformers.CLIPImageProcessorPil if kind == "clip" else transformers.SiglipImageProcessorPil
    processor = processor_class(do_resize=False, **({"do_center_crop": False} if kind == "clip" else {}))
    expected = []
    for picture in pictures(5):
        with torch.no_grad():
            features = model.get_image_features(**processor(picture, return_tensors="pt"))
        expected.append(unit(features.pooler_output[0]))
    found = encoder.encode_tiles(tiles(5))
    assert found.shape == (5, encoder.width) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert (found @ found.T).min() < 0.95


def ids_of(kind: str, checkpoints: Path, phrase: str) -> list[int]:
    """Token ids of a phrase, by transformers' own tokenizer of the kind where it has one that needs no further library."""
    folder = checkpoints / kind
    if kind == "clip":
        return transformers.CLIPTokenizer.from_pretrained(folder)(phrase, truncation=True, max_length=9)["input_ids"]
    if kind == "siglip2":
        tokenizer = transformers.Siglip2Tokenizer.from_pretrained(folder)
        return tokenizer(phrase, padding="max_length", truncation=True, max_length=11)["input_ids"]
    from tokenizers import Tokenizer

    words = "".join(letter for letter in phrase.lower() if letter not in ",!").split()
    whole = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(" ".join(words), add_special_tokens=False).ids
    return [*whole[:10], *[1] * (11 - len(whole[:10]))]


def test_phrase_features_are_transformers_own(kind: str, checkpoints: Path) -> None:
    model, encoder = transformers_model(kind, checkpoints), encoder_of(kind, checkpoints)
    expected = []
    for phrase in PHRASES:
        ids = torch.tensor([ids_of(kind, checkpoints, phrase)])
        with torch.no_grad():
            expected.append(unit(model.get_text_features(input_ids=ids).pooler_output[0]))
    found = encoder.encode_phrases(PHRASES)
    assert found.shape == (5, encoder.width) and found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[0], found[3])
    assert (found[0] @ found[1]) < 0.99


def test_a_phrase_is_encoded_once(kind: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_of(kind, checkpoints)
    first = encoder.encode_phrases(["red mug", "ball"])
    asked: list[list[str]] = []
    tokens = ClipEncoder._tokens
    monkeypatch.setattr(ClipEncoder, "_tokens", lambda self, new: asked.append(list(new)) or tokens(self, new))
    again = encoder.encode_phrases(["ball", "blue", "red mug", "blue"])
    assert asked == [["blue"]]
    assert torch.equal(again[[2, 0]], first)
    assert torch.equal(again[1], again[3])


def test_features_do_not_depend_on_the_batch(kind: str, checkpoints: Path) -> None:
    encoder = encoder_of(kind, checkpoints)
    whole = encoder.encode_tiles(tiles(6))
    torch.testing.assert_close(torch.cat([encoder.encode_tiles(batch) for batch in tiles(6).split(4)]), whole)


def test_the_checkpoints_own_mean_and_deviation_are_used(kind: str, checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / kind, tmp_path / kind)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / kind / "preprocessor_config.json").write_text(json.dumps(settings))
    model = transformers_model(kind, checkpoints)
    pixels = (tiles(2) - torch.tensor([0.1, 0.2, 0.3])[:, None, None]) / torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    with torch.no_grad():
        expected = unit(model.get_image_features(pixel_values=pixels).pooler_output)
    torch.testing.assert_close(encoder_of(kind, tmp_path).encode_tiles(tiles(2)), expected)


def test_half_precision_says_nearly_the_same(checkpoints: Path) -> None:
    whole = ClipEncoder(checkpoints / "clip")
    half = ClipEncoder(checkpoints / "clip", device=torch.device("cpu"), dtype=torch.bfloat16)
    for found, expected in (
        (half.encode_tiles(tiles(4)), whole.encode_tiles(tiles(4))),
        (half.encode_phrases(PHRASES), whole.encode_phrases(PHRASES)),
    ):
        assert found.dtype == torch.float32 and not torch.equal(found, expected)
        torch.testing.assert_close(found.square().sum(1), torch.ones(len(found)))
        assert ((found * expected).sum(1) > 0.99).all()


def test_a_name_follows_the_weights_and_nothing_else(checkpoints: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoints / "clip", tmp_path / "copy")
    name = ClipEncoder(checkpoints / "clip").name
    assert ClipEncoder(tmp_path / "copy").name == name
    tiny_checkpoints.make_clip(tmp_path / "copy", seed=1)
    assert ClipEncoder(tmp_path / "copy").name != name


def test_what_is_no_checkpoint_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(GagsError, match="expected model_type siglip, found clip; give --encoder-weights a SigLIP"):
        make_encoder("siglip", checkpoints / "clip")
    (tmp_path / "naflex").mkdir()
    (tmp_path / "naflex" / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    (tmp_path / "naflex" / "model.safetensors").write_bytes(b"")
    with pytest.raises(GagsError, match="found siglip2; that one takes pictures of any size"):
        make_encoder("siglip", tmp_path / "naflex")
    with pytest.raises(GagsError, match=r"nowhere/at/all: expected CLIP weights .*, found nothing there"):
        make_encoder("clip", tmp_path / "nowhere/at/all")
    shutil.copytree(checkpoints / "clip", tmp_path / "clip", ignore=shutil.ignore_patterns("vocab.json"))
    with pytest.raises(
        GagsError, match=r"expected the tokenizer's files beside the weights \(tokenizer\.json, or vocab"
    ):
        make_encoder("clip", tmp_path / "clip").encode_phrases(["ball"])


@pytest.mark.parametrize(
    ("name", "hub_name", "size"),
    [
        ("clip", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K", r"0\.6 GB"),
        ("siglip", "google/siglip2-base-patch16-224", r"1\.5 GB"),
    ],
)
def test_missing_weights_are_named_with_their_size_and_the_way_around(
    name: Any, hub_name: str, size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    message = (
        rf"weights '{hub_name}': expected them in the cache .* or on the network, found neither .*"
        rf"https://huggingface\.co/{hub_name} \({size}\).*--encoder-weights DIR.*--encoder conse"
    )
    with pytest.raises(GagsError, match=message):
        make_encoder(name)


def test_a_run_with_sam_and_clip_answers_from_its_folder_alone(
    checkpoints: Path, tiny_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(checkpoints / "clip", weights / "clip")
    tiny_checkpoints.make_sam(weights / "sam")
    monkeypatch.chdir(tmp_path)
    # a model that was never trained passes no threshold
    untrained = {"min-predicted-iou": 0, "min-stability": 0, "min-score": 0, "max-box-iou": 1, "min-region-px": 4}
    flags = {
        "segmenter": "sam",
        "segmenter-weights": "weights/sam",
        "encoder": "clip",
        "encoder-weights": "weights/clip",
        "field": "lift",
        "reconstruct.iterations": 20,
        "segment.max-per-side": 1,
        "segment.min-per-side": 1,
        **{f"segment.{flag}": value for flag, value in untrained.items()},
    }
    arguments = [text for flag, value in flags.items() for text in (f"--{flag}", str(value))]
    assert main(["run", str(tiny_scene), "--out", "out", *arguments]) == 0

    monkeypatch.chdir("/")
    run = open_run(tmp_path / "out")
    masks, embeddings = run.masks["view_00.png"], run.embeddings["view_00.png"]
    assert (masks.label_maps >= 0).any() and embeddings.shape == (len(masks.masks), 12)
    view = run.scene.views[0]
    (hit,) = query(run.field(), view.camera, ["red ball"], run.encoder, QueryConfig(kernel_px=5))
    assert 0 <= hit.score <= 1 and hit.relevancy.shape == (view.camera.height, view.camera.width)

    assert (
        read_json(tmp_path / "out" / "run.json")["encoder"]
        == run.encoder.name
        == make_encoder("clip", weights / "clip").name
    )
    tiny_checkpoints.make_clip(weights / "clip", seed=5)
    with pytest.raises(GagsError, match=r"run\.json: expected the encoder that the run was made with \(clip, 12 wide"):
        _ = open_run(tmp_path / "out").encoder
    assert open_run(tmp_path / "out").segmenter.name == make_segmenter("sam", weights / "sam").name
    tiny_checkpoints.make_sam(weights / "sam", seed=5)
    with pytest.raises(GagsError, match=r"run\.json: expected the segmenter that the run was made with \(sam, weights"):
        _ = open_run(tmp_path / "out").segmenter
