"""SIGKILL in the middle of a training, once or more (LPO_KILLS), then again to the end: the bytes of an unbroken run.

A kill comes at a random moment after a random one of the training's checkpoints; the choice is seeded.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.workspace import (
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

from lpo.config import load_params
from lpo.stages import base
from lpo.train.pretrain import gate

pytestmark = pytest.mark.slow

LONGEST = 0.4  # seconds from a checkpoint to the kill: about a step of these small trainings


def pretrain(folder: Path) -> None:
    """The stage base, but its gates look at 2 pictures of a category, not at 100, and at 2 reconstructions, not 500."""
    os.setsid()
    os.chdir(folder)
    with folder.with_suffix(".log").open("w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    several = gate.sample_prompts
    gate.all_correct.__defaults__ = (2,)
    gate.sample_prompts = lambda split, count, rng: several(split, 2, rng)
    base.run(load_params())


class Forked:
    """`pretrain` in a process group of its own, with what these tests use of Popen: to import takes seven seconds."""

    args = "pretrain"

    def __init__(self, folder: Path) -> None:
        self.process = multiprocessing.get_context("fork").Process(target=pretrain, args=(folder,))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode


@contextmanager
def forked(folder: Path) -> Iterator[Forked]:
    process = Forked(folder)
    try:
        yield process
    finally:
        if process.poll() is None:
            kill(process)


Start = Callable[[], AbstractContextManager[Any]]


def progress(folder: Path, stage: str) -> int:
    """Steps that the checkpoints of a stage hold, of all its trainings together."""
    found = (folder / ".checkpoints" / stage).rglob("step-*.safetensors")
    newest: dict[Path, int] = {}
    for file in found:
        newest[file.parent] = max(newest.get(file.parent, 0), int(re.findall(r"\d+", file.name)[0]))
    return sum(newest.values())


def kill_while_training(folder: Path, stage: str, steps: range, start: Start) -> None:
    """Start it and kill it, KILLS times, each time farther into `steps` (of all trainings of the stage)."""
    rng = random.Random(f"{stage} {steps} {KILLS}")
    for step in sorted(rng.sample(steps, KILLS)):
        with start() as process:
            wait_for_step(folder, stage, min(max(step, progress(folder, stage) + 1), steps[-1]), process)
            time.sleep(rng.uniform(0, LONGEST))
            kill(process)
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


def wait_for_step(folder: Path, stage: str, step: int, process: Any) -> None:
    while progress(folder, stage) < step:
        if process.poll() is not None:
            finish(folder, process)
            pytest.fail(f"{stage} ended before step {step}")
        time.sleep(0.01)


@pytest.mark.parametrize(("stage", "steps"), [("reward", LRM_STEPS), ("tune", ROLLOUTS)])
def test_dvc_repro_killed_while_a_stage_trains_goes_on_to_the_same_bytes(
    finished: Path, tmp_path: Path, stage: str, steps: int
) -> None:
    """Of a finished run the stage's artifact and checkpoints are removed, everywhere, so that it must train again."""
    out = {"reward": "data/reward", "tune": "data/tuned"}[stage]
    folder = tmp_path / "workspace"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".checkpoints", "__pycache__"))
    shutil.rmtree(folder / out)
    md5 = hashes(folder)[out]
    (folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).unlink()

    kill_while_training(folder, stage, range(1, steps + 1), lambda: started(folder, "dvc", "repro"))
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
    with forked(whole) as unbroken:
        first = 1
        for part in TRAININGS:
            last = first + TINY_PRETRAIN[f"{part}_steps"]
            kill_while_training(killed, "base", range(first, last - 1), lambda: forked(killed))
            first = last
        with forked(killed) as last_one:
            finish(killed, last_one)
        finish(whole, unbroken)
    made = contents(whole, "data", "metrics")
    folders = {Path(name).parent.as_posix() for name in made}
    assert folders >= {"data/base/unet", "data/scorers", "data/validators", "metrics"}
    assert contents(killed, "data", "metrics") == made
