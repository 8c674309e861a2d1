"""Two processes under torchrun make what one process makes."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from lpo.config import load_params
from lpo.errors import LpoError
from lpo.train.common import distributed
from lpo.train.policy.rollout import consecutive
from lpo.train.policy.trainer import PolicyTrainer

PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
from lpo.config import load_params
from lpo.families import sd
from lpo.rewards.lrm import LatentRewardModel
from lpo.train.common import distributed
from lpo.train.policy.trainer import PolicyTrainer

base, params, *work = sys.argv[1:]
device = torch.device("cpu")
torch.set_num_threads(1)
lpo = load_params(params).tune
rule = replace(lpo.threshold, schedule="quantile", low=0.5, high=0.5)
config = replace(
    lpo, prompts_per_rollout=3, num_inference_steps=3, batch_size=4, guidance_scale=3.0,
    lora_rank=2, validate_every=1, checkpoint_every=1, learning_rate=1e-3, threshold=rule, timestep_range=(0, 1000),
)
with distributed.joined(device):
    for out, prompts in zip(work[::2], work[1::2]):
        family = sd.load(base, device, torch.float32)
        torch.manual_seed(1)
        reward = LatentRewardModel(sd.load(base, device, torch.float32, reward=True), 8, 7.5, "multi_scale")
        trainer = PolicyTrainer(family, reward, replace(config, prompts=int(prompts)), seed=3)
        Path(out).mkdir(exist_ok=True)
        figures = lambda: {"validation": float(trainer.updates), "reward": 0.0, "diversity": 1.0}
        trainer.run(["a cat", "two dogs", "a taxi", "a star", "a red heart"], figures, Path(out), None)
        if distributed.is_first():
            save_file({k: v.contiguous() for k, v in trainer.ema.items()}, out + "/ema.safetensors")
            (Path(out) / "history.json").write_text(json.dumps([distributed.count(), trainer.history]))
"""


def test_two_processes_equal_one_and_one_goes_on_where_two_stopped(tiny_base, repository, tmp_path, monkeypatch):
    """Three prompts by two processes, so that shares are uneven; the second rollout of `resumed` is of one process."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    words = [str(program), str(tiny_base), str(repository / "params.yaml")]
    one, two, resumed = (str(tmp_path / name) for name in ("one", "two", "resumed"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, *words, two, "6", resumed, "3"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(sys, "argv", [*words, one, "6", resumed, "6"])
    runpy.run_path(str(program))
    alone = load_file(tmp_path / "one" / "ema.safetensors")
    for other in ("two", "resumed"):
        found = load_file(tmp_path / other / "ema.safetensors")
        assert found.keys() == alone.keys()
        for name, weight in alone.items():
            torch.testing.assert_close(found[name], weight, rtol=1e-3, atol=1e-6)
    assert '"pairs"' in (tmp_path / "two" / "history.json").read_text()
    assert (tmp_path / "two" / "history.json").read_text().startswith("[2, ")
    assert (tmp_path / "resumed" / "history.json").read_text().startswith("[1, ")


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


def test_more_processes_than_prompts_are_refused(tiny, tiny_reward, repository, tmp_path, monkeypatch):
    config = replace(load_params(repository / "params.yaml").tune, prompts=5, prompts_per_rollout=4)
    trainer = PolicyTrainer(tiny, tiny_reward, config, seed=0)
    monkeypatch.setattr(distributed, "count", lambda: 2)
    with pytest.raises(LpoError, match="1 prompts can't be shared by 2 processes"):
        trainer.run(["a cat"], dict, tmp_path, None)
