"""The imports point back along the flow of docs/design.md, and core imports nothing heavy that it must not."""

import ast
from pathlib import Path

import pytest

import gags

SOURCE = Path(gags.__file__).parent
FLOW = (
    *(
        "errors",
        "devices",
        "simd",
        "settings",
        "progress",
        "geometry",
        "paths",
        "store",
        "logs",
        "pretrained",
        "images",
        "video",
    ),
    *("gaussians", "rasterize", "scene", "reconstruct", "segment", "encode", "distill", "exchange"),
    *("query", "evaluate", "edits", "inventory", "runs", "pipeline", "presets", "pictures", "charts", "report"),
    *("field", "view", "commands", "cli", "__main__"),
)
FORBIDDEN = {"torchvision", "timm", "open_clip", "segment_anything", "sam2", "cv2", "pickle"}
MODULES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    return names


def part(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_back(path: Path) -> None:
    if path == SOURCE / "__init__.py":
        return
    own = FLOW.index(part(path))
    for name in imports(path):
        if name.startswith("gags."):
            assert FLOW.index(name.split(".")[1]) <= own, f"{path} imports {name}, which comes later in the flow"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_core_stays_light(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & FORBIDDEN


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_private_modules_stay_private(path: Path) -> None:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "gags" and len(parts) > 2 and parts[2].startswith("_"):
            assert parts[1] == part(path), f"{path} reaches into {name}"


def test_every_module_says_what_it_is() -> None:
    for path in MODULES:
        if path.read_text().strip():
            assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
