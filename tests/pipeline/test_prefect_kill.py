"""Prefect's training of a reward is cancelled, and its stage, its dvc and its worker are killed.

It is trained in a clone where `dvc repro` has run everything. The clone has no DVC remote, as at first everybody's.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from support.service import Service, add_flows, drop, processes, serving
from support.workspace import commit, hashes, run
from test_kill import progress

pytestmark = pytest.mark.prefect
KILLED_STEPS = 120  # several a second: long enough to be interrupted four times


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service of a copy of a finished workspace."""
    folder = tmp_path_factory.mktemp("prefect_kill") / "clone"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns(".checkpoints", "__pycache__"))
    add_flows(folder, remote=False)
    with serving(folder) as found:
        yield found


def stage_process(folder: Path) -> list[psutil.Process]:
    return [p for p in processes(folder, "bin/lpo reward") if "guard.py" not in " ".join(p.cmdline())]


def dvc_process(folder: Path) -> list[psutil.Process]:
    return [p for p in processes(folder, "dvc repro") if "guard.py" not in " ".join(p.cmdline())]


def wait_until_quiet(service: Service) -> None:
    service.wait(lambda: not (processes(service.folder, "dvc repro") or processes(service.folder, "bin/lpo")))


def test_interrupted_everywhere_ends_with_the_same_bytes(trained: Service, tmp_path: Path) -> None:
    """One training of the reward is cancelled, its stage killed, its dvc killed, its worker killed; in the end it has
    the bytes of a training that nobody touched."""
    service, folder = trained, trained.folder
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["reward"] |= {"steps": KILLED_STEPS, "patience": KILLED_STEPS, "validate_every": KILLED_STEPS}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    commit(folder)
    drop(folder, "reward")
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole, ignore=shutil.ignore_patterns(".prefect", ".checkpoints"))
    run(whole, "dvc", "repro", "--single-item", "reward")
    expected = hashes(whole)["data/reward"]

    def interrupted(interrupt: Callable[[str], None], kind: str | None) -> None:
        """Start a run, interrupt it after some more steps, and check that everything stops."""
        begun = progress(folder, "reward")
        run_id = service.start(stages={"from": "reward", "until": "reward"})
        service.wait(lambda: progress(folder, "reward") >= begun + 3)
        interrupt(run_id)
        wait_until_quiet(service)
        if kind:
            service.finish(run_id, kind)
        done = progress(folder, "reward")
        assert begun < done < KILLED_STEPS, "it ended before it was interrupted"
        time.sleep(1)
        assert progress(folder, "reward") == done, "something is still training"

    def cancel(run_id: str) -> None:
        service.call("prefect", "flow-run", "cancel", run_id)
        before = time.monotonic()
        wait_until_quiet(service)
        seconds = time.monotonic() - before
        print(f"\ncancelled: quiet after {seconds:.1f} s")
        assert seconds < 15

    def kill_worker(run_id: str) -> None:
        os.killpg(int(yaml.safe_load((folder / ".prefect/worker.pid").read_text())["pid"]), signal.SIGKILL)

    interrupted(cancel, "CANCELLED")
    interrupted(lambda run_id: stage_process(folder)[0].kill(), "FAILED")
    interrupted(lambda run_id: dvc_process(folder)[0].kill(), "FAILED")
    interrupted(kill_worker, None)
    assert "worker: started" in service.up()
    run_id = service.start(stages={"from": "reward", "until": "reward"})
    service.finish(run_id)
    child = service.children(run_id)["reward"]
    logs = service.filter("logs", logs={"flow_run_id": {"any_": [child["id"]]}}, limit=200)
    assert child["state"]["name"] == "Ran"
    assert not any(f" 0/{KILLED_STEPS} " in line["message"] for line in logs), "it started from the beginning"
    assert hashes(folder)["data/reward"] == expected
