"""SIGKILL in the middle of a training, once or more (LPO_KILLS), then again to the end: the bytes of an unbroken run.

A kill comes at a random moment after a random one of the training's checkpoints; the choice is seeded.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from workspace import (
    KILLS,
    LRM_STEPS,
    ROLLOUTS,
    TINY_PRETRAIN,
    TRAININGS,
    contents,
    finish,
    hashes,
    kill,
    ran,
    run,
    started,
    write_params,
)

LONGEST = 0.4  # seconds from a checkpoint to the kill: about a step of these small trainings

# The stage, but its gates look at 2 pictures of a category, not at 100, and at 2 reconstructions, not at 500.
PROGRAM = """
from lpo.config import load_params
from lpo.stages import base
base.all_correct.__defaults__ = (2,)
several = base.sample_prompts
base.sample_prompts = lambda split, count, rng: several(split, 2, rng)
base.run(load_params())
"""
BASE = [sys.executable, "-c", PROGRAM]


def progress(folder: Path, stage: str) -> int:
    """Steps that the checkpoints of a stage hold, of all its trainings together."""
    found = (folder / ".checkpoints" / stage).rglob("step-*.safetensors")
    newest: dict[Path, int] = {}
    for file in found:
        newest[file.parent] = max(newest.get(file.parent, 0), int(re.findall(r"\d+", file.name)[0]))
    return sum(newest.values())


def kill_while_training(folder: Path, stage: str, steps: range, command: list[str]) -> None:
    """Start the command and kill it, KILLS times, each time farther into `steps` (of all trainings of the stage)."""
    rng = random.Random(f"{stage} {steps} {KILLS}")
    for step in sorted(rng.sample(steps, KILLS)):
        with started(folder, *command) as process:
            wait_for_step(folder, stage, min(max(step, progress(folder, stage) + 1), steps[-1]), process)
            time.sleep(rng.uniform(0, LONGEST))
            kill(process)
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def wait_for_step(folder: Path, stage: str, step: int, process: subprocess.Popen[str]) -> None:
    while progress(folder, stage) < step:
        if process.poll() is not None:
            finish(folder, process)
            pytest.fail(f"{stage} ended before step {step}")
        time.sleep(0.01)


@pytest.mark.parametrize(("stage", "steps"), [("lrm", LRM_STEPS), ("lpo", ROLLOUTS)])
def test_dvc_repro_killed_while_a_stage_trains_goes_on_to_the_same_bytes(
    finished: Path, tmp_path: Path, stage: str, steps: int
) -> None:
    """Of a finished run the stage's artifact and checkpoints are removed, everywhere, so that it must train again."""
    out = f"data/{stage}"
    folder = tmp_path / "workspace"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".checkpoints", "__pycache__"))
    shutil.rmtree(folder / out)
    md5 = hashes(folder)[out]
    (folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()

    kill_while_training(folder, stage, range(1, steps + 1), ["dvc", "repro"])
    done = progress(folder, stage)
    output = run(folder, "dvc", "repro")

    assert ran(output) == [stage]
    assert f"{done}/{steps}" in output and f" 0/{steps} " not in output, "it began again instead of going on"
    assert contents(folder, "data", "metrics", "plots") == contents(finished, "data", "metrics", "plots")
    assert (folder / "dvc.lock").read_bytes() == (finished / "dvc.lock").read_bytes()
    assert not list((folder / "data").rglob(".*.partial"))


def test_pretraining_killed_in_each_of_its_trainings_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        write_params(folder, {"pretrain": TINY_PRETRAIN})
    with started(whole, *BASE) as unbroken:
        first = 1
        for part in TRAININGS:
            last = first + TINY_PRETRAIN[f"{part}_steps"]
            kill_while_training(killed, "base", range(first, last - 1), BASE)
            first = last
        run(killed, *BASE)
        finish(whole, unbroken)
    made = contents(whole, "data", "metrics")
    assert {Path(name).parent.as_posix() for name in made} >= {"data/base/unet", "data/scorers", "metrics"}
    assert contents(killed, "data", "metrics") == made
