"""Work in parts, over several processes of this machine: one a visible GPU, or one a core where models are small.

    with Workers(processes(device, "data/base")) as workers:
        for result in workers.map(painter, (model, settings), parts, "sample"):    # in the order of the parts
            ...

`painter(*arguments)` loads what the work needs, once in each process, and returns a function of one part. A result
depends on its part alone, so the number of processes changes nothing but the time. It is not a parameter either:
params.yaml travels with a run to other machines, and DVC would see a change. LPO_PROCESSES sets it for one machine.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm

from lpo.errors import LpoError

Part = TypeVar("Part")
Result = TypeVar("Result")
Make = Callable[..., Callable[[Part], Result]]

VARIABLE = "LPO_PROCESSES"
START = "spawn"  # a fork would share a GPU's context and copy threads' locks
SMALL = 500_000_000  # bytes of models, up to which every core loads its own
_made: tuple[bytes, Callable[[Any], Any]] | None = None  # in a worker: `make` and its arguments, and what they made


def processes(device: torch.device, *models: str | Path) -> int:
    """How many processes work: LPO_PROCESSES, else one a visible GPU, else one a core where `models` are small.

    Raises:
        LpoError: if LPO_PROCESSES is no number above zero.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or multiprocessing.parent_process() is not None:
        return 1  # the other processes are there already
    if (found := wished()) is not None:
        return found
    if device.type == "cuda":
        return torch.cuda.device_count()
    return cores() if all(_is_small(Path(model)) for model in models) else 1


def wished() -> int | None:
    """What LPO_PROCESSES says, or None.

    Raises:
        LpoError: if it is no number above zero.
    """
    found = os.environ.get(VARIABLE)
    if found and (not found.isdigit() or int(found) == 0):
        raise LpoError(f"{VARIABLE} is {found!r}", "environment", "set a number from 1 up, or unset it")
    return int(found) if found else None


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def decoders(device: torch.device) -> int:
    """Threads that decode pictures for a GPU: its share of the cores. Where the CPU computes, none is free: 1."""
    return max(1, cores() // max(1, torch.cuda.device_count())) if device.type == "cuda" else 1


def _is_small(model: Path) -> bool:
    """Whether it is here, and small. What is only on the hub counts as large."""
    if not model.is_dir():
        return False
    return sum(file.stat().st_size for file in model.rglob("*") if file.is_file()) <= SMALL


class Workers:
    """`count` processes, started when the first `map` has parts for them; with 1 the work is done in this process."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.pool: ProcessPoolExecutor | None = None
        self.made: tuple[Any, Callable[[Any], Any]] | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.made = None
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def map(
        self, make: Make[Part, Result], arguments: tuple[Any, ...], parts: Iterable[Part], label: str = ""
    ) -> Iterator[Result]:
        """`make(*arguments)(part)` of every part, in order, with a progress bar (none where `label` is empty).

        make: a function of a module. What it returns is kept in a process until another one or other arguments are
        asked for. Nothing is loaded where there are no parts.

        Raises:
            LpoError: if a process was killed. What a part raises is raised here; the results before it were yielded.
        """
        with tqdm(
            total=len(parts) if isinstance(parts, Sized) else None, desc=label, disable=not label, mininterval=2
        ) as bar:
            for result in self._results(make, arguments, parts):
                yield result
                bar.update()

    def _results(self, make: Make[Part, Result], arguments: tuple[Any, ...], parts: Iterable[Part]) -> Iterator[Result]:
        if self.count == 1:
            for part in parts:
                yield self._here(make, arguments)(part)
            return
        job = pickle.dumps((make, arguments))
        pending: deque[Future[Result]] = deque()
        try:
            for part in parts:
                self.pool = self.pool or _pool(self.count)
                pending.append(self.pool.submit(_run, job, part))
                if len(pending) > 2 * self.count:  # enough to keep all at work, and few results in memory
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            remedy = f"give the machine more memory, or set {VARIABLE} below {self.count}; then run again"
            raise LpoError("a process was killed, perhaps for want of memory", "", remedy) from error

    def _here(self, make: Make[Part, Result], arguments: tuple[Any, ...]) -> Callable[[Part], Result]:
        if self.made is None or self.made[0] != (make, arguments):
            self.made = None
            free()
            self.made = (make, arguments), make(*arguments)
        return self.made[1]


def free() -> None:
    """Give back the memory of models that nobody holds any more."""
    gc.collect()
    torch.cuda.empty_cache()


def _pool(count: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context(START)
    numbers = context.Queue()
    for number in range(count):
        numbers.put(number)
    return ProcessPoolExecutor(count, context, _settle, (numbers, count))


def _settle(numbers: Queue[int], count: int) -> None:
    """In a worker: a GPU or a share of the cores of its own; it ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    number = numbers.get()
    torch.set_num_threads(max(1, cores() // count))
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(job: bytes, part: Part) -> Any:
    """In a worker: one part, by what the pickled (make, arguments) make; it is kept for the next part."""
    global _made
    if _made is None or _made[0] != job:
        _made = None
        free()
        make, arguments = pickle.loads(job)
        _made = job, make(*arguments)
    return _made[1](part)
