"""Labels, metrics, evaluation, tables."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from gags.errors import GagsError
from gags.evaluate import (
    Evaluation,
    Labels,
    PairScore,
    bootstrap,
    evaluate,
    evaluate_hits,
    evaluation_table,
    iou,
    load_labels,
    localised,
    moved_frame,
)
from gags.evaluate._labels import fill_polygon
from gags.query import Hit, QueryConfig

EXACT = QueryConfig(kernel_px=1, majority_radius_px=0)
"""Post-processing that leaves a mask as it is (away from the last row and column)."""


def _object(category: str, polygon: Any, **more: Any) -> dict[str, Any]:
    return {"category": category, "segmentation": polygon, **more}


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def _write(folder: Path, stem: str, objects: Sequence[Any], size: tuple[int, int] = (90, 70), **info: Any) -> None:
    content = {"info": {"name": f"{stem}.jpg", "width": size[0], "height": size[1], **info}, "objects": objects}
    (folder / f"{stem}.json").write_text(json.dumps(content))


def _labels_folder(folder: Path, stems: Sequence[str] = ("frame_00001", "frame_00002", "frame_00010")) -> Path:
    first, second, third = stems
    _write(folder, first, [_object("cup", _rectangle(5, 5, 40, 30)), _object("ball", _rectangle(50, 20, 80, 60))])
    _write(folder, second, [_object("ball", _rectangle(10, 10, 50, 55))], size=(77, 64))
    _write(folder, third, [_object("cup", _rectangle(20, 8, 60, 50))])
    (folder / "README.md").write_text("not a label")
    (folder / f"{first}.jpg").write_bytes(b"not a label either")
    return folder


def _truth(labels: Labels) -> Callable[[str, int, int, Sequence[str]], Float[Tensor, "phrase height width"]]:
    """Relevancy that is the labels themselves."""

    def relevancy_of(name: str, width: int, height: int, phrases: Sequence[str]) -> Tensor:
        (frame,) = [frame for frame in labels.frames if frame.image_name == name]
        assert (width, height) == (frame.width, frame.height)
        masks = {label.category: label.mask.float() for label in frame.labels}
        return torch.stack([masks[phrase] for phrase in phrases])

    return relevancy_of


def test_labels_score_1_on_themselves(tmp_path: Path) -> None:
    labels = load_labels(_labels_folder(tmp_path))
    exact = evaluate(_truth(labels), labels, protocol="rendered", split="strict", config=EXACT)
    assert exact.miou == exact.localisation_accuracy == 1
    assert exact.miou_interval == (1, 1)
    smooth = evaluate(_truth(labels), labels, protocol="rendered", split="strict", config=QueryConfig())
    assert smooth.miou > 0.8 and smooth.localisation_accuracy == 1


def _noisy(labels: Labels) -> Callable[[str, int, int, Sequence[str]], Tensor]:
    """The labels under noise that depends on the phrase alone."""
    truth = _truth(labels)

    def relevancy_of(name: str, width: int, height: int, phrases: Sequence[str]) -> Tensor:
        maps = truth(name, width, height, phrases)
        noise = [np.random.default_rng(len(phrase)).random((height, width), np.float32) for phrase in phrases]
        return 0.4 * maps + 0.6 * torch.from_numpy(np.stack(noise))

    return relevancy_of


def test_scores_do_not_move_when_an_image_is_dropped_or_frames_are_renumbered(tmp_path: Path) -> None:
    for name in ("all", "dropped", "renamed"):
        (tmp_path / name).mkdir()
    _labels_folder(tmp_path / "all")
    _labels_folder(tmp_path / "dropped")
    (tmp_path / "dropped" / "frame_00001.json").unlink()
    _labels_folder(tmp_path / "renamed", ("frame_00017", "frame_00004", "a picture"))

    def scores(name: str) -> dict[str, Any]:
        labels = load_labels(tmp_path / name)
        result = evaluate(_noisy(labels), labels, protocol="rendered", split="mixed", config=QueryConfig(kernel_px=5))
        return result.to_json()

    everything, dropped, renamed = scores("all"), scores("dropped"), scores("renamed")
    assert 0 < everything["miou"] < 1
    for frame in ("frame_00002.jpg", "frame_00010.jpg"):
        assert dropped["per_frame"][frame] == everything["per_frame"][frame]
    assert renamed["per_phrase"] == everything["per_phrase"]
    assert renamed["miou"] == pytest.approx(everything["miou"])
    assert renamed["per_frame"]["a picture.jpg"] == everything["per_frame"]["frame_00010.jpg"]


def test_the_report_says_what_was_measured(tmp_path: Path) -> None:
    labels = load_labels(_labels_folder(tmp_path))
    results = [
        evaluate(_noisy(labels), labels, protocol="rendered", split="published", config=QueryConfig()) for _ in range(2)
    ]
    report = json.loads(json.dumps(results[0].to_json()))
    assert report == results[1].to_json()  # the interval is seeded
    assert (report["protocol"], report["split"]) == ("rendered", "published")
    assert (report["n_frames"], report["n_phrases"], report["n_pairs"]) == (3, 2, 4)
    ious = [phrase["iou"] for frame in report["per_frame"].values() for phrase in frame["phrases"].values()]
    assert report["miou"] == pytest.approx(np.mean(ious))
    low, high = report["miou_interval_95"]
    assert min(ious) <= low <= report["miou"] <= high <= max(ious)
    assert report["per_phrase"]["cup"]["n_pairs"] == 2

    console = Console(width=100, file=io.StringIO())
    console.print(evaluation_table(results[0]))
    text = console.file.getvalue()
    for part in (
        "protocol: rendered maps",
        "split: published",
        "cup",
        "ball",
        "all pairs",
        f"{100 * report['miou']:.1f}",
    ):
        assert part in text


def test_a_label_of_an_unknown_image_is_an_error(tmp_path: Path) -> None:
    labels = load_labels(_labels_folder(tmp_path))
    with pytest.raises(GagsError, match=r"frame_00010\.json: .*2 images \(frame_00001\.jpg, frame_00002\.jpg\)"):
        evaluate(
            _truth(labels),
            labels,
            protocol="rendered",
            split="strict",
            config=EXACT,
            image_names={"frame_00001.jpg", "frame_00002.jpg"},
        )


def test_nothing_labelled_is_an_error(tmp_path: Path) -> None:
    _write(tmp_path, "frame", [])
    labels = load_labels(tmp_path)
    with pytest.raises(GagsError, match="expected at least one labelled object, found none in 1 files"):
        evaluate(_truth(labels), labels, protocol="rendered", split="strict", config=EXACT)


def test_iou_of_masks() -> None:
    one, other = torch.zeros(2, 5, 6, dtype=torch.bool)
    assert iou(one, other) == 1  # both empty: they agree
    one[1:3, 1:5] = True
    assert iou(one, other) == 0
    other[2:4, 1:5] = True
    assert iou(one, other) == pytest.approx(4 / 12)


def test_a_peak_hits_a_box_up_to_its_edges() -> None:
    boxes = torch.tensor([[8.0, 2.5, 3.0, 6.0], [20.0, 20.0, 21.0, 21.0]])  # the first with swapped corners
    inside = [(3, 3), (8, 6), (20, 21)]
    outside = [(2, 4), (9, 4), (5, 2), (5, 7), (19, 20)]
    for pixel in inside:
        assert localised(torch.tensor([pixel]), boxes)
        assert localised(torch.tensor([outside[0], pixel]), boxes)  # any tied peak counts
    for pixel in outside:
        assert not localised(torch.tensor([pixel]), boxes)
    assert not localised(torch.tensor([[1, 1]]), torch.zeros(0, 4))


def test_polygons_are_filled_with_their_outline() -> None:
    mask = np.zeros((30, 40), dtype=bool)
    fill_polygon(mask, np.array(_rectangle(10, 10, 20, 15)).astype(int))
    assert mask.sum() == 11 * 6 and mask[10:16, 10:21].all()
    line = np.zeros((30, 40), dtype=bool)
    fill_polygon(line, np.array([[3, 4], [13, 9]]))
    assert line.sum() == 11 and line[4, 3] and line[9, 13]
    outside = np.zeros((30, 40), dtype=bool)
    fill_polygon(outside, np.array(_rectangle(-50, -7, -4, 90)).astype(int))
    assert not outside.any()
    fill_polygon(outside, np.array(_rectangle(-50, -7, 99, 90)).astype(int))
    assert outside.all()


def test_polygons_follow_the_even_odd_rule() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        polygon = rng.integers(-5, 45, size=(7, 2))
        mask = np.zeros((33, 37), dtype=bool)
        fill_polygon(mask, polygon)
        outline = np.zeros_like(mask)
        for edge in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            fill_polygon(outline, np.array(edge))
        assert mask[outline].all()
        for y, x in zip(*np.nonzero(~outline), strict=True):
            crossings = 0
            for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
                if min(y0, y1) <= y < max(y0, y1):
                    crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x
            assert mask[y, x] == crossings % 2


def test_objects_of_a_category_are_merged(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "view",
        [
            _object("cup", _rectangle(2.9, 2.9, 6.9, 6.9), bbox=[2.9, 2.9, 6.9, 6.9]),
            _object("ball", _rectangle(-0.9, 40, 5, 45)),
            _object("cup", [_rectangle(20, 20, 22, 22), _rectangle(30, 20, 32, 22)], bbox=None),
        ],
    )
    (frame,) = load_labels(tmp_path).frames
    cup, ball = frame.labels
    assert (cup.category, ball.category) == ("cup", "ball")
    # Truncated to 2..6, so 5 x 5; two polygons of 3 x 3; a missing box is drawn around the polygons.
    assert cup.mask.sum() == 25 + 9 + 9
    assert cup.boxes_xyxy_px.tolist() == [[2.9, 2.9, 6.9, 6.9], [20, 20, 32, 22]]
    assert ball.boxes_xyxy_px.tolist() == [[-0.9, 40, 5, 45]] and ball.mask[40, 0]
    assert load_labels(tmp_path).phrases == ("cup", "ball")
    assert load_labels(tmp_path).image_names == ("view.jpg",)


def test_labels_move_with_the_pixels(tmp_path: Path) -> None:
    cup = _object("cup", _rectangle(5, 5, 40, 30), bbox=[41, 30, 5, 4])
    _write(tmp_path, "x", [cup, _object("ball", _rectangle(50, 20, 80, 60)), _object("lid", [[0, 0], [3, 0], [3, 2]])])
    (frame,) = load_labels(tmp_path).frames
    # a picture of 60 x 50 pixels that begins at column 12 and row 7, and sees the other one a little off its centres
    v, u = torch.meshgrid(torch.arange(50) + 7.7, torch.arange(60) + 12.2, indexing="ij")
    moved = moved_frame(frame, torch.stack([u, v], dim=-1))
    assert (moved.width, moved.height, moved.image_name) == (60, 50, "x.jpg")
    # the lid is out of sight
    assert [label.category for label in moved.labels] == ["cup", "ball"]
    for before, after in zip(frame.labels, moved.labels, strict=False):
        assert torch.equal(after.mask, before.mask[7:57, 12:72])
    assert moved.labels[0].boxes_xyxy_px.tolist() == [[0, 0, 29, 23]]
    assert moved.labels[1].boxes_xyxy_px.tolist() == [[38, 13, 59, 49]]
    # where the other picture was not taken, nothing is labelled
    beyond = moved_frame(frame, torch.stack([u - 60, v + 10], dim=-1))
    assert [label.category for label in beyond.labels] == ["cup"]
    assert not beyond.labels[0].mask[:, :47].any()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "no readable JSON"),
        ('{"objects": []}', "KeyError: 'info'"),
        ("[]", "TypeError"),
        ('{"info": {"name": "a.jpg", "width": 0, "height": 5}, "objects": []}', "a size of 0 x 5"),
        ('{"info": {"name": "a.jpg", "width": 9, "height": 5}, "objects": [{"category": "x"}]}', "'segmentation'"),
    ],
)
def test_a_malformed_file_is_an_error(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(GagsError, match=rf"bad\.json: expected .*{found}"):
        load_labels(tmp_path)


@pytest.mark.parametrize(
    ("polygon", "box"),
    [
        ([], None),
        ([1, 2, 3, 4], None),
        ([[1, 2], [3]], None),
        ([[1, 2], [3, float("nan")]], None),
        ([[1, 2], [3, 1e12]], None),
        ([["a", "b"]], None),
        ([[1, 2], [3, 4]], [1, 2, 3]),
        ([[1, 2], [3, 4]], [1, 2, 3, float("inf")]),
    ],
)
def test_a_malformed_object_is_an_error(tmp_path: Path, polygon: Any, box: Any) -> None:
    _write(tmp_path, "bad", [_object("cup", polygon, bbox=box)])
    with pytest.raises(GagsError, match=r"bad\.json: expected info .* and objects .*correct the file"):
        load_labels(tmp_path)


def test_folders_without_labels_are_errors(tmp_path: Path) -> None:
    with pytest.raises(GagsError, match="expected a folder"):
        load_labels(tmp_path / "nothing")
    with pytest.raises(GagsError, match=r"expected LERF-OVS labels \(\*\.json\), found none"):
        load_labels(tmp_path)


def test_two_files_for_one_image_are_an_error(tmp_path: Path) -> None:
    _write(tmp_path, "one", [])
    _write(tmp_path, "two", [], name="one.jpg")
    with pytest.raises(GagsError, match=r"two\.json: expected one label file an image, found one\.json"):
        load_labels(tmp_path)


def test_an_evaluation_survives_its_report(tmp_path: Path) -> None:
    labels = load_labels(_labels_folder(tmp_path))
    made = evaluate(_noisy(labels), labels, protocol="rendered", split="mixed", config=QueryConfig(kernel_px=5))
    assert Evaluation.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_the_interval_draws_inside_each_group() -> None:
    def scene(values: Sequence[float]) -> list[PairScore]:
        return [PairScore("a.jpg", str(index), value, True, 1.0) for index, value in enumerate(values)]

    assert bootstrap([scene([0.3]), scene([0.9])], seed=1) == pytest.approx((0.6, 0.6))
    values = np.random.default_rng(0).random(40).tolist()
    low, high = bootstrap([scene(values)], seed=1)
    # the normal approximation, within a tenth of its width
    half = 1.96 * np.std(values) / 40**0.5
    assert low == pytest.approx(np.mean(values) - half, abs=0.2 * half)
    assert high == pytest.approx(np.mean(values) + half, abs=0.2 * half)
    both = bootstrap([scene(values), scene([0.5] * 7)], seed=1)
    assert both == pytest.approx((0.25 + low / 2, 0.25 + high / 2), abs=0.1 * half)


def test_the_interval_knows_that_a_phrase_is_hard_in_every_frame() -> None:
    ious = np.random.default_rng(0).random(12)
    frames, phrases = [f"{index}.jpg" for index in range(9)], [str(index) for index in range(12)]

    def widths(hard: Callable[[int, int], float]) -> float:
        pairs = [
            PairScore(frame, phrase, hard(i, j), True, 1.0)
            for i, frame in enumerate(frames)
            for j, phrase in enumerate(phrases)
        ]
        low, high = bootstrap([pairs])
        return high - low

    # nine equal frames are no more evidence than one: the interval is that of twelve phrases
    by_phrase = widths(lambda _, j: ious[j])
    assert by_phrase == pytest.approx(2 * 1.96 * np.std(ious) / 12**0.5, rel=0.15)
    # the same values in no order: many independent pairs, a narrow interval
    shuffled = np.random.default_rng(1).permutation(np.repeat(ious, 9)).reshape(9, 12)
    assert widths(lambda i, j: shuffled[i, j]) < 0.7 * by_phrase
    # no pair is drawn where a draw has no frame and phrase in common: all pairs stand in
    diagonal = [PairScore(frame, phrase, 0.5, True, 1.0) for frame, phrase in zip(frames, phrases, strict=False)]
    assert bootstrap([diagonal]) == (0.5, 0.5)


def _selected(labels: Labels, score: float) -> Callable[[str, int, int, Sequence[str]], list[Hit]]:
    """Answers as ``render_selection`` gives them: nothing is found of the cup, the ball is the upper half of its label."""

    def hits_of(name: str, width: int, height: int, phrases: Sequence[str]) -> list[Hit]:
        (frame,) = [frame for frame in labels.frames if frame.image_name == name]
        hits = []
        for label in frame.labels:
            mask = label.mask.clone()
            rows = mask.any(dim=1).nonzero()[:, 0]
            mask[(rows[0] + rows[-1] + 1) // 2 :] = False
            if label.category == "cup":
                mask[:] = False
            peak_score = 0.0 if label.category == "cup" else score
            hits.append(Hit(label.category, mask * peak_score, mask.float(), mask, (0.5, 0.5), None, peak_score))
        return hits

    return hits_of


def test_selections_are_scored_like_maps_and_nothing_found_is_nowhere(tmp_path: Path) -> None:
    labels = load_labels(_labels_folder(tmp_path))
    made = evaluate_hits(_selected(labels, 0.8), labels, protocol="selected", split="strict", config=EXACT)
    for pair in made.by_phrase["ball"]:
        assert 0.45 < pair.iou < 0.55 and pair.localised and pair.score == 0.8
    for pair in made.by_phrase["cup"]:
        # a map of zeros has its peak in every box
        assert (pair.iou, pair.localised, pair.score) == (0, False, 0)
    report = made.to_json()
    assert report["protocol"] == "selected" and report["accuracy_at_iou_25"] == 0.5 == report["localisation_accuracy"]
    console = Console(width=100, file=io.StringIO())
    console.print(evaluation_table(made))
    assert "Gaussians selected in 3D" in console.file.getvalue()
