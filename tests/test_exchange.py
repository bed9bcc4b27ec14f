"""The reference implementation's files: written and read again they are the same; what does not fit is refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from gags.cli import main
from gags.distill import FeatureDecoder, FieldMeta, GranularityDecoder, LanguageField, LinearDecoder
from gags.errors import GagsError
from gags.exchange import LanguageFeatures, read_field, view_masks_of, write_field, write_language_features
from gags.gaussians import Gaussians, read_semantic, read_splats
from gags.geometry import Camera
from gags.pipeline import run
from gags.presets import TINY
from gags.query import QueryConfig
from gags.runs import Run, evaluate_run
from gags.segment import ViewMasks

HEIGHT, WIDTH, COUNT, D = 11, 17, 7, 5
CAMERA = Camera(torch.eye(4), 9.0, 9.0, WIDTH, HEIGHT, 2 * WIDTH, 2 * HEIGHT)
"""Of the photograph, which is twice as large as its label maps."""


def labels() -> Tensor:
    """Masks 0 and 1 in level default, 2 in s, 3 and 4 in m, 5 and 6 in l; 1 and 4 are hidden."""
    maps = torch.full((4, HEIGHT, WIDTH), -1, dtype=torch.int32)
    maps[0, 2:9, 3:11], maps[1, 1:4, 1:5], maps[2, 5:8, :], maps[3, :, 6:], maps[3, 4:, 9:12] = 0, 2, 3, 5, 6
    return maps


def features() -> Tensor:
    return torch.nn.functional.normalize(torch.randn(COUNT, D, generator=torch.Generator().manual_seed(1)), dim=1)


def masks() -> ViewMasks:
    return view_masks_of(labels(), COUNT, Path("test"))


def write(folder: Path, name: str = "photo.jpg") -> tuple[Path, Path]:
    write_language_features(folder, {name: masks()}, {name: features()})
    return folder / "photo_s.npy", folder / "photo_f.npy"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write(tmp_path)
    found = LanguageFeatures.open(tmp_path, ["photo.jpg"])
    assert found.width == D
    view, vectors = found.read("photo.jpg", CAMERA)
    torch.testing.assert_close(vectors, features(), rtol=0, atol=2e-7)
    for field in dataclasses.fields(ViewMasks):
        assert torch.equal(getattr(view, field.name), getattr(masks(), field.name)), field.name


def test_masks_are_what_the_label_maps_show() -> None:
    view = masks()
    assert view.granularity.tolist() == [0, 0, 1, 2, 2, 3, 3]
    assert view.masks.flatten(1).any(dim=1).tolist() == [True, False, True, True, False, True, True]
    for level, label_map in zip(view.granularity.tolist(), view.label_maps[view.granularity], strict=True):
        rows = (view.granularity == level).nonzero()[:, 0]
        assert torch.equal(view.masks[rows].any(dim=0), label_map >= 0)


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.float16, np.float64])
def test_numbers_of_any_type_are_read(tmp_path: Path, dtype: type) -> None:
    label_path, feature_path = write(tmp_path)
    np.save(label_path, labels().numpy().astype(dtype))
    np.save(feature_path, features().numpy().astype(np.float16))
    view, vectors = LanguageFeatures.open(tmp_path, ["photo.jpg"]).read("photo.jpg", CAMERA)
    assert view.label_maps.dtype == torch.int32 and torch.equal(view.label_maps, labels())
    torch.testing.assert_close(vectors, features(), rtol=0, atol=1e-3)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(COUNT))


def test_a_folder_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"none: expected a folder of \*_s\.npy and \*_f\.npy files, found none"):
        LanguageFeatures.open(tmp_path / "none", ["photo.jpg"])
    write(tmp_path)
    with pytest.raises(GagsError, match=r"other_s\.npy: expected the features of image other\.jpg, found no such file"):
        LanguageFeatures.open(tmp_path, ["photo.jpg", "other.jpg"])
    write_language_features(tmp_path, {"other.jpg": masks()}, {"other.jpg": features()[:, :3]})
    with pytest.raises(
        GagsError, match=r"expected features of one width, found 3 in other_f\.npy and 5 in photo_f\.npy"
    ):
        LanguageFeatures.open(tmp_path, ["photo.jpg", "other.jpg"])
    with pytest.raises(GagsError, match=r"found a/photo\.jpg and photo\.png, which share their feature files"):
        LanguageFeatures.open(tmp_path, ["a/photo.jpg", "photo.png"])
    with pytest.raises(GagsError, match="which share their feature files"):
        write_language_features(tmp_path, {"photo.jpg": masks(), "photo.png": masks()}, {})


def damaged(label_maps: Tensor, where: tuple[int, int, int], value: float) -> np.ndarray:
    array = label_maps.numpy().astype(np.float32)
    array[where] = value
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (labels().numpy()[:3], r"expected label maps \[4, height, width\] in the proportions .* found \[3, 11, 17\]"),
        (labels().numpy()[:, :, :13], r"photograph \(22 x 34\), found \[4, 11, 13\]"),
        (features().numpy(), r"expected an array \[4, height, width\] of numbers, found float32 \[7, 5\]"),
        (np.array(["a"]), r"expected an array \[4, height, width\] of numbers, found <U1 \[1\]"),
        (damaged(labels(), (0, 1, 2), COUNT), "expected labels of -1 .none. to 6, the rows of its features, found 7"),
        (damaged(labels(), (0, 1, 2), -2), "found -2"),
        (damaged(labels(), (0, 1, 2), np.nan), "found nan"),
        (damaged(labels(), (0, 1, 2), 0.5), "found 0.5"),
        (
            damaged(labels(), (0, 0, 0), 2),
            "expected labels that are unique over the four levels, found 2 in two of them",
        ),
    ],
)
def test_label_maps_that_do_not_fit_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    label_path, _ = write(tmp_path)
    np.save(label_path, array)
    with pytest.raises(GagsError, match=rf"photo_s\.npy: .*{message}"):
        LanguageFeatures(tmp_path, D).read("photo.jpg", CAMERA)


def test_features_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    _, feature_path = write(tmp_path)
    for broken, found in ((0.0, "0.0"), (np.nan, "nan"), (np.inf, "inf")):
        array = features().numpy()
        array[3] = broken
        np.save(feature_path, array)
        with pytest.raises(
            GagsError, match=rf"photo_f\.npy: expected vectors with a direction, found length {found} in row 3"
        ):
            LanguageFeatures(tmp_path, D).read("photo.jpg", CAMERA)
    feature_path.write_bytes(feature_path.read_bytes()[:40])
    with pytest.raises(
        GagsError, match=r"photo_f\.npy: expected an array \[mask, width\], found no readable \.npy file"
    ):
        LanguageFeatures.open(tmp_path, ["photo.jpg"])
    np.save(feature_path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(GagsError, match=r"found no readable \.npy file"):
        LanguageFeatures.open(tmp_path, ["photo.jpg"])


def field(gaussian_count: int = 6, width: int = 4) -> LanguageField:
    generator = torch.Generator().manual_seed(2)
    means, features = (torch.randn(gaussian_count, n, generator=generator) for n in (3, width))
    quats, log_scales = torch.eye(4)[:1].expand(gaussian_count, 4), torch.zeros(gaussian_count, 3)
    gaussians = Gaussians(means, quats, log_scales, torch.zeros(gaussian_count), torch.zeros(gaussian_count, 1, 3))
    return LanguageField(
        gaussians, features, FeatureDecoder(width, D), GranularityDecoder(width), FieldMeta("gad", width, D, "test")
    )


def test_a_field_is_written_and_read_again(tmp_path: Path) -> None:
    made = field()
    write_field(made, tmp_path / "scene.ply", tmp_path)
    again = read_field(read_splats(tmp_path / "scene.ply"), tmp_path / "scene.ply", tmp_path, "test")
    assert again.meta == made.meta
    assert torch.equal(again.features, made.features)
    assert torch.equal(again.decode(again.features), made.decode(made.features))
    assert torch.equal(again.granularity_decoder(again.features), made.granularity_decoder(made.features))
    (tmp_path / "granularity_decoder.pth").unlink()
    assert read_field(made.gaussians, tmp_path / "scene.ply", tmp_path).granularity_decoder is None


def test_checkpoints_have_the_reference_s_entries(tmp_path: Path) -> None:
    write_field(field(), decoder_folder=tmp_path)
    for name, layers, last in (("feature", 9, [D, 256, 1, 1]), ("granularity", 6, [3, 16, 1, 1])):
        checkpoint = torch.load(tmp_path / f"{name}_decoder.pth", weights_only=True)
        entries = checkpoint["module_state_dict"]
        assert list(entries) == [f"decoder.{2 * i}.{part}" for i in range(layers) for part in ("weight", "bias")]
        assert list(entries[f"decoder.{2 * layers - 2}.weight"].shape) == last


def test_fields_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    made = field()
    write_field(made, tmp_path / "scene.ply", tmp_path)
    lifted = dataclasses.replace(made, feature_decoder=LinearDecoder(torch.eye(4, D)), meta=FieldMeta("lift", 4, D))
    with pytest.raises(GagsError, match="expected a field with learned decoders, found one of kind lift"):
        write_field(lifted, decoder_folder=tmp_path / "other")
    with pytest.raises(
        GagsError, match=r"scene\.ply: expected semantic_\* properties of 5 Gaussians, found those of 6"
    ):
        read_field(field(5).gaussians, tmp_path / "scene.ply", tmp_path)
    write_field(field(width=3), decoder_folder=tmp_path / "narrow")
    with pytest.raises(
        GagsError, match=r"expected decoders of 4 numbers, as scene\.ply has on each Gaussian, found one of 3"
    ):
        read_field(made.gaussians, tmp_path / "scene.ply", tmp_path / "narrow")
    with pytest.raises(GagsError, match=r"feature_decoder\.pth: expected a decoder checkpoint, found no such file"):
        read_field(made.gaussians, tmp_path / "scene.ply", tmp_path / "nowhere")
    path = tmp_path / "feature_decoder.pth"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(GagsError, match="expected a checkpoint with the key module_state_dict, found none"):
        read_field(made.gaussians, tmp_path / "scene.ply", tmp_path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(GagsError, match="found a file that torch does not read"):
        read_field(made.gaussians, tmp_path / "scene.ply", tmp_path)


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    write_field(field(), tmp_path / "scene.ply", tmp_path)
    torch.save({"module_state_dict": Payload(tmp_path / "ran")}, tmp_path / "feature_decoder.pth")
    with pytest.raises(GagsError, match=r"found a file that torch does not read \(UnpicklingError\)"):
        read_field(field().gaussians, tmp_path / "scene.ply", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def finished(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    quick = dataclasses.replace(
        TINY,
        reconstruct=dataclasses.replace(TINY.reconstruct, iterations=100),
        distill=dataclasses.replace(TINY.distill, iterations=20),
    )
    out = tmp_path_factory.mktemp("exchange") / "run"
    return run(tiny_scene, out, quick, segmenter=tiny.TrueSegmenter(), encoder=tiny.TrueEncoder())


@pytest.fixture(scope="module")
def exported(finished: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    flags = [f"--{name}={folder / path}" for name, path in FLAGS.items()]
    assert main(["export", str(finished.folder.root), *flags]) == 0
    return folder


FLAGS = {"splats": "plain.splat", "semantic-ply": "scene.ply", "decoders": "decoders", "language-features": "features"}


def test_export_writes_what_it_was_asked_for(finished: Run, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(read_splats(exported / "plain.splat")) == len(finished.gaussians)
    assert torch.equal(read_semantic(exported / "scene.ply"), finished.field("gad").features)
    assert {path.name for path in (exported / "decoders").iterdir()} == {
        "feature_decoder.pth",
        "granularity_decoder.pth",
    }
    assert len(list((exported / "features").glob("*_s.npy"))) == len(finished.scene.views)
    assert main(["export", str(finished.folder.root)]) == 1
    assert "expected something to write, found none of --splats" in capsys.readouterr().err


def test_a_run_takes_features_instead_of_making_them(
    finished: Run, exported: Path, tiny_scene: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(
        TINY,
        field="lift",
        splats=exported / "scene.ply",
        language_features=exported / "features",
        exclude_labelled=True,
    )
    again = run(tiny_scene, tmp_path / "run", config, encoder=tiny.TrueEncoder())
    assert not again.folder.path("depth").exists()
    for name, embeddings in again.embeddings.items():
        torch.testing.assert_close(embeddings, finished.embeddings[name], rtol=0, atol=2e-7)
        assert torch.equal(again.masks[name].label_maps, finished.masks[name].label_maps)
    query = QueryConfig(kernel_px=5)
    for what in ("lift", "teacher"):
        assert evaluate_run(again, tiny_scene / "labels", what, query).localisation_accuracy == 1.0

    before = {path: path.stat().st_mtime_ns for path in again.folder.root.rglob("*") if path.name != "run.json"}
    run(tiny_scene, tmp_path / "run", config, encoder=tiny.TrueEncoder())
    assert before == {path: path.stat().st_mtime_ns for path in again.folder.root.rglob("*") if path.name != "run.json"}


def test_features_of_another_width_than_the_encoder_s_are_refused(
    exported: Path, tiny_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--splats", str(exported / "scene.ply"), "--language-features", str(exported / "features")]
    assert main(["run", str(tiny_scene), "--out", str(tmp_path / "run"), *flags]) == 1
    error = capsys.readouterr().err
    assert "expected features of width 1011, in the space of encoder conse" in error and "found width 9" in error
    assert "--encoder clip --encoder-weights" in error
    assert not (tmp_path / "run" / "splats").exists()


def test_a_run_takes_a_field_instead_of_making_it(
    finished: Run, exported: Path, tiny_scene: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(TINY, splats=exported / "scene.ply", decoders=exported / "decoders")
    again = run(tiny_scene, tmp_path / "run", config, encoder=tiny.TrueEncoder())
    assert not again.folder.path("masks").exists()
    query, where = QueryConfig(kernel_px=5), tiny_scene / "labels"
    assert evaluate_run(again, where, None, query) == evaluate_run(finished, where, None, query)
    with pytest.raises(
        GagsError, match=r"expected --splats FILE\.ply with semantic_\* properties .*, found no --splats"
    ):
        run(tiny_scene, tmp_path / "other", dataclasses.replace(config, splats=None), encoder=tiny.TrueEncoder())
    with pytest.raises(GagsError, match="found --field lift"):
        run(tiny_scene, tmp_path / "other", dataclasses.replace(config, field="lift"), encoder=tiny.TrueEncoder())
