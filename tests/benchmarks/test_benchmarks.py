"""What the benchmark rests on: its meters, and that the published recipe makes what ours makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.compare import Ours, Theirs, assert_equal
from benchmarks.meters import Flops
from benchmarks.models import iteration

CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.mark.parametrize("device", [CPU, META])
def test_flops_are_two_a_multiplication_and_addition(device):
    """A matmul (4 x 8)(8 x 2), and attention over 64 with 2 heads of 16: two products of 2 * 2 * 64^2 * 16."""
    with Flops() as flops:
        torch.ones(4, 8, device=device) @ torch.ones(8, 2, device=device)
    assert flops.total == 128
    q = torch.ones(1, 2, 64, 16, device=device)
    with Flops() as flops:
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert flops.total == 2 * (2 * 2 * 64**2 * 16)


def test_the_published_recipe_makes_the_same_pairs_losses_and_weights(tiny, tiny_reward):
    config = replace(iteration("emoji"), num_inference_steps=4, batch_size=3, lora_rank=2, micro_batch_size=2)
    tiny_reward.requires_grad_(False)
    theirs = Theirs(tiny, tiny_reward, config, 0, recompute=True)
    found = assert_equal(Ours(tiny, tiny_reward, config, 0), theirs, ["a cat", "two dogs", "a taxi", "a star"])
    assert found["latents"] < 1e-4


def test_a_recipe_that_makes_something_else_is_told(tiny, tiny_reward):
    config = replace(iteration("emoji"), num_inference_steps=4, batch_size=3, lora_rank=2, micro_batch_size=2)
    other = Theirs(tiny, tiny_reward.requires_grad_(False), replace(config, guidance_scale=1.5), 0, recompute=False)
    with pytest.raises(AssertionError):
        assert_equal(Ours(tiny, tiny_reward, config, 0), other, ["a cat", "two dogs", "a taxi", "a star"])
