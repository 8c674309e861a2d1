"""How many processes a training has, and how those that start together end: with one message and one exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from support.together import together

from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.train.common import distributed, launch
from lpo.train.common.ahead import Ahead

START = "import sys; from lpo.train.common.launch import start; sys.exit(start(sys.argv[1:], 3))"


@pytest.fixture
def params(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """A rollout of 6 prompts, the last one of 4."""
    monkeypatch.delenv("LPO_PROCESSES")
    found = load_params(repository / "params.yaml")
    return replace(found, tune=replace(found.tune, prompts=10, prompts_per_rollout=6))


@pytest.fixture
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)


def test_a_cpu_has_one_process_and_gpus_one_each(params, request):
    assert [launch.processes(stage, params) for stage in ("reward", "spm", "tune")] == [1, 1, 1]
    request.getfixturevalue("eight_gpus")
    assert [launch.processes(stage, params) for stage in ("reward", "spm")] == [8, 8]
    on_cpu = replace(params, model=replace(params.model, device="cpu"))
    assert launch.processes("reward", on_cpu) == 1


def test_the_variable_sets_the_number_up_to_the_gpus(params, monkeypatch, request):
    monkeypatch.setenv("LPO_PROCESSES", "12")
    assert launch.processes("reward", params) == 12
    request.getfixturevalue("eight_gpus")
    assert launch.processes("reward", params) == 8
    monkeypatch.setenv("LPO_PROCESSES", "3")
    assert launch.processes("reward", params) == 3
    monkeypatch.setenv("LPO_PROCESSES", "none")
    with pytest.raises(LpoError, match="LPO_PROCESSES is 'none'"):
        launch.processes("reward", params)


def test_tune_has_no_more_processes_than_its_smallest_rollout_has_prompts(params, eight_gpus, capsys):
    assert launch.processes("tune", params) == 4
    assert "4 of 8 processes" in capsys.readouterr().err
    assert launch.processes("tune", replace(params, tune=replace(params.tune, prompts=12))) == 6
    assert launch.processes("tune", replace(params, tune=replace(params.tune, prompts_per_rollout=10))) == 8


def test_processes_of_torchrun_start_no_more(params, eight_gpus, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert launch.processes("reward", params) == 1


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--version-that-is-not-there"], 2, "No such option"),
        (["tune", "--params", "absent.yaml"], 2, "absent.yaml"),
    ],
)
def test_a_mistake_of_all_processes_has_one_exit_code_and_an_lpo_error_is_said_once(tmp_path, words, code, text):
    done = subprocess.run([sys.executable, "-c", START, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr
    if words[0] == "tune":
        assert done.stderr.count("fix:") == 1 and "ChildFailedError" not in done.stderr


def test_several_processes_that_end_well_end_with_0(tmp_path):
    done = subprocess.run([sys.executable, "-c", START, "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("Usage:") == 3 and not done.stderr


@pytest.mark.parametrize(
    ("codes", "expected", "says"),
    [
        ({1: 2, 0: -15}, 2, ""), ({0: -15, 1: 1, 2: -9}, 1, ""),
        ({2: -9, 0: -15, 1: 1}, 137, "process 3 of 4 was killed by SIGKILL"),
        ({1: -15, 0: -15}, 143, "process 2 of 4 was killed by SIGTERM"),
    ],
)  # fmt: skip
def test_the_exit_code_is_that_of_the_process_that_failed_first(capsys, codes, expected, says):
    assert launch._code("tune", codes, 4) == expected
    assert says in capsys.readouterr().err


def test_processes_of_one_machine_listen_on_no_other_address(tmp_path):
    def work() -> None:
        with distributed.joined(torch.device("cpu")):
            assert distributed.gathered(distributed.rank()) == [0, 1]
            own = psutil.Process().net_connections(kind="inet")
            listening = [c.laddr.ip for c in own if c.status == psutil.CONN_LISTEN]
            (tmp_path / f"listening-{distributed.rank()}").write_text(" ".join(listening))

    together(work, tmp_path)
    found = [(tmp_path / f"listening-{rank}").read_text().split() for rank in range(2)]
    assert all(found) and {ip for ips in found for ip in ips} == {"127.0.0.1"}


def test_what_is_made_ahead_is_made_on_the_gpu_of_the_process(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 5)
    monkeypatch.setattr(torch.cuda, "set_device", lambda gpu: chosen.append((threading.current_thread().name, gpu)))
    ahead = Ahead(torch.device("cuda"))
    assert [ahead(lambda step: step, step, 3) for step in range(3)] == [0, 1, 2]
    assert chosen == [("ahead_0", 5)]


def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    """The one in the middle is killed; the last one notes its number first."""
    last = "import os, time; from lpo.train.common import launch; launch.follow(); print(os.getpid(), flush=True); "
    last += "time.sleep(60)"
    middle = "import os, subprocess, sys; os.environ['LPO_PARENT'] = str(os.getpid()); "
    middle += f"subprocess.run([sys.executable, '-c', {last!r}])"
    with subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = psutil.Process(int(process.stdout.readline()))
        process.kill()
        child.wait(timeout=30)
    assert not os.path.exists(f"/proc/{child.pid}") or not child.is_running()
