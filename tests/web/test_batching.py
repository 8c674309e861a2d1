"""The micro-batching queue."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from lpo.web.batching import Batcher, Full, Stopped


class Model:
    """Doubles its rows; remembers the batches. A row "bad" breaks the batch. `gate` holds it back."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[Any]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.asked: list[Any] = []

    def __call__(self, key: Any, rows: list[Any]) -> list[float]:
        self.asked.append(key)
        assert self.gate.wait(10)
        self.batches.append((key, list(rows)))
        if "bad" in rows:
            raise ValueError("a bad row")
        return [2 * row for row in rows]


def run(model: Model, work: Any, max_batch: int = 4, max_wait: float = 0.2, max_queue: int = 8) -> Any:
    async def main() -> Any:
        batcher = Batcher(model, max_batch, max_wait, max_queue)
        task = asyncio.create_task(batcher.run())
        try:
            return await work(batcher)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    return asyncio.run(main())


def test_requests_of_one_kind_share_a_batch_and_get_their_own_rows_back() -> None:
    async def work(batcher: Batcher) -> Any:
        return await asyncio.gather(
            batcher.submit("a", [1, 2]),
            batcher.submit("b", [10]),
            batcher.submit("a", [3]),
            batcher.submit("a", [4, 5]),
        )

    model = Model()
    assert run(model, work) == [[2, 4], [20], [6], [8, 10]]
    assert model.batches == [("a", [1, 2, 3]), ("b", [10]), ("a", [4, 5])]  # [4, 5] would make five of four rows


def test_a_full_batch_does_not_wait_and_a_single_request_waits_no_longer_than_it_must() -> None:
    async def work(batcher: Batcher) -> float:
        clock = asyncio.get_running_loop().time
        start = clock()
        await batcher.submit("a", [1, 2, 3, 4])
        full = clock() - start
        await batcher.submit("a", [1])
        return clock() - start - full if full < 0.15 else -full

    assert 0.2 <= run(Model(), work) < 5


def test_one_request_at_fault_does_not_take_others_with_it() -> None:
    async def work(batcher: Batcher) -> Any:
        asked = (batcher.submit("a", [1]), batcher.submit("a", ["bad"]), batcher.submit("a", [3]))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = run(Model(), work)
    assert (first, third) == ([2], [6]) and isinstance(second, ValueError)


def test_a_full_queue_refuses_and_recovers() -> None:
    model = Model()
    model.gate.clear()

    async def work(batcher: Batcher) -> Any:
        waiting = []
        for queued in (0, 4, 8):  # the first four rows are soon with the model
            waiting.append(asyncio.create_task(batcher.submit("a", [1] * 4)))
            async with asyncio.timeout(10):
                while len(model.asked) != 1 or batcher.waiting != queued:
                    await asyncio.sleep(0.01)
        with pytest.raises(Full):
            await batcher.submit("a", [9])
        model.gate.set()
        await asyncio.gather(*waiting)
        return await batcher.submit("a", [9])

    assert run(model, work) == [18]


def test_a_request_that_was_given_up_is_not_scored_and_a_stop_answers_the_others() -> None:
    model = Model()

    async def work(batcher: Batcher) -> Any:
        gone = asyncio.create_task(batcher.submit("a", [1]))
        await asyncio.sleep(0.01)
        gone.cancel()
        assert await batcher.submit("a", [2]) == [4]
        left = asyncio.create_task(batcher.submit("a", [3]))
        await asyncio.sleep(0.01)
        return left

    async def main() -> None:
        batcher = Batcher(model, 4, 0.2, 8)
        task = asyncio.create_task(batcher.run())
        left = await work(batcher)
        task.cancel()
        with pytest.raises(Stopped):
            await left

    asyncio.run(main())
    assert model.batches == [("a", [2])]
