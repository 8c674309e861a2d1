"""Trainings as commands, by several processes of this machine: the same result, and the same bytes after a kill."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file
from support.together import together
from support.workspace import ENVIRONMENT, contents

from lpo.config import Params, load_params
from lpo.data.latents import write_space
from lpo.errors import NotFinite
from lpo.families import latent_space_of
from lpo.paths import SPM
from lpo.stages import reward
from lpo.stages import tune as tuning
from lpo.study import spm
from lpo.train.policy import rollout
from lpo.train.policy.trainer import PolicyTrainer

pytestmark = pytest.mark.slow
RESULTS = ("data/reward", "data/tuned", "metrics", "plots")


@pytest.fixture
def params(trained_inputs: None, tiny_base: Path) -> Params:
    """What the stages read, in the working directory: shares are uneven by 2 and by 4, and some are empty by 4.

    params.yaml has them too, so that commands find them.
    """
    shutil.copytree(tiny_base, "data/base")
    found = load_params("params.yaml")
    model = replace(found.model, path="data/base", device="cpu")
    write_space(Path("data/latents"), latent_space_of(model))
    training = {"warmup_steps": 1, "batch_size": 5, "micro_batch_size": 2, "validate_every": 4, "checkpoint_every": 1}
    params = replace(
        found,
        model=model,
        tracking=replace(found.tracking, wandb="disabled"),
        evaluate=replace(found.evaluate, num_inference_steps=2, batch_size=2, prompts=4),
        reward=replace(found.reward, steps=12, learning_rate=1e-2, embedding_dim=8, **training),
        spm=replace(found.spm, steps=2, **training),
        tune=replace(
            found.tune, prompts=20, prompts_per_rollout=5, num_inference_steps=2, batch_size=4, micro_batch_size=2,
            learning_rate=1e-3, lora_rank=2, validate_every=2, validation_prompts=3, checkpoint_every=1,
            threshold=replace(found.tune.threshold, schedule="quantile", low=0.3, high=0.3),
            guard=replace(found.tune.guard, prompts=2, seeds=2),
        ),
    )  # fmt: skip
    Path("params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(params))), sort_keys=False))
    return load_params("params.yaml")


@contextmanager
def command(stage: str, count: int) -> Iterator[subprocess.Popen[str]]:
    """`lpo STAGE` by `count` processes; what it prints goes to STAGE.log."""
    environment = os.environ | ENVIRONMENT | {"LPO_PROCESSES": str(count)}
    with open(f"{stage}.log", "w") as log:
        process = subprocess.Popen(["lpo", stage], env=environment, stdout=log, stderr=log, text=True)
    try:
        yield process
    finally:
        process.kill()  # its processes end with it
        process.wait()


def finish(stage: str, count: int) -> None:
    with command(stage, count) as process:
        assert process.wait() == 0, Path(f"{stage}.log").read_text()[-4000:]


def kill(process: subprocess.Popen[str], stage: str, rank: int, step: int) -> None:
    """SIGKILL for one of the processes that `lpo STAGE` started, once there is a checkpoint of this step."""
    reached = 0
    while reached < step:
        assert process.poll() is None, "it ended before it was killed: " + Path(f"{stage}.log").read_text()[-4000:]
        found = Path(".checkpoints", stage).rglob("step-*.safetensors")
        reached = max((int(file.stem.split("-")[1]) for file in found), default=0)
        time.sleep(0.01)
    members = psutil.Process(process.pid).children()
    (member,) = [m for m in members if m.environ().get("RANK") == str(rank)]
    member.kill()
    assert process.wait() == 128 + 9
    assert f"process {rank + 1} of {len(members)} was killed by SIGKILL" in Path(f"{stage}.log").read_text()
    assert "Traceback" not in Path(f"{stage}.log").read_text()
    psutil.wait_procs(members, timeout=30)
    assert not any(m.is_running() for m in members)


Made = tuple[dict[str, torch.Tensor], list[dict[str, float]], dict[str, object]]


def made(stage: str) -> Made:
    """Weights, history and figures that a stage wrote."""
    folder = {"reward": Path("data/reward"), "tune": Path("data/tuned"), "spm": SPM}[stage]
    (weights,) = [f for f in folder.glob("*.safetensors") if f.name != "model.safetensors" or stage == "spm"]
    figures = Path("studies/spm.json" if stage == "spm" else f"metrics/{stage}.json")
    return load_file(weights), json.loads((folder / "history.json").read_text()), json.loads(figures.read_text())


def check_equal(found: Made, expected: Made, stage: str) -> None:
    """Up to the order of sums; verdicts on pairs are the same."""
    for name, weight in expected[0].items():
        torch.testing.assert_close(found[0][name], weight, rtol=2e-3, atol=1e-5)
    assert len(found[1]) == len(expected[1])
    for here, there in zip(found[1], expected[1], strict=True):
        assert here.keys() == there.keys()
        for key in set(here) - {"by_timestep", "warnings"}:
            assert np.isclose(here[key], there[key], rtol=2e-2, atol=2e-3), (key, here, there)
    if stage != "tune":
        assert found[2]["accuracy"] == expected[2]["accuracy"]


RUN: dict[str, Callable[[Params], None]] = {"reward": reward.run, "spm": spm.run, "tune": tuning.run}


@pytest.mark.parametrize("stage", ["reward", "spm", "tune"])
def test_several_processes_equal_one_and_a_killed_one_changes_no_byte(params: Params, stage: str) -> None:
    """One process, two as a command starts them, four. Of the two the second one is killed, then the first one."""
    RUN[stage](params)
    one = made(stage)
    shutil.rmtree(f".checkpoints/{stage}")
    finish(stage, 2)
    two, whole = made(stage), contents(Path(), *RESULTS)
    check_equal(two, one, stage)
    shutil.rmtree(f".checkpoints/{stage}")
    together(lambda: RUN[stage](params), Path(), 4)
    check_equal(made(stage), two, stage)
    if stage == "spm":
        return
    assert len(whole) > 3
    shutil.rmtree(f".checkpoints/{stage}")
    shutil.rmtree({"reward": "data/reward", "tune": "data/tuned"}[stage])
    for rank, step in ((1, 1), (0, 2)):
        with command(stage, 2) as process:
            kill(process, stage, rank, step)
    finish(stage, 2)
    assert contents(Path(), *RESULTS) == whole
    log = Path(f"{stage}.log").read_text()
    assert f" 0/{4 if stage == 'tune' else 12} " not in log, "it began again instead of going on"


@pytest.mark.parametrize("stage", ["reward", "tune"])
def test_two_machines_without_a_common_disk_go_on_where_one_process_stopped(params: Params, stage: str) -> None:
    """Two folders, two processes in each. The first has the checkpoint of a training that was stopped half-way."""
    RUN[stage](params)
    one = made(stage)
    done = sorted(Path(".checkpoints", stage).rglob("step-*.safetensors"))[-1]
    shutil.rmtree(f".checkpoints/{stage}")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, stage)
        RUN[stage](params)
    assert 0 < steps_of(Path(), stage) < int(done.stem.split("-")[1])
    shutil.rmtree({"reward": "data/reward", "tune": "data/tuned"}[stage], ignore_errors=True)
    if stage == "tune":
        shutil.rmtree("metrics")
    machines = [Path("a").resolve(), Path("b").resolve()]
    for folder in machines:
        folder.mkdir()
        shutil.copytree("data", folder / "data")
    shutil.copytree(".checkpoints", machines[0] / ".checkpoints")
    before = contents(machines[1], ".")

    def work() -> None:
        os.chdir(machines[int(os.environ["RANK"]) // 2])
        RUN[stage](params)

    together(work, Path(), 4)
    os.chdir(machines[0])
    check_equal(made(stage), one, stage)
    assert contents(machines[1], ".") == before, "only the first process writes"


def interrupt(patch: pytest.MonkeyPatch, stage: str) -> None:
    """Stop the training in its third step."""
    cls, name = (PolicyTrainer, "update") if stage == "tune" else (reward.RewardTrainer, "step")
    usual, calls = getattr(cls, name), []

    def counted(*words: object) -> object:
        calls.append(words)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return usual(*words)

    patch.setattr(cls, name, counted)


def steps_of(folder: Path, stage: str) -> int:
    found = (folder / ".checkpoints" / stage).rglob("step-*.safetensors")
    return max((int(file.stem.split("-")[1]) for file in found), default=0)


def test_a_tuning_in_which_one_process_has_bad_scores_keeps_the_best_adapter(params: Params) -> None:
    """In the third rollout the second process's scores are NaN: both stop, and the first one writes before they end."""
    usual = rollout.explore

    def work() -> None:
        calls = []

        def poisoned(*words: object) -> object:
            made, conditioning = usual(*words)  # type: ignore[arg-type]
            calls.append(words)
            if len(calls) == 3 and os.environ["RANK"] == "1":
                made.by_reward.fill_(float("nan"))
            return made, conditioning

        rollout.explore = poisoned  # type: ignore[assignment]
        with pytest.raises(NotFinite, match="scores are NaN or infinite"):
            tuning.run(params)
        assert Path("data/tuned/pytorch_lora_weights.safetensors").exists()
        Path(f"stopped-{os.environ['RANK']}").touch()

    together(work, Path())
    assert len(list(Path().glob("stopped-*"))) == 2
    metrics = json.loads(Path("metrics/tune.json").read_text())
    assert "scores are NaN" in metrics["warnings"][-1] and metrics["prompts"] == 10
