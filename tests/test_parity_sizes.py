"""The parity tests depend on no size of the recorded fixtures: they pass on others, made by slow twins of the same rules."""

import subprocess
import sys
from pathlib import Path

import slow_reference


def test_parity_holds_at_other_sizes(tmp_path: Path) -> None:
    fixtures = slow_reference.write_fixtures(tmp_path)
    tests = Path(__file__).parent / "parity"
    command = [
        sys.executable,
        "-m",
        "pytest",
        str(tests),
        "--parity-dir",
        str(fixtures),
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command, cwd=tests.parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    summary = done.stdout.splitlines()[-1]
    assert "passed" in summary and "skipped" not in summary
