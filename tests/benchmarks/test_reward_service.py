"""The service of a small reward, measured in a process of its own: every case is answered, as the library scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reward_service import CLIENTS, ROWS, Rate, run
from lpo.families.sd import SD
from lpo.rewards.lrm import LatentRewardModel

pytestmark = pytest.mark.slow


def test_every_case_is_measured_and_scores_are_those_of_the_library(
    tmp_path: Path, tiny: SD, tiny_reward: LatentRewardModel, tiny_base: Path
) -> None:
    tiny_reward.latent_space = tiny.codec.space()
    tiny_reward.save(tmp_path)
    rates, difference = run(tmp_path, tiny_base, seconds=0.1)
    assert len(rates) == len(ROWS) * (1 + len(CLIENTS)) and all(rate.seconds for rate in rates)
    assert all(max(rate.seconds) <= rate.wall for rate in rates)
    assert difference < 1e-4


def test_rates_are_calls_and_latents_of_a_second() -> None:
    """Four calls of 8 latents in 2 s; their seconds are in milliseconds."""
    line = Rate("1 client", 8, [0.1, 0.1, 0.1, 0.1], 2.0).line()
    assert line == "| 1 client | 8 | 2.0 | 16 | 100 | 100 |"
