import numpy as np
import pytest

from lpo.errors import LpoError
from lpo.statistics import mean, mean_difference, mean_of_strata, share, wilson, win_rate


def test_win_rate_counts_a_tie_half_and_states_the_share_of_ties():
    found = win_rate([2, 1, 0, 3], [1, 1, 5, 2], ["p", "q", "r", "s"])
    assert found["value"] == (1 + 0.5 + 0 + 1) / 4
    assert found["ties"] == 1 / 4
    assert found["prompts"] == 4


def test_swapping_the_sides_mirrors_the_win_rate_and_its_interval():
    rng = np.random.default_rng(0)
    a, b, groups = rng.integers(0, 4, 90), rng.integers(0, 4, 90), np.arange(90) // 3
    one, other = win_rate(a, b, groups), win_rate(b, a, groups)
    assert one["value"] == pytest.approx(1 - other["value"])
    assert (one["low"], one["high"]) == pytest.approx((1 - other["high"], 1 - other["low"]))
    assert one["ties"] == other["ties"] > 0


def test_value_is_the_mean_over_images_not_over_prompts():
    assert mean([1, 1, 1, 5], ["p", "p", "p", "q"])["value"] == 2.0


def test_bootstrap_of_two_prompts_is_known_exactly():
    # Two prompts, means 0 and 1: a draw is 0, 1/2, 1/2 or 1, each with probability 1/4, so the quantiles are 0 and 1.
    found = mean([0, 0, 1, 1], [7, 7, 8, 8])
    assert (found["value"], found["low"], found["high"], found["prompts"]) == (0.5, 0.0, 1.0, 2)


def test_interval_is_that_of_the_normal_theory_for_many_prompts():
    values = np.random.default_rng(1).normal(3.0, 2.0, 4000)
    found = mean(values, np.arange(4000), resamples=4000)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_copies_of_every_image_make_no_interval_narrower():
    values = np.random.default_rng(2).normal(size=50)
    once = mean(values, np.arange(50), seed=5)
    tenfold = mean(np.repeat(values, 10), np.repeat(np.arange(50), 10), seed=5)
    assert (tenfold["low"], tenfold["high"]) == pytest.approx((once["low"], once["high"]))


def test_coverage_holds_with_clusters_and_fails_without_them():
    """Truth 0, 40 prompts with 5 images each, most of the spread between prompts."""
    rng = np.random.default_rng(3)
    prompts = np.repeat(np.arange(40), 5)
    hits = {"by prompt": 0, "by image": 0}
    for _ in range(300):
        values = rng.normal(0, 1, 40)[prompts] + rng.normal(0, 0.5, 200)
        for name, groups in (("by prompt", prompts), ("by image", np.arange(200))):
            found = mean(values, groups, resamples=400)
            hits[name] += found["low"] <= 0 <= found["high"]
    assert 0.90 <= hits["by prompt"] / 300 <= 0.98
    assert hits["by image"] / 300 < 0.75


def test_coverage_of_win_rates():
    """P(a > b) = Phi(0.5 / sqrt(2)) = 0.638 for a ~ N(0.5, 1), b ~ N(0, 1)."""
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(300):
        found = win_rate(rng.normal(0.5, 1, 60), rng.normal(0, 1, 60), np.arange(60), resamples=400)
        hits += found["low"] <= 0.6382 <= found["high"]
    assert 0.90 <= hits / 300 <= 0.98


def test_difference_is_paired():
    a = np.random.default_rng(5).normal(0, 100, 30)
    found = mean_difference(a + 1, a, np.arange(30))
    assert (found["value"], found["low"], found["high"]) == pytest.approx((1, 1, 1))


def test_order_of_rows_does_not_matter():
    rng = np.random.default_rng(6)
    values, groups, order = rng.normal(size=30), np.repeat(list("abcdefghij"), 3), rng.permutation(30)
    one, other = mean(values, groups), mean(values[order], groups[order])
    assert one == pytest.approx(other)


def test_seed_decides_the_interval():
    values = np.random.default_rng(7).normal(size=30)
    assert mean(values, np.arange(30), seed=1) == mean(values, np.arange(30), seed=1)
    assert mean(values, np.arange(30), seed=1) != mean(values, np.arange(30), seed=2)


def test_a_share_without_variance_gets_wilsons_interval():
    found = share([1] * 20, ["p"] * 10 + ["q"] * 10)
    assert found["value"] == 1.0
    assert (found["low"], found["high"]) == wilson(2, 2)
    assert found["low"] < 0.4


def test_wilson_by_hand():
    # k 8, n 10, z^2 3.8415: centre 9.9207 / 13.8415, half 1.96 * sqrt(1.6 + 0.9604) / 13.8415
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    # k = n: low is n / (n + z^2)
    assert wilson(10, 10) == pytest.approx((10 / 13.8415, 1.0), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 3.8415 / 13.8415), abs=1e-4)


def test_wilson_covers_a_rare_event():
    hits = np.random.default_rng(8).binomial(50, 0.03, 2000)
    inside = [low <= 0.03 <= high for low, high in map(lambda k: wilson(k, 50), hits)]
    assert np.mean(inside) > 0.92


@pytest.mark.parametrize(
    ("values", "groups", "words"),
    [([], [], "0 group"), ([1.0, 2.0], ["p"], "1 group"), ([1.0, np.nan], ["p", "q"], "not finite, the first at 1")],
)
def test_what_has_no_mean_is_refused(values, groups, words):
    with pytest.raises(LpoError, match=words):
        mean(values, groups)


def test_wilson_refuses_more_hits_than_trials():
    with pytest.raises(LpoError, match="no share"):
        wilson(11, 10)


def test_strata_weigh_the_same_whatever_their_size():
    found = mean_of_strata([1, 1, 1, 0, 0], ["a", "b", "c", "d", "d"], ["x", "x", "x", "y", "y"])
    assert (found["value"], found["prompts"]) == (0.5, 4)
    assert (found["low"], found["high"]) == (0.5, 0.5)  # prompts are drawn within their own stratum, which never varies


def test_one_stratum_is_the_mean():
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=60), np.arange(60) // 2
    assert mean_of_strata(values, groups, ["x"] * 60, seed=3) == pytest.approx(mean(values, groups, seed=3))
