"""Folders for the unfinished work of a run, `.checkpoints/STAGE/KEY/`, from which a killed run resumes.

DVC deletes a stage's outputs before it runs, so unfinished work lies outside them. KEY is a hash of the stage's
parameters, of its inputs' contents and of this package's code: a run resumes only its own work.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpo.files import file_hash, key_of

ROOT = Path(".checkpoints")
KEPT_RUNS = 3  # of each stage; older ones are deleted


def code_hash() -> str:
    """SHA-256 of every Python file of the package: other code may give other results."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file_hash(file).encode())
    return digest.hexdigest()


def folder(stage: str, identity: Mapping[str, Any]) -> Path:
    """The folder of a run, made if need be; of the stage's other runs only the newest stay."""
    path = ROOT / stage / key_of({"code": code_hash(), **identity})
    path.mkdir(parents=True, exist_ok=True)
    os.utime(path)
    others = sorted(path.parent.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in others[KEPT_RUNS:]:
        shutil.rmtree(old, ignore_errors=True)
    return path
