"""Fifty people vote at once, over HTTP: nothing is lost, nothing is there twice.

    python tests/web/test_vote_load.py 5000        the same with 5,000 votes, and how fast they were answered
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from support.ballot_box import RULES, fill, page, serving

from lpo.votes.store import votes_frame

VOTERS = 50
pytestmark = pytest.mark.slow


async def person(address: str, votes: int, seconds: list[float]) -> dict[str, str]:
    """Ask and vote, as the page does. Returns question -> choice of all votes that were acknowledged."""
    acknowledged = {}
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        while len(acknowledged) < votes:
            pair = (await client.get("/pair")).json()
            choice = ("left", "right", "tie")[len(acknowledged) % 3]
            started = time.perf_counter()
            answer = await client.post("/vote", json={"pair": pair["pair"], "choice": choice, "seconds": 1.0})
            seconds.append(time.perf_counter() - started)
            if answer.status_code == 429:
                await asyncio.sleep(float(answer.headers["retry-after"]))
            elif answer.status_code == 200:
                acknowledged[pair["pair"]] = choice
    return acknowledged


def crowd(folder: Path, votes: int) -> list[float]:
    """Let `VOTERS` give that many votes together. Returns the seconds that each answer took."""
    box = page(folder, replace(RULES, votes_per_set=5))
    fill(box.store, votes // 5 + VOTERS)
    seconds: list[float] = []

    async def all_of_them(address: str) -> list[dict[str, str]]:
        return await asyncio.gather(*(person(address, votes // VOTERS, seconds) for _ in range(VOTERS)))

    with serving(box) as address:
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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        took = np.array(crowd(Path(folder), int(sys.argv[1]))) * 1000
        print(f"{len(took)} votes: median {np.median(took):.0f} ms, 95th percentile {np.quantile(took, 0.95):.0f} ms")
