"""Votes become pairs of the inbox: each once, shares and ties, whatever is killed when."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from support.ballot_box import fill

from lpo.data.inbox import Known, examine
from lpo.data.limits import Limits
from lpo.data.tokens import Tokens
from lpo.votes import export as module
from lpo.votes.export import export
from lpo.votes.store import Store, add_votes, ballots, votes_frame


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "votes.sqlite")
    fill(store, 4)
    fill(store, 1, source="held out", split="validation", size=4)
    return store


def vote(store: Store, voter: str, set_id: int, ranks: list[float] | None, name: str = "") -> None:
    with store.writing() as db:
        (images,) = db.execute("SELECT images FROM sets WHERE set_id = ?", (set_id,)).fetchone()
        shown = json.loads(images)
        add_votes(db, name or f"{voter}-{set_id}", set_id, voter, "regular", ballots(shown, ranks), 1.0)


def exported(inbox: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted(inbox.glob("*.parquet"))], ignore_index=True)


def test_votes_of_a_pair_are_shares_and_nobody_is_counted_twice(store: Store, tmp_path: Path) -> None:
    for voter, ranks in (("u", [0, 1]), ("v", [0, 1]), ("w", [1, 0])):
        vote(store, voter, 1, ranks)
    vote(store, "u", 2, [0, 0])
    vote(store, "u", 3, None)
    vote(store, "u", 5, [0, 1, 2, 3])  # its prompt is held out
    first = export(store.path, str(tmp_path / "inbox"))
    assert (first["votes"], first["pairs"]) == (4, 2)
    assert first["not_used"] == {"its prompt is held out": 6, "the voter skipped the pair": 1}
    frame = exported(tmp_path / "inbox").set_index("caption")
    assert frame.loc["a cat 0", ["label_0", "label_1"]].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert frame.loc["a cat 1", ["label_0", "label_1"]].tolist() == [0.5, 0.5]
    assert (frame["label_0"] + frame["label_1"] == 1).all()
    assert export(store.path, str(tmp_path / "inbox"))["files"] == []
    vote(store, "w", 2, [1, 0])
    second = export(store.path, str(tmp_path / "inbox"))
    assert second["pairs"] == 1 and exported(tmp_path / "inbox")["label_0"].tolist().count(0.0) == 1


def test_the_inbox_takes_what_is_exported(store: Store, tmp_path: Path, tiny_limits: Limits) -> None:
    for voter, ranks in (("u", [0, 1]), ("v", [0, 1]), ("w", [1, 0])):
        vote(store, voter, 1, ranks)
    vote(store, "u", 2, [0, 0])
    (name,) = export(store.path, str(tmp_path / "inbox"))["files"]
    (tmp_path / "one").mkdir()
    (tmp_path / "inbox" / name).rename(tmp_path / "one/train-0.parquet")
    rows = examine(tmp_path / "one", Known({}, set(), set()), tiny_limits).rows
    assert rows["reason"].tolist() == ["", ""] and rows["new"].all()
    image = Image.open(io.BytesIO(pd.read_parquet(tmp_path / "one/train-0.parquet")["jpg_0"][0]))
    assert image.size == (32, 32)


@pytest.fixture
def tiny_limits() -> Limits:
    return Limits(Tokens(lambda captions: [3] * len(captions), 77, "a model"), cut=False, must_differ=True)


def test_killed_anywhere_the_next_export_writes_the_same_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vote(store, "u", 1, [0, 1])
    put = module._put

    def killed_before(*args: object) -> None:
        raise KeyboardInterrupt

    def killed_after(*args: object) -> None:
        put(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    contents = []
    for how in (killed_before, killed_after, put):
        monkeypatch.setattr(module, "_put", how)
        try:
            export(store.path, str(tmp_path / "inbox"))
        except KeyboardInterrupt:
            vote(store, "w", 1, [1, 0], f"w-{len(contents)}")  # a vote that comes meanwhile is of the next batch
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "inbox").glob("*.parquet")})
    assert contents[0] == {} and len(contents[1]) == 1 and contents[1].items() <= contents[2].items()
    frame = exported(tmp_path / "inbox")
    assert sorted(frame["label_0"].tolist()) == [0, 0, 1]  # each of the three votes once, in batches of their own
    with store.reading() as db:
        assert db.execute("SELECT count(*) FROM votes WHERE batch IS NULL").fetchone() == (0,)
    assert len(votes_frame(store.path)) == 3
