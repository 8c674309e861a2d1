from __future__ import annotations

from dataclasses import replace

import pytest

from lpo.config import Guard
from lpo.train.policy.overoptimisation import warnings

GUARD = Guard(action="flag", reward_margin=1.0, diversity_floor=0.5, drift_limit=2.0, prompts=2, seeds=2)


def history(*points: tuple[float, float, float]) -> list[dict[str, float]]:
    """Validations (scorers' gain, reward's gain, diversity), with a rollout without one between them."""
    found: list[dict[str, float]] = []
    for value, reward, diversity in points:
        found += [{"rollout": 0}, {"validation": value, "reward": reward, "diversity": diversity}]
    return found


def test_both_rise_and_nothing_is_said() -> None:
    assert warnings(history((0.1, 0.5, 1.0), (0.2, 5.0, 1.0)), GUARD) == []


def test_the_reward_alone_rises() -> None:
    """The best validation stands at a reward of 0.5; 1.4 is within the margin of 1 from it, 1.6 is not."""
    assert warnings(history((0.2, 0.5, 1.0), (0.1, 1.4, 1.0)), GUARD) == []
    (found,) = warnings(history((0.2, 0.5, 1.0), (0.1, 1.6, 1.0)), GUARD)
    assert "reward hacking" in found and "1.10" in found and "0.200 to 0.100" in found


def test_a_run_that_never_helped_is_compared_with_the_base() -> None:
    (found,) = warnings(history((-0.1, 1.2, 1.0)), GUARD)
    assert "reward hacking" in found


def test_pictures_become_alike() -> None:
    (found,) = warnings(history((0.1, 0.1, 0.49)), GUARD)
    assert "collapse" in found
    assert warnings(history((0.1, 0.1, 0.51)), GUARD) == []


def test_steps_that_lie_far_from_the_bases() -> None:
    """Drift is said of every rollout that learned from steps, validated or not."""
    assert warnings([{"rollout": 1, "drift": 2.0}], GUARD) == []
    (found,) = warnings([{"rollout": 1, "drift": 2.5}], GUARD)
    assert "drift" in found and "2.50" in found
    both = history((0.1, 0.1, 0.1))
    both[-1]["drift"] = 3.0
    assert len(warnings(both, GUARD)) == 2


@pytest.mark.parametrize("guard", [replace(GUARD, action="off")])
def test_off_says_nothing(guard: Guard) -> None:
    assert warnings(history((-1.0, 9.0, 0.0)), guard) == []


def test_a_rollout_without_validation_says_nothing() -> None:
    assert warnings([*history((-1.0, 9.0, 0.0)), {"rollout": 3}], GUARD) == []
    assert warnings([], GUARD) == []
