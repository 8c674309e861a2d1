"""Whose an existing path is: the project's own folders, and the marks that a command leaves on its outputs."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from lpo.errors import LpoError
from lpo.files import file_hash, write_json

MARKER = ".lpo-output.json"  # inside a folder that a command wrote: the command, and the hash of every file
LEDGER = Path(".checkpoints/outputs.json")  # the same of single files, by their path
# What the project itself writes or is made of: a result of a user's does not belong there, and DVC or git would delete
# or overwrite it.
PROJECT = (
    ".git", ".dvc", ".venv", ".checkpoints", ".prefect", "lpo", "tasks", "flows", "models",
    "metrics", "metrics.json", "plots",
    "studies/cell", "studies/spm.json", "studies/distill.json", "studies/flips.parquet", "studies/verifier.parquet",
    *(f"data/{name}" for name in (
        "base", "scorers", "validators", "pairs", "prompts.parquet", "left_out.parquet", "scores.parquet", "filtered",
        "latents", "reward", "spm", "few", "tuned", "evaluation", "report", "collected", "inbox", "quarantine",
        "sources.json",
        "sources/pickapic", "sources/pickapic_v2", "sources/hpdv2", "sources/hpdv3",
    )),
)  # fmt: skip
SHARED = ("data", "data/sources", "studies", "presets", "docs", "tests")  # a result may lie inside, and not be one


def check_project(path: Path, real: Path) -> None:
    """Raise LpoError if `real`, which the user called `path`, belongs to the project in the working directory."""
    root = Path.cwd().resolve()
    if not (root / "params.yaml").exists():
        return
    for name in PROJECT:
        own = (root / name).resolve()
        if real == own or own in real.parents:
            what = f"{name} belongs to the project, and its next run may delete what lies there"
            raise LpoError(what, str(path), "name a path outside it, such as results/NAME")
    for name in SHARED:
        if real == (root / name).resolve():
            raise LpoError(f"{name} is a folder of the project", str(path), f"name a path inside it: {name}/NAME")


def mark_folder(folder: Path, command: str) -> None:
    """Write the marker of a folder that `command` has filled."""
    write_json(folder / MARKER, {"command": command, "files": _contents(folder)})


def foreign(folder: Path, command: str) -> list[str]:
    """What a folder holds that `command` did not write, or wrote otherwise; [] if all of it is its own output."""
    entries = sorted(os.listdir(folder))
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        wrote = marker["files"] if marker["command"] == command else {}
    except (OSError, ValueError, KeyError, TypeError):
        return entries
    if not wrote:
        return entries
    return [name for name, what in sorted(_contents(folder).items()) if wrote.get(name) != what]


def mark_file(real: Path, command: str) -> None:
    """Remember a file that `command` wrote. Where that fails, the next run asks before it replaces the file."""
    known = {name: entry for name, entry in _ledger().items() if os.path.lexists(name)}
    with suppress(OSError):
        write_json(LEDGER, known | {str(real): {"command": command, "sha256": file_hash(real)}})


def wrote(real: Path, command: str) -> bool:
    """Whether a file is, byte for byte, what `command` wrote there."""
    known = _ledger().get(str(real))
    return known is not None and known == {"command": command, "sha256": file_hash(real)}


def _contents(folder: Path) -> dict[str, str]:
    """Every entry below a folder but its marker: SHA-256 of a file, the target of a link, the kind of what else."""
    found = {}
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            entry = Path(parent) / name
            if entry.is_symlink():
                what = f"link to {os.readlink(entry)}"
            else:
                what = file_hash(entry) if entry.is_file() else "folder" if entry.is_dir() else "special"
            found[entry.relative_to(folder).as_posix()] = what
    found.pop(MARKER, None)
    return found


def _ledger() -> dict[str, dict[str, str]]:
    try:
        known = json.loads(LEDGER.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
