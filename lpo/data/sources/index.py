"""data/sources.json: what was imported into folders outside DVC, so that `dvc repro` sees when it changes.

A source may hold hundreds of gigabytes and lies where no stage writes. DVC reads this small file instead, which
`lpo data import` and `lpo data scores` keep: path -> its files with their sizes, and the SHA-256 of all of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lpo.errors import LpoError
from lpo.files import file_hash, folder_hash, write_json

REGISTRY = Path("data/sources.json")


def register(path: Path) -> None:
    """Note a folder or a file as it is now."""
    write_json(REGISTRY, _read() | {str(path): _facts(path) | {"sha256": _hash(path)}})


def check(path: Path, command: str) -> None:
    """Raises LpoError if a folder or file was not imported, or has other files or sizes than then."""
    known = _read().get(str(path))
    if known is None or not path.exists():
        what = "it is not there" if not path.exists() else f"it is not in {REGISTRY}"
        raise LpoError(f"nothing was imported: {what}", str(path), f"run `{command}`")
    if known["files"] != _facts(path)["files"]:
        raise LpoError("it is not what was imported: files came, went or changed", str(path), f"run `{command}` again")


def _read() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(REGISTRY.read_text(encoding="utf-8")) if REGISTRY.exists() else {}
    return read


def _facts(path: Path) -> dict[str, Any]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {"files": {file.name: file.stat().st_size for file in files if file.is_file()}}


def _hash(path: Path) -> str:
    return folder_hash(path) if path.is_dir() else file_hash(path)
