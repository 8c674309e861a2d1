"""DVC as the flows use it: what is fresh, one stage's run, and the way to and from the remote. Commands, no imports."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tasks import process
from tasks.process import Finished

DVC = (sys.executable, "-m", "dvc")
QUIET = {"DVC_NO_ANALYTICS": "1"}
RUN_CACHE = Path(__file__).with_name("runcache.py")


class Transient(Exception):
    """Passes by itself: a lock of another run, the network. It is tried again."""


class OutOfMemory(Exception):
    """The GPU's memory did not suffice."""


class StageFailed(Exception):
    """A stage that fails again if it is tried again; the message says what to mend."""


BUSY = ("is busy, it is being blocked by", "Unable to acquire lock")
NETWORK = (
    "Could not connect to the endpoint", "EndpointConnectionError", "ConnectTimeout", "ReadTimeout",
    "Connection refused", "Connection reset", "Temporary failure in name resolution", "Name or service not known",
    "Network is unreachable", "timed out", "Cannot connect to host", "ServerDisconnected", "SlowDown", "503 ",
)  # fmt: skip
DISK = ("No space left on device", "Disk quota exceeded")
MEMORY = ("CUDA out of memory", "torch.OutOfMemoryError", "CUDNN_STATUS_ALLOC_FAILED")


def mend_lock(folder: Path) -> None:
    """Remove DVC's file of who reads and writes what, if a dvc was killed while it wrote that file.

    DVC writes it in place and refuses to work on half of it. It only matters to processes that run, and the flows'
    own lock says that no other run works here.
    """
    path = folder / ".dvc/tmp/rwlock"
    for _ in range(3):  # it is empty for a moment whenever a dvc writes it
        try:
            json.loads(path.read_text(encoding="utf-8"))
            return
        except FileNotFoundError:
            return
        except json.JSONDecodeError:
            time.sleep(0.3)
    path.unlink(missing_ok=True)


def status(folder: Path) -> set[str]:
    """The names of the stages whose command, inputs, parameters or outputs changed."""
    done = _dvc(folder, "status", "--json")
    found: dict[str, Any] = json.loads(done.lines[-1]) if done.lines else {}
    return {name.rpartition(":")[2] for name in found}


def restore(folder: Path, stage: str, remote: bool) -> str:
    """Bring what this stage made before of these very inputs and parameters; never run anything.

    Returns "unchanged" (it was here), "fetched" (from the run cache, of the remote too if `remote`) or "" (nothing).
    """
    found = _run_cache("fetch" if remote else "find", folder, stage).lines[-1]
    if found == "cached":
        done = _dvc(folder, "repro", "--single-item", stage)
        if "Running stage" in done.text:
            raise StageFailed(f"{stage} was found in the run cache, but dvc ran it\n{done.text}")
        return "fetched"
    return {"current": "fetched" if remote else "unchanged"}.get(found, "")


def pull(folder: Path, names: Iterable[str], remote: bool = True) -> None:
    """Fetch what these stages made, as the workspace's dvc.lock has it, or what .dvc files name.

    Without `remote` out of the cache alone.
    """
    if wanted := list(names):
        _dvc(folder, "pull" if remote else "checkout", "--force", *wanted)


def add(folder: Path, paths: Iterable[str], remote: bool) -> None:
    """`dvc add`: into the cache, each with a .dvc file beside it; and to the remote if `remote`."""
    names = list(paths)
    _dvc(folder, "add", *names)
    if remote:
        _dvc(folder, "push", *(f"{name}.dvc" for name in names))


def push(folder: Path, stage: str) -> None:
    """Send what this stage made, with its entry of the run cache, to the remote."""
    _run_cache("push", folder, stage)


def repro(
    folder: Path,
    stage: str,
    force: bool,
    on_line: Callable[[str], None],
    on_progress: Callable[[float, str], None],
) -> str:
    """Run one stage; returns "ran", "fetched" (from the run cache) or "unchanged".

    A GPU that is out of memory is tried once more with an allocator that wastes less, since that changes no result. A
    smaller batch would change it, so that is for a person to decide.
    """
    words = [*DVC, "repro", "--single-item", *(["--force"] if force else []), stage]
    try:
        done = process.run(words, folder, on_line, on_progress, QUIET)
        _check(done, stage)
    except OutOfMemory as error:
        on_line(f"{error}. Once more with expandable memory segments, which change no result.")
        environment = QUIET | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
        done = process.run(words, folder, on_line, on_progress, environment)
        _check(done, stage, last=True)
    if "is cached - skipping run" in done.text:
        return "fetched"
    return "ran" if f"Running stage '{stage}'" in done.text else "unchanged"


def _run_cache(action: str, folder: Path, stage: str) -> Finished:
    done = process.run([sys.executable, "-P", str(RUN_CACHE), action, stage], folder, environment=QUIET)
    _check(done, stage)
    return done


def _dvc(folder: Path, *words: str) -> Finished:
    done = process.run([*DVC, *words], folder, environment=QUIET)
    _check(done, words[0])
    return done


def _check(done: Finished, what: str, last: bool = False) -> None:
    """Raise what a failed command deserves.

    Raises:
        Transient, OutOfMemory, StageFailed: by the text that dvc and the stage printed.
    """
    if done.code == 0:
        return
    tail = "\n".join(line for line in done.lines[-25:] if not process.BAR.search(line))
    if any(sign in done.text for sign in DISK):
        raise StageFailed(f"{what}: the disk is full. Free space, then run again; what is done is kept.\n{tail}")
    if any(sign in done.text for sign in BUSY):
        raise Transient(f"{what}: another dvc works on these files.\n{tail}")
    if any(sign in done.text for sign in MEMORY):
        if last:
            raise StageFailed(f"{what}: out of GPU memory twice. Lower the batch size of its section.\n{tail}")
        raise OutOfMemory(f"{what}: out of GPU memory")
    ended = re.search(r"exited with (-?\d+)", done.text)
    if ended and int(ended[1]) == 2:
        raise StageFailed(f"{what}: the data or the parameters are wrong; nothing is tried again.\n{tail}")
    if ended and int(ended[1]) in (-9, 137, -15, 143):
        raise StageFailed(f"{what}: the stage was killed; the next run goes on at its last checkpoint.\n{tail}")
    if done.code == 137:
        raise StageFailed(f"{what}: dvc was killed; the next run goes on at the last checkpoint.\n{tail}")
    if not ended and any(sign in done.text for sign in NETWORK):
        raise Transient(f"{what}: the remote cannot be reached; what is here stays here.\n{tail}")
    raise StageFailed(f"{what} failed ({done.code}):\n{tail}")
