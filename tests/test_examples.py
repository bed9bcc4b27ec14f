"""The examples run as they are written."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from skimage import data

from gags.images import read_image, write_image

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_a_picture_is_fitted(tmp_path: Path) -> None:
    import torch

    write_image(tmp_path / "photo.png", torch.from_numpy(data.chelsea()))
    script = [sys.executable, str(EXAMPLES / "fit_picture.py"), "photo.png"]
    printed = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    first, last = (
        float(line.split("PSNR ")[1].split()[0]) for line in (printed.splitlines()[0], printed.splitlines()[-1])
    )
    assert last > first + 8
    assert read_image(tmp_path / "fitted.png").shape == (128, 192, 3)


@pytest.mark.usefixtures("true_models")
@pytest.mark.parametrize(
    ("script", "files"),
    [
        ("ask", {"found.png", "heat.png", "relevancy.png", "rgb.png", "depth.png", "granularity.png", "feature.png"}),
        ("edit", {f"{name}.{kind}" for name in ("alone", "without", "painted") for kind in ("ply", "png")}),
        ("tour", {"tour.mp4", "thing_*.png"}),
    ],
)
def test_the_notebooks_run_from_top_to_bottom(
    script: str, files: set[str], tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (EXAMPLES / f"{script}.py").read_text()
    assert text.startswith("# %% [markdown]\n# # ") and text.count("\n# %%\n") >= 2
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(tiny_run)
    # the tiny scene has three balls and no crockery
    (tmp_path / f"{script}.py").write_text(text.replace('"coffee cup"', '"red ball"'))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(tmp_path / f"{script}.py"))
    (out,) = re.findall(r'OUT = Path\("(.*)"\)', text)
    made = tmp_path / out
    assert all(any(made.glob(name)) for name in files), f"expected {files}, found {sorted(made.iterdir())}"
