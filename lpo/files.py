"""Files that are either whole or absent, and hashes that name them.

Every write goes to a hidden sibling, is flushed to the disk, and is then renamed over the target, so a killed process
never leaves half a file. The sibling's name is fixed (`.NAME.partial`): what a killed run left is overwritten by the
next one and never piles up inside an artifact. One process writes a path at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpo.errors import LpoError

if TYPE_CHECKING:
    import pandas as pd




def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically; folders on the way are made."""
    with replacing(Path(path)) as partial:
        partial.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, with line ends as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, obj: Any) -> None:
    """Write JSON with sorted keys, two spaces and a last newline, so that equal values are equal bytes.

    NumPy and torch scalars become plain numbers.

    Raises:
        LpoError: if a number is NaN or infinite (JSON has neither, and a metric that is one hides a mistake).
    """
    try:
        text = json.dumps(obj, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError as error:
        bad = ", ".join(_not_finite(obj)) or "a value"
        raise LpoError(f"not a finite number: {bad}", str(path), "find out where it became NaN or infinite") from error
    write_text(path, text + "\n")


def write_parquet(path: str | Path, df: pd.DataFrame) -> None:
    """Write a frame without its index; equal frames are equal bytes (one version of pyarrow)."""
    with replacing(Path(path)) as partial:
        df.to_parquet(partial, engine="pyarrow", compression="zstd", index=False)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield an empty sibling folder that takes the place of `path` if the block succeeds.

    If the block raises, `path` stays as it was and the sibling is removed.
    """
    target = Path(path)
    partial = _partial(target)
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        default_modes(partial)
        for file in _files(partial):
            sync(file)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def alone(path: str | Path, what: str) -> Iterator[None]:
    """Hold the lock file `path`; it ends with the process, however that ends.

    Raises:
        LpoError: `what`, if another process holds it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LpoError(what, str(path), "wait until it has ended") from error
        yield


def inside(folder: str | Path, name: str) -> Path:
    """Return `folder/name`, for a name that comes from data.

    Raises:
        LpoError: if the name leaves the folder (absolute, "..", a link that points out) or is the folder itself.
    """
    path = Path(folder) / name
    root = Path(folder).resolve()
    if root not in path.resolve().parents:
        raise LpoError(f"the name {name!r} leaves its folder", str(folder), "use a plain relative file name")
    return path


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_hash(path: str | Path) -> str:
    """SHA-256 of a folder: the relative names and contents of all its files, in the order of their names."""
    root = Path(path)
    digest = hashlib.sha256()
    for file in _files(root):
        # A name cannot hold a NUL byte and a hash has a fixed length, so two different folders never read the same.
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file_hash(file).encode())
    return digest.hexdigest()


def key_of(obj: Any) -> str:
    """A name of 16 hex digits for a JSON-able value: equal values, equal names, whatever the order of their keys."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling to write to, which is flushed and takes the place of `path` if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        yield partial
        default_modes(partial)
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def default_modes(path: Path) -> None:
    """Give a file, or a folder and all below it, the mode that the umask allows: libraries write some as 0600."""
    mask = os.umask(0o077)
    os.umask(mask)
    for entry in [path, *(path.rglob("*") if path.is_dir() else ())]:
        if not entry.is_symlink():
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~mask)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _files(root: Path) -> list[Path]:
    return sorted((p for p in root.rglob("*") if p.is_file()), key=lambda p: p.relative_to(root).as_posix())


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def _not_finite(obj: Any, path: str = "") -> list[str]:
    if isinstance(obj, dict):
        return [bad for key, value in obj.items() for bad in _not_finite(value, f"{path}.{key}".lstrip("."))]
    if isinstance(obj, list | tuple):
        return [bad for i, value in enumerate(obj) for bad in _not_finite(value, f"{path}[{i}]")]
    value = obj.item() if hasattr(obj, "item") else obj
    return [f"{path or 'the value'} is {value}"] if isinstance(value, float) and not math.isfinite(value) else []
