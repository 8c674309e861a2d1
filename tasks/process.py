"""Run a command as a process group that is watched line by line and never left behind.

A group is stopped with SIGINT, which ends dvc and its stage at once, and after `GRACE` seconds with SIGKILL. That
happens when the flow run is cancelled (Prefect raises `TerminationSignal`, a BaseException), when `STOP` is set, and,
through guard.py, when this process dies.
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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

GRACE = 8.0  # seconds from SIGINT to SIGKILL; a cancelled run must be gone after 15
GUARD = Path(__file__).with_name("guard.py")
STOP = threading.Event()  # set by the main thread: commands of other threads stop too
KEPT = 2000  # lines of output that are kept for the message of a failure
BAR = re.compile(r"(\d+)%\|.*?\| *([\d.]+\w?)/([\d.]+\w?)")  # tqdm: " 40%|████      | 2/5 [..."


class Stopped(BaseException):
    """The command was stopped because the run ends; no `except Exception` may take it for a failure."""


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
) -> Finished:
    """Run `command` in `folder`; standard output and error arrive together, as they are written.

    Args:
        on_line: gets every whole line.
        on_progress: gets what tqdm draws over and over in one line: percent, and the text.
        environment: is added to this process's own.
    """
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", str(GUARD), str(GRACE), *command],
        cwd=folder,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
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
        # Also after a good end: a dvc that was killed leaves its stage behind, which would go on writing.
        _signal(process, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe:
                pipe.close()


def _read(process: subprocess.Popen[bytes], take: Callable[[str, bool], None]) -> None:
    """Hand over every piece of output that ends in a newline, or in a return (then it is drawn over)."""
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
                _signal(process, signal.SIGKILL)  # what holds the pipe open is what was left behind
    if rest:
        take(rest.decode(errors="replace"), False)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
