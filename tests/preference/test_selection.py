import math

import pytest
import torch

from lpo.errors import LpoError
from lpo.preference.selection import check_finite, measure, quantile_threshold, select_best_worst, threshold


def test_measure_is_the_difference_of_the_two_softmax_probabilities() -> None:
    gaps = torch.tensor([0.0, 0.73, 1.1, 4.0])
    p = torch.stack([gaps, torch.zeros(4)], dim=1).softmax(dim=1)
    torch.testing.assert_close(measure(gaps), p[:, 0] - p[:, 1])
    assert measure(gaps)[1:3].tolist() == pytest.approx([0.35, 0.5], abs=2e-3)  # the paper's range, as score gaps


@pytest.mark.parametrize(
    ("schedule", "t", "place"),
    [("constant", 500, 0.0), ("sigma", 500, 0.5), ("sigma_squared", 500, 3 / 8), ("linear", 250, 0.25)],
)
def test_thresholds_by_hand(schedule: str, t: int, place: float) -> None:
    """sigma 0.4 between 0.2 and 0.6; of the squares: (0.16 - 0.04) / (0.36 - 0.04) = 3 / 8."""
    assert float(threshold(0.4, 0.2, 0.6, schedule, 0.35, 0.5, t)) == pytest.approx(0.35 + 0.15 * place)


def test_the_released_linear_threshold_by_hand() -> None:
    """(t - 1) / 950 over the 20 steps: 0 at the last one, t = 1, and 1 at the first one, t = 951."""
    for t, place in ((1, 0.0), (476, 0.5), (951, 1.0)):
        found = threshold(0.4, 0.2, 0.6, "linear_over_steps", 0.35, 0.5, t, t_min=1, t_max=951)
        assert float(found) == pytest.approx(0.35 + 0.15 * place)


@pytest.mark.parametrize("schedule", ["sigma", "sigma_squared"])
def test_thresholds_run_from_low_to_high_with_the_noise(schedule: str) -> None:
    sigmas = torch.linspace(0.02, 0.64, 20)
    values = threshold(sigmas, sigmas.min(), sigmas.max(), schedule, 0.35, 0.5, torch.arange(20))
    assert values[0].item() == pytest.approx(0.35) and values[-1].item() == pytest.approx(0.5)
    assert (values.diff() > 0).all()


def test_a_schedule_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="quantile"):
        threshold(0.4, 0.2, 0.6, "quantile", 0.35, 0.5, 500)


def test_quantile_keeps_the_top_share() -> None:
    measures = torch.arange(100.0)
    assert int((measures > quantile_threshold(measures, 0.9)).sum()) == 10


def test_best_and_worst_by_hand() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.9, 4.8], [0.0, -2.0, 2.0]])
    best, worst, keep, gap = select_best_worst(scores, 0.5)
    assert best.tolist() == [1, 0, 2] and worst.tolist() == [0, 2, 1]
    torch.testing.assert_close(gap, torch.tensor([2.0, 0.2, 4.0]))
    assert keep.tolist() == [True, False, True]  # tanh 1 = 0.76, tanh 0.1 = 0.1, tanh 2 = 0.96


def test_thresholds_by_row_and_a_pair_on_its_threshold_is_dropped() -> None:
    scores = torch.tensor([[0.0, 1.0]]).repeat(3, 1)
    on = math.tanh(0.5)
    limits = torch.tensor([on - 1e-4, torch.tensor(0.5).tanh(), on + 1e-4])
    assert select_best_worst(scores, limits).keep.tolist() == [True, False, False]


def test_exact_ties_are_no_pair() -> None:
    best, worst, keep, gap = select_best_worst(torch.full((2, 4), 1.5), -1.0)
    assert not keep.any() and (gap == 0).all()
    tied_best = select_best_worst(torch.tensor([[2.0, 2.0, 0.0]]), 0.5)  # two best ones still beat the worst
    assert tied_best.keep.all() and tied_best.best.item() in (0, 1) and tied_best.worst.item() == 2


def test_half_precision_scores_are_compared_in_float32() -> None:
    gap = select_best_worst(torch.tensor([[25.0, 25.0156]], dtype=torch.half), 0.0).gap
    assert gap.dtype == torch.float32 and gap.item() == pytest.approx(2**-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_raise(bad: float) -> None:
    with pytest.raises(LpoError, match="1 of 4 scores"):
        check_finite(torch.tensor([[0.0, 1.0], [bad, 1.0]]))


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_fewer_than_two_candidates_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="K >= 2"):
        select_best_worst(torch.zeros(shape), 0.5)
