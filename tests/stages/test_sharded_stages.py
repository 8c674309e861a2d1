"""Two processes that hold half of the frozen weights each make what one process with all of them makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from support.together import together
from torch.distributed.tensor import DTensor

from lpo.config import Params, check_params, load_params
from lpo.config.reader import parse_yaml
from lpo.data.latents import write_space
from lpo.errors import ConfigError
from lpo.families import latent_space_of, sharding
from lpo.stages import reward
from lpo.stages import tune as stage
from lpo.train.common import distributed

pytestmark = pytest.mark.slow


@pytest.fixture(params=["sd"])
def params(trained_inputs: None, request: pytest.FixtureRequest) -> Params:
    """What both stages read, in the working directory; shares of 2 and 1 everywhere, and parts of one row."""
    family = request.param
    base = request.getfixturevalue("tiny_base" if family == "sd" else "tiny_sd3_base")
    found = load_params("params.yaml")
    model = replace(found.model, family=family, path=str(base), device="cpu", gradient_checkpointing=True)
    write_space(Path("data/latents"), latent_space_of(model))
    return replace(
        found,
        model=model,
        tracking=replace(found.tracking, wandb="disabled"),
        evaluate=replace(found.evaluate, num_inference_steps=2, batch_size=1),
        reward=replace(
            found.reward, features="multi_scale" if family == "sd" else "mid", layer=None if family == "sd" else 2,
            trainable="adapter", adapter_rank=2, embedding_dim=8, steps=2, warmup_steps=1, batch_size=3,
            micro_batch_size=1, learning_rate=1e-2, guidance_scale=7.5, validate_every=1, checkpoint_every=1,
        ),
        tune=replace(
            found.tune, prompts=6, prompts_per_rollout=3, num_inference_steps=3, batch_size=3, micro_batch_size=1,
            learning_rate=1e-2, guidance_scale=3.0, lora_rank=2, validate_every=1, validation_prompts=3,
            checkpoint_every=1, guard=replace(found.tune.guard, prompts=2, seeds=2),
        ),
    )  # fmt: skip


def run_sharded(params: Params, *stages: Callable[[Params], None]) -> list[tuple[int, int, list[list[int]]]]:
    """Run stages by two processes; for each denoiser and process (weights held, of how many, shapes held whole)."""
    shard, denoisers = sharding.shard, []

    def counted(denoiser: torch.nn.Module, device: torch.device) -> None:
        shard(denoiser, device)
        denoisers.append(denoiser)

    def work() -> None:
        sharding.shard = counted
        with distributed.joined(torch.device("cpu")):
            rank = distributed.rank()
            for run in stages:
                run(replace(params, model=replace(params.model, shard=True)))
                dist.barrier()
        for number, denoiser in enumerate(denoisers):
            weights = [p for block in sharding.blocks(denoiser) for p in block.parameters()]
            parts = [p for p in weights if isinstance(p, DTensor)]
            others = [list(p.shape) for p in weights if not isinstance(p, DTensor)]
            here, whole = sum(p.to_local().numel() for p in parts), sum(p.numel() for p in parts)
            Path(f"held-{number}-{rank}.json").write_text(json.dumps([here, whole, others]))

    together(work, Path())
    return [json.loads(file.read_text()) for file in sorted(Path().glob("held-*.json"))]


def newest(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint of the newest run."""
    runs = sorted(folder.iterdir(), key=lambda run: run.stat().st_mtime)
    return load_file(sorted(runs[-1].glob("step-*.safetensors"))[-1])


def check_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


def test_the_policy_with_a_reward_of_its_own(params: Params) -> None:
    """Two sharded models: the policy's U-Net and the half of one that the reward is; none of the adapter is shared."""
    stage.run(params)
    one, history = newest(Path(".checkpoints/tune")), json.loads(Path("data/tuned/history.json").read_text())
    held = run_sharded(params, stage.tune)
    two = newest(Path(".checkpoints/tune"))
    assert any(v.any() for k, v in one.items() if k.startswith("lora/") and "lora_B" in k)
    check_same(two, one, rtol=1e-3, atol=1e-5)
    for here, there in zip(json.loads(Path("data/tuned/history.json").read_text()), history, strict=True):
        assert here["pairs"] == there["pairs"]
        assert here["reward"] == pytest.approx(there["reward"], rel=0.02, abs=1e-5)  # scores lie near 1
        assert here["validation"] == pytest.approx(there["validation"], abs=2e-3)  # it sees pictures, which are rounded
    assert len(held) == 4
    policy, reward = held[:2], held[2:]
    for parts in (policy, reward):
        assert parts[0][0] + parts[1][0] == parts[0][1] and 0.4 < parts[0][0] / parts[0][1] < 0.6
    assert policy[0][2] and all(2 in shape for shape in policy[0][2])  # what is whole in a block has the adapter's rank
    assert not reward[0][2]


@pytest.mark.parametrize("params", ["sd3"], indirect=True)
def test_a_reward_that_is_an_adapter_is_trained_and_used(params: Params) -> None:
    """Reward and policy are two adapters of one sharded model."""
    reward.run(params)
    one, metrics = load_file("data/reward/reward.safetensors"), json.loads(Path("metrics/reward.json").read_text())
    stage.run(params)
    tuned = newest(Path(".checkpoints/tune"))
    held = run_sharded(params, reward.train, stage.tune)
    assert len(held) == 4 and all(here < 0.6 * whole for here, whole, _ in held)  # to the policy the reward adds none
    check_same(load_file("data/reward/reward.safetensors"), one, rtol=1e-3, atol=1e-5)
    assert json.loads(Path("metrics/reward.json").read_text())["accuracy"] == metrics["accuracy"]
    check_same(newest(Path(".checkpoints/tune")), tuned, rtol=1e-2, atol=1e-4)


def test_one_process_alone_shards_nothing(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "shard", lambda *_: pytest.fail("sharded"))
    stage.run(replace(params, model=replace(params.model, shard=True)))


def test_trained_weights_are_refused_before_any_work(repository: Path) -> None:
    tree = parse_yaml((repository / "params.yaml").read_text(), "params.yaml")
    tree["model"] |= {"shard": True, "compile": True}
    with pytest.raises(ConfigError) as error:
        check_params(tree, "params.yaml")
    assert len(error.value.mistakes) == 2
    assert "reward.trainable: must be adapter where model.shard is true" in error.value.mistakes[0]
    assert "model.compile: must be false where model.shard is true" in error.value.mistakes[1]
    tree["model"]["compile"], tree["reward"]["trainable"] = False, "adapter"
    assert check_params(tree, "params.yaml").model.shard
    tree["reward"] |= {"trainable": "full", "pretrained": "data/reward"}
    assert check_params(tree, "params.yaml").model.shard


