"""The store: what is acknowledged stays, nothing is there twice, whoever writes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.new_pairs import png

from lpo.errors import LpoError
from lpo.votes.store import Store, add_votes, ballots, votes_frame

VOTES_UNTIL_KILLED = """
import sys
from pathlib import Path
from lpo.votes.store import Store, add_votes, ballots
store, writer = Store(Path(sys.argv[1])), sys.argv[2]
number = 0
while True:
    number += 1
    with store.writing() as db:
        add_votes(db, f"{writer}-{number}", 1, writer, "regular", ballots(sys.argv[3:5], [0, 1]), 1.0)
    print(f"{writer}-{number}", flush=True)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "votes.sqlite")


def shown(store: Store) -> list[str]:
    with store.reading() as db:
        return [name for (name,) in db.execute("SELECT sha256 FROM images ORDER BY sha256")]


def test_a_set_is_stored_once_and_needs_different_pictures(store: Store) -> None:
    first = store.add_set("a cat", [png(1), png(2)], ["base@1", "lpo-2"])
    assert store.add_set("a cat", [png(2), png(1)], ["lpo-2", "base@1"]) == first
    assert store.add_set("a cat", [png(1), png(1)], ["base@1", "lpo-2"]) is None
    assert len(shown(store)) == 2


def test_votes_are_about_the_pictures_whichever_side_they_were_shown_on(store: Store) -> None:
    chosen = store.add_set("a cat", [png(1), png(2)], ["red 1", "red 2"])
    assert chosen is not None
    low, high = shown(store)
    with store.writing() as db:
        for name, order, ranks in (
            ("q1", [low, high], [0, 1]), ("q2", [high, low], [1, 0]), ("q3", [high, low], [0, 1]),
            ("q4", [low, high], [1, 1]), ("q5", [low, high], None),
        ):  # fmt: skip
            assert add_votes(db, name, chosen, "v", "regular", ballots(order, ranks), 2.5) == 1
            assert add_votes(db, name, chosen, "v", "regular", ballots(order, ranks), 2.5) == 0  # it is there
    frame = votes_frame(store.path)
    assert frame["choice"].tolist() == ["a", "a", "b", "tie", "skip"]
    assert frame["share_a"].fillna(-1).tolist() == [1, 1, 0, 0.5, -1]
    assert frame["side"].tolist() == ["a", "b", "b", "a", "a"]
    assert set(frame["image_a"]) == {low} and set(frame["image_b"]) == {high}
    assert set(frame["model_a"] + frame["model_b"]) in ({"red 1red 2"}, {"red 2red 1"})


def test_a_ranking_is_the_votes_of_all_its_pairs(store: Store) -> None:
    store.add_set("a cat", [png(i) for i in range(4)], list("wxyz"))
    order = shown(store)[::-1]
    with store.writing() as db:
        assert add_votes(db, "q", 1, "v", "regular", ballots(order, [2, 0, 1, 3]), 9.0) == 6
    frame = votes_frame(store.path)
    wins = {name: sum(((frame["image_a"] == name) & (frame["choice"] == "a"))
                      | ((frame["image_b"] == name) & (frame["choice"] == "b"))) for name in order}  # fmt: skip
    assert [wins[name] for name in order] == [1, 3, 2, 0]


def test_what_a_block_did_is_undone_where_it_raises(store: Store) -> None:
    store.add_set("a cat", [png(1), png(2)], ["x", "y"])
    with pytest.raises(RuntimeError), store.writing() as db:
        db.execute("UPDATE sets SET claims = 7")
        raise RuntimeError
    with store.reading() as db:
        assert db.execute("SELECT claims FROM sets").fetchone() == (0,)


def test_a_vote_is_flushed_before_it_is_acknowledged_and_one_flush_serves_many(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twelve writers at once: each returns after a flush that began when its vote was in the log."""
    store.add_set("a cat", [png(1), png(2)], ["x", "y"])
    names, flushes, returned = shown(store), [], {}

    def slow(file: int) -> None:
        with closing(sqlite3.connect(store.path)) as db:
            flushes.append({name for (name,) in db.execute("SELECT question_id FROM votes")})
        time.sleep(0.05)

    def vote(name: str) -> None:
        with store.writing() as db:
            add_votes(db, name, 1, name, "regular", ballots(names, [0, 1]), 1.0)
        returned[name] = len(flushes)

    monkeypatch.setattr(os, "fsync", slow)
    writers = [threading.Thread(target=vote, args=(f"q{i}",)) for i in range(12)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(returned) == 12
    assert all(any(name in seen for seen in flushes[: returned[name]]) for name in returned)
    assert len(flushes) < 12
    before = len(flushes)
    with store.writing(flush=False) as db:
        db.execute("UPDATE sets SET claims = 1")
    assert len(flushes) == before  # what a power cut may undo waits for nothing


def test_a_file_that_is_no_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "votes.sqlite").write_bytes(b"something else, longer than a header of SQLite" * 40)
    with pytest.raises(LpoError, match="cannot be read"):
        votes_frame(tmp_path / "votes.sqlite")
    assert (tmp_path / "votes.sqlite").read_bytes().startswith(b"something else")
    assert votes_frame(tmp_path / "absent.sqlite").empty and not (tmp_path / "absent.sqlite").exists()


def open_at_once(path: Path) -> None:
    Store(path).close()


@pytest.mark.slow
def test_processes_may_make_the_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=open_at_once, args=(tmp_path / "votes.sqlite",)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0] * 4


@pytest.mark.slow
def test_killed_twenty_times_every_acknowledged_vote_is_there(store: Store) -> None:
    store.add_set("a cat", [png(1), png(2)], ["x", "y"])
    rng, said = random.Random(0), []
    for turn in range(10):
        both = [
            subprocess.Popen(
                [sys.executable, "-c", VOTES_UNTIL_KILLED, str(store.path), f"{turn}{side}", *shown(store)],
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ,
            )  # fmt: skip
            for side in "ab"
        ]
        for process in both:
            assert process.stdout is not None and process.stdout.readline()  # it votes
        time.sleep(rng.uniform(0, 0.1))
        for process in both:
            process.send_signal(signal.SIGKILL)
            said += process.communicate()[0].split()
    with store.reading() as db:
        there = [name for (name,) in db.execute("SELECT question_id FROM votes")]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(said) > 20 and set(said) <= set(there) and len(there) == len(set(there))
    assert len(there) <= len(said) + 2 * 20  # the first line of each, and one that was written but not yet said
