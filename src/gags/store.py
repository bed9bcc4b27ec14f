"""The run folder: one folder a stage, fingerprints that say what made it, atomic writes, resume.

A run folder holds ``run.json`` and one folder for every stage. A stage's folder holds ``stage.json``: the stage's ingredients
(its settings and the fingerprints of the stages it reads), their fingerprint, and whether it is complete. Files appear in a
stage's folder under a temporary name and are renamed when whole, so that a file that is there is right: a killed run goes on
with the first file that is missing.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Shaped
from torch import Tensor

from gags.errors import GagsError
from gags.settings import decisive

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of the run folder's layout. Raised when an older program could not read a newer folder."""

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\..+)?")
"""Names of files that are being written, or were when the program was killed."""

_LOCK = ".lock"
"""Held by the process that writes a run folder."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Have ``write`` fill a temporary file beside ``path``, then rename it: ``path`` is whole or not there.

    Raises GagsError when the disk is full or may not be written; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise _storage_error(path, error) from error
    except Exception as error:
        # safetensors reports a full disk as its own error type, with the system's words inside
        if "No space left" in str(error) or "os error 28" in str(error):
            raise _storage_error(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))) from error
        raise
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


def _storage_error(path: Path, error: OSError) -> GagsError:
    if error.errno == errno.ENOSPC:
        free = shutil.disk_usage(next(parent for parent in path.parents if parent.exists())).free
        return GagsError(
            f"{path}: the disk is full ({free / 1e6:.1f} MB free). Free some space, or choose another folder with --out, "
            "and run the same command again: it goes on where it stopped"
        )
    return GagsError(f"{path}: could not be written ({error.strerror or error}). Choose a folder you may write to")


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes, atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            file.write(data)
            # a full disk may show only when the data reaches it
            file.flush()
            os.fsync(file.fileno())

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write a value (dataclasses, enums and paths included) as indented JSON, atomically."""
    write_text(path, json.dumps(to_json(value), indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, remedy: str | None = None) -> Any:
    """The value in a JSON file; a GagsError if it is missing or not JSON.

    Args:
        remedy: what to do then; None: make the run anew.
    """
    with _reading(path, "JSON", remedy):
        return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _reading(path: Path, kind: str, remedy: str | None = None) -> Iterator[None]:
    """What goes wrong while a file is read becomes a GagsError that names it and says how it is made anew."""
    # a complete stage is made anew as a whole: without its folder
    in_stage = (path.parent / "stage.json").exists()
    again = f"delete {path.parent if in_stage else path} and run the same 'gags run' again"
    try:
        yield
    except FileNotFoundError:
        if not in_stage:
            again = "run the same 'gags run' again"
        raise GagsError(f"{path}: expected {kind}, found no such file; {remedy or again}") from None
    # json, safetensors, numpy and zipfile raise whatever the damaged bytes lead them to
    except Exception as error:
        raise GagsError(
            f"{path}: expected {kind}, found something else or a damaged file ({error}); {remedy or again}"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None) -> None:
    """Write named tensors and a JSON value beside them as one safetensors file, atomically."""
    from safetensors.torch import save_file

    header = {"json": json.dumps(to_json(metadata or {}), sort_keys=True)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata=header))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the JSON value of a file written by ``write_tensors``; a GagsError if it is missing or damaged."""
    from safetensors import safe_open

    with _reading(path, "safetensors"), safe_open(path, framework="pt") as file:
        metadata = json.loads((file.metadata() or {}).get("json", "{}"))
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - not a dict


def write_arrays(path: Path, arrays: Mapping[str, Shaped[np.ndarray, ...]]) -> None:
    """Write named arrays as one compressed .npz file, atomically."""

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]

    write_atomically(path, write)


def read_arrays(path: Path) -> dict[str, Shaped[np.ndarray, ...]]:
    """The arrays of a file written by ``write_arrays``; a GagsError if it is missing or damaged."""
    # ZipFile refuses the single array that np.load would take
    with _reading(path, "arrays (.npz)"), zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def to_json(value: Any) -> Any:
    """A value made of JSON's own types: dataclasses become objects, paths strings, tuples lists, enums their names."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def fingerprint(value: Any) -> str:
    """A short hash of a JSON-like value: equal values, equal fingerprints."""
    canonical = json.dumps(to_json(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def fingerprint_files(root: Path, pattern: str = "**/*") -> str:
    """A hash of the names and contents of all files under a folder (or of one file)."""
    digest = hashlib.sha256()
    # hidden files are the system's notes (.DS_Store), not data
    files = (
        [root]
        if root.is_file()
        else sorted(path for path in root.glob(pattern) if path.is_file() and not path.name.startswith("."))
    )
    for path in files:
        digest.update(str(path.relative_to(root)).encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Stage:
    """A stage's folder, opened for the ingredients it is made of."""

    name: str
    folder: Path
    fingerprint: str
    ingredients: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether everything the stage makes is there."""
        return bool(self._record().get("complete"))

    @property
    def seconds(self) -> float:
        """How long making it took, all attempts together; 0 before the first."""
        return float(self._record().get("seconds", 0.0))

    def path(self, name: str) -> Path:
        """Where the stage's file of this name lies."""
        return self.folder / name

    def _record(self) -> dict[str, Any]:
        return read_record(self.folder) or {}

    @contextmanager
    def building(self) -> Iterator[None]:
        """Time the block and mark the stage complete when it ends without an error.

        What a killed attempt left half-written is removed first.
        """
        for leftover in self.folder.rglob(".*.tmp*"):
            if _TEMPORARY.fullmatch(leftover.name):
                leftover.unlink()
        before = self.seconds
        started = time.monotonic()
        reset_peak_memory()
        complete = False
        try:
            yield
            complete = True
        finally:
            record = {
                "stage": self.name,
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "ingredients": self.ingredients,
                # an interrupted stage adds up the time of all its attempts
                "seconds": round(before + time.monotonic() - started, 3),
                "peak_memory_mb": round(peak_memory_mb(), 1),
                "complete": complete,
            }
            if complete or shutil.disk_usage(self.folder).free > 1_000_000:
                write_json(self.path("stage.json"), record)


def read_record(stage_folder: Path) -> dict[str, Any] | None:
    """What stage.json says about a stage; None where there is none. A GagsError if it is damaged."""
    path = stage_folder / "stage.json"
    if not path.exists():
        return None
    record = read_json(path)
    if not isinstance(record, dict) or not record.keys() >= {"stage", "fingerprint", "ingredients"}:
        raise GagsError(
            f"{path}: expected a stage's name, fingerprint and ingredients, found something else; delete {stage_folder} "
            "and run the same 'gags run' again"
        )
    return record


class RunFolder:
    """A folder with the products of every stage of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path) -> RunFolder:
        """Open the folder for writing, making it if need be."""
        if root.exists() and not root.is_dir():
            raise GagsError(f"{root}: expected a folder for the run, found a file; choose another --out")
        run = cls(root)
        if run.path("run.json").exists():
            run.description()
        elif not any(root.glob("*/stage.json")) and any(
            path.is_file() and path.name != _LOCK and not _TEMPORARY.fullmatch(path.name) for path in root.rglob("*")
        ):
            raise GagsError(
                f"{root}: expected an empty folder or an earlier run, found other files; choose another --out so that "
                "nothing of yours is overwritten"
            )
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _storage_error(root, error) from error
        return run

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """Open an existing run for reading."""
        run = cls(root)
        if not run.path("run.json").exists():
            raise GagsError(
                f"{root}: expected a run folder with a run.json, found none; make one with 'gags run SCENE --out {root}'"
            )
        run.description()
        return run

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from making this run at the same time; the lock ends with the process, however that ends.

        A folder in which nothing was made is removed.

        Raises:
            GagsError: another process holds it.
        """
        lock = FileLock(self.path(_LOCK))
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise GagsError(
                f"{self.root}: expected a folder that nobody is writing, found another gags process at work in it; wait for that "
                "one, or choose another --out"
            ) from error
        except OSError as error:
            raise _storage_error(self.path(_LOCK), error) from error
        try:
            yield
        finally:
            lock.release()
            if [path.name for path in self.root.iterdir()] == [_LOCK]:
                shutil.rmtree(self.root)

    def path(self, name: str) -> Path:
        """Where a file or folder of the run lies."""
        return self.root / name

    def description(self) -> dict[str, Any]:
        """The contents of run.json; a GagsError if another version of the program wrote it."""
        description = read_json(self.path("run.json"))
        found = description.get("format") if isinstance(description, dict) else None
        if found != FORMAT:
            raise GagsError(
                f"{self.path('run.json')}: expected run folder format {FORMAT}, found {found}; it was written by gags "
                f"{description.get('gags', 'of unknown version') if isinstance(description, dict) else '?'}. "
                "Use that version, or run again into a new --out"
            )
        return description

    def describe(self, description: Mapping[str, Any]) -> None:
        """Write run.json."""
        write_json(self.path("run.json"), {"format": FORMAT, **description})

    def stage(self, name: str, ingredients: Mapping[str, Any]) -> Stage:
        """Open a stage's folder for these ingredients; what other ingredients made is removed, and said.

        Of a config dataclass the settings count that the result depends on (``settings.decisive``).
        """
        folder = self.path(name)
        wanted = {
            key: to_json(decisive(value) if dataclasses.is_dataclass(value) else value)
            for key, value in ingredients.items()
        }
        stage = Stage(name, folder, fingerprint({"stage": name, "format": FORMAT, "ingredients": wanted}), wanted)
        found = read_record(folder)
        if found is not None:
            if found["fingerprint"] == stage.fingerprint:
                return stage
            logger.info("%s: rebuilt, because %s", name, _difference(found["ingredients"], wanted))
        if folder.exists():
            shutil.rmtree(folder)
        begun = {"stage": name, "format": FORMAT, "fingerprint": stage.fingerprint, "ingredients": wanted}
        write_json(stage.path("stage.json"), begun)
        return stage

    def finished_stage(self, name: str) -> Stage:
        """A stage that an earlier command completed; a GagsError if it is not there."""
        found = read_record(self.path(name))
        if found is None or not found.get("complete"):
            raise GagsError(
                f"{self.root}: expected a finished stage {name!r}, found none; run 'gags run' to the end first"
            )
        for source, made_from in found["ingredients"].items():
            # an ingredient named like another stage is the fingerprint of what that stage made then
            if source != name and isinstance(made_from, str) and (self.path(source) / "stage.json").exists():
                now = self.finished_stage(source).fingerprint
                if now != made_from:
                    raise GagsError(
                        f"{self.path(name)}: expected products of the present stage {source!r}, found products of an earlier "
                        "one; run the same 'gags run' again to bring it up to date"
                    )
        return Stage(name, self.path(name), found["fingerprint"], found["ingredients"])


def _difference(before: Any, after: Any, prefix: str = "") -> str:
    """The first few settings that differ, in words."""
    if isinstance(before, dict) and isinstance(after, dict):
        parts = []
        for key in sorted(before.keys() | after.keys()):
            if before.get(key) != after.get(key):
                parts.append(_difference(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key))
        return ", ".join(parts[:4]) + (", ..." if len(parts) > 4 else "")
    return f"{prefix} was {before!r} and is {after!r}"


def reset_peak_memory() -> None:
    """Start measuring peak memory anew, where the system offers it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        logger.debug("this system cannot reset the peak memory counter: peaks are of the whole process")


def peak_memory_mb() -> float:
    """Largest resident memory of this process since ``reset_peak_memory``, in MB (of the whole process elsewhere than on Linux)."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, other systems kilobytes
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
