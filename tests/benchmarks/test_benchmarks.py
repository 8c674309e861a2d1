"""What the benchmark rests on: its meters, and that the published recipe makes what ours makes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks import models, report
from benchmarks.compare import Ours, Theirs, assert_equal, beside, on_meta, settings
from benchmarks.meters import Flops, peak_bytes
from benchmarks.models import iteration
from lpo.random import generator

pytestmark = pytest.mark.slow

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


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction"])
def test_the_published_recipe_makes_the_same_pairs_losses_and_weights(tiny, tiny_reward, predicted):
    tiny = replace(tiny, scheduler=DDIMScheduler.from_config(tiny.scheduler.config, prediction_type=predicted))
    config = replace(iteration("emoji"), num_inference_steps=4, batch_size=3, lora_rank=2, micro_batch_size=2)
    tiny_reward.requires_grad_(False)
    theirs = Theirs(tiny, tiny_reward, config, 0, recompute=True)
    found = assert_equal(Ours(tiny, tiny_reward, config, 0), theirs, ["a cat", "two dogs", "a taxi", "a star"])
    assert found["latents"] < 1e-4


def test_bytes_of_an_update_do_not_keep_what_checkpointing_makes_anew(tiny, tiny_reward):
    """Inside torch's counter of FLOPs they do; the recipe's own peak is lower with recomputed activations."""
    config = replace(iteration("emoji"), num_inference_steps=2, batch_size=2, lora_rank=2)
    found = []
    for recompute in (False, True):
        theirs = Theirs(tiny, tiny_reward.requires_grad_(False), config, 0, recompute)
        batch = theirs.first(theirs.rollout(["a cat", "two dogs"] * 4, generator(0, "bytes")), 8)
        found.append(peak_bytes(lambda one=theirs, rows=batch: one.update(rows, generator(1, "bytes"))))
    assert found[1] < 0.8 * found[0]


def test_a_size_is_counted_in_three_settings(monkeypatch):
    """Recomputing costs FLOPs of updates and saves their bytes, one backbone saves weights; the rollout is the same."""
    unet = {"sample_size": 16, "cross_attention_dim": 32, "attention_head_dim": 2, "block_out_channels": (32, 64),
            "down_block_types": (models.ATTENTION_DOWN, "DownBlock2D"), "layers_per_block": 1,
            "up_block_types": ("UpBlock2D", models.ATTENTION_UP)}  # fmt: skip
    words = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = models.Size(unet, (words,), 32, 1.0, 4, 4, 2, 1, True)
    monkeypatch.setitem(models.SIZES, "tiny", size)
    monkeypatch.setattr(models, "iteration", partial(models.iteration, num_inference_steps=4))
    found = beside("tiny", {name: on_meta("tiny", name) for name in settings("tiny")})
    ours, recomputed, one = (found[name]["ours"] for name in ("ours", "recomputed", "one_backbone"))
    assert ours["flops"]["rollout"] == recomputed["flops"]["rollout"]
    assert ours["flops"]["update"] < recomputed["flops"]["update"] < found["ours"]["published"]["flops"]["update"]
    assert recomputed["bytes"]["update"] < ours["bytes"]["update"]
    assert one["bytes"]["weights"] < ours["bytes"]["weights"]
    assert found["ours"]["ratio"]["flops"]["update"] < 0.5
    text = report.table({"machine": defaultdict(int), "meta": {"tiny": found}})
    assert "| tiny, 4 prompts, one_backbone: GiB, all |" in text


def test_an_iteration_takes_other_numbers():
    assert iteration("sdxl", num_candidates=8, prompts_per_rollout=2).num_candidates == 8


def test_a_recipe_that_makes_something_else_is_told(tiny, tiny_reward):
    config = replace(iteration("emoji"), num_inference_steps=4, batch_size=3, lora_rank=2, micro_batch_size=2)
    other = Theirs(tiny, tiny_reward.requires_grad_(False), replace(config, guidance_scale=1.5), 0, recompute=False)
    with pytest.raises(AssertionError):
        assert_equal(Ours(tiny, tiny_reward, config, 0), other, ["a cat", "two dogs", "a taxi", "a star"])
