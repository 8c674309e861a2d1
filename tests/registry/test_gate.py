"""The gate by hand: one rule broken at a time, against the base and against the promoted model."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from lpo.config import Promote, load_params
from lpo.registry.gate import METRICS, objections


def comparison(opponent: str) -> dict[str, Any]:
    """A model that wins 60% (55 to 65%) and loses nothing, its intervals 0.001 wide on both sides."""
    change = {opponent: 0.5, "tuned": 0.5, "difference": 0.0, "low": -0.001, "high": 0.001, "prompts": 100}
    return {
        "win_rate": {"overall": {"value": 0.6, "low": 0.55, "high": 0.65, "ties": 0.0, "prompts": 100}},
        "all_correct": dict(change),
        "means": {name: dict(change) for name in ("overall", "alignment", "aesthetics")},
        "scorers": {name: dict(change) for name in ("clip", "vqa", "aesthetic")},
    }


@pytest.fixture
def gate(project: Any) -> Promote:
    return load_params().promote


def test_what_wins_and_loses_nothing_passes(gate: Promote) -> None:
    assert objections(comparison("base"), gate) == []
    both = comparison("base") | {"promoted": {"name": "lpo-1"} | comparison("promoted")}
    assert objections(both, gate) == []


def test_an_interval_that_holds_the_limit_does_not_pass(gate: Promote) -> None:
    figures = comparison("base")
    figures["win_rate"]["overall"]["low"] = gate.win_rate_low  # it must lie above
    (said,) = objections(figures, gate)
    assert said == (
        "it wins 60.0% against the base (95% interval 50.0% to 65.0%), and the interval does not lie above 50.0%"
    )


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("opponent", ["base", "promoted"])
def test_a_loss_that_may_be_larger_than_the_margin_does_not_pass(gate: Promote, name: str, opponent: str) -> None:
    figures = comparison("base") | {"promoted": {"name": "lpo-1"} | comparison("promoted")}
    row: Any = figures if opponent == "base" else figures["promoted"]
    for key in METRICS[name]:
        row = row[key]
    margin = getattr(gate.margins, name)
    row["low"] = -margin
    assert objections(figures, gate) == []  # the margin itself is allowed
    row["low"] = -margin - 1e-6
    (said,) = objections(figures, gate)
    assert said.startswith(f"{name} changes by +0.0000 against the {opponent}")


def test_every_objection_is_told(gate: Promote) -> None:
    figures = comparison("base") | {"promoted": {"name": "lpo-1"} | comparison("promoted")}
    figures["win_rate"]["overall"]["low"] = 0.4
    figures["promoted"]["win_rate"]["overall"]["low"] = 0.4
    figures["promoted"]["scorers"]["vqa"]["low"] = -1.0
    said = objections(figures, gate)
    assert len(said) == 3
    assert ["the promoted model lpo-1" in words for words in said] == [False, True, True]


def test_a_promoted_model_that_is_the_tuned_one_is_no_opponent(gate: Promote) -> None:
    figures = comparison("base") | {"promoted": {"name": "lpo-1"}}
    before = copy.deepcopy(figures)
    assert objections(figures, gate) == []
    assert figures == before


def test_every_margin_has_its_figures(gate: Promote) -> None:
    assert set(METRICS) == set(vars(gate.margins))
