"""Output paths that a user names on the command line: nothing that was there before is lost.

    check_file(out, "lpo generate")               before the work: raises if the result could not be written there
    with output_file(out, "lpo generate") as partial:
        picture.save(partial, "PNG")

A command replaces its own earlier output and nothing else. It recognises that output by its SHA-256, so an output that
somebody edited, or added a file to, is theirs from then on. A folder carries the hashes in a marker inside it
(`.lpo-output.json`); the hashes of single files are in `.checkpoints/outputs.json`.

Results are written to a temporary sibling and moved into place. Links are followed: the link stays, and what it points
to is written. A character device or a pipe is written into.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lpo.errors import LpoError
from lpo.files import default_modes, sync
from lpo.outputs.ownership import check_project, foreign, mark_file, mark_folder, wrote


def check_file(path: Path, command: str, suffixes: Sequence[str] = (), force: bool = False) -> None:
    """Check, before any work, that `command` may and can write the file `path`. Nothing is changed.

    Args:
        suffixes: the file formats that the command writes, such as (".png", ".jpg"); empty for any.
        force: whether the user asked to replace one file that the command did not write.

    Raises:
        LpoError: if something else is there, or the file cannot be written.
    """
    status, real = _look(path)
    if status is not None and _is_stream(status):
        if not os.access(path, os.W_OK):
            raise LpoError("this device or pipe cannot be written", str(path), "name a file that you may write")
        return
    check_project(path, real)
    if status is not None and stat.S_ISDIR(status.st_mode):
        example = path / f"result{suffixes[0] if suffixes else ''}"
        raise LpoError("this is a folder, and the result is one file", str(path), f"name a file, such as {example}")
    if suffixes and path.suffix.lower() not in suffixes:
        found = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise LpoError(f"the file name has {found}", str(path), f"name a file that ends in {' or '.join(suffixes)}")
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise LpoError("this is neither a file nor a character device", str(path), "name a file")
    if status is not None and status.st_size and not force and not wrote(real, command):
        what = f"there is a file that `{command}` did not write, or that was changed since"
        raise LpoError(what, str(path), "name another file, or add --force to replace this one")
    check_writable(real.parent, real, path)


def check_folder(path: Path, command: str) -> None:
    """Check, before any work, that `command` may and can write the folder `path`. Nothing is changed.

    Raises:
        LpoError: if the folder holds anything that the command did not write, or cannot be written.
    """
    status, real = _look(path)
    check_project(path, real)
    if status is None:
        check_writable(real.parent, real, path)
        return
    if not stat.S_ISDIR(status.st_mode):
        raise LpoError("this is no folder, and the result is one", str(path), "name a new or an empty folder")
    check_writable(real, real, path)
    if others := foreign(real, command):
        count = "1 entry" if len(others) == 1 else f"{len(others)} entries"
        what = f"the folder has {count} that `{command}` did not write, or that changed since, such as {others[0]}"
        raise LpoError(what, str(path), "name a new or an empty folder")
    if _is_empty(real):
        return
    if os.path.ismount(real) or Path.cwd().is_relative_to(real):
        what = "the folder holds an earlier result, and is a mount point or the working directory"
        raise LpoError(what, str(path), "empty the folder, or name one inside it")
    check_writable(real.parent, real, path)


@contextmanager
def output_file(path: Path, command: str, force: bool = False) -> Iterator[Path]:
    """Yield a temporary file to write to; it becomes `path` if the block succeeds.

    If a file appeared at `path` during the work, the result is kept under a free name beside it.

    Raises:
        LpoError: see `check_file`.
    """
    check_file(path, command, force=force)
    status, real = _look(path)
    if status is not None and _is_stream(status):
        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / "result"
            yield partial
            _pour(partial, path)
        return
    real.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(".partial", f".{real.name[:40]}.", real.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        default_modes(partial)
        if real.exists():
            shutil.copymode(real, partial)
        sync(partial)
        _move_file(partial, path, real, command, force)
    finally:
        partial.unlink(missing_ok=True)
    sync(real.parent)
    mark_file(real, command)


@contextmanager
def output_folder(path: Path, command: str) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; it becomes `path` if the block succeeds, with a marker inside.

    Raises:
        LpoError: see `check_folder`.
    """
    check_folder(path, command)
    _, real = _look(path)
    empty = real.exists() and _is_empty(real)
    real.parent.mkdir(parents=True, exist_ok=True)
    # An empty folder is filled rather than replaced: it may be a mount point, or somebody's working directory.
    partial = Path(tempfile.mkdtemp(".partial", f".{real.name[:40]}.", real if empty else real.parent))
    try:
        yield partial
        mark_folder(partial, command)
        default_modes(partial)
        for file in partial.rglob("*"):
            if file.is_file():
                sync(file)
        if empty:
            _check_unchanged([partial.name], real, path)
            for child in sorted(partial.iterdir()):
                child.rename(real / child.name)
            sync(real)
        else:
            check_folder(path, command)
            _swap(partial, real)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def edit_text(path: Path, text: str) -> None:
    """Replace the text of a file that exists and that the user named to be changed. Links and its mode are kept.

    Raises:
        LpoError: if it is no plain file, or cannot be written.
    """
    status, real = _look(path)
    if status is None or not stat.S_ISREG(status.st_mode):
        raise LpoError("this is no plain file, so it cannot be changed", str(path), "name a file")
    check_writable(real.parent, real, path)
    handle, name = tempfile.mkstemp(".partial", f".{real.name[:40]}.", real.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text.encode("utf-8"))
        shutil.copymode(real, partial)
        with suppress(OSError):  # root keeps the owner of a user's file
            os.chown(partial, status.st_uid, status.st_gid)
        sync(partial)
        partial.replace(real)
    finally:
        partial.unlink(missing_ok=True)


def _look(path: Path) -> tuple[os.stat_result | None, Path]:
    """The status of what is at `path`, links followed (None: nothing), and where that is."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a file in the place of a folder
        reason = getattr(error, "strerror", None) or str(error)
        raise LpoError(f"this path cannot be used: {reason}", str(path), "name another path") from error
    return status, Path(os.path.realpath(path))


def _is_stream(status: os.stat_result) -> bool:
    return stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode)


def check_writable(folder: Path, real: Path, path: Path) -> None:
    """Check that `real`, which the user called `path`, can be made in `folder`, which need not exist yet."""
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise LpoError(f"{folder} is not a folder", str(path), "name another path")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permission bits do not tell of read-only disks, or bind root
        longest = os.pathconf(folder, "PC_NAME_MAX")
    except OSError as error:
        what = f"nothing can be written to the folder {folder}: {error.strerror or error}"
        raise LpoError(what, str(path), "name a path that you may write") from error
    if len(os.fsencode(real.name)) > longest:
        raise LpoError(f"the name is longer than {longest} bytes", str(path), "choose a shorter name")


def _is_empty(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return next(entries, None) is None


def _check_unchanged(expected: list[str], real: Path, path: Path) -> None:
    if sorted(os.listdir(real)) != expected:
        raise LpoError("files appeared in this folder during the work", str(path), "name an empty folder, and rerun")


def _swap(partial: Path, real: Path) -> None:
    """Put a folder in the place of an earlier output, or of nothing."""
    if real.exists():
        old = Path(tempfile.mkdtemp(".old", f".{real.name[:40]}.", real.parent))
        real.rename(old / "old")
        partial.rename(real)
        shutil.rmtree(old)
    else:
        partial.rename(real)
    sync(real.parent)


def _move_file(partial: Path, path: Path, real: Path, command: str, force: bool) -> None:
    try:
        check_file(path, command, force=force)
    except LpoError as error:
        free = next(name for n in range(1, 10_000) if not (name := real.with_stem(f"{real.stem}-{n}")).exists())
        partial.rename(free)
        raise LpoError(f"{error.what}: it appeared during the work", str(path), f"the result is in {free}") from error
    partial.replace(real)


def _pour(partial: Path, path: Path) -> None:
    try:
        with partial.open("rb") as source, path.open("wb") as device:
            shutil.copyfileobj(source, device)
    except OSError as error:
        raise LpoError(f"writing failed: {error.strerror or error}", str(path), "name a file") from error
