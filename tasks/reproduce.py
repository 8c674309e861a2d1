"""DVC as the flows use it: the graph, what is up to date, one stage's run, the remote. Commands only, no imports."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks import process
from tasks.process import Finished

DVC = (sys.executable, "-m", "dvc")
QUIET = {"DVC_NO_ANALYTICS": "1"}
RUN_CACHE = Path(__file__).with_name("runcache.py")


class Transient(Exception):
    """Goes away without help: another run's lock, the network, a killed share. The task is retried."""


class OutOfMemory(Exception):
    """The GPU ran out of memory."""


class StageFailed(Exception):
    """Would fail again in the same way; the message says what to fix."""


BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
NETWORK = (
    "Could not connect to the endpoint", "EndpointConnectionError", "ConnectTimeout", "ReadTimeout",
    "Connection refused", "Connection reset", "Temporary failure in name resolution", "Name or service not known",
    "Network is unreachable", "timed out", "Cannot connect to host", "ServerDisconnected", "SlowDown", "503 ",
)  # fmt: skip
DISK = ("No space left on device", "Disk quota exceeded")
KILLED = (-9, 137, -15, 143)
MEMORY = ("CUDA out of memory", "torch.OutOfMemoryError", "CUDNN_STATUS_ALLOC_FAILED")


def remove_broken_lock(folder: Path) -> None:
    """Remove DVC's rwlock file if dvc was killed while it wrote the file.

    DVC writes it in place, and refuses to work when it is not valid JSON. The file only concerns running processes, and
    the caller holds the lock of this clone.
    """
    path = folder / ".dvc/tmp/rwlock"
    for _ in range(3):  # the file is empty for a moment whenever dvc writes it
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return
        except FileNotFoundError:
            return
        except json.JSONDecodeError:
            time.sleep(0.3)
    path.unlink(missing_ok=True)


def dag(folder: Path) -> list[str]:
    """`dvc dag --dot`: one line for each stage, then one for each pair of a stage and a stage that reads from it."""
    return _dvc(folder, "dag", "--dot").lines


def status(folder: Path) -> set[str]:
    """The names of the stages whose command, inputs, parameters or outputs changed."""
    return set(_status(folder))


def missing(folder: Path, stages: Iterable[str]) -> dict[str, list[str]]:
    """The outputs of these stages that are not in the workspace, by stage."""
    names = list(stages)
    found = {}
    for name, changes in _status(folder, *names).items() if names else ():
        # An entry is {"changed outs": {path: "deleted" | "not in cache" | ...}}, or the string "changed command".
        outs = [path for change in changes if "changed outs" in change for path in change["changed outs"]]
        if gone := [path for path in outs if not (folder / path).exists()]:
            found[name] = gone
    return found


def _status(folder: Path, *names: str) -> dict[str, Any]:
    done = _dvc(folder, "status", "--json", *names)
    found: dict[str, Any] = json.loads(done.lines[-1])
    return found


def restore(folder: Path, stage: str, remote: bool) -> str:
    """Restore an earlier result of this stage for exactly these inputs and parameters. Nothing is ever run.

    Returns "unchanged" (the workspace had it), "fetched" (from the run cache, or the remote's if `remote`) or "" (there
    is none).
    """
    found = _run_cache("fetch" if remote else "find", folder, stage).lines[-1]
    if found == "cached":
        done = _dvc(folder, "repro", "--single-item", stage)
        if "Running stage" in done.text:
            raise StageFailed(f"{stage} was found in the run cache, but dvc ran it\n{done.text}")
        return "fetched"
    return {"current": "fetched" if remote else "unchanged"}.get(found, "")


def config(folder: Path) -> dict[str, str]:
    """DVC's settings by their names, such as "core.remote". Paths are absolute; a user's own settings are included."""
    return dict(line.split("=", 1) for line in _dvc(folder, "config", "--list").lines if "=" in line)


def set_config(folder: Path, key: str, value: str) -> None:
    """Change .dvc/config.local."""
    _dvc(folder, "config", "--local", key, value)


def cache_folder(folder: Path) -> str:
    return _dvc(folder, "cache", "dir").lines[-1]


def pull(folder: Path, names: Iterable[str], remote: bool = True) -> None:
    """Fetch the outputs of these stages as dvc.lock records them, or the files of .dvc files.

    Without `remote` they come from the local cache only.
    """
    if wanted := list(names):
        _dvc(folder, "pull" if remote else "checkout", "--force", *wanted)


def add(folder: Path, paths: Iterable[str], remote: bool) -> None:
    """`dvc add` for each path, which writes a .dvc file beside it; with `remote` also `dvc push`."""
    names = list(paths)
    _dvc(folder, "add", *names)
    if remote:
        _dvc(folder, "push", *(f"{name}.dvc" for name in names))


def push(folder: Path, stage: str) -> None:
    """Send the outputs of this stage and its run cache entry to the remote, and remove its parts there."""
    _run_cache("push", folder, stage)


def repro(
    folder: Path,
    stage: str,
    force: bool,
    on_line: Callable[[str], None],
    on_progress: Callable[[float, str], None],
    environment: Mapping[str, str] = {},  # noqa: B006 - it is only read
    keep: Sequence[int] = (),
) -> str:
    """Run one stage. Returns "ran", "fetched" (from the run cache) or "unchanged".

    Args:
        environment, keep: see `process.run`.
    """
    words = [*DVC, "repro", "--single-item", *(["--force"] if force else []), stage]
    done = _compute(words, stage, folder, on_line, on_progress, environment, keep)
    if "is cached - skipping run" in done.text:
        return "fetched"
    return "ran" if f"Running stage '{stage}'" in done.text else "unchanged"


def make_share(
    folder: Path,
    stage: str,
    share: str,
    on_line: Callable[[str], None],
    on_progress: Callable[[float, str], None],
    environment: Mapping[str, str] = {},  # noqa: B006 - it is only read
    keep: Sequence[int] = (),
) -> None:
    """`lpo STAGE --share K/N`: make a share of the stage's parts, and no output.

    Raises:
        Transient: if the command was killed. The parts that it made are there.
        StageFailed: if it failed.
    """
    words = ["lpo", stage, "--share", share]
    _compute(words, f"{stage} {share}", folder, on_line, on_progress, environment, keep, direct=True)


def push_parts(folder: Path, stage: str, parts: str, share: str) -> None:
    """Send the files of a share below the folder `parts` to the remote, but for those that it has."""
    _run_cache("push-parts", folder, stage, parts, share)


def pull_parts(folder: Path, stage: str, share: str = "1/1") -> None:
    """Fetch the files of a share that the remote has and .checkpoints lacks; by default of all shares."""
    _run_cache("pull-parts", folder, stage, share)


def _compute(
    words: Sequence[str],
    what: str,
    folder: Path,
    on_line: Callable[[str], None],
    on_progress: Callable[[float, str], None],
    environment: Mapping[str, str],
    keep: Sequence[int],
    direct: bool = False,
) -> Finished:
    """Run a command that computes: dvc, which runs a stage, or with `direct` the stage's own.

    If the GPU runs out of memory, it is run once more with an allocator that wastes less, which does not change the
    result. A smaller batch would change it, so that choice is left to a person.
    """
    environment = {**environment, **QUIET}
    try:
        done = process.run(words, folder, on_line, on_progress, environment, keep)
        _check(done, what, direct=direct)
    except OutOfMemory as error:
        on_line(f"{error}. Trying once more with expandable memory segments, which do not change the result.")
        environment = {**environment, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        done = process.run(words, folder, on_line, on_progress, environment, keep)
        _check(done, what, last=True, direct=direct)
    return done


def _run_cache(action: str, folder: Path, *words: str) -> Finished:
    done = process.run([sys.executable, "-P", str(RUN_CACHE), action, *words], folder, environment=QUIET)
    _check(done, words[0])
    return done


def _dvc(folder: Path, *words: str) -> Finished:
    done = process.run([*DVC, *words], folder, environment=QUIET)
    _check(done, words[0])
    return done


def _check(done: Finished, what: str, last: bool = False, direct: bool = False) -> None:
    """Turn a failed command into an exception.

    Raises:
        Transient, OutOfMemory, StageFailed: depending on what dvc and the stage printed.
    """
    if done.code == 0:
        return
    tail = "\n".join(line for line in done.lines[-25:] if not process.BAR.search(line))
    if any(sign in done.text for sign in DISK):
        raise StageFailed(f"{what}: the disk is full. Free some space and run again; finished stages are kept.\n{tail}")
    if any(sign in done.text for sign in BUSY):
        raise Transient(f"{what}: another dvc process is using these files.\n{tail}")
    if any(sign in done.text for sign in MEMORY):
        if last:
            raise StageFailed(f"{what}: out of GPU memory twice. Lower its batch size in params.yaml.\n{tail}")
        raise OutOfMemory(f"{what}: out of GPU memory")
    found = re.search(r"exited with (-?\d+)", done.text)
    ended = done.code if direct else int(found[1]) if found else None
    if ended == 2:
        raise StageFailed(f"{what}: the data or the parameters are wrong, so there is no retry.\n{tail}")
    if ended in KILLED and direct:
        raise Transient(f"{what}: it was killed. The parts that it made are kept.\n{tail}")
    if ended in KILLED:
        raise StageFailed(f"{what}: the stage was killed. The next run resumes from its last checkpoint.\n{tail}")
    if done.code == 137:
        raise StageFailed(f"{what}: dvc was killed. The next run resumes from the last checkpoint.\n{tail}")
    if ended is None and any(sign in done.text for sign in NETWORK):
        raise Transient(f"{what}: the remote cannot be reached. Local results are kept.\n{tail}")
    raise StageFailed(f"{what} failed ({done.code}):\n{tail}")
