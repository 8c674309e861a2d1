"""Fifty people vote at once, over HTTP: nothing is lost, nothing is there twice.

    python tests/web/test_vote_load.py 5000

does the same with 5,000 votes and says how fast they were answered. The server is then a process of its own, and each
voter votes about twice a second, at times drawn by lot, so that the voters do not move in step.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.ballot_box import RULES, fill, page, serving

from lpo.votes.store import votes_frame

VOTERS, FIVE = 50, replace(RULES, votes_per_set=5)
pytestmark = pytest.mark.slow


async def person(number: int, address: str, votes: int, pause: float, seconds: list[float]) -> dict[str, str]:
    """Ask and vote, as the page does. Returns question -> choice of all votes that were acknowledged.

    To load the certificates for TLS takes 40 ms. Fifty of that at the start would hold up all voters and let them begin
    at the same moment, so the client does without.
    """
    acknowledged, rng = {}, random.Random(number)
    async with httpx.AsyncClient(base_url=address, timeout=60, verify=False) as client:
        while len(acknowledged) < votes:
            await asyncio.sleep(rng.uniform(0, 2 * pause))
            asked = await client.get("/pair")
            if asked.status_code == 429:
                await asyncio.sleep(float(asked.headers["retry-after"]))
                continue
            pair = asked.json()
            choice = ("left", "right", "tie")[len(acknowledged) % 3]
            started = time.perf_counter()
            answer = await client.post("/vote", json={"pair": pair["pair"], "choice": choice, "seconds": 1.0})
            seconds.append(time.perf_counter() - started)
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["retry-after"]))
            elif answer.status_code == 200:
                acknowledged[pair["pair"]] = choice
    return acknowledged


@contextmanager
def apart(folder: Path) -> Iterator[str]:
    """The page of `folder` in a process of its own."""
    command = [sys.executable, __file__, "serve", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def crowd(folder: Path, votes: int, alone: bool = False) -> list[float]:
    """Let `VOTERS` give that many votes together. Returns the seconds that each answer took."""
    box = page(folder, FIVE)
    fill(box.store, votes // 5 + VOTERS)
    seconds: list[float] = []
    pause = 0.5 if alone else 0.0

    async def all_of_them(address: str) -> list[dict[str, str]]:
        each = votes // VOTERS
        return await asyncio.gather(*(person(k, address, each, pause, seconds) for k in range(VOTERS)))

    with apart(folder) if alone else serving(box) as address:
        said = {question: choice for one in asyncio.run(all_of_them(address)) for question, choice in one.items()}
    with box.store.reading() as db:
        there = db.execute("SELECT question_id, choice, side FROM votes").fetchall()
    stored = {question: "tie" if choice == "tie" else "left" if choice == side else "right"
              for question, choice, side in there}  # fmt: skip
    assert len(there) == len(stored) == len(said) == votes and stored == said
    frame = votes_frame(box.store.path)
    assert frame["voter"].value_counts().tolist() == [votes // VOTERS] * VOTERS
    assert not frame.duplicated(["voter", "image_a", "image_b"]).any()
    assert frame.groupby(["image_a", "image_b"]).size().max() <= 5
    return seconds


def test_fifty_people_at_once_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    crowd(tmp_path, 500)


if __name__ == "__main__" and sys.argv[1] == "serve":
    with serving(page(Path(sys.argv[2]), FIVE)) as address:
        print(address, flush=True)
        time.sleep(3600)
elif __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        took = np.array(crowd(Path(folder), int(sys.argv[1]), alone=True)) * 1000
        print(f"{len(took)} votes: median {np.median(took):.0f} ms, 95th percentile {np.quantile(took, 0.95):.0f} ms")
