"""Fixture 09: both decoders, from layers and from the reference's checkpoint entries, values and gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gags.distill import FeatureDecoder, GranularityDecoder

Decoder = FeatureDecoder | GranularityDecoder


def _load(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    with np.load(path, allow_pickle=False) as arrays:
        names = [str(name) for name in arrays["state_dict_names"]]
        values = {key: torch.from_numpy(arrays[key]) for key in arrays.files if arrays[key].dtype.kind == "f"}
    return {key: value.float() for key, value in values.items()}, names


def _layers(fixture: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    count = sum(key.startswith("w") for key in fixture)
    return [fixture[f"w{i}"] for i in range(count)], [fixture[f"b{i}"] for i in range(count)]


def _checkpoint(fixture: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    weights, biases = _layers(fixture)
    parts = [part for weight, bias in zip(weights, biases, strict=True) for part in (weight[:, :, None, None], bias)]
    return dict(zip(names, parts, strict=True))


def _last(image: Tensor) -> Tensor:
    return image.movedim(0, -1)


def _assert_gradient(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.fixture(scope="module")
def feature_fixture(parity_dir: Path) -> tuple[dict[str, Tensor], list[str]]:
    return _load(parity_dir / "09a_feature_decoder.npz")


@pytest.fixture(scope="module")
def granularity_fixture(parity_dir: Path) -> tuple[dict[str, Tensor], list[str]]:
    return _load(parity_dir / "09b_scale_decoder.npz")


def test_feature_decoder_values(feature_fixture: tuple[dict[str, Tensor], list[str]]) -> None:
    fixture, names = feature_fixture
    for decoder in (
        FeatureDecoder.from_layers(*_layers(fixture)),
        FeatureDecoder.from_reference(_checkpoint(fixture, names)),
    ):
        inputs: list[Tensor] = []
        for number in (3, 6):
            decoder.layers[number].register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
        with torch.no_grad():
            before = decoder.unnormalised(_last(fixture["x"]))
            torch.testing.assert_close(before, _last(fixture["before_normalisation"]), rtol=0, atol=5e-5)
            for number, found in zip((3, 6), inputs, strict=True):
                torch.testing.assert_close(found, _last(fixture[f"input_of_layer{number}"]), rtol=0, atol=5e-5)
            torch.testing.assert_close(decoder(_last(fixture["x"])), _last(fixture["y"]), rtol=0, atol=1e-6)
            points = decoder(fixture["x_points"][:, :, 0].T)
            torch.testing.assert_close(points, fixture["y_points"][:, :, 0].T, rtol=0, atol=1e-6)


def test_feature_decoder_gradients(feature_fixture: tuple[dict[str, Tensor], list[str]]) -> None:
    fixture, _ = feature_fixture
    decoder = FeatureDecoder.from_layers(*_layers(fixture))
    x = _last(fixture["x"]).clone().requires_grad_()
    (decoder(x) * _last(fixture["upstream"])).sum().backward()
    assert x.grad is not None
    _assert_gradient(x.grad, _last(fixture["grad_x"]))
    _assert_gradient(decoder.layers[0].bias.grad, fixture["grad_bias_0"])
    _assert_gradient(decoder.layers[8].bias.grad, fixture["grad_bias_8"])


def test_granularity_decoder(granularity_fixture: tuple[dict[str, Tensor], list[str]]) -> None:
    fixture, _ = granularity_fixture
    for decoder in (
        GranularityDecoder.from_layers(*_layers(fixture)),
        GranularityDecoder.from_reference(_checkpoint(*granularity_fixture)),
    ):
        x = _last(fixture["x"]).clone().requires_grad_()
        y = decoder(x)
        (y * _last(fixture["upstream"])).sum().backward()
        torch.testing.assert_close(y, _last(fixture["y"]), rtol=0, atol=1e-6)
        torch.testing.assert_close(decoder.logits(x), _last(fixture["logits"]), rtol=0, atol=1e-5)
        assert x.grad is not None
        _assert_gradient(x.grad, _last(fixture["grad_x"]))


@pytest.mark.parametrize("name", ["09a_feature_decoder.npz", "09b_scale_decoder.npz"])
def test_checkpoints_are_written_as_the_reference_writes_them(parity_dir: Path, name: str) -> None:
    fixture, names = _load(parity_dir / name)
    kind = FeatureDecoder if "feature" in name else GranularityDecoder
    entries = _checkpoint(fixture, names)
    written = kind.from_reference(entries).to_reference()
    assert list(written) == names
    for entry, value in written.items():
        assert torch.equal(value, entries[entry]), entry


def test_an_axis_in_front_changes_nothing(
    feature_fixture: tuple[dict[str, Tensor], list[str]], granularity_fixture: tuple[dict[str, Tensor], list[str]]
) -> None:
    """Channels come last here, so that a batch is decoded rightly; in the reference its length would be normalised."""
    for kind, (fixture, _) in ((FeatureDecoder, feature_fixture), (GranularityDecoder, granularity_fixture)):
        decoder, x = kind.from_layers(*_layers(fixture)), _last(fixture["x"])
        with torch.no_grad():
            batch = decoder(torch.stack([x, -x]))
            torch.testing.assert_close(batch[0], _last(fixture["y"]), rtol=0, atol=1e-6)
            torch.testing.assert_close(batch[1], decoder(-x), rtol=0, atol=1e-6)
