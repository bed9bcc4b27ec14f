"""The report: one file that needs nothing else, with everything in it that the run holds."""

from __future__ import annotations

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import tiny
from gags.charts import line_chart
from gags.cli import main
from gags.commands import run as run_command
from gags.errors import GagsError
from gags.query import QueryConfig
from gags.report import ReportConfig, make_report
from gags.runs import evaluate_once, open_run


class Page(HTMLParser):
    """What a page is made of; checks that its elements are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.charts: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.links += [value for name, value in values.items() if name in ("src", "href")]
        if tag == "img":
            self.images.append(values)
        if tag == "svg":
            self.charts.append(values["aria-label"])
        if tag not in ("meta", "img", "br", "polyline", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(tiny_run: Path, tiny_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(tiny_run, out)
    run = open_run(out, tiny.TrueEncoder())
    evaluate_once(run, tiny_scene / "labels", "gad", QueryConfig(), "rendered")
    return Page(make_report(run, None, QueryConfig(), ReportConfig(n_views=2, side_px=64)))


def test_every_section_is_there(page: Page) -> None:
    assert page.headings == [
        *("Metrics", "Queries", "Inventory", "Views", "Masks", "Training", "Time and memory", "Settings"),
    ]
    for words in ("mIoU", "strict", "splats", "field/gad", "distill.feature_width", "red ball: heat", "prompt points"):
        assert words in page.text, words


def test_it_needs_no_other_file_and_no_network(page: Page) -> None:
    assert page.links and all(link.startswith("data:image/jpeg;base64,") for link in page.links)


def test_pictures_are_small_and_as_large_as_they_say(page: Page) -> None:
    # 3 phrases twice, things of the inventory, 2 views of 5 pictures and of 4
    assert len(page.images) >= 6 + 3 + 10 + 8
    for image in page.images:
        data = base64.b64decode(image["src"].partition(",")[2])
        picture = Image.open(io.BytesIO(data))
        assert picture.size == (int(image["width"]), int(image["height"]))
        assert max(picture.size) <= 160 and len(data) < 20_000


def test_both_trainings_are_drawn(page: Page) -> None:
    assert page.charts == [
        *("reconstruction: gaussians", "reconstruction: loss", "reconstruction: psnr_db"),
        *("distillation: total", "distillation: distill", "distillation: entropy", "distillation: region"),
    ]


def test_equal_runs_give_equal_reports_and_phrases_can_be_chosen(tiny_run: Path) -> None:
    config = ReportConfig(phrases=("green <b>ball</b>",), n_views=1, side_px=32)
    texts = [make_report(open_run(tiny_run, tiny.TrueEncoder()), None, QueryConfig(), config) for _ in range(2)]
    assert texts[0] == texts[1]
    assert "green &lt;b&gt;ball" in texts[0] and "<b>ball" not in texts[0]
    with pytest.raises(GagsError, match="--side-px"):
        make_report(open_run(tiny_run, tiny.TrueEncoder()), None, QueryConfig(), ReportConfig(side_px=2))


@pytest.mark.usefixtures("true_models")
def test_a_run_without_masks_logs_or_labels_has_a_report_all_the_same(tiny_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out, ignore=shutil.ignore_patterns("masks", "logs", "metrics", "features", "depth"))
    description = (out / "run.json").read_text()
    (out / "run.json").write_text(re.sub(r'"source": "[^"]*"', '"source": "/nowhere"', description))
    assert main(["report", str(out), "--field", "gad", "--out", str(tmp_path / "page.html"), "--n-views", "1"]) == 0
    page = Page((tmp_path / "page.html").read_text())
    assert page.headings == ["Queries", "Inventory", "Views", "Training", "Time and memory", "Settings"]
    assert set(page.charts) == {f"distillation: {name}" for name in ("total", "distill", "entropy", "region")}


def test_a_run_ends_with_a_report_unless_told_otherwise(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(tiny_run, out)
    finished = open_run(out, tiny.TrueEncoder())
    monkeypatch.setattr(run_command, "run", lambda *_, **__: finished)
    assert main(["run", "scene", "--out", str(out), "--no-report"]) == 0
    assert not (out / "report.html").exists()
    assert main(["run", "scene", "--out", str(out)]) == 0
    assert (out / "report.html").exists() and str(out / "report.html") in capsys.readouterr().err.replace("\n", "")


def test_a_chart_goes_from_corner_to_corner() -> None:
    chart = line_chart("loss <x>", [50, 100, 150], [3.0, 2.0, 1.0])
    assert "loss &lt;x&gt;" in chart
    (points,) = re.findall(r'points="([^"]*)"', chart)
    xy = [tuple(map(float, point.split(","))) for point in points.split()]
    assert xy == [(52.0, 24.0), (161.0, 76.0), (270.0, 128.0)]
    gap = line_chart("loss", [1, 2, 3, 4], [1.0, float("nan"), 2.0, 2.5])
    assert gap.count("<circle") == 1 and gap.count("<polyline") == 1 and "nan" not in gap
    assert line_chart("loss", [1, 2], [float("nan")] * 2) == ""
    assert "NaN" not in line_chart("constant", [1, 2], [5.0, 5.0])
