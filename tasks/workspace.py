"""Where a run works: in the clone itself, or in a git worktree under .prefect/workspaces.

A run without overrides works in the clone, as `dvc repro` does. A run with overrides works in a worktree that has the
clone's files, uncommitted changes included, and a params.yaml of its own, so the clone's parameters and results stay as
they are. The worktree shares DVC's cache: writing the same values into the clone's params.yaml later costs no
computation. A worker of another clone rebuilds the workspace from what it is sent: a commit, and a patch on top of it.
"""

from __future__ import annotations

import base64
import fcntl
import functools
import os
import re
import shutil
import socket
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpo.config import check_params
from lpo.config.presets import merge
from lpo.config.reader import parse_yaml
from lpo.errors import LpoError
from lpo.files import key_of, write_text
from tasks import reproduce
from tasks.process import STOP, Stopped

ROOT = Path(__file__).resolve().parents[1]  # the clone that this worker belongs to
STATE = ROOT / ".prefect"
KEPT = 5  # worktrees of runs with overrides; the results of older ones stay in DVC's cache
LARGEST_PATCH = 400_000  # bytes; Prefect takes 512 KiB of parameters


@dataclass(frozen=True)
class Place:
    """Where a run works, and what a worker of another clone needs to rebuild that workspace."""

    clone: str  # host:folder of the clone whose worker runs the flow
    folder: str  # where it works on that host: the clone or one of its worktrees
    commit: str
    patch: str  # on top of the commit; compressed, base64. Both are "" without a remote, which must carry the files.


def here() -> str:
    return f"{socket.gethostname()}:{ROOT}"


def has_remote() -> bool:
    """Whether DVC has a default remote."""
    return "core.remote" in _dvc_config(ROOT)


def place_of(folder: Path) -> Place:
    """What a worker needs to run a stage of the run that works in `folder`.

    Raises:
        LpoError: if the uncommitted changes are too large to send.
    """
    if not has_remote():
        return Place(here(), str(folder), "", "")
    commit, patch = snapshot(folder)
    packed = base64.b64encode(zlib.compress(patch)).decode()
    if len(packed) > LARGEST_PATCH:
        raise LpoError(
            f"the uncommitted changes are too large to send to workers: {len(packed)} bytes, at most {LARGEST_PATCH}",
            str(folder),
            "commit them",
        )
    return Place(here(), str(folder), commit, packed)


@contextmanager
def place_here(place: Place, stage: str) -> Iterator[tuple[Path, bool]]:
    """The run's own folder, or a worktree that is a copy of it; and whether it is a copy, which fetches its inputs.

    Raises:
        LpoError: if this is another clone and there is no remote to carry the files.
    """
    if place.clone == here():
        yield Path(place.folder), False
        return
    if not (has_remote() and place.commit):
        raise LpoError(
            f"the run works in {place.clone}, this worker in {here()}, and they share no DVC remote",
            ".dvc/config",
            "dvc remote add --default NAME URL in both clones, or stop this worker",
        )
    folder = STATE / "workspaces" / f"stage-{stage}"
    with locked(STATE / f"workspaces/stage-{stage}.lock", stage, lambda holder: None):
        with locked(STATE / "workspaces/checkout.lock", stage, lambda holder: None):  # other shares check out here too
            checkout(folder, place.commit, zlib.decompress(base64.b64decode(place.patch)))
        yield folder, True


def overridden(params: str, changes: Sequence[str]) -> str:
    """The text of params.yaml with `changes`, each written "section.key=value" as for `dvc exp run -S`.

    Raises:
        LpoError: if a change is written in another way.
        ConfigError: if params.yaml is not valid with the changes.
    """
    tree: dict[str, Any] = {}
    for change in changes:
        path, equals, value = change.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise LpoError(f"{change!r} is not an override", "parameter params", "write section.key=value")
        node = tree
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = parse_yaml(f"value: {value.strip() or 'null'}", "parameter params")["value"]
    if not tree:
        return params
    text, _ = merge(params, _dump(tree))
    check_params(parse_yaml(text, "params.yaml"), "params.yaml")
    return text


@contextmanager
def locked(path: Path, holder: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path`. The operating system frees it when this process ends, however it ends.

    Args:
        holder: the name that others see while they wait.
        waiting: called once, with the holder's name, if another process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    waiting(path.read_text().strip())
                    told = True
                if STOP.is_set():
                    raise Stopped from None
                time.sleep(0.5)
        file.truncate(0)
        file.write(holder)
        file.flush()
        yield


def run_workspace(changes: Sequence[str]) -> Path:
    """The folder in which a run with these overrides works. It is the clone if they change nothing."""
    params = (ROOT / "params.yaml").read_text(encoding="utf-8")
    text = overridden(params, changes)
    if text == params:
        return ROOT
    folder = STATE / "workspaces" / f"run-{key_of(text)}"
    checkout(folder, *snapshot(ROOT))
    write_text(folder / "params.yaml", text)
    os.utime(folder)
    for old in sorted(STATE.glob("workspaces/run-*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        git(ROOT, "worktree", "remove", "--force", str(old))
    return folder


def snapshot(folder: Path) -> tuple[str, bytes]:
    """(commit, patch): the state of the folder with changed and new files, but without ignored ones."""
    commit = git(folder, "rev-parse", "HEAD").decode().strip()
    index = Path(git(folder, "rev-parse", "--absolute-git-dir").decode().strip()) / "lpo-index"
    # A copy, so that the user's index stays as it is. With its time, by which git knows which files it must read again.
    shutil.copy2(index.with_name("index"), index)
    try:
        environment = {"GIT_INDEX_FILE": str(index)}
        git(folder, "add", "--all", environment=environment)
        return commit, git(folder, "diff", "--cached", "--binary", "--full-index", "HEAD", environment=environment)
    finally:
        index.unlink()


def checkout(folder: Path, commit: str, patch: bytes) -> None:
    """Make `folder` a worktree of the clone with `patch` on top of `commit`. DVC's files there stay.

    Raises:
        LpoError: if neither the clone nor its origin has the commit.
    """
    if not _has(commit):
        git(ROOT, "fetch", "--quiet", "--all")
    if not _has(commit):
        raise LpoError(f"this clone does not have the commit {commit[:12]}", str(ROOT), "push it, then run again")
    if (folder / ".git").exists():
        git(folder, "checkout", "--quiet", "--force", "--detach", commit)
        git(folder, "clean", "--quiet", "--force", "-d")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        git(ROOT, "worktree", "prune")
        git(ROOT, "worktree", "add", "--quiet", "--detach", str(folder), commit)
    if patch:
        git(folder, "apply", "--whitespace=nowarn", "-", stdin=patch)
    _share_cache(folder)
    checkpoints = ROOT / ".checkpoints"
    checkpoints.mkdir(exist_ok=True)
    link = folder / ".checkpoints"
    if not link.is_symlink():
        link.symlink_to(checkpoints)  # a checkpoint is found by what it was made from, wherever the run works


def _share_cache(folder: Path) -> None:
    """Give the worktree the clone's local DVC configuration and cache. Paths become absolute."""
    config, local = _dvc_config(ROOT), ROOT / ".dvc/config.local"
    if local.exists():
        shutil.copy(local, folder / ".dvc/config.local")
    shared = {key: url for key, url in config.items() if re.fullmatch(r"remote\..*\.url", key) and "://" not in url}
    shared |= {"cache.dir": reproduce.cache_folder(ROOT), "cache.type": "reflink,hardlink,copy"}
    for key, value in shared.items():
        reproduce.set_config(folder, key, value)


@functools.cache
def _dvc_config(root: Path) -> dict[str, str]:
    return reproduce.config(root)


def git(folder: Path, *words: str, stdin: bytes = b"", environment: dict[str, str] | None = None) -> bytes:
    """What git prints.

    Raises:
        LpoError: with git's own message.
    """
    done = subprocess.run(
        ["git", *words], cwd=folder, input=stdin, capture_output=True, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip()
        raise LpoError(f"git {words[0]} failed: {message}", str(folder), "repair the clone, then run again")
    return done.stdout


def _has(commit: str) -> bool:
    words = ["git", "cat-file", "-e", f"{commit}^{{commit}}"]
    return subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0


def _dump(tree: dict[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(tree)
