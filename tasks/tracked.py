"""Files that no stage makes, tracked by DVC with a .dvc file each: ingested pairs and promoted models.

Only the .dvc files tell a copy of the workspace, or a worker of another clone, that these files exist. A run adds its
clone's files to DVC before it does anything else, and adds a model after it was promoted.
"""

from __future__ import annotations

from pathlib import Path

from prefect import task

from tasks import reproduce
from tasks.retried import RETRIED
from tasks.workspace import has_remote

INPUTS = ("data/collected/*.parquet", "models/promoted/*.safetensors")  # what stages read
KEPT = (*INPUTS, "models/lpo-*/")


def keep(folder: Path) -> None:
    """Add the files that are here to DVC (and the remote, if there is one); fetch those of which only the .dvc is here.

    Raises:
        StageFailed: if a file is neither here, nor in the cache, nor in the remote.
    """
    if missing := [path for pattern in INPUTS for path in notes(folder, pattern) if not path.with_suffix("").exists()]:
        _fetch(folder, missing)
    if found := [path for pattern in KEPT for path in sorted(folder.glob(pattern))]:
        _add(folder, found)


def match(folder: Path) -> None:
    """Make the inputs in a copy of a workspace exactly those that its .dvc files name."""
    named = [path for pattern in INPUTS for path in notes(folder, pattern)]
    for path in (path for pattern in INPUTS for path in folder.glob(pattern)):
        if path.with_name(f"{path.name}.dvc") not in named:
            path.unlink()
    if named:
        _fetch(folder, named)


def notes(folder: Path, pattern: str) -> list[Path]:
    """The .dvc files of the files that match a pattern."""
    return sorted(folder.glob(f"{pattern}.dvc"))


@task(name="fetch tracked files", **RETRIED)
def _fetch(folder: Path, paths: list[Path]) -> None:
    reproduce.pull(folder, _names(folder, paths), remote=has_remote())


@task(name="track files", **RETRIED)
def _add(folder: Path, paths: list[Path]) -> None:
    reproduce.add(folder, _names(folder, paths), remote=has_remote())


def _names(folder: Path, paths: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]
