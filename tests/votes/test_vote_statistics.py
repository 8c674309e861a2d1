"""Statistics of votes against closed forms, published examples, and simulated voters of known taste."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from lpo.statistics import wilson
from lpo.votes.statistics import against, counted, people
from lpo.votes.statistics_levels import share_interval, two_level_variance
from lpo.votes.statistics_sequence import BETS, bounds, log_wealth, stopping
from lpo.votes.statistics_strengths import strengths

REPEATS = 500


def table(rows: list[tuple[str, str, str, str, float]]) -> pd.DataFrame:
    """Votes of (voter, prompt, model a, model b, share of a); every vote is on a pair of images of its own."""
    names = {1.0: "a", 0.5: "tie", 0.0: "b"}
    return pd.DataFrame(
        {
            "vote_id": range(len(rows)),
            "voter": [row[0] for row in rows],
            "prompt": [row[1] for row in rows],
            "image_a": [f"{row[1]}/{row[2]}" for row in rows],
            "image_b": [f"{row[1]}/{row[3]}" for row in rows],
            "model_a": [row[2] for row in rows],
            "model_b": [row[3] for row in rows],
            "choice": [names.get(row[4], "skip") for row in rows],
            "share_a": [row[4] for row in rows],
            "seconds": 2.0,
            "kind": "regular",
            "undone": False,
            "split": "validation",
        }
    )


def simulated(rng: np.random.Generator, voters: int, prompts: int, each: int) -> tuple[np.ndarray, ...]:
    """(voters, prompts, chance of a win before the models' own difference, in logits) of `each` votes a voter."""
    voter = np.repeat(np.arange(voters), each)
    prompt = np.concatenate([rng.choice(prompts, each, replace=False) for _ in range(voters)])
    return voter, prompt, rng.normal(0, 0.4, voters)[voter] + rng.normal(0, 0.8, prompts)[prompt]


def test_the_interval_of_a_win_rate_covers_the_truth() -> None:
    """Eight voters who differ, 60 prompts that differ, 30 votes each, 15% ties. The truth is over all voters and
    prompts that there could be, by quadrature."""
    x, w = np.polynomial.hermite_e.hermegauss(60)
    chance = float((w * expit(0.5 + np.hypot(0.4, 0.8) * x)).sum() / w.sum())
    truth = 0.85 * chance + 0.15 * 0.5
    covered, naive = 0, 0
    rng = np.random.default_rng(0)
    for _ in range(REPEATS):
        voter, prompt, logit = simulated(rng, 8, 60, 30)
        share = (rng.random(len(voter)) < expit(0.5 + logit)).astype(float)
        share[rng.random(len(voter)) < 0.15] = 0.5
        row = share_interval(share, voter, prompt)
        covered += row["low"] <= truth <= row["high"]
        low, high = wilson(float(share.sum()), len(share))
        naive += low <= truth <= high
    assert 0.93 <= covered / REPEATS <= 0.97
    assert naive / REPEATS < 0.9  # what the levels are for


def test_intervals_of_strengths_cover_the_truth() -> None:
    """Four models, eight voters of whom each has a taste of his own, as has each prompt. The truth is the strengths of
    all voters and prompts that there could be, from 200,000 votes of as many voters and prompts."""
    rng, covered = np.random.default_rng(1), np.zeros(4)

    def drawn(voters: int, each: int, prompts: int) -> pd.DataFrame:
        voter, prompt = np.repeat(np.arange(voters), each), rng.integers(prompts, size=voters * each)
        first = rng.integers(4, size=len(voter))
        second = (first + rng.integers(1, 4, size=len(voter))) % 4
        people, asked = rng.normal(0, 0.3, (voters, 4)), rng.normal(0, 0.3, (prompts, 4))
        values = np.array([0.9, 0.2, -0.3, -0.8]) + people[voter] + asked[prompt]
        rows = np.arange(len(voter))
        won = rng.random(len(voter)) < expit(values[rows, first] - values[rows, second])
        models = {"model_a": first.astype(str), "model_b": second.astype(str)}
        return pd.DataFrame({"voter": voter, "prompt": prompt, "share_a": won.astype(float)} | models)

    every = strengths(drawn(200_000, 1, 200_000))["models"]
    for _ in range(REPEATS):
        models = strengths(drawn(8, 45, 80))["models"]
        truth = [every[name]["strength"] for name in models]
        covered += [row["low"] <= value <= row["high"] for row, value in zip(models.values(), truth, strict=True)]
    assert 0.93 <= covered.mean() / REPEATS <= 0.97


def test_a_look_after_every_vote_errs_no_more_often_than_stated() -> None:
    """Equal models with ties: the bounds miss 50% at some of 400 looks in at most 5% of runs; a repeated test of a
    fixed number of votes misses far more often."""
    rng = np.random.default_rng(2)
    votes = rng.choice([0.0, 0.5, 1.0], p=[0.4, 0.2, 0.4], size=(REPEATS, 400))
    logs = np.log1p(BETS * (np.array([0.0, 0.5, 1.0])[:, None] / 0.5 - 1))  # log of wealth by one vote, for m = 1/2
    index = (2 * votes).astype(int)
    ever = np.zeros(REPEATS, bool)
    for side in (index, 2 - index):
        wealth = np.log(np.exp(np.cumsum(logs[side], axis=1)).mean(2))
        ever |= (wealth >= np.log(2 / 0.05)).any(1)
    assert ever.mean() <= 0.05
    count = np.arange(20, 401)
    mean = np.cumsum(votes, 1)[:, 19:] / count
    assert (np.abs(mean - 0.5) > 1.96 * np.sqrt(0.8 / 4 / count)).any(1).mean() > 0.2
    low, _ = bounds([0.0, 0.5, 1.0], np.bincount(index[0], minlength=3))
    assert log_wealth(np.array([0.0, 0.5, 1.0]), np.bincount(index[0]).astype(float), low) == pytest.approx(np.log(40))


def test_the_wealth_of_the_gambler_is_a_fair_game() -> None:
    """E W_n(m) = 1 where votes have the mean m, summed over all sequences of five votes."""
    chances = {0.0: 0.3, 0.5: 0.5, 1.0: 0.2}
    m = sum(x * p for x, p in chances.items())
    total = 0.0
    for votes in product(chances, repeat=5):
        values, counts = np.unique(votes, return_counts=True)
        total += np.prod([chances[x] for x in votes]) * np.exp(log_wealth(values, counts.astype(float), m))
    assert total == pytest.approx(1, abs=1e-12)


def test_verdicts_and_forecasts() -> None:
    assert stopping([1.0] * 9)["verdict"] == "better"
    assert stopping([0.0] * 9)["verdict"] == "worse"
    assert stopping([0.0, 1.0] * 400)["verdict"] == "alike"
    assert stopping([]) == {"low": 0, "high": 1, "error": 0.05, "verdict": None, "more_votes": None}
    votes = [1.0] * 13 + [0.0] * 7
    few = stopping(votes)
    assert few["verdict"] is None
    more = few["more_votes"] / len(votes)
    assert bounds([0, 1], np.array([7, 13]) * (1 + more))[0] > 0.5
    assert bounds([0, 1], np.array([7, 13]) * (1 + more - 1 / len(votes)))[0] <= 0.5
    flipped = stopping([1 - x for x in votes])
    assert (flipped["low"], flipped["high"]) == pytest.approx((1 - few["high"], 1 - few["low"]))


def test_levels_reduce_to_closed_forms() -> None:
    """One vote a voter and prompt: s^2 / n. Each voter's votes all equal: those of the voters' means."""
    x = np.array([1.0, 0, 1, 1, 0.5, 0])
    centred = (x - x.mean())[:, None] / len(x)
    alone, freedom = two_level_variance(centred, np.arange(6), np.arange(6))
    assert alone[0] == pytest.approx(x.var(ddof=1) / 6) and freedom[0] == pytest.approx(5)
    again = np.repeat(x, 50)
    centred = (again - x.mean())[:, None] / len(again)
    one, freedom = two_level_variance(centred, np.repeat(np.arange(6), 50), np.arange(300))
    assert one[0] == pytest.approx(x.var(ddof=1) / 6) and freedom[0] == pytest.approx(5, rel=0.05)


def test_strengths_of_two_models_are_the_log_odds() -> None:
    """Half a win is added on both sides; ties are half wins; a direction of the pair says nothing."""
    rows = [(f"v{i % 4}", f"p{i}", "x", "y", 1.0) for i in range(12)] + [("v1", "q", "y", "x", 1.0)] * 4
    rows += [("v2", "r", "x", "y", 0.5)] * 2
    found = strengths(table(rows))["models"]
    gap = found["x"]["strength"] - found["y"]["strength"]
    assert gap == pytest.approx(np.log(13.5 / 5.5), abs=1e-6)
    assert found["x"]["strength"] == pytest.approx(-found["y"]["strength"])
    assert (found["x"]["votes"], found["x"]["win_rate"]) == (18, 13 / 18)
    apart = strengths(table([*rows, ("v1", "p", "s", "t", 1.0), ("v1", "p", "x", "x", 1.0)]))
    assert apart["left_out"] == ["s", "t"] and apart["models"].keys() == {"x", "y"}
    assert strengths(table([])) == {"models": {}, "left_out": []}


def test_what_does_not_count_is_left_out_and_directions_are_turned() -> None:
    rows = [("v0", "p0", "tuned", "base", 1.0), ("v1", "p1", "base", "tuned", 0.0), ("v1", "p2", "base", "tuned", 0.5)]
    votes = table([*rows, ("v2", "p", "tuned", "base", float("nan")), *[("v2", "p", "base", "tuned", 1.0)] * 3])
    votes.loc[4, "undone"], votes.loc[5, "kind"], votes.loc[6, "kind"] = True, "repeat", "obvious"
    assert len(counted(votes)) == 3
    assert list(counted(votes.assign(reason=["", "below", *[""] * 5]))["prompt"]) == ["p0", "p2"]
    found = people(votes, "tuned", {"base": "base", "promoted": "lpo-1"})
    rate = found["against"]["base"]["win_rate"]
    assert (rate["value"], rate["ties"], rate["votes"], rate["voters"], rate["prompts"]) == (2.5 / 3, 1 / 3, 3, 2, 3)
    assert found["against"]["promoted"]["win_rate"] is None
    assert (found["votes"], found["voters"], found["skipped"]) == (3, 2, 1)
    trained = people(votes.assign(split=["train", *votes["split"][1:]]), "tuned", {"base": "base"})
    assert (trained["votes"], trained["against"]["base"]["win_rate"]["votes"]) == (3, 2)  # not on prompts of a training
    other = against(counted(votes), "base", "tuned")["win_rate"]
    assert (other["value"], other["low"]) == pytest.approx((1 - rate["value"], 1 - rate["high"]))
