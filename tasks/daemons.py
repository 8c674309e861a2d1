"""Background processes: each in a process group of its own, and recorded in .prefect/NAME.pid.

The file holds the process id and the start time, since a later process may have the same id.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from lpo.errors import LpoError
from tasks.workspace import ROOT, STATE

PATIENCE = float(os.environ.get("LPO_SERVICE_PATIENCE", "120"))  # seconds that a process may take until it answers
AT_WORK, ALONE = 20.0, 8.0  # seconds until SIGKILL: with and without child processes


def start(name: str, words: list[str], environment: dict[str, str]) -> None:
    """Start a command in a process group of its own, its output in .prefect/NAME.log."""
    program = shutil.which(words[0], path=environment["PATH"])
    if program is None:
        raise LpoError(f"the program {words[0]!r} is not on the PATH", environment["PATH"], "make .venv")
    with (STATE / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [program, *words[1:]], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    note(name).write_text(json.dumps({"pid": process.pid, "started": start_time(process.pid)}))


def stop(name: str) -> bool:
    """Stop a process that `start` started, with its whole group. Returns False if it was not running.

    It may take AT_WORK seconds while it has child processes, and ALONE seconds without: idle workers were seen to hang
    after the server's SQLite database was locked for a moment.
    """
    pid = alive(name)
    if pid:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(pid, number)
            started = busy = time.monotonic()
            while (members := group(pid)) and (now := time.monotonic()) < min(started + AT_WORK, busy + ALONE):
                busy = now if members != [pid] else busy
                time.sleep(0.1)
            if not members:
                break
    note(name).unlink(missing_ok=True)
    return bool(pid)


def alive(name: str) -> int:
    """The id of the process that `start` started, or 0 if it has ended."""
    try:
        found = json.loads(note(name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return 0
    started = start_time(found["pid"])
    return int(found["pid"]) if started is not None and started == found["started"] else 0


def note(name: str) -> Path:
    return STATE / f"{name}.pid"


def start_time(pid: int) -> float | None:
    """When the process started; None if there is no such process, or only a zombie."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def group(leader: int) -> list[int]:
    """The running processes of a group."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(name: str, ready: Callable[[], bool]) -> None:
    """Wait until `ready()` is true.

    Raises:
        LpoError: if the process ends or takes longer than PATIENCE; with the end of its log.
    """
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if not alive(name) or time.monotonic() > deadline:
            end = "ended" if not alive(name) else f"did not answer within {PATIENCE:.0f} s"
            tail = "\n".join((STATE / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
            stop(name)
            raise LpoError(f"the {name} {end}:\n{tail}", str(STATE / f"{name}.log"), "fix that, then make up")
        time.sleep(0.3)
