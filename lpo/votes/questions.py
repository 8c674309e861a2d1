"""Which pictures a voter sees next, and what becomes of the answer.

    question = ask(store, voter, rules)                a question that is open already, or a new one
    answer(store, voter, question.question_id, ranks)  its votes, once
    undo(store, voter)                                 takes the last answer back, and asks again

A new question is drawn by lot, seeded with (rules.seed, voter, the number of the question). With probability
check_share it is a check: an earlier question of the voter with its pictures turned, or a pair with an obvious answer.
Otherwise it is a regular set that this voter has not seen, nor votes_per_set others; of these, the one that most others
have seen. Sides are drawn by lot too.
"""

from __future__ import annotations

import json
import random
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from lpo.errors import LpoError
from lpo.votes.store import Store, add_votes, ballots, now

GAP = 5  # questions between one and its repetition
AHEAD = 8  # sets that wait for a voter before more are drawn
FORGOTTEN = timedelta(hours=1)  # an open question that is older no longer reserves its set


@dataclass(frozen=True)
class Rules:
    """source: whose sets are shown. votes_per_set: voters who see a set. check_share: of the questions."""

    source: str
    votes_per_set: int
    check_share: float
    seed: int


class Question(NamedTuple):
    """shown: SHA-256 of 2 or 4 pictures from left to right."""

    question_id: str
    prompt: str
    shown: list[str]


class Refused(LpoError):
    """An answer that cannot be taken: nobody asked, or it says something else than the first answer did."""


def ask(store: Store, voter: str, rules: Rules, after: str = "") -> tuple[Question | None, bool]:
    """The question that a voter answers next, and whether fewer than `AHEAD` sets wait behind it.

    Args:
        after: a question that the voter is still looking at; the one after it is prepared meanwhile.

    Returns:
        None if no set is left for this voter.
    """
    with store.writing(flush=False) as db:
        found = db.execute(
            "SELECT question_id, prompt, shown FROM questions JOIN sets USING (set_id)"
            " WHERE voter = ? AND state = 'open' AND question_id != ? AND source = ?"
            " ORDER BY asked_at, questions.rowid LIMIT 1",
            (voter, after, rules.source),
        ).fetchone()
        if found:
            return Question(found[0], found[1], json.loads(found[2])), _left(db, voter, rules) < AHEAD
        number = db.execute("SELECT count(*) FROM questions WHERE voter = ?", (voter,)).fetchone()[0]
        rng = random.Random(f"{rules.seed}/{voter}/{number}")
        checked, repeated = rng.random() < rules.check_share, rng.random() < 0.5
        question = None
        if checked:
            first, second = (_repeat, _obvious) if repeated else (_obvious, _repeat)
            question = first(db, voter, rules, rng) or second(db, voter, rules, rng)
        question = question or _regular(db, voter, rules, rng)
        if question is None and _forget(db, voter):
            question = _regular(db, voter, rules, rng)
        return question, _left(db, voter, rules) < AHEAD


def answer(store: Store, voter: str, question_id: str, ranks: Sequence[float] | None, seconds: float) -> bool:
    """Write the votes of one question.

    Args:
        ranks: of each picture from left to right, the lowest is the best; None for a skip.

    Returns:
        False if the same answer was there already: a request may come twice.

    Raises:
        Refused: if this voter was not asked, or answered differently before.
    """
    with store.writing() as db:
        found = db.execute(
            "SELECT set_id, kind, shown, state FROM questions WHERE question_id = ? AND voter = ?", (question_id, voter)
        ).fetchone()
        if not found:
            raise Refused("there is no such question")
        set_id, kind, names, state = found
        shown = json.loads(names)
        if ranks is not None and len(ranks) != len(shown):
            raise Refused(f"the question shows {len(shown)} pictures")
        votes = ballots(shown, ranks)
        if state in ("answered", "undone"):
            before = db.execute(
                "SELECT image_a, image_b, choice, side FROM votes WHERE question_id = ?", (question_id,)
            ).fetchall()
            if state == "undone" or set(before) != {tuple(vote) for vote in votes}:
                raise Refused("this question was answered before")
            return False
        add_votes(db, question_id, set_id, voter, kind, votes, seconds)
        db.execute("UPDATE questions SET state = 'answered' WHERE question_id = ?", (question_id,))
        skipped, forgotten = ranks is None, state == "expired"
        if kind == "regular" and skipped != forgotten:
            _claim(db, set_id, -1 if skipped else 1)
        return True


def undo(store: Store, voter: str, question_id: str = "") -> Question:
    """Take back the voter's last answer (that to `question_id`, if it is given), and ask the same again.

    Raises:
        Refused: if there is nothing to take back, another answer is the last one, or it is in the inbox already.
    """
    with store.writing() as db:
        if question_id and (again := _asked_again(db, voter, question_id)):
            return again
        last = db.execute(
            "SELECT question_id, batch, choice FROM votes WHERE voter = ? AND undone = 0 ORDER BY vote_id DESC LIMIT 1",
            (voter,),
        ).fetchone()
        if not last or (question_id and last[0] != question_id):
            raise Refused("there is no vote to take back" if not last else "this is not your last vote")
        if last[1]:
            raise Refused("this vote is in the inbox already")
        db.execute("UPDATE votes SET undone = 1 WHERE question_id = ?", (last[0],))
        db.execute("UPDATE questions SET state = 'undone' WHERE question_id = ?", (last[0],))
        set_id, kind, shown, repeats, asked_at = db.execute(
            "SELECT set_id, kind, shown, repeats, asked_at FROM questions WHERE question_id = ?", (last[0],)
        ).fetchone()
        if kind == "regular" and last[2] == "skip":
            _claim(db, set_id, 1)
        again = _new(db, set_id, voter, kind, json.loads(shown), repeats, asked_at, f"{last[0]}+")
        db.execute("UPDATE questions SET repeats = ? WHERE repeats = ?", (again.question_id, last[0]))
        return again


def progress(store: Store, voter: str) -> dict[str, Any]:
    """{"votes": questions that were answered, "last": the one that `undo` takes back, or None}."""
    with store.reading() as db:
        of_voter = "FROM votes WHERE voter = ? AND undone = 0"
        (votes,) = db.execute(
            f"SELECT count(DISTINCT question_id) {of_voter} AND choice != 'skip'", (voter,)
        ).fetchone()
        last = db.execute(f"SELECT question_id, batch {of_voter} ORDER BY vote_id DESC LIMIT 1", (voter,)).fetchone()
        return {"votes": votes, "last": last[0] if last and not last[1] else None}


def _regular(db: sqlite3.Connection, voter: str, rules: Rules, rng: random.Random) -> Question | None:
    found = db.execute(
        "SELECT set_id, images FROM sets WHERE source = ? AND kind = 'regular' AND claims < ? AND NOT EXISTS"
        " (SELECT 1 FROM questions WHERE questions.set_id = sets.set_id AND voter = ?)"
        " ORDER BY claims DESC, set_id LIMIT 1",
        (rules.source, rules.votes_per_set, voter),
    ).fetchone()
    if not found:
        return None
    _claim(db, found[0], 1)
    return _new(db, found[0], voter, "regular", _shuffled(found[1], rng))


def _obvious(db: sqlite3.Connection, voter: str, rules: Rules, rng: random.Random) -> Question | None:
    found = db.execute(
        "SELECT set_id, images FROM sets WHERE source = ? AND kind = 'obvious' AND NOT EXISTS"
        " (SELECT 1 FROM questions WHERE questions.set_id = sets.set_id AND voter = ?) ORDER BY set_id LIMIT 1",
        (rules.source, voter),
    ).fetchone()
    return _new(db, found[0], voter, "obvious", _shuffled(found[1], rng)) if found else None


def _repeat(db: sqlite3.Connection, voter: str, rules: Rules, rng: random.Random) -> Question | None:
    """A question that the voter answered, with its pictures turned; none of the last `GAP`, and each one once."""
    found = db.execute(
        "SELECT question_id, set_id, shown FROM questions q JOIN sets USING (set_id) WHERE voter = ? AND source = ?"
        " AND q.kind = 'regular' AND state = 'answered'"
        " AND NOT EXISTS (SELECT 1 FROM questions r WHERE r.repeats = q.question_id)"
        " AND EXISTS (SELECT 1 FROM votes v WHERE v.question_id = q.question_id AND v.choice != 'skip')"
        " ORDER BY q.rowid",
        (voter, rules.source),
    ).fetchall()[:-GAP]
    if not found:
        return None
    question_id, set_id, shown = rng.choice(found)
    return _new(db, set_id, voter, "repeat", json.loads(shown)[::-1], question_id)


def _new(
    db: sqlite3.Connection, set_id: int, voter: str, kind: str, shown: list[str], repeats: str | None = None,
    asked_at: str = "", question_id: str = "",
) -> Question:  # fmt: skip
    name = question_id or secrets.token_urlsafe(12)
    db.execute(
        "INSERT INTO questions (question_id, set_id, voter, kind, shown, repeats, asked_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (name, set_id, voter, kind, json.dumps(shown), repeats, asked_at or now()),
    )
    (prompt,) = db.execute("SELECT prompt FROM sets WHERE set_id = ?", (set_id,)).fetchone()
    return Question(name, prompt, shown)


def _asked_again(db: sqlite3.Connection, voter: str, question_id: str) -> Question | None:
    """The open question that took the place of one that was taken back: an undo may come twice."""
    found = db.execute(
        "SELECT question_id, prompt, shown FROM questions JOIN sets USING (set_id)"
        " WHERE question_id = ? AND voter = ? AND state = 'open'",
        (f"{question_id}+", voter),
    ).fetchone()
    return Question(found[0], found[1], json.loads(found[2])) if found else None


def _shuffled(images: str, rng: random.Random) -> list[str]:
    names = json.loads(images)
    rng.shuffle(names)
    return names


def _left(db: sqlite3.Connection, voter: str, rules: Rules) -> int:
    """Sets that wait for this voter, `AHEAD` at most."""
    return int(
        db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM sets WHERE source = ? AND kind = 'regular' AND claims < ?"
            " AND NOT EXISTS (SELECT 1 FROM questions WHERE questions.set_id = sets.set_id AND voter = ?)"
            " ORDER BY claims DESC, set_id LIMIT ?)",
            (rules.source, rules.votes_per_set, voter, AHEAD),
        ).fetchone()[0]
    )


def _claim(db: sqlite3.Connection, set_id: int, change: int) -> None:
    db.execute("UPDATE sets SET claims = claims + ? WHERE set_id = ?", (change, set_id))


def _forget(db: sqlite3.Connection, voter: str) -> int:
    """Release the sets of questions that others left open. Returns how many there were."""
    before = (datetime.now(UTC) - FORGOTTEN).isoformat(timespec="milliseconds")
    old = db.execute(
        "SELECT question_id, set_id FROM questions"
        " WHERE state = 'open' AND kind = 'regular' AND asked_at < ? AND voter != ?",
        (before, voter),
    ).fetchall()
    for question_id, set_id in old:
        db.execute("UPDATE questions SET state = 'expired' WHERE question_id = ?", (question_id,))
        _claim(db, set_id, -1)
    return len(old)
