"""The learned field: it converges to the truth, resumes bit for bit, and survives the disk."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from blobs import BLOBS, EMBEDDING, BlobScene, blob_scene
from gags.distill import (
    DistillConfig,
    DistillState,
    FeatureDecoder,
    GranularityDecoder,
    LanguageField,
    LiftConfig,
    distill,
    lift,
)
from gags.distill._distill import ViewLosses, _subspace, view_losses
from gags.distill._targets import view_labels
from gags.errors import GagsError
from gags.rasterize import blend_weights

FAST = DistillConfig(
    iterations=160, pixels_per_iteration=192, feature_lr=1e-2, decoder_lr=1e-3, log_every=20, checkpoint_every=7
)


@pytest.fixture(scope="module")
def damaged() -> BlobScene:
    return blob_scene(damaged=True)


@pytest.fixture(scope="module")
def field(damaged: BlobScene) -> LanguageField:
    return _distill(damaged, FAST)


def _distill(blobs: BlobScene, config: DistillConfig, **more: object) -> LanguageField:
    return distill(blobs.scene, blobs.gaussians, blobs.masks, blobs.embeddings, config, **more)


def _assert_same_bytes(a: LanguageField, b: LanguageField) -> None:
    (tensors_a, metadata_a), (tensors_b, metadata_b) = a.to_state(), b.to_state()
    assert save(tensors_a) == save(tensors_b)
    assert json.dumps(metadata_a) == json.dumps(metadata_b)


# --- it learns --------------------------------------------------------------------------------------------------------


def test_loss_falls(field: LanguageField) -> None:
    history = field.meta.statistics["history"]
    assert [row["iteration"] for row in history] == list(range(20, 161, 20))
    assert history[-1]["distill"] < 0.3 * history[0]["distill"]
    assert history[-1]["entropy"] < 0.5 * history[0]["entropy"]
    assert history[0]["region"] == 0 and history[-1]["region"] > 0


def test_every_gaussian_decodes_to_its_blob(field: LanguageField, damaged: BlobScene) -> None:
    vectors = field.decode(field.features)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
    found = (vectors @ damaged.truth.T).argmax(dim=1)
    assert (found == damaged.blob_of_gaussian).float().mean() > 0.95  # chance is 1 in 5


def test_the_clean_level_is_trusted(field: LanguageField, damaged: BlobScene) -> None:
    view = damaged.scene.views[0]
    granularity = field.granularity(view.camera)
    assert granularity is not None
    blob = damaged.masks[view.name].label_maps[0]
    right = granularity.argmax(dim=-1) == damaged.clean_level[blob.clamp(min=0).long()]
    assert right[blob >= 0].float().mean() > 0.9


def test_a_rendered_map_decodes_to_what_is_there(field: LanguageField, damaged: BlobScene) -> None:
    view = damaged.scene.views[-1]
    decoded = field.decode(field.render(view.camera))
    assert decoded.shape == (view.camera.height, view.camera.width, EMBEDDING)
    blob = damaged.masks[view.name].label_maps[0]
    assert ((decoded @ damaged.truth.T).argmax(dim=-1) == blob)[blob >= 0].float().mean() > 0.95


@pytest.mark.parametrize(
    "change", [{"views_per_iteration": 2}, {"decoder_dtype": "bfloat16"}, {"target": "median"}, {"final_lr": 0.05}]
)
def test_other_schedules_learn_too(damaged: BlobScene, change: dict) -> None:
    history = _distill(damaged, replace(FAST, iterations=40, **change)).meta.statistics["history"]
    assert history[-1]["distill"] < 0.95 * history[0]["distill"]


def test_what_is_learned_in_a_subspace_decodes_to_the_whole_space() -> None:
    blobs = blob_scene()
    field = _distill(blobs, replace(FAST, subspace_width=BLOBS))
    assert field.meta.embedding_width == EMBEDDING
    # without damage the truth spans all embeddings
    assert field.meta.statistics["mean_mask_cosine"] == pytest.approx(1)
    vectors = field.decode(field.features)
    assert ((vectors @ blobs.truth.T).argmax(dim=1) == blobs.blob_of_gaussian).float().mean() > 0.95
    torch.testing.assert_close((vectors @ blobs.truth.T).norm(dim=1), torch.ones(len(vectors)))


def test_the_loss_of_a_subspace_weighs_what_it_weighs_in_the_whole_space(damaged: BlobScene) -> None:
    assert _subspace(damaged.scene, damaged.embeddings, FAST) is None
    quirks = replace(FAST, subspace_width=9, reference_quirks=True)
    assert _subspace(damaged.scene, damaged.embeddings, quirks) is None
    subspace = _subspace(damaged.scene, damaged.embeddings, replace(FAST, subspace_width=9))
    assert subspace is not None
    torch.testing.assert_close(subspace.basis @ subspace.basis.T, torch.eye(9), rtol=0, atol=1e-5)
    # a training goes on in the coordinates that it began with, whatever signs another library gives
    state = DistillState(3, {"subspace": -subspace.basis})
    again = _subspace(damaged.scene, damaged.embeddings, replace(FAST, subspace_width=9), state)
    assert again is not None and torch.equal(again.basis, -subspace.basis)
    coordinates = torch.randn(4000, 9, generator=torch.Generator().manual_seed(0))
    inside, whole = coordinates.abs().mean() * subspace.loss_factor, (coordinates @ subspace.basis).abs().mean()
    torch.testing.assert_close(inside, whole, rtol=0.05, atol=0)


@pytest.mark.parametrize("levels", ["mean", "l"])
def test_ablations_learn_no_granularity(levels: str) -> None:
    blobs = blob_scene()
    field = _distill(blobs, replace(FAST, iterations=60, levels=levels))
    assert field.granularity_decoder is None and field.granularity(blobs.scene.views[0].camera) is None
    found = (field.decode(field.features) @ blobs.truth.T).argmax(dim=1)
    assert (found == blobs.blob_of_gaussian).float().mean() > 0.9


def test_one_level_alone_needs_no_label_in_the_others() -> None:
    blobs = blob_scene()
    for masks in blobs.masks.values():
        masks.label_maps[1:3] = -1
    alone = _distill(blobs, replace(FAST, iterations=3, levels="l")).meta.statistics["history"][0]
    together = _distill(blobs, replace(FAST, iterations=3, levels="mean")).meta.statistics["history"][0]
    assert alone["distill"] > 0 and together["distill"] == 0


# --- the losses of a view ---------------------------------------------------------------------------------------------


def _first_view_losses(
    blobs: BlobScene, features: Tensor, sample: tuple[int, np.random.Generator] | None
) -> ViewLosses:
    torch.manual_seed(1)
    feature_decoder, granularity_decoder = FeatureDecoder(6, EMBEDDING), GranularityDecoder(6)
    labels = view_labels(blobs.scene.views[0], blobs.masks, blobs.embeddings, downscale=3)
    feature_map = blend_weights(blobs.gaussians, labels.camera).render(features)
    granularity = granularity_decoder(feature_map.detach())
    return view_losses(
        feature_map,
        granularity,
        lambda pixel_ids: feature_decoder(feature_map.flatten(0, 1)[pixel_ids]),
        labels,
        sample,
    )


def _features(blobs: BlobScene) -> Tensor:
    return torch.randn(len(blobs.gaussians), 6, generator=torch.Generator().manual_seed(2)).requires_grad_()


def test_sampled_loss_and_gradient_are_unbiased(damaged: BlobScene) -> None:
    full_features = _features(damaged)
    full = _first_view_losses(damaged, full_features, None).distill
    full.backward()
    rng = np.random.default_rng(0)
    features = _features(damaged)
    losses = [_first_view_losses(damaged, features, (24, rng)).distill for _ in range(100)]
    values = torch.stack(losses)
    values.mean().backward()
    assert abs(values.mean() - full) < 4 * values.std() / len(losses) ** 0.5
    assert features.grad is not None and full_features.grad is not None
    error = (features.grad - full_features.grad).norm() / full_features.grad.norm()
    assert error < 0.2


def test_only_the_distillation_moves_the_features(damaged: BlobScene) -> None:
    features = _features(damaged)
    _first_view_losses(damaged, features, None).entropy.backward()
    assert features.grad is None


# --- same seed, same bytes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subspace_width", [None, 9])
def test_resumed_training_ends_with_the_same_bytes(damaged: BlobScene, subspace_width: int | None) -> None:
    config = replace(FAST, iterations=17, views_per_iteration=2, log_every=4, subspace_width=subspace_width)
    saved: list[tuple[bytes, str]] = []

    def keep(state: DistillState) -> None:
        tensors, metadata = state.to_state()
        saved.append((save(tensors), json.dumps(metadata)))

    whole = _distill(damaged, config, on_checkpoint=keep)
    assert len(saved) == 2
    for tensors, metadata in saved:
        state = DistillState.from_state(load(tensors), json.loads(metadata))
        # how often states are saved changes nothing
        other = replace(config, checkpoint_every=2)
        _assert_same_bytes(whole, _distill(damaged, other, resume=state, on_checkpoint=lambda _: None))


def test_seed_decides(damaged: BlobScene) -> None:
    config = replace(FAST, iterations=3)
    first = _distill(damaged, config)
    _assert_same_bytes(first, _distill(damaged, config))
    assert not torch.equal(first.features, _distill(damaged, replace(config, seed=1)).features)


def test_held_out_views_teach_nothing() -> None:
    blobs = blob_scene(held_out="v2.png")
    del blobs.masks["v2.png"], blobs.embeddings["v2.png"]
    _distill(blobs, replace(FAST, iterations=8))


@pytest.mark.parametrize("kind", ["gad", "mean", "lift"])
def test_field_state_round_trip(damaged: BlobScene, field: LanguageField, kind: str) -> None:
    if kind == "mean":
        field = _distill(damaged, replace(FAST, iterations=2, levels="mean"), encoder_name="fake")
    if kind == "lift":
        field = lift(damaged.scene, damaged.gaussians, damaged.masks, damaged.embeddings, LiftConfig(feature_width=7))
    tensors, metadata = field.to_state()
    again = LanguageField.from_state(damaged.gaussians, load(save(tensors)), json.loads(json.dumps(metadata)))
    _assert_same_bytes(field, again)
    assert torch.equal(field.decode(field.features), again.decode(again.features))
    assert again.meta == field.meta and again.meta.encoder == ("fake" if kind == "mean" else "")


def test_a_decoder_out_of_its_subspace_says_the_same_in_the_whole_space() -> None:
    torch.manual_seed(0)
    decoder, basis = FeatureDecoder(6, 9), torch.linalg.qr(torch.randn(EMBEDDING, 9)).Q.T
    features = torch.randn(11, 6)
    torch.testing.assert_close(decoder.out_of_subspace(basis)(features), decoder(features) @ basis)


def test_decoders_take_any_leading_axes() -> None:
    features = torch.randn(2, 3, 4, 16)
    for decoder in (FeatureDecoder(16, 10), GranularityDecoder(16)):
        rows = torch.stack([decoder(row) for row in features.flatten(0, 2)])
        torch.testing.assert_close(decoder(features).flatten(0, 2), rows)
    torch.testing.assert_close(GranularityDecoder(16)(features).sum(dim=-1), torch.ones(2, 3, 4))


# --- bad input --------------------------------------------------------------------------------------------------------


def test_view_without_embeddings() -> None:
    blobs = blob_scene()
    del blobs.embeddings["v3.png"]
    with pytest.raises(GagsError, match=r"embeddings: expected those of every training view, found none of v3\.png"):
        _distill(blobs, FAST)


def test_too_few_embeddings() -> None:
    blobs = blob_scene()
    blobs.embeddings["v3.png"] = blobs.embeddings["v3.png"][: 3 * BLOBS]
    with pytest.raises(GagsError, match=r"v3\.png: expected an embedding for each of its 20 masks, found 15"):
        _distill(blobs, FAST)


def test_nothing_labelled() -> None:
    blobs = blob_scene()
    for masks in blobs.masks.values():
        masks.label_maps.fill_(-1)
    with pytest.raises(GagsError, match="distill: expected labelled pixels, found none"):
        _distill(blobs, FAST)


def test_no_training_view() -> None:
    blobs = blob_scene()
    nothing = replace(blobs, scene=blobs.scene.holding_out({view.name for view in blobs.scene.views}))
    with pytest.raises(GagsError, match="expected training views, found none"):
        _distill(nothing, FAST)


def test_checkpoint_of_another_configuration(damaged: BlobScene) -> None:
    states: list[DistillState] = []
    config = replace(FAST, iterations=2, checkpoint_every=1)
    _distill(damaged, config, on_checkpoint=states.append)
    with pytest.raises(GagsError, match=r"expected features \[150, 8\].*found \[150, 16\]"):
        _distill(damaged, replace(config, feature_width=8), resume=states[0])


def test_field_of_another_scene(damaged: BlobScene, field: LanguageField) -> None:
    tensors, metadata = field.to_state()
    tensors["features"] = tensors["features"][:-3]
    with pytest.raises(GagsError, match="expected a feature for each of 150 Gaussians, found 147"):
        LanguageField.from_state(damaged.gaussians, tensors, metadata)


def test_checkpoint_of_the_reference() -> None:
    decoder = GranularityDecoder(16)
    entries = {}
    for i, layer in enumerate(decoder.layers):
        entries |= {f"decoder.{2 * i}.weight": layer.weight[:, :, None, None], f"decoder.{2 * i}.bias": layer.bias}
    x = torch.randn(5, 16)
    assert torch.equal(GranularityDecoder.from_reference(entries)(x), decoder(x))
    with pytest.raises(GagsError, match="feature decoder: expected 9 layers, found 6"):
        FeatureDecoder.from_reference(entries)
    with pytest.raises(GagsError, match="expected a weight and a bias for every layer, found no 4"):
        GranularityDecoder.from_reference({name: value for name, value in entries.items() if name != "decoder.4.bias"})
    with pytest.raises(GagsError, match="pass the dictionary under the checkpoint's key module_state_dict"):
        GranularityDecoder.from_reference({"module_state_dict": x})
