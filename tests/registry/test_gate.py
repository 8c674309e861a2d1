"""The gate by hand: one rule broken at a time, against the base and against the promoted model."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from lpo.config import People, Promote, load_params
from lpo.config.results import MARGINS
from lpo.errors import LpoError
from lpo.registry.gate import figures_of, objections, people_objections, waits_for

EMOJI = ("emoji",)
PUBLISHED = (
    "pickscore", "imagereward", "hps_v2", "hps_v2_1", "hpsv3", "vlm", "geneval", "aesthetic", "clipscore", "vqascore",
)  # fmt: skip
EVERY = [*((name, EMOJI) for name in MARGINS["emoji"]), *((name, PUBLISHED) for name in PUBLISHED)]


def comparison(opponent: str, judges: tuple[str, ...] = EMOJI) -> dict[str, Any]:
    """A model that wins 60% (55 to 65%) and loses nothing, its intervals 0.001 wide on both sides."""
    change = {opponent: 0.5, "tuned": 0.5, "difference": 0.0, "low": -0.001, "high": 0.001, "prompts": 100}
    rate = {"value": 0.6, "low": 0.55, "high": 0.65, "ties": 0.0, "prompts": 100}
    if judges == EMOJI:
        return {
            "win_rate": {"overall": rate},
            "all_correct": dict(change),
            "means": {name: dict(change) for name in ("overall", "alignment", "aesthetics")},
            "scorers": {name: dict(change) for name in ("clip", "vqa", "aesthetic")},
        }
    return {
        "win_rate": {"overall": rate},
        "judge": judges[0],
        "judges": {name: dict(change) for name in judges},
        "geneval": {"overall": dict(change), "by_task": {}},
    }


@pytest.fixture
def gate(project: Any) -> Promote:
    return load_params().promote


def test_what_wins_and_loses_nothing_passes(gate: Promote) -> None:
    assert objections(comparison("base"), gate, EMOJI) == []
    both = comparison("base") | {"promoted": {"name": "lpo-1"} | comparison("promoted")}
    assert objections(both, gate, EMOJI) == []


def test_an_interval_that_holds_the_limit_does_not_pass(gate: Promote) -> None:
    figures = comparison("base")
    figures["win_rate"]["overall"]["low"] = gate.win_rate_low  # it must lie above
    (said,) = objections(figures, gate, EMOJI)
    assert said == (
        "it wins 60.0% against the base (95% interval 50.0% to 65.0%), and the interval does not lie above 50.0%"
    )


def test_the_judge_of_the_win_rate_is_named(gate: Promote) -> None:
    figures = comparison("base", PUBLISHED)
    figures["win_rate"]["overall"]["low"] = 0.4
    (said,) = objections(figures, gate, PUBLISHED)
    assert said.startswith("it wins 60.0% against the base by PickScore (95% interval 40.0% to 65.0%)")


@pytest.mark.parametrize(("name", "judges"), EVERY)
@pytest.mark.parametrize("opponent", ["base", "promoted"])
def test_a_loss_that_may_be_larger_than_the_margin_does_not_pass(
    gate: Promote, name: str, judges: tuple[str, ...], opponent: str
) -> None:
    figures = comparison("base", judges) | {"promoted": {"name": "lpo-1"} | comparison("promoted", judges)}
    row = figures_of(figures if opponent == "base" else figures["promoted"], name)
    margin = gate.margins[name]
    row["low"] = -margin
    assert objections(figures, gate, judges) == []  # the margin itself is allowed
    row["low"] = -margin - 1e-6
    (said,) = objections(figures, gate, judges)
    assert said.startswith(f"{name} changes by +0.0000 against the {opponent}")


def test_margins_of_other_judges_are_not_asked(gate: Promote) -> None:
    """PickScore alone: nothing of emoji, and nothing of a judge whose figures are poor but that is not named."""
    figures = comparison("base", PUBLISHED)
    figures["judges"]["imagereward"]["low"] = -9.0
    assert objections(figures, gate, ("pickscore",)) == []
    assert len(objections(figures, gate, ("pickscore", "imagereward"))) == 1


def test_a_margin_that_is_left_out_is_not_asked(gate: Promote) -> None:
    figures = comparison("base", PUBLISHED)
    figures["judges"]["imagereward"]["low"] = -9.0
    fewer = replace(gate, margins={k: v for k, v in gate.margins.items() if k != "imagereward"})
    assert objections(figures, fewer, PUBLISHED) == []


def test_what_is_asked_but_was_not_measured_is_an_error_with_every_name(gate: Promote) -> None:
    figures = comparison("base", ("pickscore",)) | {"promoted": {"name": "lpo-1"} | comparison("promoted", PUBLISHED)}
    del figures["geneval"]
    with pytest.raises(LpoError, match="asks for geneval, hps_v2, which evaluate has not measured"):
        objections(figures, gate, ("pickscore", "hps_v2", "geneval"))


def test_every_objection_is_told(gate: Promote) -> None:
    figures = comparison("base") | {"promoted": {"name": "lpo-1"} | comparison("promoted")}
    figures["win_rate"]["overall"]["low"] = 0.4
    figures["promoted"]["win_rate"]["overall"]["low"] = 0.4
    figures["promoted"]["scorers"]["vqa"]["low"] = -1.0
    said = objections(figures, gate, EMOJI)
    assert len(said) == 3
    assert ["the promoted model lpo-1" in words for words in said] == [False, True, True]


def test_a_promoted_model_that_is_the_tuned_one_is_no_opponent(gate: Promote) -> None:
    figures = comparison("base") | {"promoted": {"name": "lpo-1"}}
    before = copy.deepcopy(figures)
    assert objections(figures, gate, EMOJI) == []
    assert figures == before


def test_every_judge_has_a_margin_in_the_default_parameters(gate: Promote) -> None:
    assert set(gate.margins) == {name for names in MARGINS.values() for name in names}


def said(votes: int, low: float, always: float, opponent: str = "base") -> dict[str, Any]:
    """What people said: an interval from `low` on for one look, and from `always` on for all looks."""
    rate = {"value": 0.6, "low": low, "high": 0.7, "ties": 0.0, "votes": votes, "voters": 5, "prompts": votes}
    stopping = {"low": always, "high": 0.75, "error": 0.05, "verdict": None, "more_votes": None}
    return {opponent: {"opponent": opponent, "win_rate": rate if votes else None, "stopping": stopping}}


def test_people_are_waited_for_then_both_of_their_intervals_decide() -> None:
    asked = People(votes=100, win_rate_low=0.5)
    few = {"against": said(99, 0.52, 0.51) | said(0, 0.0, 0.0, "promoted")}
    assert people_objections(few, asked) == []
    words = "it waits for votes on held-out prompts: 99 of 100 against the base, 0 of 100 against the promoted model "
    assert waits_for(few, asked) == f"{words}promoted"
    enough = {"against": said(100, 0.52, 0.51) | said(100, 0.52, 0.51, "promoted")}
    assert people_objections(enough, asked) == [] and waits_for(enough, asked) == ""
    for low, always in ((0.5, 0.51), (0.52, 0.5)):
        (why,) = people_objections({"against": said(100, low, always)}, asked)
        assert why.startswith("people chose it over the base in 60.0% of 100 votes (95% interval ")


def test_nobody_is_waited_for_where_people_surely_prefer_the_opponent() -> None:
    lost = {"against": said(20, 0.1, 0.05)}
    lost["against"]["base"]["stopping"]["high"] = 0.49
    assert len(people_objections(lost, People(votes=100, win_rate_low=0.5))) == 1
