"""Laws of the splat files: what is written is read, whole or not at all, and nothing else is taken for a splat file."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path

import numpy as np
import pytest
import torch

from gags.errors import GagsError
from gags.gaussians import Gaussians, read_semantic, read_splats, write_splats


def random_gaussians(number: int, sh_degree: int = 3, seed: int = 0) -> Gaussians:
    generator = torch.Generator().manual_seed(seed)
    return Gaussians(
        means=torch.randn(number, 3, generator=generator) * 4,
        quats=torch.randn(number, 4, generator=generator),
        log_scales=torch.randn(number, 3, generator=generator) - 4,
        opacity_logits=torch.randn(number, generator=generator) * 2,
        sh=torch.randn(number, (sh_degree + 1) ** 2, 3, generator=generator) * 0.3,
    )


def assert_equal(one: Gaussians, other: Gaussians) -> None:
    for field in dataclasses.fields(Gaussians):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), rtol=0, atol=0)


def rotations(quats: torch.Tensor) -> torch.Tensor:
    """Unit quaternions with a positive first part: q and -q turn alike."""
    unit = torch.nn.functional.normalize(quats, dim=1)
    return unit * torch.where(unit[:, :1] < 0, -1.0, 1.0)


@pytest.mark.parametrize("sh_degree", [0, 1, 2, 3])
def test_ply_keeps_every_bit(tmp_path: Path, sh_degree: int) -> None:
    gaussians = random_gaussians(37, sh_degree)
    write_splats(tmp_path / "scene.ply", gaussians)
    assert_equal(read_splats(tmp_path / "scene.ply"), gaussians)
    assert read_semantic(tmp_path / "scene.ply") is None
    assert [path.name for path in tmp_path.iterdir()] == ["scene.ply"]


def test_ply_has_the_layout_that_gsply_reads(tmp_path: Path) -> None:
    import gsply

    gaussians = random_gaussians(23, 2)
    write_splats(tmp_path / "scene.ply", gaussians)
    data = gsply.plyread(tmp_path / "scene.ply")
    np.testing.assert_array_equal(data.means, gaussians.means.numpy())
    np.testing.assert_array_equal(data.scales, gaussians.log_scales.numpy())
    np.testing.assert_array_equal(data.quats, gaussians.quats.numpy())
    np.testing.assert_array_equal(data.opacities, gaussians.opacity_logits.numpy())
    np.testing.assert_array_equal(data.sh0, gaussians.sh[:, 0].numpy())
    np.testing.assert_array_equal(np.reshape(data.shN, (23, 8, 3)), gaussians.sh[:, 1:].numpy())


def test_ply_header_is_inrias(tmp_path: Path) -> None:
    write_splats(tmp_path / "scene.ply", random_gaussians(2, 1))
    header = (tmp_path / "scene.ply").read_bytes().split(b"end_header\n")[0].decode()
    names = [line.split()[-1] for line in header.splitlines() if line.startswith("property")]
    expected = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    expected += [f"f_rest_{index}" for index in range(9)]
    expected += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    assert names == expected


def test_semantic_properties_travel_with_the_ply(tmp_path: Path) -> None:
    gaussians, semantic = random_gaussians(11), torch.randn(11, 16)
    write_splats(tmp_path / "scene.ply", gaussians, semantic=semantic)
    assert_equal(read_splats(tmp_path / "scene.ply"), gaussians)
    read = read_semantic(tmp_path / "scene.ply")
    assert read is not None
    torch.testing.assert_close(read, semantic, rtol=0, atol=0)


def test_properties_of_other_order_and_type_are_read(tmp_path: Path) -> None:
    gaussians = random_gaussians(5, 0)
    names = ["opacity", *(f"rot_{part}" for part in range(4)), "label", "x", "y", "z"]
    names += [f"{prefix}_{index}" for prefix in ("f_dc", "scale") for index in range(3)]
    record = np.zeros(5, dtype=[(name, "u1" if name == "label" else "<f8") for name in names])
    columns = {"opacity": gaussians.opacity_logits[:, None], "rot_": gaussians.quats, "scale_": gaussians.log_scales}
    columns |= {"f_dc_": gaussians.sh[:, 0], "xyz": gaussians.means}
    for prefix, values in columns.items():
        for column in range(values.shape[1]):
            name = "xyz"[column] if prefix == "xyz" else prefix if prefix == "opacity" else f"{prefix}{column}"
            record[name] = values[:, column].double().numpy()
    properties = "".join(f"property {'uchar' if name == 'label' else 'double'} {name}\n" for name in names)
    header = f"ply\nformat binary_little_endian 1.0\ncomment made here\nelement vertex 5\n{properties}end_header\n"
    (tmp_path / "scene.ply").write_bytes(header.encode() + record.tobytes())
    assert_equal(read_splats(tmp_path / "scene.ply"), gaussians)


def test_compressed_ply_is_read(tmp_path: Path) -> None:
    import gsply

    gaussians = random_gaussians(300, 0)
    arrays = [gaussians.means, gaussians.log_scales, gaussians.quats, gaussians.opacity_logits, gaussians.sh[:, 0]]
    gsply.plywrite(tmp_path / "scene.ply", *(values.numpy() for values in arrays), compressed=True)
    read = read_splats(tmp_path / "scene.compressed.ply")
    assert len(read) == 300
    # The compressed layout sorts the Gaussians along a space-filling curve.
    near = torch.cdist(read.means, gaussians.means).min(dim=1).values
    assert float(near.max()) < 0.02


@pytest.mark.parametrize("sh_degree", [0, 3])
def test_spz_keeps_the_scene_to_its_quantisation(tmp_path: Path, sh_degree: int) -> None:
    gaussians = random_gaussians(29, sh_degree)
    write_splats(tmp_path / "scene.spz", gaussians)
    read = read_splats(tmp_path / "scene.spz")
    torch.testing.assert_close(read.means, gaussians.means, rtol=0, atol=1e-4)
    torch.testing.assert_close(read.log_scales, gaussians.log_scales, rtol=0, atol=1 / 32 + 1e-4)
    torch.testing.assert_close(read.opacities, gaussians.opacities, rtol=0, atol=0.5 / 255 + 1e-4)
    torch.testing.assert_close(read.sh[:, 0], gaussians.sh[:, 0], rtol=0, atol=0.02)
    torch.testing.assert_close(read.sh[:, 1:].clamp(-0.9, 0.9), gaussians.sh[:, 1:].clamp(-0.9, 0.9), rtol=0, atol=0.01)
    torch.testing.assert_close(rotations(read.quats), rotations(gaussians.quats), rtol=0, atol=5e-3)


@pytest.mark.parametrize("unit", [1e-3, 1e4])
def test_spz_positions_suit_any_unit(tmp_path: Path, unit: float) -> None:
    gaussians = dataclasses.replace(random_gaussians(17, 0), means=random_gaussians(17).means * unit)
    write_splats(tmp_path / "scene.spz", gaussians)
    torch.testing.assert_close(read_splats(tmp_path / "scene.spz").means, gaussians.means, rtol=0, atol=3e-4 * unit)


def test_splat_keeps_the_scene_to_its_quantisation(tmp_path: Path) -> None:
    gaussians = random_gaussians(31, 1)
    write_splats(tmp_path / "scene.splat", gaussians)
    assert (tmp_path / "scene.splat").stat().st_size == 32 * 31
    read = read_splats(tmp_path / "scene.splat")
    torch.testing.assert_close(read.means, gaussians.means, rtol=0, atol=0)
    torch.testing.assert_close(read.log_scales, gaussians.log_scales, rtol=0, atol=1e-5)
    torch.testing.assert_close(read.opacities, gaussians.opacities, rtol=0, atol=1 / 255)
    torch.testing.assert_close(read.sh, gaussians.sh[:, :1], rtol=0, atol=0.01)
    torch.testing.assert_close(rotations(read.quats), rotations(gaussians.quats), rtol=0, atol=0.02)


def test_subset_takes_masks_and_ids() -> None:
    gaussians = random_gaussians(7, 1)
    ids = torch.tensor([5, 0, 2])
    chosen = gaussians.subset(ids)
    torch.testing.assert_close(chosen.means, gaussians.means[[5, 0, 2]])
    mask = torch.zeros(7, dtype=torch.bool)
    mask[ids] = True
    assert_equal(gaussians.subset(mask), gaussians.subset(ids.sort().values))
    assert chosen.sh_degree == 1
    assert len(chosen) == 3


def test_activations_are_those_of_3dgs() -> None:
    gaussians = random_gaussians(4, 2)
    assert gaussians.sh_degree == 2
    torch.testing.assert_close(gaussians.scales.log(), gaussians.log_scales)
    torch.testing.assert_close(torch.logit(gaussians.opacities), gaussians.opacity_logits)


def _ply(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "broken.ply"
    path.write_bytes(content)
    return path


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match=r"nowhere\.ply: expected a splat file .* found no such file"):
        read_splats(tmp_path / "nowhere.ply")
    with pytest.raises(GagsError, match="found something else"):
        read_splats(_ply(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(100)))
    with pytest.raises(GagsError, match=r"ending in \.ply, \.spz or \.splat, found \.obj"):
        (tmp_path / "scene.obj").write_bytes(b"v 0 0 0")
        read_splats(tmp_path / "scene.obj")
    with pytest.raises(GagsError, match="expected format binary_little_endian, found ascii"):
        read_splats(_ply(tmp_path, b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n0\n"))
    header = b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
    with pytest.raises(GagsError, match=r"missing f_dc_0, .*rot_3; is it a plain point cloud"):
        read_splats(
            _ply(tmp_path, header + b"property float x\nproperty float y\nproperty float z\nend_header\n" + bytes(12))
        )
    with pytest.raises(GagsError, match="found lists or unknown types"):
        read_splats(_ply(tmp_path, header + b"property list uchar int vertex_indices\nend_header\n"))
    with pytest.raises(GagsError, match="found a broken header"):
        read_splats(_ply(tmp_path, header + b"property float x\nproperty float x\nend_header\n"))
    with pytest.raises(GagsError, match="first element is 'vertex'"):
        read_splats(_ply(tmp_path, b"ply\nformat binary_little_endian 1.0\nelement face 1\nend_header\n"))
    with pytest.raises(GagsError, match="expected a splat file, found one that cannot be read"):
        (tmp_path / "scene.spz").write_bytes(b"nothing of the kind")
        read_splats(tmp_path / "scene.spz")
    with pytest.raises(GagsError, match="records of 32 bytes, found 33 bytes"):
        (tmp_path / "scene.splat").write_bytes(bytes(33))
        read_splats(tmp_path / "scene.splat")


@pytest.mark.parametrize("suffix", [".ply", ".spz"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scene{suffix}"
    write_splats(path, random_gaussians(19))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(GagsError, match=r"truncated|cannot be read"):
        read_splats(path)


def test_scenes_that_cannot_be_rendered_are_refused(tmp_path: Path) -> None:
    gaussians = random_gaussians(6)
    path = tmp_path / "scene.ply"
    write_splats(path, gaussians)
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(content)
    with pytest.raises(GagsError, match=r"scene\.ply: expected finite numbers, found 1 of 6 Gaussians .* quats"):
        read_splats(path)
    path.write_bytes(bytes(content).split(b"end_header\n")[0].replace(b"vertex 6", b"vertex 0") + b"end_header\n")
    with pytest.raises(GagsError, match="expected at least one Gaussian, found none"):
        read_splats(path)
    with pytest.raises(GagsError, match="found 6 of 6 quaternions of length zero"):
        dataclasses.replace(gaussians, quats=torch.zeros(6, 4)).check("here")
    with pytest.raises(GagsError, match=r"here: expected quats of shape \(6, 4\), found \(5, 4\)"):
        dataclasses.replace(gaussians, quats=torch.ones(5, 4)).check("here")
    with pytest.raises(GagsError, match="expected 1, 4, 9 or 16 colour bands"):
        dataclasses.replace(gaussians, sh=gaussians.sh[:, :5]).check("here")


def test_what_cannot_be_written_is_said_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "scene.ply"
    write_splats(path, random_gaussians(3))
    before = path.read_bytes()
    with pytest.raises(GagsError, match="expected semantic features for 8 Gaussians, found 7 rows"):
        write_splats(path, random_gaussians(8), semantic=torch.zeros(7, 16))
    with pytest.raises(GagsError, match=r"semantic features need a \.ply file, found \.spz"):
        write_splats(tmp_path / "scene.spz", random_gaussians(8), semantic=torch.zeros(8, 16))
    with pytest.raises(GagsError, match=r"ending in \.ply, \.spz or \.splat"):
        write_splats(tmp_path / "scene.txt", random_gaussians(8))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on file sizes fails like a full disk does: in the middle of writing.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        for suffix in (".ply", ".splat", ".spz"):
            with pytest.raises(GagsError, match="could not be written"):
                write_splats(path.with_suffix(suffix), random_gaussians(2000, seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["scene.ply"]
