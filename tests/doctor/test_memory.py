"""Memory on the meta device, against sums by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from lpo.config import load_params
from lpo.doctor.memory import META, Alive, bytes_of, peak
from lpo.doctor.scorer_memory import judging
from lpo.doctor.stages import needs
from lpo.families import load_family


def test_a_chain_keeps_two_tensors_at_a_time_and_training_all_that_it_needs() -> None:
    """x (10, 100) -> three tanh: without gradients input's successor and its source live together, 2 * 4000 bytes.

    With gradients every tanh keeps its output, 3 * 4000; backward adds the gradients that flow.
    """
    x = torch.empty(10, 100, device=META, requires_grad=True)
    assert peak(lambda: x.tanh().tanh().tanh()) == 2 * 4000
    training = peak(lambda: x.tanh().tanh().tanh(), backward=True)
    assert 4 * 4000 <= training <= 6 * 4000


def test_attention_never_makes_the_matrix_of_all_pairs() -> None:
    q = torch.empty(1, 2, 1000, 8, device=META)
    assert peak(lambda: F.scaled_dot_product_attention(q, q, q)) == 2 * 1000 * 8 * 4
    assert peak(lambda: F.scaled_dot_product_attention(query=q, key=q, value=q)) == 2 * 1000 * 8 * 4


def test_what_checkpointing_computes_again_is_counted() -> None:
    """Twenty tanh under one checkpoint keep nothing, and all come back at once in backward."""
    x = torch.empty(10, 100, device=META, requires_grad=True)

    def chain(y: torch.Tensor) -> torch.Tensor:
        for _ in range(20):
            y = y.tanh()
        return y

    def step() -> torch.Tensor:
        return checkpoint(chain, x, use_reentrant=False)

    assert peak(step, backward=True) >= 20 * 4000 > 3 * peak(step)


def test_a_view_costs_nothing_and_freed_memory_counts_no_more() -> None:
    x = torch.empty(1000, device=META)

    def step() -> torch.Tensor:
        for _ in range(5):
            y = x + 1
            del y
        return x.view(10, 100)

    assert peak(step) == 4000


def test_weights_that_were_there_before_are_not_counted_again() -> None:
    """A linear layer reads a transposed view of its weight, 400 * 4 bytes; it makes its output, 40 * 4."""
    layer, x = torch.nn.Linear(40, 10, bias=False, device=META), torch.empty(4, 40, device=META)
    assert peak(lambda: layer(x)) == 4 * 10 * 4


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_peak_is_what_was_alive_at_once(device: str) -> None:
    """Two tensors of 4000 bytes, of which the first is gone when a third one comes."""
    with Alive() as memory:
        a = torch.ones(1000, device=device)
        b = a + 1
        del a
        c = b + 1
    assert memory.peak == 8000 and memory.now == 8000
    del b, c
    assert memory.now == 0


@pytest.mark.slow
@pytest.mark.parametrize("base", ["tiny_base", "tiny_sdxl_base", "tiny_sd3_t5_base"])
def test_needs_of_the_stages_grow_as_they_must(repository: Path, request: pytest.FixtureRequest, base: str) -> None:
    params = load_params(repository / "params.yaml")
    folder = request.getfixturevalue(base)
    name = {"tiny_base": "sd", "tiny_sdxl_base": "sdxl", "tiny_sd3_t5_base": "sd3"}[base]
    model = replace(params.model, family=name, path=str(folder))
    params = replace(params, model=model, reward=replace(params.reward, layer=2 if name == "sd3" else None))
    small = {need.stage: need for need in needs(params)}
    assert list(small) == ["score", "encode", "reward", "tune", "evaluate"]
    tune, reward, encode = params.tune, params.reward, params.encode
    batches = replace(
        params, tune=replace(tune, batch_size=2 * tune.batch_size, prompts_per_rollout=2 * tune.prompts_per_rollout),
        reward=replace(reward, batch_size=2 * reward.batch_size),
        encode=replace(encode, batch_size=2 * encode.batch_size),
    )  # fmt: skip
    large = {need.stage: need for need in needs(batches)}
    assert small["reward"].step <= large["reward"].step <= 1.01 * small["reward"].step  # the batch's latents are more
    doubled = replace(
        batches, tune=replace(batches.tune, micro_batch_size=2 * tune.micro_batch_size),
        reward=replace(batches.reward, micro_batch_size=2 * reward.micro_batch_size),
    )  # fmt: skip
    for need in needs(doubled):
        before = small[need.stage]
        assert need.weights == before.weights
        if need.stage not in ("score", "evaluate"):
            assert 1.7 * before.step < need.step <= 2.3 * before.step
    half = {need.stage: need for need in needs(replace(params, model=replace(model, dtype="bf16")))}
    assert half["encode"].weights * 2 == small["encode"].weights
    family = load_family(model, device=META)
    assert family.codec.vae is not None
    assert small["encode"].weights == bytes_of(family.codec.vae)
    held = bytes_of(*family.modules().values(), family.codec.vae)
    adapter = sum(p.numel() for p in family.add_lora(tune.lora_rank, seed=0))
    assert small["evaluate"].moments["drawing"][0] == held + 4 * adapter


def test_two_gpus_hold_half_of_the_blocks_each(
    repository: Path, tiny_sd3_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float32: of the policy's 3 layers, of which the reward is a LoRA; in its own training the 2 that it runs."""
    params = load_params(repository / "params.yaml")
    model = replace(params.model, family="sd3", path=str(tiny_sd3_base))
    params = replace(params, model=model, reward=replace(params.reward, layer=2, trainable="adapter"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    whole = {need.stage: need.weights for need in needs(params)}
    shared = {need.stage: need.weights for need in needs(replace(params, model=replace(model, shard=True)))}
    layers = load_family(model, device=META).denoiser.transformer_blocks
    assert whole["reward"] - shared["reward"] == bytes_of(*layers[:2]) // 2
    assert whole["tune"] - shared["tune"] == bytes_of(*layers) // 2
    assert whole["encode"] == shared["encode"] and whole["evaluate"] == shared["evaluate"]


def test_checkpointing_saves_memory_in_training(repository: Path, tiny_sd3_base: Path) -> None:
    params = load_params(repository / "params.yaml")
    model = replace(params.model, family="sd3", path=str(tiny_sd3_base))
    reward = replace(params.reward, layer=3)
    models = [replace(model, gradient_checkpointing=on) for on in (False, True)]
    found = [{n.stage: n.moments for n in needs(replace(params, reward=reward, model=m))} for m in models]
    for stage in ("tune", "reward"):
        assert sum(found[1][stage]["training"]) < sum(found[0][stage]["training"])
    assert found[1]["encode"] == found[0]["encode"]


def test_on_a_cpu_the_best_reward_so_far_is_beside_what_trains(repository: Path, tiny_base: Path) -> None:
    """On a GPU it waits in host memory, from where it takes 4 bytes of each trained weight."""
    params = load_params(repository / "params.yaml")
    params = replace(params, reward=replace(params.reward, trainable="full"))
    of = {}
    for device in ("cpu", "cuda"):
        model = replace(params.model, path=str(tiny_base), device=device)
        (of[device],) = [need for need in needs(replace(params, model=model)) if need.stage == "reward"]
    (sizes,) = {of["cpu"].moments[moment][0] - of["cuda"].moments[moment][0] for moment in of["cpu"].moments}
    assert sizes == of["cuda"].host // 5 and of["cpu"].host == 0  # a checkpoint holds weights, two moments and the best


def test_a_judge_counts_in_its_own_number_format(repository: Path) -> None:
    """Qwen2-VL-7B in bfloat16, with the 152064 rows of its configuration, beside PickScore in float32."""
    params = load_params(repository / "params.yaml")
    asked = replace(params, evaluate=replace(params.evaluate, judges=("pickscore", "hpsv3")))
    found = judging(asked)
    assert found["hpsv3"][0] == pytest.approx(2 * (7_744_923_136 + (152_064 - 151_658) * 3584), rel=1e-6)
    assert found["pickscore"][0] == pytest.approx(4 * 986_109_441, rel=1e-4)
