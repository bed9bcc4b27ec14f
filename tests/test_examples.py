"""The examples run as they are written."""

import subprocess
import sys
from pathlib import Path

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
