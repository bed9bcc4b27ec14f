"""Dot products with decoded features that nobody decodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from blobs import blob_scene
from gags.distill import FeatureDecoder, FieldMeta, LanguageField, LinearDecoder
from gags.distill._codes import PackedCodes
from gags.distill._field import blended_lengths, leading_coordinates
from gags.query import QueryConfig, gaussian_relevancy, phrase_vectors, relevancy

FEATURE_WIDTH, WIDTH = 60, 300


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class _Words:
    """Gives each phrase the next vector."""

    name, width, tile_px = "words", WIDTH, 8

    def encode_tiles(self, tiles: Tensor) -> Tensor:
        raise AssertionError("a query encodes no tiles")

    def encode_phrases(self, phrases: Sequence[str]) -> Tensor:
        return _vectors(len(phrases))


def _linear(width: int = WIDTH) -> LinearDecoder:
    return LinearDecoder(torch.linalg.qr(_random(width, FEATURE_WIDTH)).Q.T.contiguous())


def _deep(width: int) -> FeatureDecoder:
    torch.manual_seed(0)
    return FeatureDecoder(FEATURE_WIDTH, width).requires_grad_(False)


def _vectors(count: int, width: int = WIDTH) -> Tensor:
    return functional.normalize(_random(count, width, seed=1), dim=1)


def _field(decoder: LinearDecoder | FeatureDecoder, width: int = WIDTH) -> LanguageField:
    """Blobs of one feature each, and a twelfth of another in every Gaussian."""
    blobs = blob_scene()
    own, noise = _random(5, FEATURE_WIDTH, seed=2), _random(len(blobs.gaussians), FEATURE_WIDTH, seed=3)
    features = functional.normalize(own[blobs.blob_of_gaussian] + noise / 12, dim=1)
    return LanguageField(blobs.gaussians, features, decoder, None, FieldMeta("lift", FEATURE_WIDTH, width))


# narrower than the decoder's hidden layers, and wider
@pytest.mark.parametrize("width", [70, WIDTH])
@pytest.mark.parametrize("make", [_linear, _deep])
def test_codes_and_folded_vectors_multiply_to_the_dot_products(make: type, width: int) -> None:
    decoder, features, vectors = make(width), _random(4, 9, FEATURE_WIDTH), _vectors(7, width)
    expected = decoder(features) @ vectors.T
    torch.testing.assert_close(decoder.codes(features) @ decoder.fold(vectors), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [_linear, _deep])
def test_products_are_those_of_decoded_features(make: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gags.distill._decoders._ROWS_TOGETHER", 4)
    decoder, features, vectors = make(WIDTH), _random(11, FEATURE_WIDTH), _vectors(7)
    expected = decoder(features) @ vectors.T
    torch.testing.assert_close(decoder.products(features, vectors, rounded=False), expected, rtol=0, atol=1e-5)
    with torch.inference_mode():
        rounded = decoder.products(features, vectors, rounded=True)
    assert rounded.dtype == torch.float32 and (rounded - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_zero_feature_of_a_lifted_field_resembles_nothing() -> None:
    decoder = _linear()
    assert not (decoder.codes(torch.zeros(2, FEATURE_WIDTH)) @ decoder.fold(_vectors(3))).any()


@pytest.mark.parametrize("make", [_linear, _deep])
def test_similarities_of_a_field_are_those_of_its_decoded_features(make: type) -> None:
    field, vectors, camera = _field(make(WIDTH)), _vectors(7), blob_scene().scene.views[3].camera
    products = field.decode(field.features) @ vectors.T
    torch.testing.assert_close(field.similarity(vectors, exact=True), products, rtol=0, atol=1e-5)
    # codes of 8 bits
    torch.testing.assert_close(field.similarity(vectors, exact=False), products, rtol=0, atol=5e-3)
    decoded = field.decode(field.render(camera)) @ vectors.T
    torch.testing.assert_close(field.similarity_map(camera, vectors, exact=True), decoded, rtol=0, atol=1e-5)


def _packing_bound(codes: Tensor, packed: PackedCodes, matrix: Tensor) -> Tensor:
    """Half an integer in every coordinate."""
    largest = (codes / packed.column_scales).abs().amax(dim=1, keepdim=True)
    return largest / 254 * (packed.column_scales @ matrix.abs()) + 1e-5


@pytest.mark.parametrize(("rows", "count"), [(37, 1), (37, 5), (37, 7), (16384 + 37, 2), (37, 0), (0, 3)])
def test_packed_codes_multiply_as_codes_do(rows: int, count: int) -> None:
    codes = _random(rows, 19)
    codes[:, 4], codes[8:9] = 0, 0
    matrix = _random(19, count, seed=1)
    packed = PackedCodes.of(lambda features: features, codes)
    products = packed.times(matrix)
    assert products.shape == (rows, count)
    off = (products - codes @ matrix).abs()
    assert (off <= _packing_bound(codes, packed, matrix)).all()
    assert not products[8:9].any()


def test_codes_of_nothing_are_nothing() -> None:
    assert not PackedCodes.of(lambda features: features, torch.zeros(20, 3)).times(_random(3, 2)).any()


def test_a_wild_code_costs_the_others_nothing() -> None:
    codes, matrix = _random(5000, 8), _random(8, 5, seed=1)
    exact = codes @ matrix
    codes[4, 2], codes[6] = 1e7, math.nan
    others = [row for row in range(5000) if row not in (4, 6)]
    off = (PackedCodes.of(lambda features: features, codes).times(matrix) - exact)[others].abs()
    # as for the tame ones: 1/254 of the largest of eight, eight times
    assert off.max() < 0.02 * float(exact[others].abs().max())


def test_the_quick_map_of_a_lifted_field_is_nearly_exact() -> None:
    field, vectors, camera = _field(_linear()), _vectors(7), blob_scene().scene.views[3].camera
    exact = field.similarity_map(camera, vectors, exact=True)
    quick = field.similarity_map(camera, vectors, exact=False)
    assert quick.shape == (camera.height, camera.width, 7)
    assert 1e-6 < (quick - exact).abs().max() < 0.03 * exact.abs().max()
    # where nothing is, nothing resembles anything
    away = replace(field, gaussians=replace(field.gaussians, means=field.gaussians.means + 1000))
    assert not away.similarity_map(camera, vectors, exact=False).any()


def test_the_quick_map_of_a_learned_field_is_rounded_alone() -> None:
    field, vectors, camera = _field(_deep(WIDTH)), _vectors(7), blob_scene().scene.views[3].camera
    exact, quick = (field.similarity_map(camera, vectors, exact=exact) for exact in (True, False))
    assert quick.dtype == torch.float32 and (quick - exact).abs().max() < 0.02 * exact.abs().max()
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert not torch.equal(quick, exact)


def test_many_vectors_are_compared_with_the_features_themselves() -> None:
    field, vectors, camera = _field(_linear()), _vectors(FEATURE_WIDTH - 18), blob_scene().scene.views[3].camera
    assert torch.equal(field.similarity_map(camera, vectors, False), field.similarity_map(camera, vectors, True))


def test_lengths_of_blends() -> None:
    features = functional.normalize(_random(50, FEATURE_WIDTH), dim=1)
    coordinates = leading_coordinates(features, 20)
    torch.testing.assert_close(blended_lengths(coordinates), features.norm(dim=1))
    # of what points one way, exactly; of anything, between the leading part's length and the sum of all lengths
    torch.testing.assert_close(blended_lengths(0.3 * coordinates[4] + 0.6 * coordinates[4]), torch.tensor(0.9))
    weights = functional.normalize(torch.rand(30, 50, generator=torch.Generator().manual_seed(4)), p=1.0, dim=1)
    lengths, leading = blended_lengths(weights @ coordinates), (weights @ coordinates)[:, :20].norm(dim=1)
    assert (lengths >= leading).all() and (lengths <= 1).all()
    # in all directions the leading part is everything
    whole = blended_lengths(weights @ leading_coordinates(features, FEATURE_WIDTH))
    torch.testing.assert_close(whole, (weights @ features).norm(dim=1))


@pytest.mark.parametrize("exact", [True, False])
def test_questions_in_3d_are_as_exact_as_asked(exact: bool) -> None:
    field, encoder = _field(_linear()), _Words()
    config = QueryConfig(exact=exact)
    positives, negatives = phrase_vectors(["thing"], encoder, config)
    asked = relevancy(field.decode(field.features), positives, negatives)
    off = (gaussian_relevancy(field, ["thing"], encoder, config) - asked).abs().max()
    assert off < 1e-5 if exact else 1e-5 < off < 0.02
