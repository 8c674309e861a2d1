from __future__ import annotations

import random
import subprocess
import sys
import types
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lpo.config import Params, load_params
from lpo.tracking import Tracker


@pytest.fixture
def params(project: Path) -> Params:
    return load_params()


def without_wandb(params: Params) -> Params:
    return replace(params, tracking=replace(params.tracking, wandb="disabled"))


def tracker_of(run_name: str, params: Params, folder: Path | None = None) -> Tracker:
    return Tracker(run_name, params.tracking, asdict(params), folder)


def git(*args: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *who, *args], capture_output=True, text=True, check=True).stdout


def test_a_run_is_written_by_both_trackers_and_git_sees_nothing_else(params: Params, project: Path) -> None:
    Path(".gitignore").write_text("dvclive/\n.wandb/\n")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    analytics = false\n")
    Path(".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    refs = git("for-each-ref")
    with tracker_of("reward", params) as tracker:
        tracker.log(0, {"reward/loss": 0.75})
        tracker.show("reward/picture", np.zeros((4, 6, 3), np.uint8))
        tracker.log(250, {"reward/loss": 0.5, "reward/accuracy": 0.625})
        tracker.log(300, {"reward/loss": 0.4})
    rows = Path("dvclive/reward/plots/metrics/reward/loss.tsv").read_text().split()
    assert rows == ["step", "loss", "0", "0.75", "250", "0.5", "300", "0.4"]
    (picture,) = Path("dvclive").rglob("*.png")
    assert picture.name == "000250.png" and Image.open(picture).size == (6, 4)
    assert len(list(Path(".wandb").rglob("media/images/**/*.png"))) == 1
    assert len(list(Path(".wandb").rglob("*.wandb"))) == 1
    assert git("status", "--porcelain") == ""
    assert git("for-each-ref") == refs
    assert not Path("dvc.yaml").exists()


def test_each_run_of_a_process_is_kept_in_the_folder_it_was_started_in(
    params: Params, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (project / name).mkdir()
        monkeypatch.chdir(project / name)
        with tracker_of("reward", params) as tracker:
            tracker.log(0, {"reward/loss": 0.75})
        assert len(list((project / name / ".wandb").rglob("*.wandb"))) == 1


def test_random_states_are_those_of_a_run_without_trackers(params: Params) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    def seed() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seed()
    plain = [draw() for _ in range(3)]
    seed()
    with tracker_of("tune", params) as tracker:
        tracked = [draw()]
        tracker.log(0, {"loss": 1.0})
        tracked.append(draw())
    tracked.append(draw())
    assert tracked == plain


def rows(project: Path, name: str) -> list[tuple[int, float]]:
    """What DVCLive has of a metric."""
    table = (project / f"dvclive/reward/plots/metrics/reward/{name}.tsv").read_text().splitlines()[1:]
    return [(int(step), float(value)) for step, value in (row.split("\t") for row in table)]


def train(tracker: Tracker, start: int, end: int) -> None:
    """Log a loss at every step of [start, end), and then an accuracy at every third; each depends on the step alone."""
    for step in range(start, end):
        tracker.log(step, {"reward/loss": 1.0 / (step + 1)})
        if step % 3 == 0:
            tracker.log(step, {"reward/accuracy": step / 100})


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """In the place of wandb: the arguments of every run that is started, with what it logs under `rows`."""
    runs: list[dict[str, Any]] = []

    def init(**arguments: Any) -> Any:
        runs.append(arguments | {"rows": []})
        logged = runs[-1]["rows"]
        return types.SimpleNamespace(
            log=lambda values, step: logged.append((step, values)), finish=lambda exit_code: None
        )

    module: Any = types.SimpleNamespace(init=init, Settings=lambda **settings: settings, Image=lambda picture: picture)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


@pytest.mark.parametrize("killed", [True, False])
def test_a_resumed_training_continues_its_curves_without_a_second_copy(
    params: Params, project: Path, wandb: list[dict[str, Any]], killed: bool
) -> None:
    """Interrupted at step 7, between its loss and its accuracy or not, and resumed from a checkpoint at step 4."""
    checkpoints = project / ".checkpoints/reward/key"
    checkpoints.mkdir(parents=True)
    first = tracker_of("reward", params, checkpoints)
    if killed:
        first.__enter__()  # SIGKILL: nothing is closed
        train(first, 0, 8)
    else:
        with pytest.raises(KeyboardInterrupt), first:
            train(first, 0, 8)
            raise KeyboardInterrupt
    with tracker_of("reward", params, checkpoints) as tracker:
        train(tracker, 4, 12)
    assert rows(project, "loss") == [(step, pytest.approx(1.0 / (step + 1))) for step in range(12)]
    assert rows(project, "accuracy") == [(step, pytest.approx(step / 100)) for step in (0, 3, 6, 9)]
    one, two = wandb
    assert one["id"] == two["id"] and two["rows"][0][0] == 7, "step 7 may not have been sent completely"
    with tracker_of("reward", params, checkpoints) as tracker:  # finished, and run again: it repeats its last steps
        train(tracker, 10, 12)
    assert len(rows(project, "loss")) == 12 and wandb[2]["rows"] == []


def test_another_training_has_curves_of_its_own(params: Params, project: Path, wandb: list[dict[str, Any]]) -> None:
    for key in ("one", "two"):
        checkpoints = project / ".checkpoints/reward" / key
        checkpoints.mkdir(parents=True)
        with tracker_of("reward", params, checkpoints) as tracker:
            train(tracker, 0, 5 if key == "one" else 3)
    assert len(rows(project, "loss")) == 3
    assert wandb[0]["id"] != wandb[1]["id"]


def test_wandb_resumes_a_run_only_online(params: Params, project: Path, wandb: list[dict[str, Any]]) -> None:
    for mode in ("offline", "online"):
        with tracker_of("reward", replace(params, tracking=replace(params.tracking, wandb=mode)), project):
            pass
    assert [run["resume"] for run in wandb] == [None, "allow"] and wandb[0]["id"] == wandb[1]["id"]


def broken_live(monkeypatch: pytest.MonkeyPatch, fails_in: str) -> list[str]:
    """In the place of DVCLive: one that raises in a method, and draws random numbers in all."""
    calls: list[str] = []

    class Live:
        def __init__(self, **kwargs: Any) -> None:
            self._call("init")

        def log_metric(self, name: str, value: float) -> None:
            self._call("log")

        def make_summary(self) -> None:
            self._call("summary")

        def end(self) -> None:
            self._call("end")

        def _call(self, name: str) -> None:
            calls.append(name)
            random.random(), np.random.rand(), torch.rand(())
            if name == fails_in:
                raise RuntimeError("the disk is full")

    module: Any = types.ModuleType("dvclive")
    module.Live = Live
    monkeypatch.setitem(sys.modules, "dvclive", module)
    return calls


@pytest.mark.parametrize(
    ("fails_in", "expected"),
    [
        ("init", ["init"]),
        ("log", ["init", "log"]),
        ("end", ["init", "log", "summary", "log", "summary", "log", "summary", "end"]),
    ],
)
def test_a_tracker_that_fails_is_told_once_dropped_and_harms_nothing(
    params: Params,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fails_in: str,
    expected: list[str],
) -> None:
    calls = broken_live(monkeypatch, fails_in)
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    with tracker_of("reward", without_wandb(params)) as tracker:
        for step in range(3):
            tracker.log(step, {"loss": 1.0})
    assert calls == expected
    assert capsys.readouterr().err == "warning: dvclive failed and no longer records this run: the disk is full\n"
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before


def test_the_error_of_a_run_goes_through_and_the_tracker_is_closed(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = broken_live(monkeypatch, "never")
    with pytest.raises(KeyboardInterrupt), tracker_of("reward", without_wandb(params)):
        raise KeyboardInterrupt
    assert calls == ["init", "end"]


def test_outside_of_its_block_a_tracker_does_nothing(params: Params, project: Path) -> None:
    tracker_of("reward", params).log(0, {"loss": 1.0})
    assert not Path("dvclive").exists()
    assert not Path(".wandb").exists()
