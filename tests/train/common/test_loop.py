import math

import numpy as np
import pytest
import torch

from lpo.errors import NotFinite
from lpo.train.common.loop import apply_gradients, cosine, optimizer_step, update_ema, warmup_share


def test_ema_is_the_formula():
    ema = {"w": torch.tensor([1.0, 2.0])}
    update_ema(ema, {"w": torch.tensor([3.0, 0.0])}, 0.75)
    torch.testing.assert_close(ema["w"], torch.tensor([1.5, 1.5]))


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [cosine(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3) and rates[1000] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[:99]) > 0) and np.all(np.diff(rates[100:]) < 0)


def test_the_published_schedule_warms_up_to_the_full_peak_and_then_decays():
    """DeepSpeed's WarmupDecayLR by hand; over LRM-1.5's 4,000 steps the plain schedule adds up to 81 % of it."""
    share = [warmup_share(step, 4000, 500, "warmup_decay") for step in range(4001)]
    assert share[0] == 0 and share[499] == pytest.approx(1) and share[4000] == 0 and max(share) <= 1
    assert share[10] == pytest.approx(math.log(11) / math.log(500))
    assert share[500] == 1 and share[2250] == pytest.approx(0.5)
    plain = [warmup_share(step, 4000, 500, "linear") for step in range(4000)]
    assert plain[0] == pytest.approx(1 / 500) and plain[499] == pytest.approx(1 - 499 / 4000)
    assert sum(plain) / sum(share) == pytest.approx(0.81, abs=0.005)
    assert warmup_share(0, 10, 0, "warmup_decay") == 1 and warmup_share(0, 10, 0, "linear") == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_changes_no_weight(bad):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([1.0, bad])
    with pytest.raises(NotFinite, match="its gradient is") as caught:
        apply_gradients(optimizer, 1.0, 1.0, "tune: rollout 2 of 3, update 7", "tune")
    assert caught.value.where == "tune: rollout 2 of 3, update 7" and "tune.learning_rate" in caught.value.remedy
    assert weight.tolist() == [1.0, 1.0]


def test_gradients_are_clipped():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer_step(optimizer, (weight * torch.tensor([30.0, 40.0])).sum(), 1.0, max_grad_norm=1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
