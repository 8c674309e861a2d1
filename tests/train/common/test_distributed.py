"""Two processes of one group make what one process makes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.together import together

from lpo.config import Tune, load_params
from lpo.errors import LpoError, NotFinite
from lpo.families import sd
from lpo.rewards.lrm import LatentRewardModel
from lpo.train.common import checkpoint, distributed
from lpo.train.policy.rollout import consecutive
from lpo.train.policy.trainer import PolicyTrainer


def tune(base: Path, config: Tune, runs: dict[Path, int]) -> None:
    """Tune for a number of prompts into each folder of `runs`: the work of one process."""
    device = torch.device("cpu")
    with distributed.joined(device):
        for out, prompts in runs.items():
            family = sd.load(str(base), device, torch.float32)
            torch.manual_seed(1)
            reward = LatentRewardModel(sd.load(str(base), device, torch.float32, reward=True), 8, 7.5, "multi_scale")
            trainer = PolicyTrainer(family, reward, replace(config, prompts=prompts), seed=3)
            out.mkdir(exist_ok=True)

            def figures(trainer: PolicyTrainer = trainer) -> dict[str, float]:
                return {"validation": float(trainer.updates), "reward": 0.0, "diversity": 1.0}

            trainer.run(["a cat", "two dogs", "a taxi", "a star", "a red heart"], figures, out, None)
            if distributed.is_first():
                save_file({k: v.contiguous() for k, v in trainer.ema.items()}, out / "ema.safetensors")
                pairs = [entry["pairs"] for entry in trainer.history]
                (out / "run.json").write_text(json.dumps({"processes": distributed.count(), "pairs": pairs}))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lpo", "nft", "dgpo"])
def test_two_processes_equal_one_and_one_goes_on_where_two_stopped(tiny_base, repository, tmp_path, method):
    """Three prompts by two processes, so that shares are uneven; the second rollout of `resumed` is of one process."""
    found = load_params(repository / "params.yaml").tune
    config = replace(
        found, method=method, prompts_per_rollout=3, num_inference_steps=3, batch_size=4, lora_rank=2,
        guidance_scale=3.0 if method == "lpo" else 1.0,
        validate_every=1, checkpoint_every=1, learning_rate=1e-3, timestep_range=(0, 1000),
        threshold=replace(found.threshold, schedule="quantile", low=0.5, high=0.5),
    )  # fmt: skip
    one, two, resumed = (tmp_path / name for name in ("one", "two", "resumed"))
    together(lambda: tune(tiny_base, config, {two: 6, resumed: 3}), tmp_path)
    tune(tiny_base, config, {one: 6, resumed: 6})
    alone = load_file(one / "ema.safetensors")
    for other in (two, resumed):
        weights = load_file(other / "ema.safetensors")
        assert weights.keys() == alone.keys()
        for name, weight in alone.items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-6)
    runs = {folder: json.loads((folder / "run.json").read_text()) for folder in (one, two, resumed)}
    assert [runs[folder]["processes"] for folder in (one, two, resumed)] == [1, 2, 1]
    assert runs[two]["pairs"] == runs[resumed]["pairs"] == runs[one]["pairs"] and min(runs[one]["pairs"]) > 0


def test_rows_are_shared_without_dropping_any(monkeypatch):
    rows = torch.arange(7)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "count", lambda: 3)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(distributed.share(rows))
    assert torch.equal(torch.cat(shares), rows)
    assert sorted(len(s) for s in shares) == [2, 2, 3]


@pytest.mark.parametrize("count, size", [(7, 2), (4, 1), (2, 1), (1, 5), (9, 2), (6, 8)])
def test_every_process_has_as_many_parts_and_every_row_counts_once(monkeypatch, count, size):
    """Three processes; parts of `size` at most. Slices of `consecutive` have no stand-ins, and none is empty."""
    counted, numbers, slices = [], set(), set()
    monkeypatch.setattr(distributed, "count", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts = distributed.batches(count, size)
        assert all(1 <= len(rows) <= size for rows, _ in parts)
        numbers.add(len(parts))
        counted += [int(i) for rows, counts in parts if counts for i in rows]
        mine = len(distributed.share(torch.arange(count)))
        for k in (1, 4):  # a rollout has a prompt a process at least, and parts of 4 candidates
            if mine:
                found = consecutive(mine * k, 4 * size, distributed.largest_share(count) * k)
                rows = [i for part in found for i in range(mine * k)[part]]
                assert rows == list(range(mine * k)) and all(range(mine * k)[part] for part in found)
                slices.add((k, len(found)))
    assert counted == list(range(count)) and len(numbers) == 1
    assert len(slices) == 2


@pytest.mark.parametrize("count", [0, 2, 4, 10])
def test_rows_that_belong_together_stay_together(monkeypatch, count):
    """Three processes, groups of two rows, parts of three."""
    monkeypatch.setattr(distributed, "count", lambda: 3)
    owner, numbers = {}, set()
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        parts = distributed.batches(count, 3, of=2)
        numbers.add(len(parts))
        owner |= {int(i): rank for rows, counts in parts if counts for i in rows}
    assert sorted(owner) == list(range(count)) and len(numbers) == 1
    assert all(owner[i] == owner[i + 1] for i in range(0, count, 2))


def test_processes_without_the_checkpoint_get_it_from_the_first_one(tmp_path):
    """Each has a folder of its own; the second one's holds a later step of another training, which counts for nothing.

    The tensors are of dtypes and shapes that a group can't send as they are.
    """
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([weight])
    weight.sum().backward()
    optimizer.step()
    state = {
        "half": torch.randn(2, 3).half(), "bf16": torch.randn(4).bfloat16(), "flags": torch.tensor([True, False]),
        "scalar": torch.tensor(7), "none": torch.empty(0, 3), "turned": torch.randn(2, 3).t(),
    }  # fmt: skip
    for folder, step, scale in (("first", 4, 1), ("second", 9, 0)):
        states = {"model": {k: v if v.dtype == torch.bool else v * scale for k, v in state.items()}}
        checkpoint.save_training(tmp_path / folder, step, optimizer, states, {"note": [folder]})

    def work():
        with distributed.joined(torch.device("cpu")):
            own = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3, 2))])
            found = checkpoint.load_training(tmp_path / ("first" if distributed.is_first() else "second"), own)
            assert (found.step, found.meta) == (4, {"note": ["first"]})
            held = found.state("model")
            assert held.keys() == state.keys()
            assert all(held[k].dtype == v.dtype and torch.equal(held[k], v) for k, v in state.items())
            assert torch.equal(own.state_dict()["state"][0]["exp_avg"], optimizer.state[weight]["exp_avg"])
            assert checkpoint.load_training(tmp_path / "absent", own) is None
            checkpoint.save_training(tmp_path / f"of-{distributed.rank()}", 5, own, {"model": held})
            with pytest.raises(NotFinite):  # in both, or one would wait for the other
                checkpoint.save_training(tmp_path, 6, own, {"model": {"x": torch.tensor(math.nan)}})
            distributed.check_same("numbers", "1")
            with pytest.raises(LpoError, match="the processes have different ranks"):
                distributed.check_same("ranks", str(distributed.rank()))

    together(work, tmp_path)
    assert [f.name for f in (tmp_path / "of-0").iterdir()] == ["step-00000005.safetensors"]
    assert not (tmp_path / "of-1").exists() and not list(tmp_path.glob("step-*"))


def test_more_processes_than_prompts_are_refused(tiny, tiny_reward, repository, tmp_path, monkeypatch):
    config = replace(load_params(repository / "params.yaml").tune, prompts=5, prompts_per_rollout=4)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(LpoError, match="1 prompts can't be shared by 2 processes"):
        trainer.run(["a cat"], dict, tmp_path, None)
