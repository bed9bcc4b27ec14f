"""Laws of the RGB training on a few coloured blobs, and the loss against its obvious twin."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from gags.errors import GagsError
from gags.gaussians import SH_C0, Gaussians
from gags.geometry import Camera, look_at
from gags.images import write_image
from gags.rasterize import rasterization
from gags.reconstruct import (
    ReconstructConfig,
    ReconstructState,
    ViewQuality,
    badly_explained,
    initial_gaussians,
    measure_views,
    psnr,
    reconstruct,
    scene_extent,
    ssim,
)
from gags.reconstruct._ssim import photometric_loss, photometric_loss_by_convolution
from gags.scene._scene import Scene, View

WIDTH, HEIGHT, CAMERAS, BLOBS = 64, 48, 16, 40

SHORT = ReconstructConfig(
    iterations=120,
    num_downscales=1,
    resolution_schedule=30,
    sh_degree=1,
    sh_degree_interval=50,
    means_lr=1e-3,
    refine_start=20,
    refine_stop=100,
    refine_every=20,
    reset_every=0,
    max_gaussians=150,
    checkpoint_every=0,
)
"""A training of a second."""


def blobs() -> Gaussians:
    generator = torch.Generator().manual_seed(3)
    colors = torch.rand(BLOBS, 1, 3, generator=generator)
    return Gaussians(
        means=torch.randn(BLOBS, 3, generator=generator) * 0.6,
        quats=torch.randn(BLOBS, 4, generator=generator),
        log_scales=torch.log(0.1 + 0.2 * torch.rand(BLOBS, 3, generator=generator)),
        opacity_logits=torch.full((BLOBS,), 3.0),
        sh=(colors - 0.5) / SH_C0,
    )


def ring_camera(index: int) -> Camera:
    angle = 2 * math.pi * index / CAMERAS
    eye = torch.tensor([4 * math.cos(angle), 4 * math.sin(angle), 1.0])
    return Camera(look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])), 70.0, 70.0, 32.0, 24.0, WIDTH, HEIGHT)


def photograph(gaussians: Gaussians, camera: Camera) -> torch.Tensor:
    images, _, _ = rasterization(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        gaussians.opacities,
        gaussians.sh,
        camera.T_camera_world[None],
        camera.K[None],
        camera.width,
        camera.height,
        sh_degree=0,
        packed=False,
    )
    return (images[0].clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def blob_scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Blobs seen from a ring of cameras; every fourth view is held out."""
    folder = tmp_path_factory.mktemp("blobs")
    gaussians = blobs()
    views = []
    for index in range(CAMERAS):
        camera, path = ring_camera(index), folder / f"{index:02d}.png"
        write_image(path, photograph(gaussians, camera))
        views.append(View(path.name, camera, path, held_out=index % 4 == 0))
    generator = torch.Generator().manual_seed(4)
    points = gaussians.means + 0.05 * torch.randn(BLOBS, 3, generator=generator)
    colors = ((0.5 + SH_C0 * gaussians.sh[:, 0]) * 255).round().to(torch.uint8)
    return Scene(tuple(views), points, colors)


def assert_same_bytes(one: Gaussians, other: Gaussians) -> None:
    for field in dataclasses.fields(Gaussians):
        torch.testing.assert_close(getattr(one, field.name), getattr(other, field.name), rtol=0, atol=0)


def mean_psnr(gaussians: Gaussians, scene: Scene) -> float:
    return float(np.mean([view.psnr for view in measure_views(gaussians, scene.held_out_views, None)]))


def test_training_explains_views_it_has_not_seen(blob_scene: Scene) -> None:
    config = dataclasses.replace(SHORT, iterations=400, refine_stop=300)
    start = initial_gaussians(blob_scene, 1.0, 0.1, 1, None, 0)
    before, trained = mean_psnr(start, blob_scene), reconstruct(blob_scene, config)
    after = measure_views(trained, blob_scene.held_out_views, None)
    assert [view.name for view in after] == ["00.png", "04.png", "08.png", "12.png"]
    assert mean_psnr(trained, blob_scene) > max(25.0, before + 8)
    assert min(view.ssim for view in after) > 0.8
    assert trained.sh_degree == 1


@pytest.mark.parametrize(
    ("values", "bad"),
    [
        # upper quartile 30: below 22
        ([30.0, 21.9, 22.1, 33.0, 29.0, 30.0], [1]),
        # half of them, as where a walk did not close
        ([18.0, 30.0, 20.0, 31.0, 19.0, 30.0], [0, 2, 4]),
        # some better than needed
        ([40.0, 26.0, 24.9, 40.0, 40.0, 40.0], [2]),
        # exactly as photographed
        ([math.inf, math.inf, math.inf], []),
        ([], []),
    ],
)
def test_views_far_below_the_good_ones_are_named(values: list[float], bad: list[int]) -> None:
    quality = [ViewQuality(f"{number}.png", psnr, 0.9) for number, psnr in enumerate(values)]
    assert badly_explained(quality) == [f"{number}.png" for number in bad]


def test_held_out_photographs_are_not_read(blob_scene: Scene) -> None:
    views = tuple(
        dataclasses.replace(view, image_path=Path("/nowhere.png")) if view.held_out else view
        for view in blob_scene.views
    )
    config = dataclasses.replace(SHORT, iterations=20)
    assert_same_bytes(
        reconstruct(dataclasses.replace(blob_scene, views=views), config), reconstruct(blob_scene, config)
    )


def test_a_resumed_training_ends_with_the_same_bytes(blob_scene: Scene, tmp_path: Path) -> None:
    config = dataclasses.replace(SHORT, checkpoint_every=50, random_background=True, reset_every=60, refine_stop=110)
    states: list[ReconstructState] = []
    torch.manual_seed(11)
    whole = reconstruct(blob_scene, config, on_checkpoint=states.append)
    assert [state.step for state in states] == [50, 100]
    for state in states:
        tensors, metadata = state.to_state()
        safetensors.torch.save_file(tensors, tmp_path / "state.safetensors")
        read = ReconstructState.from_state(
            safetensors.torch.load_file(tmp_path / "state.safetensors"), json.loads(json.dumps(metadata))
        )
        torch.manual_seed(12)
        # how often states are saved changes nothing
        other = dataclasses.replace(config, checkpoint_every=40)
        assert_same_bytes(reconstruct(blob_scene, other, resume=read, on_checkpoint=lambda _: None), whole)


def test_equal_seeds_give_equal_bytes_and_leave_the_global_generator_alone(blob_scene: Scene) -> None:
    config = dataclasses.replace(SHORT, iterations=60)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = reconstruct(blob_scene, config)
    torch.testing.assert_close(torch.random.get_rng_state(), before, rtol=0, atol=0)
    torch.manual_seed(6)
    assert_same_bytes(reconstruct(blob_scene, config), one)
    other = reconstruct(blob_scene, dataclasses.replace(config, seed=1))
    assert other.means.shape != one.means.shape or not torch.equal(other.means, one.means)


def test_the_number_of_gaussians_grows_to_the_limit_and_not_beyond(blob_scene: Scene) -> None:
    config = dataclasses.replace(SHORT, iterations=90, max_gaussians=71, grow_grad2d=1e-9, checkpoint_every=10)
    numbers: list[int] = []
    reconstruct(blob_scene, config, on_checkpoint=lambda state: numbers.append(len(state.tensors["parameter/means"])))
    assert numbers[0] == BLOBS
    assert max(numbers) == 71


def test_more_points_than_the_limit_are_thinned_out(blob_scene: Scene) -> None:
    start = initial_gaussians(blob_scene, 1.0, 0.1, 0, 17, seed=0)
    assert len(start) == 17
    points = {tuple(point) for point in blob_scene.points.tolist()}
    assert len({tuple(mean) for mean in start.means.tolist()} & points) == 17


def test_opacities_are_reset(blob_scene: Scene) -> None:
    config = dataclasses.replace(SHORT, iterations=52, reset_every=50, checkpoint_every=51)
    states: list[ReconstructState] = []
    reconstruct(blob_scene, config, on_checkpoint=states.append)
    opacities = torch.sigmoid(states[0].tensors["parameter/opacities"])
    assert float(opacities.max()) <= 2 * config.prune_opacity + 1e-6
    moments = states[0].tensors["adam/opacities/exp_avg"]
    assert float(moments.abs().max()) == 0


def test_where_room_is_short_the_largest_gradients_grow() -> None:
    from gags.reconstruct._strategy import LimitedStrategy

    number, gradients = 6, torch.tensor([5.0, 1.0, 4.0, 0.0, 3.0, 2.0])
    shapes = {"means": (3,), "scales": (3,), "quats": (4,), "opacities": ()}
    parameters = {name: torch.nn.Parameter(torch.ones(number, *shape)) for name, shape in shapes.items()}
    parameters["means"].data[:, 0] = gradients
    optimizers = {name: torch.optim.Adam([parameter]) for name, parameter in parameters.items()}
    strategy = LimitedStrategy(max_gaussians=8, grow_grad2d=0.5)
    state = {"grad2d": gradients.clone(), "count": torch.ones(number), "scene_scale": 1e9}
    # A scale below a hundredth of the scene's: all are cloned, none split.
    assert strategy._grow_gs(parameters, optimizers, state, step=600) == (2, 0)
    assert parameters["means"][number:, 0].tolist() == [5.0, 4.0]
    assert strategy._grow_gs(parameters, optimizers, state, step=700) == (0, 0)


def test_a_camera_that_sees_nothing_does_no_harm(blob_scene: Scene) -> None:
    away = look_at(torch.tensor([4.0, 0.0, 0.0]), torch.tensor([9.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0]))
    view = blob_scene.views[1]
    turned = dataclasses.replace(view, name="away.png", camera=dataclasses.replace(view.camera, T_camera_world=away))
    scene = dataclasses.replace(blob_scene, views=(*blob_scene.views, turned))
    reconstruct(scene, dataclasses.replace(SHORT, iterations=40)).check("trained")
    only = dataclasses.replace(blob_scene, views=(turned,))
    reconstruct(only, dataclasses.replace(SHORT, iterations=5)).check("trained")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_few_points_are_enough(blob_scene: Scene, number: int) -> None:
    scene = dataclasses.replace(
        blob_scene, points=blob_scene.points[:number], point_colors=blob_scene.point_colors[:number]
    )
    assert len(reconstruct(scene, dataclasses.replace(SHORT, iterations=45))) >= 1


def test_initial_sizes_are_distances_to_the_nearest_neighbours(blob_scene: Scene) -> None:
    start = initial_gaussians(blob_scene, 1000.0, 0.1, 2, None, 0)
    nearest = torch.cdist(blob_scene.points.double(), blob_scene.points.double()).sort(dim=1).values[:, 1:4]
    expected = nearest.square().mean(dim=1).sqrt().float()
    torch.testing.assert_close(start.scales, expected[:, None].expand(-1, 3), rtol=1e-4, atol=0)
    torch.testing.assert_close(start.opacities, torch.full((BLOBS,), 0.1))
    torch.testing.assert_close(0.5 + SH_C0 * start.sh[:, 0], blob_scene.point_colors / 255)
    assert start.sh.shape == (BLOBS, 9, 3)
    twins = dataclasses.replace(blob_scene, points=torch.zeros(5, 3), point_colors=blob_scene.point_colors[:5])
    initial_gaussians(twins, 1.0, 0.1, 0, None, 0).check("twins")


def test_extent_is_that_of_the_cameras(blob_scene: Scene) -> None:
    centers = torch.stack([view.camera.center_world for view in blob_scene.views])
    expected = 1.1 * float((centers - centers.mean(dim=0)).norm(dim=1).max())
    assert scene_extent(blob_scene.views, blob_scene.points) == pytest.approx(expected)
    distances = (blob_scene.points - centers[0]).norm(dim=1)
    assert scene_extent(blob_scene.views[:1], blob_scene.points) == pytest.approx(1.1 * float(distances.median()))


def test_input_that_cannot_be_trained_is_refused(blob_scene: Scene) -> None:
    names = {view.name for view in blob_scene.views}
    with pytest.raises(GagsError, match="expected views to train on, found that all are held out"):
        reconstruct(blob_scene.holding_out(names), SHORT)
    empty = dataclasses.replace(blob_scene, points=torch.zeros(0, 3), point_colors=blob_scene.point_colors[:0])
    with pytest.raises(GagsError, match="expected a scene with sparse 3D points, found none"):
        reconstruct(empty, SHORT)
    with pytest.raises(GagsError, match=r"--reconstruct\.sh-degree: expected at least 0 and at most 3, found 4"):
        reconstruct(blob_scene, dataclasses.replace(SHORT, sh_degree=4))
    with pytest.raises(GagsError, match=r"--reconstruct\.iterations: expected at least 1, found 0"):
        reconstruct(blob_scene, dataclasses.replace(SHORT, iterations=0))
    states: list[ReconstructState] = []
    config = dataclasses.replace(SHORT, iterations=3, checkpoint_every=1)
    reconstruct(blob_scene, config, on_checkpoint=states.append)
    with pytest.raises(GagsError, match=r"found changes \(ssim_weight 0\.2 -> 0\.5\)"):
        reconstruct(blob_scene, dataclasses.replace(config, ssim_weight=0.5), resume=states[0])
    with pytest.raises(GagsError, match="expected a checkpoint of this version of gags"):
        ReconstructState.from_state({}, {"step": 1})


def noisy_pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(height)
    image = torch.rand(height, width, 3, generator=generator)
    return image, (image + 0.2 * torch.randn(height, width, 3, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("ssim_weight", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("height", "width"), [(29, 41), (11, 13), (8, 5)])
def test_loss_and_gradient_are_those_of_convolutions(height: int, width: int, ssim_weight: float) -> None:
    image, reference = noisy_pair(height, width)
    image.requires_grad_()
    loss = photometric_loss(image, reference, ssim_weight)
    (gradient,) = torch.autograd.grad(3 * loss, image)
    twin_image = image.detach().double().requires_grad_()
    twin = photometric_loss_by_convolution(twin_image, reference.double(), ssim_weight)
    (twin_gradient,) = torch.autograd.grad(3 * twin, twin_image)
    assert loss.item() == pytest.approx(twin.item(), abs=1e-6)
    torch.testing.assert_close(
        gradient.double(), twin_gradient, rtol=1e-4, atol=1e-5 * float(twin_gradient.abs().max())
    )


def test_ssim_is_torchmetrics_away_from_the_border() -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, reference = noisy_pair(31, 43)
    _, full = structural_similarity_index_measure(
        image.permute(2, 0, 1)[None], reference.permute(2, 0, 1)[None], data_range=1.0, return_full_image=True
    )
    assert ssim(image, reference).item() == pytest.approx(full[..., 5:-5, 5:-5].mean().item(), abs=1e-5)


def test_quality_of_equal_and_known_pictures() -> None:
    image, reference = noisy_pair(17, 23)
    assert psnr(image, image) == math.inf
    assert ssim(image, image).item() == pytest.approx(1.0, abs=1e-6)
    assert psnr(torch.zeros(4, 5, 3), torch.full((4, 5, 3), 0.1)) == pytest.approx(20.0, abs=1e-4)
    assert ssim(image, reference).item() < 0.95
