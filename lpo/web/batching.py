"""A micro-batching queue: requests that arrive within a few milliseconds are scored together.

    batcher = Batcher(score, max_batch=32, max_wait=0.005, max_queue=256)
    task = asyncio.create_task(batcher.run())
    values = await batcher.submit(key, rows)

`score(key, rows)` gives one number a row. It runs in a thread, one batch at a time, so that the service still answers.
Only rows of equal keys share a batch. A batch starts when it is full, or when its oldest request has waited `max_wait`;
requests that came while the last batch was computed have usually waited long enough.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

Score = Callable[[Any, list[Any]], Sequence[float]]


class Full(Exception):
    """The queue holds as many rows as it may."""


class Stopped(Exception):
    """The service ended before the rows were scored."""


@dataclass(frozen=True)
class Job:
    key: Hashable
    rows: list[Any]
    done: asyncio.Future[list[float]]
    arrived: float = field(default_factory=time.monotonic)


class Batcher:
    """max_batch: rows scored together. max_wait: seconds. max_queue: rows that may wait; more are refused (Full).

    observe: called with the number of rows of each batch.
    """

    def __init__(
        self, score: Score, max_batch: int, max_wait: float, max_queue: int,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:  # fmt: skip
        self.score, self.max_batch, self.max_wait, self.max_queue = score, max_batch, max_wait, max_queue
        self.observe = observe
        self._waiting: deque[Job] = deque()
        self._scoring: list[Job] = []
        self._arrived = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Rows in the queue, without those that are being scored."""
        return sum(len(job.rows) for job in self._waiting)

    async def submit(self, key: Hashable, rows: list[Any]) -> list[float]:
        """The scores of the rows, at most max_batch of them. Raises Full, Stopped, or what `score` raised for them."""
        if self.waiting + len(rows) > self.max_queue:
            raise Full
        job = Job(key, rows, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._arrived.set()
        return await job.done

    async def run(self) -> None:
        """Score batch after batch until it is cancelled. Requests without an answer then end with Stopped."""
        try:
            while True:
                await self._fill()
                self._scoring = self._take()
                if self._scoring:
                    await self._finish(self._scoring)
        finally:
            for job in [*self._scoring, *self._waiting]:
                if not job.done.done():
                    job.done.set_exception(Stopped())

    async def _fill(self) -> None:
        """Wait for a first request, then until the batch is full or the first request has waited long enough."""
        while not self._waiting:
            await self._next(None)
        first = self._waiting[0]
        while sum(len(job.rows) for job in self._waiting if job.key == first.key) < self.max_batch:
            remaining = first.arrived + self.max_wait - time.monotonic()
            if remaining <= 0 or not await self._next(remaining):
                return

    async def _next(self, seconds: float | None) -> bool:
        """Wait for another request. False if none came in that time."""
        self._arrived.clear()
        try:
            await asyncio.wait_for(self._arrived.wait(), seconds)
        except TimeoutError:
            return False
        return True

    def _take(self) -> list[Job]:
        """The oldest request and those after it with its key, as long as they fit. Requests given up are left out."""
        live = [job for job in self._waiting if not job.done.done()]
        batch: list[Job] = []
        count = 0
        for job in live:
            if job.key == live[0].key and count + len(job.rows) <= self.max_batch:
                batch.append(job)
                count += len(job.rows)
        taken = {id(job) for job in batch}
        self._waiting = deque(job for job in live if id(job) not in taken)
        return batch

    async def _finish(self, batch: list[Job]) -> None:
        """Score a batch. If it fails, each request is scored alone, so that only the one at fault fails."""
        rows = [row for job in batch for row in job.rows]
        self.observe(len(rows))
        try:
            values = [float(value) for value in await asyncio.to_thread(self.score, batch[0].key, rows)]
        except Exception as error:
            if len(batch) == 1:
                if not batch[0].done.done():
                    batch[0].done.set_exception(error)
                return
            for job in batch:
                await self._finish([job])
            return
        for job in batch:
            own, values = values[: len(job.rows)], values[len(job.rows) :]
            if not job.done.done():
                job.done.set_result(own)
