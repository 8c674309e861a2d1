"""What dvc.lock records of files, and whether it is what lies here. It is read as plain YAML."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

LOCKED = Path("dvc.lock")
Stages = dict[str, Any]


def read_stages() -> Stages:
    """The stages of dvc.lock; none without that file."""
    return dict(yaml.safe_load(LOCKED.read_text())["stages"]) if LOCKED.exists() else {}


def recorded(stages: Stages, stage: str, key: str, path: Path) -> str | None:
    """The hash of an input (key "deps") or output ("outs") of a stage."""
    items = stages.get(stage, {}).get(key, [])
    return next((item["md5"] for item in items if item["path"] == str(path)), None)


def is_recorded(stages: Stages, stage: str, key: str, path: Path) -> bool:
    """Whether the file or folder that lies here is the one that the stage read or wrote."""
    return path.exists() and recorded(stages, stage, key, path) == dvc_hash(path)


def dvc_hash(path: Path) -> str:
    """The MD5 that DVC 3 records of a file. Of a folder: the MD5 of a JSON list with the MD5 and name of each file."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = sorted((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.relative_to(path).parts)
    listed = [{"md5": dvc_hash(p), "relpath": p.relative_to(path).as_posix()} for p in files]
    return hashlib.md5(json.dumps(listed, sort_keys=True).encode()).hexdigest() + ".dir"
