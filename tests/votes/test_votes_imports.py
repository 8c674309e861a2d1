"""Votes that others collected, in each of the forms, and what is no vote."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from support.ballot_box import picture

from lpo.data.sources import Left
from lpo.errors import LpoError
from lpo.votes.imports import Vote, import_votes, read_votes
from lpo.votes.store import Store, votes_frame

A, B = "a.png", "b.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / A).write_bytes(picture(1))
    (tmp_path / B).write_bytes(picture(2))
    return tmp_path


def uri(number: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture(number)).decode()}"


def found(folder: Path, name: str, text: Any, **columns: str) -> list[Vote | Left]:
    (folder / name).write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return list(read_votes(folder / name, folder, columns))


def ranks(votes: list[Vote | Left]) -> list[list[float] | None | str]:
    return [vote.reason if isinstance(vote, Left) else vote.ranks for vote in votes]


def test_a_table_of_prompt_image_a_image_b_choice(folder: Path) -> None:
    rows = [f"a cat,{A},{B},{choice},me" for choice in ("A", "right", "tie", "", "2", "image b", "maybe")]
    rows += [f",{A},{B},A,me", f"a cat,../x.png,{B},A,me", f"a cat,{A},{A},A,me", f"a cat,absent.png,{B},A,me"]
    votes = found(folder, "votes.csv", "\n".join(["prompt,image a,image b,choice,voter", *rows]))
    assert ranks(votes)[:6] == [[0, 1], [1, 0], [0, 0], None, [1, 0], [1, 0]]
    words = ("maybe", "no prompt", "leaves its folder", "the same", "absent.png")
    assert len(votes) == 11 and all(word in reason for word, reason in zip(words, ranks(votes)[6:], strict=True))
    assert [vote.row for vote in votes if isinstance(vote, Left)] == [6, 7, 8, 9, 10]


def test_columns_of_other_names(folder: Path) -> None:
    text = f"q,one,two,winner\na cat,{A},{B},two\n"
    with pytest.raises(LpoError, match="no column for prompt, image_a, image_b"):
        found(folder, "votes.csv", text)
    assert ranks(found(folder, "votes.csv", text, prompt="q", image_a="one", image_b="two")) == [[1, 0]]


def test_an_export_of_label_studio(folder: Path) -> None:
    def annotation(result: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {"completed_by": {"id": 3, "email": "x@example.org"}, "result": result, "lead_time": 4.5, **more}

    pairwise = {"type": "pairwise", "from_name": "pw", "value": {"selected": "right"}}
    choices = {"type": "choices", "value": {"choices": ["Tie"]}}
    data = {"prompt": "a cat", "image1": f"/data/local-files/?d={A}", "image2": f"/data/upload/{B}"}
    votes = found(folder, "export.json", [
        {"id": 1, "data": data, "annotations": [
            annotation([pairwise]), annotation([choices]), annotation([], was_cancelled=True)]},
        {"id": 2, "data": data, "annotations": [annotation([{"type": "rating", "value": {"rating": 3}}])]},
        {"id": 3, "data": {**data, "image2": "https://example.org/b.png"}, "annotations": [annotation([pairwise])]},
        {"id": 4, "data": {"prompt": "a cat"}, "annotations": [annotation([pairwise])]},
    ])  # fmt: skip
    assert ranks(votes)[:3] == [[1, 0], [0, 0], None]
    words = ("neither a pairwise", "nothing is downloaded", "0 pictures")
    assert all(word in reason for word, reason in zip(words, ranks(votes)[3:], strict=True))
    assert isinstance(votes[0], Vote) and votes[0].seconds == 4.5 and votes[0].voter == "x@example.org"


def test_an_export_of_argilla(folder: Path) -> None:
    pair = {"prompt": "a cat", "first": uri(1), "second": uri(2)}
    four = {"prompt": "a cat", **{f"r{k}": uri(k) for k in range(4)}}
    ranking = [{"value": "r2", "rank": 1}, {"value": "r0", "rank": 2}, {"value": "r1", "rank": 3},
               {"value": "r3", "rank": 3}]  # fmt: skip
    votes = found(folder, "records.json", [
        {"id": "1", "fields": pair, "responses": {"preference": [
            {"value": "second", "user_id": "u"}, {"value": "tie", "user_id": "v"},
            {"value": "first", "user_id": "w", "status": "draft"}]}},
        {"id": "2", "fields": four, "responses": {"order": [{"value": ranking, "user_id": "u"}]}},
        {"id": "3", "fields": four, "responses": {"order": [{"value": ranking[:2], "user_id": "u"}]}},
        {"id": "4", "fields": pair, "responses": {}},
        {"id": "5", "fields": {**pair, "second": "data:image/png;base64,AAAA"}, "responses": {}},
    ])  # fmt: skip
    assert ranks(votes)[:3] == [[1, 0], [0, 0], [2, 3, 1, 3]]
    assert "does not rank" in str(ranks(votes)[3]) and "the picture" in str(ranks(votes)[4]) and len(votes) == 5


@pytest.mark.parametrize("text", ["{", "[1, 2]", '{"a": 1}', "[" * 100_000, "null"])
def test_a_file_that_is_no_export_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(LpoError):
        found(folder, "export.json", text)


def test_imported_twice_a_vote_is_there_once_and_no_names_are_stored(folder: Path, tmp_path: Path) -> None:
    text = f"prompt,image_a,image_b,choice,voter\na cat,{A},{B},A,ann@example.org\na cat,{A},{B},B,bob\na cat,{A},x,A,c"
    store = Store(tmp_path / "votes.sqlite")
    for new, known in ((2, 0), (0, 2)):
        counts, left = import_votes(store, found(folder, "votes.csv", text))
        assert counts == {"new": new, "known": known, "left_out": 1} and left[0].row == 2
    frame = votes_frame(store.path)
    assert sorted(frame["share_a"]) == [0, 1] and set(frame["kind"]) == {"regular"}
    assert b"ann@example.org" not in (tmp_path / "votes.sqlite").read_bytes()
