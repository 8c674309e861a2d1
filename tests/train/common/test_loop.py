import numpy as np
import pytest
import torch

from lpo.train.common.loop import cosine, optimizer_step, update_ema


def test_ema_is_the_formula():
    ema = {"w": torch.tensor([1.0, 2.0])}
    update_ema(ema, {"w": torch.tensor([3.0, 0.0])}, 0.75)
    torch.testing.assert_close(ema["w"], torch.tensor([1.5, 1.5]))


def test_the_learning_rate_warms_up_and_ends_at_zero():
    rates = [cosine(step, 1000) for step in range(1001)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3) and rates[1000] == pytest.approx(0, abs=1e-12)
    assert np.all(np.diff(rates[:99]) > 0) and np.all(np.diff(rates[100:]) < 0)


def test_gradients_are_clipped():
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimizer_step(optimizer, (weight * torch.tensor([30.0, 40.0])).sum(), 1.0, max_grad_norm=1.0)
    torch.testing.assert_close(weight.detach(), torch.tensor([-0.6, -0.8]))
