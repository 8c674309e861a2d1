from __future__ import annotations

import math

import torch

from lpo.preference.advantages import combined, group_advantages, optimality, prompt_advantages, step_advantages


def test_group_advantages_by_hand() -> None:
    """1, 2, 3, 4: mean 2.5, population variance 1.25. Equal rewards carry no signal."""
    rewards = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.1, 0.1, 0.1, 0.1]])
    expected = torch.tensor([[-1.5, -0.5, 0.5, 1.5], [0.0] * 4]) / math.sqrt(1.25)
    torch.testing.assert_close(group_advantages(rewards), expected)


def test_group_advantages_ignore_shift_and_scale() -> None:
    rewards = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(group_advantages(3 * rewards + 20), group_advantages(rewards), rtol=1e-4, atol=1e-5)


def test_step_advantages_are_over_all_prompts() -> None:
    """Gains (3, 1) and (-1, -3): mean 0, variance (9 + 1 + 1 + 9) / 4 = 5. Within their groups both would be +-1."""
    found = step_advantages(torch.tensor([[3.0, 1.0], [-1.0, -3.0]]))
    torch.testing.assert_close(found, torch.tensor([[3.0, 1.0], [-1.0, -3.0]]) / math.sqrt(5))
    assert step_advantages(torch.ones(2, 3)).tolist() == [[0.0] * 3] * 2


def test_optimality_by_hand() -> None:
    """Scores (0, 4) and (1, 1): differences -2, 2, 0, 0 from their prompts' means, std sqrt(2) over all four."""
    found = optimality(prompt_advantages(torch.tensor([[0.0, 4.0], [1.0, 1.0]])))
    shift = math.sqrt(2) / 2 / 2
    torch.testing.assert_close(found, torch.tensor([[0.5 - shift, 0.5 + shift], [0.5, 0.5]]))
    assert optimality(prompt_advantages(torch.zeros(2, 3))).tolist() == [[0.5] * 3] * 2


def test_several_rewards_are_normalised_each_on_its_own_and_then_averaged() -> None:
    """Rewards (0, 2, 4) and (100, 0, 100) of one prompt, weights 3 and 1.

    The first: mean 2, variance 8/3. The second: mean 200/3, deviations 100/3, -200/3, 100/3, variance 20000/9. A sum of
    raw rewards would rank by the second one, which is a hundred times wider; the units of a reward change nothing.
    """
    rewards, weights = torch.tensor([[[0.0, 2.0, 4.0]], [[100.0, 0.0, 100.0]]]), torch.tensor([3.0, 1.0])
    first = torch.tensor([[-2.0, 0.0, 2.0]]) / math.sqrt(8 / 3)
    second = torch.tensor([[1.0, -2.0, 1.0]]) / math.sqrt(2)
    found = combined(group_advantages, rewards, weights)
    torch.testing.assert_close(found, 0.75 * first + 0.25 * second)
    assert found.argsort(dim=1).tolist() == [[0, 1, 2]]
    scaled = rewards * torch.tensor([1000.0, 0.01]).view(2, 1, 1) + 7
    torch.testing.assert_close(combined(group_advantages, scaled, weights), found, rtol=1e-4, atol=1e-4)
    opposite = combined(group_advantages, torch.stack([rewards[0], -rewards[0]]), torch.ones(2))
    torch.testing.assert_close(opposite, torch.zeros(1, 3))  # rewards that contradict each other cancel
    for rule in (group_advantages, step_advantages, prompt_advantages):  # a single one keeps its bits
        assert torch.equal(combined(rule, rewards[:1], torch.tensor([3.0])), rule(rewards[0]))
