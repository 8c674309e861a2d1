"""Folders for the unfinished work of a run, `.checkpoints/STAGE/KEY/`, from which a killed run resumes.

DVC deletes a stage's outputs before it runs, so unfinished work lies outside them. KEY is a hash of the stage's
parameters, of its inputs' contents and of this package's code: a run resumes only its own work.

Where work is kept in numbered parts, several machines can share it: each makes the parts of its `Share`. Whoever has
all of them finishes the stage.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lpo.errors import LpoError
from lpo.files import file_hash, key_of

ROOT = Path(".checkpoints")
KEPT_RUNS = 3  # of each stage; older ones are deleted


class Share(NamedTuple):
    """Every `total`-th part, from the `number`-th on: what one of `total` machines makes."""

    number: int
    total: int


def share_of(text: str) -> Share:
    """The share that K/N names.

    Raises:
        LpoError: if the text is not written so, or K is not from 1 to N.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise LpoError(f"{text!r} is not a share", "--share", "write K/N with K from 1 to N, such as 2/4")
    return Share(int(number), int(count))


def in_share(share: Share | None, part: int) -> bool:
    """Whether the part with this number, counted from 0, is of the share; without a share all are."""
    return share is None or part % share.total == share.number - 1


def announce(folder: Path, share: Share | None) -> None:
    """Print where the parts of a share are made: whoever started it sends them to the other machines."""
    if share is not None:
        print(f"parts in {folder.as_posix()}", flush=True)


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
    for old in sorted(path.parent.iterdir(), key=_time, reverse=True)[KEPT_RUNS:]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def _time(path: Path) -> float:
    """When it was last used; 0 if another process removes it now."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
