"""Run a command in a process group of its own, read its output line by line, and leave no process behind.

The group is stopped when the flow run is cancelled (Prefect raises `TerminationSignal`, a BaseException), when `STOP`
is set, and when this process dies (guard.py). It gets SIGINT, which ends dvc and its stage at once, and SIGKILL after
`GRACE` seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

GRACE = 8.0  # seconds from SIGINT to SIGKILL; a cancelled run must have ended after 15
GUARD = Path(__file__).with_name("guard.py")
STOP = threading.Event()  # set by the main thread to stop the commands of all threads
KEPT = 2000  # lines of output that are kept for error messages
BAR = re.compile(r"(\d+)%\|.*?\| *([\d.]+\w?)/([\d.]+\w?)")  # tqdm: " 40%|████      | 2/5 [..."


class Stopped(BaseException):
    """The command was stopped because the run is ending. A BaseException, so that nothing treats it as a failure."""


@dataclass(frozen=True)
class Finished:
    code: int  # 128 + signal if a signal ended it
    lines: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def run(
    command: Iterable[str],
    folder: Path,
    on_line: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[float, str], None] = lambda percent, line: None,
    environment: Mapping[str, str] = {},  # noqa: B006 - it is only read
    keep: Sequence[int] = (),
) -> Finished:
    """Run `command` in `folder`. Standard output and standard error are read together, as they are written.

    Args:
        on_line: called with every complete line.
        on_progress: called with the percentage and the text of each tqdm bar.
        environment: variables in addition to those of this process.
        keep: files that stay open until the command has ended, even if this process ends before. Locks on them stay.
    """
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", str(GUARD), str(GRACE), *command],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=keep,
    )
    lines: list[str] = []

    def take(text: str, drawn: bool) -> None:
        bar = BAR.search(text)
        if bar:
            on_progress(float(bar[1]), text.strip())
        if text.strip() and not (bar and drawn):
            lines.append(text.rstrip())
            del lines[:-KEPT]
            on_line(text.rstrip())

    try:
        _read(process, take)
        return Finished(process.wait(), lines)
    except BaseException:
        _signal(process, signal.SIGINT)
        deadline = time.monotonic() + GRACE
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        raise
    finally:
        # Also after a normal end: when only dvc was killed, its stage is still running and writing.
        _signal(process, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _read(process: subprocess.Popen[bytes], take: Callable[[str, bool], None]) -> None:
    """Pass on every piece of output that ends in a newline, or in a carriage return (a bar that is redrawn)."""
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if STOP.is_set():
                raise Stopped
            ready = selector.select(timeout=0.2)
            data = os.read(process.stdout.fileno(), 65536) if ready else None
            if data:
                *pieces, rest = re.split(rb"(?<=[\r\n])", rest + data)
                for piece in pieces:
                    take(piece.decode(errors="replace").strip("\r\n"), piece.endswith(b"\r"))
            elif data == b"":
                break
            elif process.poll() is not None:
                _signal(process, signal.SIGKILL)  # a process that was left behind holds the pipe open
    if rest:
        take(rest.decode(errors="replace"), False)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
