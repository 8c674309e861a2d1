"""Which question comes next: sides by lot, nobody twice, checks among them, and answers that come once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.ballot_box import BASE, RULES, TUNED, fill

from lpo.votes.questions import Refused, answer, ask, progress, undo
from lpo.votes.store import Store, votes_frame


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "votes.sqlite")


def question(store: Store, voter: str = "v", rules=RULES, after: str = ""):  # type: ignore[no-untyped-def]
    found, _ = ask(store, voter, rules, after)
    assert found is not None
    return found


def test_sides_are_balanced_and_do_not_follow_the_model(store: Store) -> None:
    """Over 2,000 questions each model is left in half of them, within three standard deviations of a fair coin."""
    fill(store, 100)
    for voter in range(20):
        for _ in range(100):
            one = question(store, f"v{voter}", replace(RULES, votes_per_set=20))
            answer(store, f"v{voter}", one.question_id, [0, 1], 1.0)
    frame = votes_frame(store.path)
    assert len(frame) == 2000
    shown_left = frame["model_a"].where(frame["side"] == "a", frame["model_b"])
    left = [int((shown_left == name).sum()) for name in (TUNED, BASE)]
    assert sum(left) == 2000 and abs(left[0] - 1000) < 3 * (2000 * 0.25) ** 0.5
    # Each voter chose the left picture always: the tuned model wins exactly where it stood there.
    won = (frame["choice"] == "a") == (frame["side"] == "a")
    assert won.all()


def test_a_set_is_seen_by_two_voters_and_by_each_once(store: Store) -> None:
    fill(store, 3)
    seen = {}
    for voter in ("v", "w", "x"):
        prompts = []
        while (found := ask(store, voter, RULES)[0]) is not None:
            prompts.append(found.prompt)
            answer(store, voter, found.question_id, [0, 1], 1.0)
        seen[voter] = prompts
    assert sorted(seen["v"]) == sorted(seen["w"]) == ["a cat 0", "a cat 1", "a cat 2"]
    assert seen["x"] == []


def test_a_set_that_somebody_skipped_goes_to_another_voter(store: Store) -> None:
    fill(store, 1)
    rules = replace(RULES, votes_per_set=1)
    answer(store, "v", question(store, "v", rules).question_id, None, 1.0)
    assert ask(store, "v", rules)[0] is None
    assert question(store, "w", rules).prompt == "a cat 0"


def test_an_open_question_comes_again_and_the_next_one_waits_behind_it(store: Store) -> None:
    fill(store, 9)
    first = question(store)
    assert question(store) == first  # the page was loaded again
    second = question(store, after=first.question_id)
    assert second != first and question(store, after=first.question_id) == second
    assert answer(store, "v", first.question_id, [0, 1], 1.0)
    assert question(store) == second


def test_few_sets_are_told_before_there_are_none(store: Store) -> None:
    fill(store, 9)
    assert ask(store, "v", RULES)[1] is False  # 8 wait behind it
    assert ask(store, "v", RULES, after=question(store).question_id)[1] is True


def test_only_sets_of_the_source_are_shown(store: Store) -> None:
    fill(store, 1, source="last night")
    assert ask(store, "v", RULES)[0] is None


def test_an_answer_counts_once_and_another_answer_is_refused(store: Store) -> None:
    fill(store, 1)
    one = question(store)
    assert answer(store, "v", one.question_id, [0, 1], 1.0) is True
    assert answer(store, "v", one.question_id, [0, 1], 9.0) is False
    with pytest.raises(Refused, match="before"):
        answer(store, "v", one.question_id, [1, 0], 1.0)
    with pytest.raises(Refused, match="no such question"):
        answer(store, "w", one.question_id, [0, 1], 1.0)  # it was put to v
    with pytest.raises(Refused, match="2 pictures"):
        answer(store, "v", one.question_id, [0, 1, 2, 3], 1.0)
    assert len(votes_frame(store.path)) == 1


def test_undo_takes_back_one_vote_after_the_other_and_asks_again(store: Store) -> None:
    fill(store, 3)
    ids = []
    for ranks in ([0, 1], None):
        ids.append(question(store).question_id)
        answer(store, "v", ids[-1], ranks, 1.0)
    ahead = question(store)
    again = undo(store, "v", ids[1])
    assert undo(store, "v", ids[1]) == again  # the request came twice
    assert question(store) == again and question(store, after=again.question_id) == ahead
    with pytest.raises(Refused, match="before"):
        answer(store, "v", ids[1], None, 1.0)
    assert progress(store, "v") == {"votes": 1, "last": ids[0]}
    first = undo(store, "v")
    assert first.prompt == "a cat 0" and progress(store, "v") == {"votes": 0, "last": None}
    with pytest.raises(Refused, match="no vote"):
        undo(store, "v")
    answer(store, "v", first.question_id, [1, 0], 1.0)
    frame = votes_frame(store.path)
    assert frame["undone"].tolist() == [True, True, False]


def test_checks_repeat_a_question_turned_or_have_an_obvious_answer(store: Store) -> None:
    fill(store, 200, obvious=40)
    shown: dict[str, list[str]] = {}
    repeated, order = 0, []
    for _ in range(200):
        one = question(store, rules=replace(RULES, check_share=0.3))
        if one.prompt in shown:
            repeated += 1
            assert one.shown == shown[one.prompt][::-1] and order.index(one.prompt) < len(order) - 5
        shown.setdefault(one.prompt, one.shown)
        order.append(one.prompt)
        answer(store, "v", one.question_id, [0, 1], 1.0)
    kinds = votes_frame(store.path)["kind"].value_counts()
    assert kinds["repeat"] == repeated
    assert 15 < kinds["repeat"] < 45 and 15 < kinds["obvious"] <= 40  # 30 of each expected, of 60 checks


def test_a_question_that_somebody_left_open_is_released_after_an_hour(store: Store) -> None:
    fill(store, 1)
    rules = replace(RULES, votes_per_set=1)
    old = question(store, "v", rules)
    assert ask(store, "w", rules)[0] is None
    with store.writing() as db:
        db.execute("UPDATE questions SET asked_at = '2000-01-01T00:00:00.000+00:00'")
    assert question(store, "w", rules).prompt == old.prompt
    assert answer(store, "v", old.question_id, [0, 1], 1.0)  # who comes back may still answer
