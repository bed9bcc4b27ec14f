"""The inventory finds the separate things of a scene and calls them by their names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import tiny
from blobs import BLOBS, BlobScene, blob_scene
from gags.cli import main
from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera
from gags.inventory import InventoryConfig, group_masks, inventory_recall, take_inventory
from gags.query import VOCABULARY, QueryConfig, rank_phrases, read_vocabulary
from gags.rasterize import blend_weights
from gags.runs import labelled_views, open_run

NAMES = ("anchor", "bell", "candle", "drum", "easel")


@dataclass(frozen=True)
class BlobField:
    """Features that are embeddings already: each blob's own, with noise, and something that all have in common."""

    gaussians: Gaussians
    features: Float[Tensor, "gaussian d"]

    def render(self, camera: Camera) -> Float[Tensor, "height width d"]:
        raise NotImplementedError

    def decode(self, features: Float[Tensor, "*points d"]) -> Float[Tensor, "*points width"]:
        return torch.nn.functional.normalize(features, dim=-1)


class BlobEncoder:
    """Phrases: a name is its blob's vector and a little of what is common; "thing" is what is common alone."""

    name, width, tile_px = "blobs", 24, 8

    def __init__(self, truth: Float[Tensor, "blob width"], common: Float[Tensor, " width"]) -> None:
        self.table = {name: vector + 0.2 * common for name, vector in zip(NAMES, truth, strict=True)}
        self.common = common

    def encode_phrases(self, phrases: list[str]) -> Float[Tensor, "phrase width"]:
        vectors = torch.stack([self.table.get(phrase, self.common) for phrase in phrases])
        return torch.nn.functional.normalize(vectors, dim=1)


@pytest.fixture(scope="module")
def blobs() -> BlobScene:
    return blob_scene()


@pytest.fixture(scope="module")
def common(blobs: BlobScene) -> Float[Tensor, " width"]:
    generator = torch.Generator().manual_seed(5)
    across = torch.randn(24, generator=generator)
    return torch.nn.functional.normalize(across - blobs.truth.T @ (blobs.truth @ across), dim=0)


@pytest.fixture(scope="module")
def field(blobs: BlobScene, common: Float[Tensor, " width"]) -> BlobField:
    generator = torch.Generator().manual_seed(4)
    noise = 0.08 * torch.randn(len(blobs.gaussians), 24, generator=generator)
    return BlobField(blobs.gaussians, blobs.truth[blobs.blob_of_gaussian] + 2.0 * common + noise)


SMALL = InventoryConfig(min_splats=10)


def test_every_blob_is_a_thing_with_its_name_and_place(
    blobs: BlobScene, field: BlobField, common: Float[Tensor, " width"]
) -> None:
    encoder = BlobEncoder(blobs.truth, common)
    inventory = take_inventory(field, blobs.scene.views, ("thing", *NAMES), encoder, QueryConfig(), SMALL)
    assert len(inventory.things) == BLOBS
    assert sorted(thing.phrases[0][0] for thing in inventory.things) == list(NAMES)
    for thing in inventory.things:
        blob = NAMES.index(thing.phrases[0][0])
        ids = (blobs.blob_of_gaussian == blob).nonzero()[:, 0]
        assert torch.equal(thing.gaussian_ids, ids)
        means = blobs.gaussians.means[ids]
        assert torch.allclose(thing.centroid_world, means.mean(dim=0))
        assert torch.equal(thing.box_world, torch.stack([means.amin(dim=0), means.amax(dim=0)]))
        assert thing.score == thing.phrases[0][1] > 0.5
        assert thing.box_xyxy_px is not None
        left, top, right, bottom = thing.box_xyxy_px
        camera = blobs.scene.view(thing.view_name).camera
        (mask,) = group_masks(blobs.gaussians, [ids], camera)
        assert bool(mask[top:bottom, left:right].any()) and int(mask.sum()) == int(mask[top:bottom, left:right].sum())
    scores = [thing.score for thing in inventory.things]
    assert scores == sorted(scores, reverse=True)


def test_a_phrase_that_fits_everything_names_nothing(blobs: BlobScene, common: Float[Tensor, " width"]) -> None:
    encoder = BlobEncoder(blobs.truth, common)
    vectors = torch.nn.functional.normalize(blobs.truth + 2.0 * common, dim=1)
    positives = encoder.encode_phrases(["thing", *NAMES])
    assert bool((vectors @ positives.T).argmax(dim=1).eq(0).all()), "as it stands, 'thing' is nearest to all"
    ranked = rank_phrases(vectors, vectors.mean(dim=0), ("thing", *NAMES), encoder, QueryConfig())
    assert [row[0][0] for row in ranked] == list(NAMES)
    assert all(len(row) == 6 and 0 < row[-1][1] <= row[0][1] < 1 for row in ranked)


def test_one_feature_everywhere_makes_one_thing(
    blobs: BlobScene, field: BlobField, common: Float[Tensor, " width"]
) -> None:
    same = BlobField(blobs.gaussians, common.expand(len(blobs.gaussians), -1))
    encoder = BlobEncoder(blobs.truth, common)
    inventory = take_inventory(same, blobs.scene.views, NAMES, encoder, QueryConfig(), SMALL)
    # neighbours alone are merged: as many things as parts of the neighbourhood graph
    assert sum(len(thing.gaussian_ids) for thing in inventory.things) == len(blobs.gaussians)
    with pytest.raises(GagsError, match=r"clusters of 1000 splats, found none larger than \d+; lower --min-splats"):
        take_inventory(field, blobs.scene.views, NAMES, encoder, QueryConfig(), InventoryConfig(min_splats=1000))


def test_a_groups_mask_is_where_most_of_the_colour_is_its_own(blobs: BlobScene) -> None:
    camera = blobs.scene.views[2].camera
    groups = [(blobs.blob_of_gaussian == blob).nonzero()[:, 0] for blob in range(BLOBS)] * 4
    weights = blend_weights(blobs.gaussians, camera)
    masks = group_masks(blobs.gaussians, groups, camera)
    assert masks.shape == (4 * BLOBS, camera.height, camera.width)
    for ids, mask in zip(groups, masks, strict=True):
        member = torch.zeros(len(blobs.gaussians), 1)
        member[ids] = 1
        share = weights.render(member)[..., 0]
        sure = (share - 0.5).abs() > 1e-3
        assert torch.equal(mask[sure], (share > 0.5)[sure])


@pytest.mark.usefixtures("true_models")
def test_labelled_balls_are_found_in_the_view_that_was_held_out(tiny_run: Path, tiny_scene: Path) -> None:
    run = open_run(tiny_run)
    vocabulary = ("floor", "cat", *tiny.BALLS)
    frames = labelled_views(run, tiny_scene / "labels")
    field = run.field()
    inventory = take_inventory(
        field, run.scene.views, vocabulary, run.encoder, QueryConfig(), InventoryConfig(min_splats=20)
    )
    objects = inventory_recall(inventory, run.gaussians, frames, run.encoder, QueryConfig())
    assert [each.phrase for each in objects] == list(tiny.BALLS)
    for each in objects:
        assert each.found and each.iou > 0.6 and each.rank == 1, each
    # three other names in front of it: the place alone is not enough
    crowded = InventoryConfig(min_splats=20, n_phrases=1)
    hidden = take_inventory(field, run.scene.views, ("floor",), run.encoder, QueryConfig(), crowded)
    assert [each.found for each in inventory_recall(hidden, run.gaussians, frames, run.encoder, QueryConfig())] == [
        True
    ] * 3
    nowhere = type(inventory)(inventory.things[:0] or inventory.things[-1:], inventory.scene_mean, vocabulary)
    assert not all(each.found for each in inventory_recall(nowhere, run.gaussians, frames, run.encoder, QueryConfig()))


@pytest.mark.usefixtures("true_models")
def test_the_command_writes_a_table_json_and_crops(
    tiny_run: Path, tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("floor\nred ball, green ball\n\nblue ball\n")
    flags = ["--vocabulary", str(words), "--labels", str(tiny_scene / "labels"), "--min-splats", "20"]
    assert main(["inventory", str(tiny_run), *flags, "--out", str(tmp_path / "a"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    written = json.loads((tmp_path / "a/inventory.json").read_text())
    assert written["things"] == result["things"] and written["vocabulary"] == [
        "floor",
        "red ball",
        "green ball",
        "blue ball",
    ]
    assert result["recall"]["found"] == result["recall"]["labelled"] == 3
    red = next(thing for thing in result["things"] if thing["phrases"][0]["phrase"] == "red ball")
    x, z = tiny.BALLS["red ball"]
    assert abs(red["centroid_world"][0] - x) < 0.4 and abs(red["centroid_world"][2] - z) < 0.4
    crop = np.asarray(Image.open(red["crop"])).reshape(-1, 3)
    assert np.isin(tiny.nearest_tone(crop[None])[0], (1, 2)).mean() > 0.4
    assert main(["inventory", str(tiny_run), *flags, "--out", str(tmp_path / "b")]) == 0
    shown = capsys.readouterr()
    assert "red ball" in shown.out and "3 of 3 labelled objects found" in shown.err
    assert main(["inventory", str(tiny_run), *flags, "--out", str(tmp_path / "c"), "--labels", str(tmp_path)]) == 1
    assert "expected" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_vocabularies(tmp_path: Path) -> None:
    assert len(set(VOCABULARY)) == len(VOCABULARY) > 90 and all(phrase == phrase.strip() for phrase in VOCABULARY)
    (tmp_path / "empty.txt").write_text(" \n, ;\n")
    with pytest.raises(GagsError, match="a phrase a line, found an empty file"):
        read_vocabulary(tmp_path / "empty.txt")
    with pytest.raises(GagsError, match="a text file with a phrase a line, found none"):
        read_vocabulary(tmp_path / "nowhere.txt")
