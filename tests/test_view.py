"""The page: its state, its colours and its frame as functions; the whole of it with browsers that do not draw."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tiny
from gags.distill import FieldMeta, LanguageField, LinearDecoder
from gags.errors import GagsError
from gags.gaussians import Gaussians, read_splats
from gags.geometry import Camera, look_at, project, transform
from gags.query import QueryConfig, gaussian_heat, query, query_3d
from gags.rasterize import render
from gags.scene import Scene, SceneConfig, View, load_scene, read_camera
from gags.view import LiveView, Page, ViewConfig, serve
from gags.view._colors import base_colors, plain_colors, splat_colors
from gags.view._faithful import faithful_pictures
from gags.view._frame import close_pose, display_frame, first_view
from gags.view._live import Throttle
from gags.view._search import Answer, SearchIndex
from gags.view._splats import CHUNK, covariances, display_ids, make_chunks
from gags.view._state import MODES, History, Question, ViewState, parse_question
from gags.view._worker import Worker
from page_client import PageClient, free_port

N_EACH = 60
"""Gaussians on each of the tiny scene's balls, and on the floor."""


def blobs() -> LanguageField:
    """Gaussians on the balls and the floor of the tiny scene; features are the encoder's axes."""
    generator = torch.Generator().manual_seed(3)
    centers = [torch.tensor([x, -tiny.RADIUS, z]) for x, z in tiny.BALLS.values()]
    means = [center + 0.2 * torch.randn(N_EACH, 3, generator=generator) for center in centers]
    floor = torch.rand(N_EACH, 3, generator=generator) * torch.tensor([8.0, 0.0, 8.0]) - torch.tensor([4.0, 0.0, 3.0])
    number = 4 * N_EACH
    gaussians = Gaussians(
        means=torch.cat([*means, floor]),
        quats=torch.nn.functional.normalize(torch.randn(number, 4, generator=generator), dim=1),
        log_scales=(0.05 + 0.1 * torch.rand(number, 3, generator=generator)).log(),
        opacity_logits=torch.full((number,), 3.0),
        sh=torch.randn(number, 4, 3, generator=generator) * 0.3,
    )
    what = torch.arange(4).repeat_interleave(N_EACH)
    encoder = tiny.TrueEncoder()
    features = encoder.encode_phrases([*tiny.BALLS, "floor"])[what]
    levels = torch.eye(3)[what.clamp(max=2)]
    meta = FieldMeta("galift", encoder.width, encoder.width)
    return LanguageField(gaussians, features, LinearDecoder(torch.eye(encoder.width)), None, meta, levels)


@pytest.fixture(scope="module")
def index() -> SearchIndex:
    return SearchIndex.build(blobs(), tiny.TrueEncoder(), QueryConfig())


@pytest.fixture(scope="module")
def scene(tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return load_scene(tiny_scene, SceneConfig(), tmp_path_factory.mktemp("work"))


# The state


@pytest.mark.parametrize(
    ("text", "phrases", "negatives"),
    [
        ("cat", ("cat",), ()),
        (" red  mug ; t-shirt;;", ("red mug", "t-shirt"), ()),
        ("mug -red cup; spoon", ("mug", "spoon"), ("red cup",)),
        ("-fork;mug -a -b; mug", ("mug",), ("fork", "a", "b")),
    ],
)
def test_questions_are_phrases_and_negatives(text: str, phrases: tuple[str, ...], negatives: tuple[str, ...]) -> None:
    assert parse_question(text) == Question(phrases, negatives)


def test_no_question_and_no_sense() -> None:
    assert parse_question("  ; ") is None
    with pytest.raises(GagsError, match="expected a phrase to find, found only what not to find"):
        parse_question("-mug")
    with pytest.raises(GagsError, match="expected a phrase behind each '-'"):
        parse_question("mug -")


STEPS = st.lists(
    st.one_of(
        st.builds(dict, mode=st.sampled_from(MODES)),
        st.builds(dict, threshold=st.sampled_from([0.1, 0.2, 0.3])),
        st.builds(dict, text=st.sampled_from(["", "a", "b"])),
        st.builds(dict, invert=st.booleans()),
    ),
    max_size=12,
)


@given(STEPS)
def test_undo_goes_all_the_way_back_and_redo_to_the_end(steps: list[dict[str, Any]]) -> None:
    history = History()
    for step in steps:
        history = history.to(**step)
    end = history.present
    states = [end]
    while history.past:
        history = history.undo()
        states.append(history.present)
        assert history.redo().present == states[-2]
    assert history.present == ViewState() and history.undo() == history
    while history.future:
        history = history.redo()
    assert history.present == end and history.redo() == history
    assert all(a != b for a, b in itertools.pairwise(states))


def test_a_dragged_slider_is_one_step_and_a_new_step_forgets_the_undone() -> None:
    history = History().to(text="a").to(threshold=0.5).to(threshold=0.6).to(threshold=0.7)
    assert history.undo().present == ViewState(text="a")
    assert history.undo().to(invert=True).future == ()
    assert History().to(text="a").to(text="b").to(text="a").asked == ("a", "b")


# The search


def test_the_index_answers_as_query_3d_does(index: SearchIndex) -> None:
    phrases = ["red ball", "blue ball"]
    answer = index.ask(Question(tuple(phrases)))
    expected = query_3d(index.field, phrases, index.encoder, index.config)
    selected = index.select(answer, index.config.threshold, largest=False)
    for row, selection in enumerate(expected):
        torch.testing.assert_close(answer.relevancy[row], selection.relevancy, atol=1e-6, rtol=0)
        assert torch.equal(selected[row].nonzero()[:, 0], selection.gaussian_ids)
    described = index.describe(answer, selected)
    assert [found.phrase for found in described] == phrases
    assert torch.equal(described[1].box_world, expected[1].box_world)


def test_negatives_make_a_find_less_relevant(index: SearchIndex) -> None:
    plain = index.ask(Question(("red ball",))).relevancy
    against = index.ask(Question(("red ball",), ("red ball",))).relevancy
    assert float(plain[0, 0]) > 0.99 and float(against[0, 0]) == pytest.approx(0.5)


def test_the_largest_part_of_two_is_kept() -> None:
    field = blobs()
    # two balls that touch nothing, the second in part
    rows = torch.cat([torch.arange(N_EACH), torch.arange(2 * N_EACH, 3 * N_EACH - 15)])
    two = dataclasses.replace(field, gaussians=field.gaussians.subset(rows), features=field.features[rows])
    index = SearchIndex.build(two, tiny.TrueEncoder(), QueryConfig())
    relevancy = torch.linspace(0, 1, len(rows))[None]
    answer = Answer(Question(("ball",)), relevancy, gaussian_heat(relevancy, QueryConfig()))
    assert bool(index.select(answer, -1.0, largest=False).all())
    assert torch.equal(index.select(answer, -1.0, largest=True)[0], torch.arange(len(rows)) < N_EACH)


def test_a_click_hits_what_is_in_front_and_visible_and_names_it(index: SearchIndex) -> None:
    x, z = tiny.BALLS["green ball"]
    origin = torch.tensor([x, -tiny.RADIUS, -6.0])
    target = torch.tensor([x, -tiny.RADIUS, z]) - origin
    everything = torch.ones(4 * N_EACH, dtype=torch.bool)
    hit = index.first_hit(origin, target, 60.0, everything)
    assert hit is not None and hit // N_EACH == 1
    named = index.name(hit, ["red ball", "green ball", "floor"], 2)
    assert named[0][0] == "green ball" and len(named) == 2 and named[0][1] > 0.99
    without = everything.clone()
    without[N_EACH : 2 * N_EACH] = False
    assert index.first_hit(origin, target, 60.0, without) != hit
    assert index.first_hit(origin, -target, 60.0, everything) is None
    assert index.first_hit(origin, target, 60.0, ~everything) is None
    weights = index.level_weights(torch.tensor([hit]))
    assert weights is not None and weights.tolist() == [[0, 1, 0]]


# Colours


def test_modes_show_and_hide_what_was_found(index: SearchIndex) -> None:
    answer = index.ask(Question(("red ball",)))
    selected = index.select(answer, 0.4, largest=False)
    gaussians = index.field.gaussians
    base = plain_colors(gaussians)
    colors = {mode: splat_colors(ViewState(mode=mode), base, gaussians.opacities, answer, selected) for mode in MODES}
    untouched = splat_colors(ViewState(), base, gaussians.opacities, None, None)
    assert torch.equal(untouched[:, :3], base) and int(untouched[:, 3].min()) == round(
        255 * float(torch.sigmoid(torch.tensor(3.0)))
    )
    found = selected[0]
    for mode, visible in (("isolate", found), ("delete", ~found)):
        assert torch.equal(colors[mode][:, 3] > 0, visible)
        assert torch.equal(colors[mode][visible], untouched[visible])
        inverted = splat_colors(ViewState(mode=mode, invert=True), base, gaussians.opacities, answer, selected)
        assert torch.equal(inverted[:, 3] > 0, ~visible)
    assert torch.equal(colors["heat"][:, 3], untouched[:, 3]) and colors["heat"][found, 0].float().mean() > 100
    rest = colors["highlight"][~found]
    assert torch.equal(rest[:, 0], rest[:, 1]) and torch.equal(rest[:, 1], rest[:, 2])
    assert (colors["highlight"][found, 0] >= base[found, 0]).all()


def test_display_modes_are_the_values_that_they_show(index: SearchIndex, scene: Scene) -> None:
    camera = scene.views[0].camera
    gaussians = index.field.gaussians
    granularity = base_colors(index, "granularity", camera)
    assert granularity[0].tolist() == [255, 0, 0] and granularity[-1].tolist() == [0, 0, 255]
    depth = project(camera, gaussians.means)[1]
    brightness = base_colors(index, "depth", camera).float().sum(dim=1)
    assert float(brightness[depth.argmin()]) > float(brightness[depth.argmax()])
    features = base_colors(index, "feature", camera)
    assert len(features.unique(dim=0)) == 4
    no_levels = dataclasses.replace(index, field=dataclasses.replace(index.field, level_weights=None))
    with pytest.raises(GagsError, match="expected a field that learned it"):
        base_colors(no_levels, "granularity", camera)
    answer = index.ask(Question(("red ball",)))
    selected = index.select(answer, 0.4, largest=False)
    shown = splat_colors(
        ViewState(display="relevancy", mode="isolate"), features, gaussians.opacities, answer, selected
    )
    assert len(shown[:N_EACH, :3].unique(dim=0)) == 1


# The server's own pictures


def test_a_faithful_picture_is_the_renderers_and_its_mask_that_of_a_query(index: SearchIndex, scene: Scene) -> None:
    camera = scene.views[2].camera
    (picture,) = faithful_pictures(index, ViewState(), None, None, camera)
    expected = (render(index.field.gaussians, camera).colors.clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(picture, expected)

    answer = index.ask(Question(("red ball",)))
    selected = index.select(answer, 0.4, largest=False)
    *_, lit = faithful_pictures(index, ViewState(threshold=0.4), answer, selected, camera)
    (hit,) = query(index.field, camera, ["red ball"], index.encoder, index.config)
    assert 0 < int(hit.mask.sum()) < hit.mask.numel()
    outside = lit[~hit.mask]
    assert (
        torch.equal(outside[:, 0], outside[:, 1])
        and float((lit[hit.mask][:, 0] > lit[hit.mask][:, 2]).float().mean()) > 0.9
    )

    (alone,) = faithful_pictures(index, ViewState(mode="isolate"), answer, selected, camera)
    ids = selected[0]
    only = (render(index.field.gaussians.subset(ids), camera).colors.clamp(0, 1) * 255).round().to(torch.uint8)
    assert torch.equal(alone, only)
    large = camera.resized(640, 480)
    coarse, fine = faithful_pictures(index, ViewState(mode="heat"), answer, selected, large)
    assert coarse.shape == fine.shape == (480, 640, 3)
    with pytest.raises(GagsError, match="nothing is left to show"):
        next(iter(faithful_pictures(index, ViewState(mode="isolate"), answer, ~selected & selected, camera)))


# The frame


def arc(scale: float, turn: torch.Tensor) -> tuple[View, ...]:
    """The tiny scene's cameras in a world that is larger and turned."""
    views = []
    for number, camera in enumerate(tiny.cameras()):
        T = camera.T_camera_world.clone()
        T[:3, :3] = T[:3, :3] @ turn.T
        T[:3, 3] *= scale
        views.append(View(str(number), dataclasses.replace(camera, T_camera_world=T), Path()))
    return tuple(views)


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
def test_the_frame_is_upright_and_of_one_size_in_any_world(scale: float) -> None:
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5))).Q
    frame = display_frame(arc(scale, turn))
    # the tiny scene's y points down, and its cameras look down on it by less than half a right angle
    assert float(frame.up_world @ (turn @ torch.tensor([0.0, -1.0, 0.0]))) > 0.85
    away = [np.linalg.norm(frame.points(view.camera.center_world)) for view in arc(scale, turn)]
    assert np.median(away) == pytest.approx(4.0, rel=1e-2)
    point = torch.tensor([0.3, -0.2, 0.9]) * scale
    torch.testing.assert_close(frame.to_world(frame.points(point)), point, rtol=1e-4, atol=1e-4 * scale)


def test_one_camera_or_parallel_ones_have_a_frame() -> None:
    (first, *_) = arc(1.0, torch.eye(3))
    for views in ((first,), (first, first)):
        frame = display_frame(views)
        assert np.isfinite(frame.scale) and bool(frame.center_world.isfinite().all())


def test_a_browsers_camera_is_the_worlds(scene: Scene) -> None:
    from scipy.spatial.transform import Rotation

    frame = display_frame(scene.views)
    camera = scene.views[3].camera
    x, y, z, w = Rotation.from_matrix(camera.T_camera_world[:3, :3].T.double().numpy()).as_quat()
    fov = 2 * np.arctan(camera.height / 2 / camera.fy_px)
    again = frame.camera((w, x, y, z), frame.points(camera.center_world), fov, camera.width, camera.height)
    torch.testing.assert_close(again.T_camera_world, camera.T_camera_world, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.K, camera.K, atol=1e-3, rtol=0)
    pose = frame.pose(camera)
    seen = transform(camera.T_camera_world, frame.to_world(pose.look_at)[None])[0]
    assert float(seen[2]) > 0 and float(seen[:2].abs().max()) < 1e-4


def test_flying_close_shows_the_box_whole_and_never_goes_farther_away(scene: Scene) -> None:
    frame, camera = display_frame(scene.views), scene.views[0].camera
    center = torch.tensor([0.2, -0.5, 0.9])
    box = torch.stack([center - 0.3, center + 0.3])
    pose = close_pose(frame, camera, center, box)
    eye = frame.to_world(pose.position)
    near = dataclasses.replace(camera, T_camera_world=look_at(eye, center, torch.tensor([0.0, -1.0, 0.0])))
    corners = torch.cartesian_prod(*box.T)
    xy, depth = project(near, corners)
    assert (
        bool((depth > 0).all())
        and float(xy.min()) > 0
        and bool((xy < torch.tensor([camera.width, camera.height])).all())
    )
    assert float((eye - center).norm()) < float((camera.center_world - center).norm())
    far = close_pose(frame, camera, center, 100 * (box - center) + center)
    torch.testing.assert_close(frame.to_world(far.position), camera.center_world, atol=1e-4, rtol=0)


def test_the_page_opens_where_most_is_seen(scene: Scene) -> None:
    away = dataclasses.replace(scene.views[0], name="away", camera=_turned(scene.views[0].camera))
    assert first_view((away, *scene.views[1:3]), blobs().gaussians.means).name != "away"


def _turned(camera: Camera) -> Camera:
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    return dataclasses.replace(camera, T_camera_world=back @ camera.T_camera_world)


# Splats for the browser


def test_covariances_are_those_of_rotated_axes() -> None:
    gaussians = blobs().gaussians
    for number in (0, 7):
        w, x, y, z = gaussians.quats[number].tolist()
        from scipy.spatial.transform import Rotation

        R = torch.from_numpy(Rotation.from_quat([x, y, z, w]).as_matrix()).float()
        expected = R @ torch.diag(gaussians.scales[number] ** 2) @ R.T
        torch.testing.assert_close(covariances(gaussians)[number], expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("limit", [3 * CHUNK + 5, 2 * CHUNK, 700, 3])
def test_thinning_keeps_the_limit_and_every_neighbourhood(limit: int) -> None:
    number = 3 * CHUNK + 5
    generator = torch.Generator().manual_seed(1)
    means = torch.rand(number, 3, generator=generator)
    logits = torch.randn(number, generator=generator)
    gaussians = Gaussians(means, torch.ones(number, 4), torch.zeros(number, 3), logits, torch.zeros(number, 1, 3))
    ids = torch.cat(display_ids(gaussians, limit))
    assert len(ids.unique()) == len(ids) <= limit and len(ids) >= limit - 4
    if limit == number:
        assert len(ids) == number and max(len(chunk) for chunk in display_ids(gaussians, limit)) <= CHUNK
    elif limit >= 700:
        octant = ((means > 0.5) * torch.tensor([1, 2, 4])).sum(dim=1)
        shares = octant[ids].bincount(minlength=8) / octant.bincount(minlength=8)
        assert float(shares.min()) > 0.5 * limit / number
        # of its neighbours, the opaque one stays
        assert logits[ids].mean() > logits.mean() + 0.3


# Threads


def test_of_waiting_jobs_of_a_kind_the_latest_runs_and_errors_are_told() -> None:
    errors: list[Exception] = []
    worker = Worker("test", errors.append)
    begun, go, done = threading.Event(), threading.Event(), threading.Event()
    ran: list[int] = []

    def first() -> None:
        begun.set()
        go.wait(5)
        assert worker.waiting("show") and not worker.waiting("other")
        ran.append(0)

    def fails() -> None:
        raise ValueError("no")

    worker.submit("show", first)
    assert begun.wait(5)
    for number in (1, 2, 3):
        worker.submit("show", lambda number=number: ran.append(number))
    worker.submit("late", done.set, delay_s=0.05)
    worker.submit("fails", fails)
    worker.submit("never", lambda: ran.append(-1), delay_s=0.01)
    worker.cancel("never")
    go.set()
    assert done.wait(5)
    assert ran == [0, 3] and [str(error) for error in errors] == ["no"]
    worker.stop()


@given(st.lists(st.floats(0.001, 0.1), min_size=2, max_size=30), st.sampled_from([0.02, 0.1]))
def test_watching_costs_at_most_its_share(costs: list[float], share: float) -> None:
    now = 0.0
    spent: list[float] = []

    def update() -> None:
        nonlocal now
        now += costs[len(spent) % len(costs)]
        spent.append(costs[len(spent) % len(costs)])

    throttle = Throttle(share, lambda: now)
    for _ in range(3000):
        throttle.run(update)
        now += 0.01
    # the update that has just ended has not been paid off yet
    assert sum(spent[:-1]) <= share * now and spent


# The page


@pytest.fixture(scope="module")
def page(scene: Scene) -> Iterator[Page]:
    run = SimpleNamespace(scene=scene, encoder=tiny.TrueEncoder(), folder=SimpleNamespace(root=Path("runs/tiny")))
    page = serve(run, blobs(), QueryConfig(), ViewConfig(port=free_port()), ("red ball", "green ball", "floor"))  # type: ignore[arg-type]
    yield page
    page.stop()


def opened(page: Page) -> PageClient:
    """A browser that shows the scene and is ready for questions."""
    page.index.result(10)
    client = PageClient(page.url)
    client.wait(
        lambda c: c.splats_received >= 4 * N_EACH and len(c.frustums()) == tiny.N_VIEWS and "getting" not in c.text()
    )
    return client


def test_a_page_shows_the_scene_and_its_cameras(page: Page) -> None:
    with opened(page) as client:
        assert all(node["props"]["_image_data"] for node in client.frustums())
        assert {"Find", "Threshold", "Undo", "Vocabulary"} <= client.labels()
        assert f"{4 * N_EACH} splats, {tiny.N_VIEWS} photographs" in client.text()
        expected = np.unique(plain_colors(blobs().gaussians).numpy(), axis=0)
        np.testing.assert_array_equal(np.unique(client.colors()[:, :3], axis=0), expected)


def test_a_question_lights_up_and_every_control_follows(page: Page) -> None:
    with opened(page) as client:
        client.ask("red ball")
        client.wait(lambda c: "score" in c.text())
        lit = client.colors()
        assert 40 < (lit[:, 0] > lit[:, 1]).sum() < 2 * N_EACH
        client.set("What is found", "isolate")
        client.wait(lambda c: (c.colors()[:, 3] == 0).sum() > 2 * N_EACH)
        alone = (client.colors()[:, 3] > 0).sum()
        client.set("Invert", True)
        client.wait(lambda c: (c.colors()[:, 3] == 0).sum() == alone)
        client.set("Undo", True)
        client.wait(lambda c: (c.colors()[:, 3] > 0).sum() == alone)
        assert client.widget("Invert")["value"] is False and not client.widget("Redo")["props"]["disabled"]
        client.set("Redo", True)
        client.wait(lambda c: (c.colors()[:, 3] == 0).sum() == alone)
        client.ask("green ball; red ball -floor")
        client.wait(lambda c: "green ball; red ball -floor" in c.labels() and "Fly to: green ball" in c.labels())
        client.set("red ball", True)
        client.wait(lambda c: c.widget("Find")["value"] == "red ball" and "Fly to: green ball" not in c.labels())


def test_equal_colours_are_not_sent_again(page: Page) -> None:
    with opened(page) as client:
        client.ask("red ball")
        client.wait(lambda c: "score" in c.text())
        before = client.splats_received
        client.set("Largest part", True)
        client.wait(lambda c: ", 0 splats sent" in c.text())
        assert client.splats_received == before


def test_mistakes_are_told_in_words_and_the_page_goes_on(page: Page) -> None:
    with opened(page) as client:
        client.ask("-mug")
        client.wait(lambda c: "found only what not to find" in c.text())
        client.set("What", "box and mask")
        client.set("Download", True)
        client.wait(lambda c: "ask for something first" in c.text())
        client.ask("<b>{1/0}")
        client.wait(lambda c: "&lt;b&gt;{1/0}" in c.text())
        client.ask("red ball")
        client.wait(lambda c: "score" in c.text() and "found only" not in c.text())


def test_a_click_says_what_it_is(page: Page, scene: Scene) -> None:
    frame = display_frame(scene.views)
    x, _ = tiny.BALLS["green ball"]
    origin = frame.points(torch.tensor([x, -tiny.RADIUS, -6.0])).tolist()
    with opened(page) as client:
        client.click(tuple(origin), (0.0, 0.0, 1.0))
        client.wait(lambda c: "That is: green ball" in c.text())
        assert "granularity: subpart 0%, part 100%, whole 0%" in client.text()
        client.set("Vocabulary", "floor, blue ball")
        time.sleep(0.1)
        client.click(tuple(origin), (0.0, 0.0, 1.0))
        client.wait(lambda c: "That is: green" not in c.text() and "That is:" in c.text())
        client.click(tuple(origin), (0.0, 0.0, -1.0))
        client.wait(lambda c: "There is nothing" in c.text())


def test_faithful_pictures_come_when_the_camera_rests(page: Page) -> None:
    with opened(page) as client:
        client.set("Faithful", True)
        client.wait(lambda c: c.background is not None)
        # the splats stay until a browser has unpacked the picture
        assert client.background is not None and "/splats" not in client.hidden
        client.wait(lambda c: "/splats" in c.hidden)
        assert Image.open(io.BytesIO(client.background)).size == (64, 48)
        # fewer pixels of the same view are no move
        client.look((0.0, -1.0, -4.0), size_px=(24, 32))
        client.ask("-mug")
        client.wait(lambda c: "expected a phrase to find" in c.text())
        assert "/splats" in client.hidden
        client.look((0.2, -1.0, -4.0))
        client.wait(lambda c: c.background is None and "/splats" not in c.hidden)
        client.wait(lambda c: c.background is not None and "/splats" in c.hidden)
        client.set("Faithful", False)
        client.wait(lambda c: c.background is None and "/splats" not in c.hidden)


def test_what_was_found_can_be_saved(page: Page, tmp_path: Path, scene: Scene) -> None:
    with opened(page) as client:
        client.ask("red ball")
        client.wait(lambda c: "score" in c.text())
        client.set("Faithful", True)
        saves = {"splats .ply": "selection.ply", "splats .spz": "selection.spz", "box and mask": "selection.json"}
        for what, name in (saves | {"camera": "camera.json", "screenshot": "screenshot.png"}).items():
            client.set("What", what)
            time.sleep(0.05)
            client.set("Download", True)
            client.wait(lambda c, name=name: name in c.downloads)
            (tmp_path / name).write_bytes(client.downloads[name])
    found = json.loads((tmp_path / "selection.json").read_text())
    parts = blobs().gaussians.subset(torch.tensor(found["mask"]))
    assert found["phrases"][0]["mask"] == found["mask"] and found["state"]["text"] == "red ball"
    torch.testing.assert_close(read_splats(tmp_path / "selection.ply").means, parts.means)
    assert len(read_splats(tmp_path / "selection.spz")) == len(parts)
    torch.testing.assert_close(torch.tensor(found["box_world"][0]), parts.means.amin(dim=0))
    camera = read_camera(tmp_path / "camera.json")
    assert (camera.width, camera.height) == (64, 48)
    expected = display_frame(scene.views).to_world((0.0, -1.0, -4.0))
    torch.testing.assert_close(camera.center_world, expected, atol=1e-5, rtol=1e-5)
    assert Image.open(io.BytesIO((tmp_path / "screenshot.png").read_bytes())).size == (64, 48)
    saved = json.loads((tmp_path / "camera.json").read_text())
    mirrored = [[-1, 0, 0, 0], *saved["T_camera_world"][1:]]
    for wrong in ([1], {}, saved | {"fx_px": 0.0}, saved | {"cy_px": math.nan}, saved | {"T_camera_world": mirrored}):
        (tmp_path / "camera.json").write_text(json.dumps(wrong))
        with pytest.raises(GagsError, match=r"expected a camera .* save one from the page of 'gags view'"):
            read_camera(tmp_path / "camera.json")
    (tmp_path / "camera.json").write_text("[1,")
    with pytest.raises(GagsError, match=r"expected JSON, .*; save one from the page of 'gags view'$"):
        read_camera(tmp_path / "camera.json")


def test_browsers_have_states_of_their_own_and_may_leave(page: Page) -> None:
    with opened(page) as stays:
        with opened(page) as leaves:
            leaves.ask("red ball")
            leaves.wait(lambda c: "score" in c.text())
            leaves.ask("blue ball")
        stays.ask("green ball")
        stays.wait(lambda c: "score" in c.text())
        assert "red ball" not in stays.labels() and stays.widget("Find")["value"] == "green ball"
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("page-")]
    deadline = time.monotonic() + 5
    while any(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(worker.is_alive() for worker in workers)


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(GagsError, match=r"--host 203.0.113.7: expected an address of this machine"):
        LiveView(ViewConfig(host="203.0.113.7"))
    with pytest.raises(GagsError, match="--port: expected 0 to 65535, found 70000"):
        LiveView(ViewConfig(port=70000))


def test_a_training_can_be_watched(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveView(ViewConfig(port=free_port(), share_off=True))
    field = blobs()
    try:
        with PageClient(live.url) as client:
            live.splats(field.gaussians, "before the cameras are known nothing is shown")
            live.scene(scene)
            live.splats(field.gaussians.subset(torch.arange(50)), "7 of 9 iterations")
            client.wait(lambda c: c.splats_received == 50 and "7 of 9 iterations" in c.text())
            # too short after the last one: not sent
            live.features(field.gaussians, field.features, "8 of 9 iterations")
            live.words("done")
            client.wait(lambda c: "done" in c.text())
            assert client.splats_received == 50
    finally:
        live.stop()
    assert capsys.readouterr().out == ""


def test_chunks_are_in_display_coordinates(scene: Scene) -> None:
    gaussians, frame = blobs().gaussians, display_frame(scene.views)
    (chunk,) = make_chunks(gaussians, frame, 1000)
    np.testing.assert_allclose(chunk.centers, frame.points(gaussians.means[chunk.ids]), atol=1e-6)
    expected = covariances(gaussians)[chunk.ids] * frame.scale**2
    np.testing.assert_allclose(chunk.covariances, expected, rtol=1e-5)
