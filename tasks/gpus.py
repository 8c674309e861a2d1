"""Holding some GPUs of this machine, so that no other stage uses them.

    with held(visible(), 1) as gpus:
        process.run(command, folder, environment=gpus.environment, keep=gpus.files)

A held GPU is a lock on a file in the machine's folder for temporary files. The operating system frees it when the last
process that has the file open has ended, however it ended. `keep` gives the file to the command's process group too: a
GPU is free when the command is gone, also where this process was killed before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lpo.timings.gpus import VARIABLE, Use, read
from tasks.process import STOP, Stopped

LOCKS = Path(tempfile.gettempdir())  # one for all clones and users of the machine


@dataclass(frozen=True)
class Gpus:
    """Held GPUs: their names, and the open files whose locks say so."""

    names: tuple[str, ...]
    files: tuple[int, ...]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that let a process see these GPUs alone; none where the machine has no GPU."""
        return {VARIABLE: ",".join(self.names)} if self.names else {}


@contextmanager
def held(
    names: Sequence[str], count: int, waiting: Callable[[], None] = lambda: None, folder: Path = LOCKS
) -> Iterator[Gpus]:
    """Hold `count` of the named GPUs, or all if there are fewer; wait until so many are free.

    While some are taken none is held, so that two processes never wait for each other.

    Args:
        waiting: called once if not enough of them are free.
    """
    count = min(count, len(names))
    told = False
    while True:
        with contextlib.ExitStack() as stack:
            taken: list[tuple[str, int]] = []
            for name in names:
                if len(taken) < count and (file := _lock(folder, name)) is not None:
                    stack.callback(os.close, file)
                    taken.append((name, file))
            if len(taken) == count:
                yield Gpus(tuple(name for name, _ in taken), tuple(file for _, file in taken))
                return
        if not told:
            waiting()
            told = True
        if STOP.is_set():
            raise Stopped
        time.sleep(0.5)


def _lock(folder: Path, name: str) -> int | None:
    """The open and locked file of a GPU; None if another process has it."""
    path = folder / f"lpo-gpu-{re.sub(r'[^A-Za-z0-9-]', '_', name)}.lock"
    with contextlib.suppress(FileExistsError):  # another user may have made it, who alone may write to it
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    return file


def with_use(message: str, use: Use | None) -> str:
    """A state's message, and below it what GPUs did, which has no other way to the run that started this one."""
    return message if use is None else f"{message}\n{json.dumps(asdict(use))}"


def read_use(message: str) -> tuple[str, Use | None]:
    """What `with_use` was given."""
    first, _, use = message.partition("\n")
    return first, read(json.loads(use)) if use else None
