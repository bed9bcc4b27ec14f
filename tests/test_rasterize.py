"""The rasterizer against its double-loop twin, and the laws of blending."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import gsplat.rendering
import numba
import pytest
import torch
from torch import Tensor

from gags.errors import GagsError
from gags.gaussians import Gaussians
from gags.geometry import Camera, look_at
from gags.rasterize import rasterization, render
from gags.rasterize._api import _CUDA_DEFAULTS
from gags.rasterize._tiles import TILE_HEIGHT, TILE_WIDTH
from slow_rasterizer import slow_rasterization

WIDTH, HEIGHT = 70, 19
"""More than one tile each way (a test below says so), and a multiple of nothing."""


@dataclass(frozen=True)
class Splats:
    """Arguments of ``rasterization`` in its order."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def leaves(self, dtype: torch.dtype) -> Splats:
        """Copies that collect gradients."""
        return Splats(*(t.detach().to(dtype).clone().requires_grad_() for t in self.tensors()))


def make_splats(seed: int, n: int = 11, bands: int = 0, channels: int = 3, cameras: int = 1) -> Splats:
    """A cloud around the origin seen from 4 units away; some Gaussians behind the camera, some far outside the picture,
    some opaque."""
    rng = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 3, generator=rng) * torch.tensor([1.6, 0.8, 1.0])
    means[0] = torch.tensor([0.1, 0.0, -9.0])
    means[1] = torch.tensor([30.0, 1.0, 0.5])
    means[2] = torch.tensor([2.4, 0.1, 0.3])
    opacities = torch.rand(n, generator=rng) * 0.95 + 0.04
    opacities[3:5] = 1.0
    eyes = torch.tensor([[0.3 + 0.5 * c, -0.4, -4.0 + 0.3 * c] for c in range(cameras)])
    up = torch.tensor([0.0, -1.0, 0.1])
    K = torch.tensor([[58.0, 0.0, 34.5], [0.0, 29.0, 9.0], [0.0, 0.0, 1.0]])
    colors = torch.randn(n, bands, 3, generator=rng) * 0.4 if bands else torch.randn(n, channels, generator=rng)
    return Splats(
        means=means,
        quats=torch.randn(n, 4, generator=rng),
        scales=torch.rand(n, 3, generator=rng) * 0.5 + 0.03,
        opacities=opacities,
        colors=colors,
        viewmats=torch.stack([look_at(eye, torch.tensor([0.0, 0.1, 0.0]), up) for eye in eyes]),
        Ks=K.repeat(cameras, 1, 1),
    )


CASES = [
    pytest.param({"n": 12, "channels": 5}, {}, id="features"),
    pytest.param({"bands": 1}, {"sh_degree": 0, "render_mode": "RGB+D"}, id="sh0-RGB+D"),
    pytest.param({"bands": 4, "cameras": 2, "n": 9}, {"sh_degree": 1}, id="sh1-two-cameras"),
    pytest.param({"bands": 16}, {"sh_degree": 2, "render_mode": "RGB+ED"}, id="sh2-of-3-RGB+ED"),
    pytest.param({"bands": 16}, {"sh_degree": 3, "rasterize_mode": "antialiased"}, id="sh3-antialiased"),
    pytest.param({"channels": 2}, {"render_mode": "ED"}, id="ED"),
    pytest.param(
        {"channels": 1}, {"render_mode": "D", "eps2d": 0.1, "near_plane": 3.5, "far_plane": 5.0}, id="D-planes"
    ),
    pytest.param({"channels": 17}, {}, id="more-channels-than-lanes"),
]


@pytest.mark.parametrize(
    ("n", "channels", "width", "height"),
    [(300, 3, 9, 7), (300, 17, 9, 7), (12, 16, 1, 1), (12, 33, 5, 4), (12, 32, 3, 18), (12, 0, 5, 4)],
)
def test_long_lists_small_pictures_and_all_numbers_of_channels(n: int, channels: int, width: int, height: int) -> None:
    """Longer than a chunk of a tile's splats, some of them too faint to end a pixel; smaller than a tile."""
    splats = make_splats(seed=n + channels, n=n, channels=channels)
    K = torch.tensor([[[58.0, 0.0, width / 2 + 0.2], [0.0, 29.0, height / 2 - 0.1], [0.0, 0.0, 1.0]]])
    opacities = torch.where(torch.arange(n) % 2 == 0, 0.02, splats.opacities)
    splats = replace(splats, Ks=K, opacities=opacities, scales=splats.scales * 0.3 if n > 100 else splats.scales)
    fast, slow = splats.leaves(torch.float32), splats.leaves(torch.float64)
    picture, alpha, _ = rasterization(*fast.tensors(), width, height)
    expected, expected_alpha = slow_rasterization(*slow.tensors(), width, height)
    torch.testing.assert_close(picture.double(), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(alpha.double(), expected_alpha, rtol=0, atol=1e-5)
    toward = torch.randn(picture.shape, generator=torch.Generator().manual_seed(3))
    ((picture * toward).sum() + alpha.sum()).backward()
    ((expected * toward).sum() + expected_alpha.sum()).backward()
    for name in ("means", "quats", "scales", "opacities", "colors"):
        mine, twin = getattr(fast, name).grad, getattr(slow, name).grad
        assert (mine - twin).norm() <= 1e-3 * twin.norm(), name


@pytest.mark.parametrize("with_background", [False, True], ids=["black", "background"])
@pytest.mark.parametrize(("scene", "options"), CASES)
def test_values_and_gradients_are_those_of_the_double_loop(scene: dict, options: dict, with_background: bool) -> None:
    splats = make_splats(seed=len(str(options)), **scene)
    n_cameras, n_colors = len(splats.viewmats), splats.colors.shape[-1]
    background = torch.linspace(-0.5, 1.0, n_cameras * n_colors).view(n_cameras, n_colors)
    fast, slow = splats.leaves(torch.float32), splats.leaves(torch.float64)
    backgrounds = [
        background.detach().to(dtype, copy=True).requires_grad_() if with_background else None
        for dtype in (torch.float32, torch.float64)
    ]
    picture, alpha, _ = rasterization(*fast.tensors(), WIDTH, HEIGHT, backgrounds=backgrounds[0], **options)
    expected, expected_alpha = slow_rasterization(*slow.tensors(), WIDTH, HEIGHT, backgrounds=backgrounds[1], **options)
    # depth in scene units, up to 5: relative
    assert ((picture - expected).abs() / expected.abs().clamp(min=1)).max() < 1e-5
    assert (alpha - expected_alpha).abs().max() < 1e-5
    assert 0.05 < alpha.mean() < 0.95
    rng = torch.Generator().manual_seed(3)
    toward, toward_alpha = (torch.randn(t.shape, generator=rng) for t in (picture, alpha))
    ((picture * toward).sum() + (alpha * toward_alpha).sum()).backward()
    ((expected * toward).sum() + (expected_alpha * toward_alpha).sum()).backward()
    pairs = dict(zip(Splats.__dataclass_fields__, zip(fast.tensors(), slow.tensors(), strict=True), strict=True))
    if with_background:
        pairs["backgrounds"] = (backgrounds[0], backgrounds[1])
    for name, (mine, twin) in pairs.items():
        if name == "Ks" or twin.grad is None or not twin.grad.any():
            assert mine.grad is None or not mine.grad.any(), name
        else:
            assert (mine.grad - twin.grad).norm() < 1e-3 * twin.grad.norm(), name
            assert (mine.grad - twin.grad).abs().max() < 1e-3 * twin.grad.abs().max(), name


def test_the_pictures_of_these_tests_have_several_tiles_each_way() -> None:
    assert WIDTH > TILE_WIDTH and HEIGHT > TILE_HEIGHT
    assert WIDTH % TILE_WIDTH and HEIGHT % TILE_HEIGHT


def test_absgrad_sums_the_pixels_absolute_gradients() -> None:
    splats = make_splats(seed=1, n=8)
    picture, _, info = rasterization(*splats.leaves(torch.float32).tensors(), WIDTH, HEIGHT, absgrad=True)
    info["means2d"].retain_grad()
    picture.square().sum().backward()
    shifts = torch.zeros(WIDTH * HEIGHT, 8, 2, dtype=torch.float64, requires_grad=True)
    twin, _ = slow_rasterization(*splats.leaves(torch.float64).tensors(), WIDTH, HEIGHT, pixel_shifts=shifts)
    twin.square().sum().backward()
    gradient, absolute = shifts.grad.sum(0), shifts.grad.abs().sum(0)
    assert (info["means2d"].grad[0] - gradient).norm() < 1e-3 * gradient.norm()
    assert (info["means2d"].absgrad[0] - absolute).norm() < 1e-3 * absolute.norm()
    assert (absolute > gradient.abs() + 1e-3).any()


def test_gaussians_behind_the_camera_and_outside_are_not_seen_and_get_no_gradient() -> None:
    leaves = make_splats(seed=2).leaves(torch.float32)
    picture, _, info = rasterization(*leaves.tensors(), WIDTH, HEIGHT)
    picture.sum().backward()
    assert not info["radii"][0, :2].any()
    assert (info["radii"][0, 2:] > 0).all(-1).sum() > 5
    for tensor in leaves.tensors()[:5]:
        assert not tensor.grad[:2].any()


def test_a_gaussian_over_the_edge_is_drawn() -> None:
    splats = make_splats(seed=2, n=3)
    # half a pixel outside the left edge, at depth 2
    outside = replace(splats, means=torch.tensor([[(-0.5 - 34.5) / 58 * 2, 0.0, 2.0]]), viewmats=torch.eye(4)[None])
    arguments = [t[:1] for t in outside.tensors()[:5]]
    _, alpha, _ = rasterization(*arguments, outside.viewmats, outside.Ks, WIDTH, HEIGHT)
    assert alpha[0, 9, 0] > 0.3 * arguments[3]
    assert alpha[0, 9, -1] == 0


def test_a_constant_feature_renders_to_alpha_times_it() -> None:
    splats = replace(make_splats(seed=3, n=60), colors=torch.tensor([2.0, -3.0]).expand(60, 2))
    picture, alpha, _ = rasterization(*splats.tensors(), WIDTH, HEIGHT)
    assert (picture - alpha * torch.tensor([2.0, -3.0])).abs().max() < 1e-5
    assert alpha.min() >= 0 and alpha.max() <= 1


def test_channels_do_not_depend_on_each_other() -> None:
    splats = make_splats(seed=4, n=50, channels=6)
    together = rasterization(*splats.tensors(), WIDTH, HEIGHT)[0]
    apart = rasterization(*replace(splats, colors=splats.colors[:, 4:5].contiguous()).tensors(), WIDTH, HEIGHT)[0]
    assert torch.equal(together[..., 4:5], apart)


def test_colors_of_each_camera() -> None:
    splats = make_splats(seed=5, cameras=2)
    own = torch.stack([splats.colors, -2 * splats.colors])
    picture = rasterization(*replace(splats, colors=own).tensors(), WIDTH, HEIGHT)[0]
    shared = rasterization(*splats.tensors(), WIDTH, HEIGHT)[0]
    assert torch.allclose(picture, shared * torch.tensor([1.0, -2.0])[:, None, None, None])


def _bytes_of_a_step(splats: Splats) -> list[bytes]:
    leaves = splats.leaves(torch.float32)
    picture, alpha, _ = rasterization(*leaves.tensors(), 150, 90, sh_degree=3, render_mode="RGB+ED")
    (picture.square().sum() + alpha.sum()).backward()
    return [t.detach().numpy().tobytes() for t in (picture, alpha, *(leaf.grad for leaf in leaves.tensors()[:6]))]


def test_the_same_input_gives_the_same_bytes_on_any_number_of_threads() -> None:
    splats = make_splats(seed=6, n=3000, bands=16)
    wide = replace(splats, Ks=splats.Ks * torch.tensor([[4.0], [4.0], [1.0]]))
    first = _bytes_of_a_step(wide)
    assert first == _bytes_of_a_step(wide)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        assert first == _bytes_of_a_step(wide)
    finally:
        numba.set_num_threads(threads)


@pytest.mark.parametrize("n", [0, 1])
def test_nothing_to_see_is_background(n: int) -> None:
    splats = make_splats(seed=7)
    arguments = [t[:n].clone().requires_grad_() for t in splats.tensors()[:5]]
    background = torch.tensor([[0.2, 0.4, 0.6]])
    picture, alpha, _ = rasterization(
        *arguments, splats.viewmats, splats.Ks, WIDTH, HEIGHT, backgrounds=background, render_mode="RGB+ED"
    )
    picture.sum().backward()
    assert torch.equal(picture[..., :3], background.expand(1, HEIGHT, WIDTH, 3))
    assert not alpha.any() and not picture[..., 3].any()
    assert not arguments[0].grad.any()


def test_gsplats_default_strategy_densifies_on_our_info() -> None:
    from gsplat.strategy import DefaultStrategy

    splats = make_splats(seed=8, n=200)
    params = {
        "means": splats.means,
        "quats": splats.quats,
        "scales": splats.scales.log(),
        "opacities": torch.logit(splats.opacities.clamp(0.01, 0.99)),
        "colors": splats.colors,
    }
    params = torch.nn.ParameterDict({name: torch.nn.Parameter(value) for name, value in params.items()})
    optimizers = {name: torch.optim.Adam([value], lr=1e-3) for name, value in params.items()}
    for absgrad in (False, True):
        strategy = DefaultStrategy(
            refine_start_iter=0, refine_every=1, reset_every=1000, grow_grad2d=1e-6, absgrad=absgrad
        )
        strategy.check_sanity(params, optimizers)
        state = strategy.initialize_state()
        before = len(params["means"])
        picture, _, info = rasterization(
            params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(), params["colors"],
            splats.viewmats, splats.Ks, WIDTH, HEIGHT, absgrad=absgrad,
        )  # fmt: skip
        strategy.step_pre_backward(params, optimizers, state, 1, info)
        picture.square().mean().backward()
        strategy.step_post_backward(params, optimizers, state, 1, info, packed=False)
        assert len(params["means"]) > before


def test_render_gives_colors_depth_and_alpha() -> None:
    splats = make_splats(seed=9, n=30, bands=4)
    gaussians = Gaussians(
        splats.means, splats.quats, splats.scales.log(), torch.logit(splats.opacities.clamp(max=0.99)), splats.colors
    )
    camera = Camera(splats.viewmats[0], 58.0, 29.0, 34.5, 9.0, WIDTH, HEIGHT)
    background = torch.tensor([1.0, 0.5, 0.0])
    seen = render(gaussians, camera, background=background)
    arguments = (gaussians.means, gaussians.quats, gaussians.scales, gaussians.opacities, gaussians.sh)
    picture, alpha, _ = rasterization(
        *arguments,
        splats.viewmats,
        splats.Ks,
        WIDTH,
        HEIGHT,
        sh_degree=1,
        render_mode="RGB+ED",
        backgrounds=background[None],
    )
    assert torch.equal(seen.colors, picture[0, ..., :3]) and torch.equal(seen.depth, picture[0, ..., 3])
    assert torch.equal(seen.alpha, alpha[0, ..., 0])
    features = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    assert render(gaussians, camera, colors=features).colors.shape == (HEIGHT, WIDTH, 7)
    assert seen.depth[seen.alpha == 0].sum() == 0 and seen.depth[seen.alpha > 0].min() > 0


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"quats": torch.ones(11, 3)}, {}, r"expected quats of shape \(11, 4\), found \(11, 3\)"),
        (
            {"colors": torch.ones(10, 3)},
            {},
            r"expected colors of shape \[N, X\] or \[C, N, X\] with N = 11, C = 1, found \(10, 3\)",
        ),
        ({"colors": torch.ones(11, 4, 3)}, {"sh_degree": 2}, r"K >= 9"),
        ({"colors": torch.ones(11, 36, 3)}, {"sh_degree": 5}, "expected sh_degree 0 to 3, found 5"),
        (
            {"means": torch.ones(11, 3, dtype=torch.float64)},
            {},
            "expected means as float32 on cpu, found torch.float64",
        ),
        ({}, {"render_mode": "depth"}, "expected render_mode among RGB, D, ED"),
        ({}, {"rasterize_mode": "sharp"}, "expected rasterize_mode among classic, antialiased, found 'sharp'"),
        ({}, {"backgrounds": torch.ones(1, 4)}, r"expected backgrounds of shape \(1, 3\), found \(1, 4\)"),
        ({}, {"packed": True, "with_ut": True}, "found packed, with_ut; leave them out"),
    ],
)
def test_bad_arguments_are_named(changes: dict, options: dict, message: str) -> None:
    splats = replace(make_splats(seed=10), **changes)
    with pytest.raises(GagsError, match=message):
        rasterization(*splats.tensors(), WIDTH, HEIGHT, **options)


def test_gsplats_own_defaults_are_those_of_gsplat() -> None:
    theirs = inspect.signature(gsplat.rendering.rasterization).parameters
    assert {name: theirs[name].default for name in _CUDA_DEFAULTS} == _CUDA_DEFAULTS


def test_gsplats_own_defaults_may_be_named() -> None:
    splats = make_splats(seed=10)
    defaults = {"packed": False, "sparse_grad": False, "camera_model": "pinhole", "channel_chunk": 32, "covars": None}
    named = rasterization(*splats.tensors(), WIDTH, HEIGHT, **defaults)[0]
    assert torch.equal(named, rasterization(*splats.tensors(), WIDTH, HEIGHT)[0])
    with pytest.raises(GagsError, match="found camera_model, covars; leave them out"):
        rasterization(*splats.tensors(), WIDTH, HEIGHT, camera_model="fisheye", covars=torch.eye(3))


@pytest.mark.gpu
@pytest.mark.parametrize(("scene", "options"), CASES)
def test_gsplat_on_cuda_is_the_same(scene: dict, options: dict) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA card: gsplat's kernels cannot run here")
    splats = make_splats(seed=11, **scene)
    mine, theirs = splats.leaves(torch.float32), Splats(*(t.cuda().requires_grad_() for t in splats.tensors()))
    picture, alpha, _ = rasterization(*mine.tensors(), WIDTH, HEIGHT, **options)
    expected, expected_alpha, _ = rasterization(*theirs.tensors(), WIDTH, HEIGHT, **options)
    assert (picture - expected.cpu()).abs().max() < 1e-3
    assert (alpha - expected_alpha.cpu()).abs().max() < 1e-3
    picture.square().sum().backward()
    expected.square().sum().backward()
    for name, a, b in zip(Splats.__dataclass_fields__, mine.tensors()[:5], theirs.tensors()[:5], strict=False):
        if b.grad is not None and b.grad.any():
            assert (a.grad - b.grad.cpu()).norm() < 1e-2 * b.grad.norm().cpu(), name
