"""The real server, a real worker, the small pipeline: states, artifacts, files, queues, refusals, nights, kills."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from service import Service, drop, processes
from test_kill import progress
from workspace import commit, contents, git, hashes, run

from tasks.graph import read_graph

pytestmark = pytest.mark.prefect
KILLED_STEPS = 120  # several a second: long enough to be interrupted four times
STAGES = ["dataset", "score", "filter", "encode", "lrm", "lpo", "evaluate", "report"]
GPU = {"lrm", "lpo", "evaluate"}
FROZEN = {"data/base", "data/scorers", "metrics/base.json"}  # `dvc repro` notes them, the flow lets them be


@pytest.fixture(scope="module")
def first(service: Service) -> dict[str, Any]:
    """The first run of lpo/full: everything is computed."""
    return service.finish(service.start())


def time_of(value: str) -> float:
    return datetime.fromisoformat(value).timestamp()


def test_the_first_run_computes_every_stage_on_its_queue(service: Service, first: dict[str, Any]) -> None:
    children = service.children(first["id"])
    assert sorted(children) == sorted(STAGES)
    assert {child["state"]["type"] for child in children.values()} == {"COMPLETED"}
    assert {child["state"]["message"].split()[0] for child in children.values()} == {"ran"}
    assert {name for name, child in children.items() if child["work_queue_name"] == "gpu"} == GPU
    ends = {name: (time_of(child["start_time"]), time_of(child["end_time"])) for name, child in children.items()}
    for name, stage in read_graph(service.folder).items():
        for other in set(stage.upstream) - {"base"}:
            assert ends[other][1] <= ends[name][0], f"{name} began before {other} was done"


def test_its_files_are_those_of_dvc_repro(service: Service, first: dict[str, Any], finished: Path) -> None:
    made = {name: md5 for name, md5 in hashes(finished).items() if name not in FROZEN and name != "data/report"}
    assert hashes(service.folder).items() >= made.items()
    assert contents(service.folder, "metrics", "plots") == contents(finished, "metrics", "plots")
    run(service.folder, "dvc", "status")


def test_people_see_figures_pictures_and_the_report(service: Service, first: dict[str, Any]) -> None:
    artifacts = service.artifacts(first["id"])
    assert {"summary", "before-after", "report"} <= artifacts.keys()
    rate = json.loads((service.folder / "metrics/evaluate.json").read_text())["win_rate"]["overall"]
    summary = artifacts["summary"]["data"]
    assert f"| overall | {rate['value']:.1%} | {rate['low']:.1%} to {rate['high']:.1%} |" in summary
    assert all(f"| {stage} | ran |" in summary for stage in STAGES)
    import httpx

    link = artifacts["report"]["data"].partition("](")[2].rstrip(")")
    assert httpx.get(link).text == (service.folder / "data/report/index.html").read_text()
    child = service.children(first["id"])["lrm"]
    assert float(service.artifacts(child["id"])["progress-lrm"]["data"]) == 100
    logs = service.filter("logs", logs={"flow_run_id": {"any_": [child["id"]]}})
    assert any(line["message"] == "> lpo lrm" for line in logs)


def test_an_unchanged_workspace_costs_seconds(service: Service, first: dict[str, Any]) -> None:
    before = time.monotonic()
    printed = service.call("prefect", "deployment", "run", "lpo/full", "--watch")
    print(f"\nunchanged: {time.monotonic() - before:.1f} s with the command line")
    assert "Completed" in printed
    done = {"state": {"type": {"any_": ["COMPLETED"]}}}
    (newest,) = service.filter("flow_runs", flow_runs=done, sort="END_TIME_DESC", limit=1)
    assert newest["state"]["message"].startswith("nothing new") and not service.children(newest["id"])
    tasks = service.tasks(newest["id"])
    assert len(tasks) == len(STAGES) and all(task["total_run_time"] < 2 for task in tasks)


def test_the_nightly_is_scheduled(service: Service) -> None:
    schedule = yaml.safe_load((service.folder / "prefect.yaml").read_text())["deployments"][1]["schedules"][0]
    deployment = service.get("deployments/name/lpo/nightly")
    found = service.wait(
        lambda: service.filter(
            "flow_runs",
            flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
            deployments={"id": {"any_": [deployment["id"]]}},
        )
    )
    assert schedule["cron"] == "0 2 * * *" and schedule["timezone"] == "UTC" and not deployment["paused"]
    assert {run["expected_start_time"][11:16] for run in found} == {"02:00"}
    assert {run["auto_scheduled"] for run in found} == {True}


def test_up_again_starts_nothing(service: Service) -> None:
    before = {name: (service.folder / f".prefect/{name}.pid").read_text() for name in ("server", "worker", "reports")}
    printed = service.up()
    assert "server: runs already" in printed and "worker: runs already" in printed and "next nightly run" in printed
    assert {name: (service.folder / f".prefect/{name}.pid").read_text() for name in before} == before


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"stages": {"from": "lrn"}}, "did you mean lrm"),
        ({"params": ["lpo.bta=1", "lrm.steps=0"]}, "2 mistakes"),
        ({"method": "ppo"}, "lpo.method"),
        ({"promote": True, "params": ["lpo.beta=7"]}, "with overrides is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_before_anything_starts(
    service: Service, first: dict[str, Any], parameters: dict[str, Any], words: str
) -> None:
    refused = service.finish(service.start(**parameters), "FAILED")
    assert words in refused["state"]["message"]
    assert service.tasks(refused["id"]) == [] and service.children(refused["id"]) == {}


def test_an_override_leaves_the_clone_as_it_is_and_two_runs_queue(service: Service, first: dict[str, Any]) -> None:
    before = contents(service.folder, "data", "metrics", "plots"), git(service.folder, "status", "--porcelain")
    runs = [service.start(params=["report.examples=1"]), service.start(stages={"from": "report"}, force=True)]
    ended = [service.finish(run_id) for run_id in runs]
    works = [service.children(run_id)["report"] for run_id in runs]
    assert all(work["state"]["message"].startswith("ran") for work in works)
    one, other = sorted((time_of(work["start_time"]), time_of(work["end_time"])) for work in works)
    assert one[1] <= other[0], "the runs collided"
    assert "workspaces/run-" in service.artifacts(ended[0]["id"])["summary"]["data"]
    assert (
        contents(service.folder, "data", "metrics", "plots"),
        git(service.folder, "status", "--porcelain"),
    ) == before


def test_a_second_clone_recomputes_nothing_and_its_nights_use_both(service: Service, first: dict[str, Any]) -> None:
    """They share git and the remote; dvc.lock was never committed.

    Then nights of the second clone, whose GPU stages the first works on: new pairs, and after a promotion a model to
    compare with, must travel with them.
    """
    clone = service.folder.parent / "second"
    git(service.folder.parent, "clone", "-q", str(service.folder), str(clone))
    assert not (clone / "dvc.lock").exists() and not (clone / "data/pairs").exists()
    service.stop_worker()
    try:
        with service.worker(clone, "cpu", "gpu"):
            run_id = service.start()
            service.finish(run_id)
            assert service.children(run_id) == {}, "something was computed again"
            summary = service.artifacts(run_id)["summary"]["data"]
            assert all(f"| {stage} | fetched |" in summary for stage in STAGES)
        roots = ("data/lrm", "data/lpo", "data/evaluation", "data/report", "metrics", "plots")
        assert contents(clone, *roots) == contents(service.folder, *roots)
        with service.worker(clone, "cpu"), service.worker(service.folder, "gpu"):
            a_night_with_new_pairs(service, clone)
            a_night_after_a_promotion(service, clone)
    finally:
        service.up()


def a_night_with_new_pairs(service: Service, clone: Path) -> None:
    def pairs_in() -> int:
        return int(json.loads((clone / "metrics/filter.json").read_text())["input"])

    before = pairs_in()
    found = pd.read_parquet(clone / "data/pairs/train-00000.parquet").head(12)
    found["caption"] = np.roll(found["caption"], 1)  # known words about other pictures: new pairs
    found.loc[0, "label_0"] = 2.0
    (clone / "data/inbox").mkdir()
    found.to_parquet(clone / "data/inbox/evening.parquet")
    run_id = service.start("lpo/nightly")
    service.finish(run_id)
    children = service.children(run_id)
    assert sorted(children) == sorted(set(STAGES) - {"dataset"})
    where = {name: child["state"]["message"].rpartition(":")[2] for name, child in children.items()}
    assert where == {name: str(service.folder if name in GPU else clone) for name in children}
    assert pairs_in() == before + 11
    assert len(list((clone / "data/quarantine").glob("*.parquet"))) == 1
    (record,) = map(json.loads, (clone / "models/ledger.jsonl").read_text().splitlines())
    assert record["event"] == "promoted"
    assert f"**{record['name']} was promoted:**" in service.artifacts(run_id)["summary"]["data"]
    new = [line for line in git(clone, "status", "--porcelain", "-uall").splitlines() if line.endswith(".dvc")]
    folders = {str(Path(line[3:]).parent) for line in new}
    assert folders == {"data/collected", "models", "models/promoted"}


def a_night_after_a_promotion(service: Service, clone: Path) -> None:
    """Nothing new in the inbox: the promoted model is compared with itself, and stays."""
    run_id = service.start("lpo/nightly")
    service.finish(run_id)
    assert sorted(service.children(run_id)) == ["evaluate", "report"]
    assert len((clone / "models/ledger.jsonl").read_text().splitlines()) == 1
    assert "promoted model already" in service.artifacts(run_id)["summary"]["data"]


def stage_process(folder: Path) -> list[psutil.Process]:
    return [p for p in processes(folder, "bin/lpo lrm") if "guard.py" not in " ".join(p.cmdline())]


def dvc_process(folder: Path) -> list[psutil.Process]:
    return [p for p in processes(folder, "dvc repro") if "guard.py" not in " ".join(p.cmdline())]


def wait_until_quiet(service: Service) -> None:
    service.wait(lambda: not (processes(service.folder, "dvc repro") or processes(service.folder, "bin/lpo")))


def test_interrupted_everywhere_ends_with_the_same_bytes(
    service: Service, first: dict[str, Any], tmp_path: Path
) -> None:
    """One training of the reward is cancelled, its stage killed, its dvc killed, its worker killed; in the end it has
    the bytes of a training that nobody touched."""
    folder = service.folder
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["lrm"] |= {"steps": KILLED_STEPS, "patience": KILLED_STEPS, "validate_every": KILLED_STEPS}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    commit(folder)
    drop(folder, "lrm")
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole, ignore=shutil.ignore_patterns(".prefect", ".checkpoints"))
    run(whole, "dvc", "repro", "--single-item", "lrm")
    expected = hashes(whole)["data/lrm"]

    def interrupted(interrupt: Callable[[str], None], kind: str | None) -> None:
        """Start a run, interrupt it when it has made some more steps, and see that nothing goes on."""
        begun = progress(folder, "lrm")
        run_id = service.start(stages={"from": "lrm", "until": "lrm"})
        service.wait(lambda: progress(folder, "lrm") >= begun + 3)
        interrupt(run_id)
        wait_until_quiet(service)
        if kind:
            service.finish(run_id, kind)
        done = progress(folder, "lrm")
        assert begun < done < KILLED_STEPS, "it ended before it was interrupted"
        time.sleep(1)
        assert progress(folder, "lrm") == done, "something goes on training"

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
    run_id = service.start(stages={"from": "lrm", "until": "lrm"})
    service.finish(run_id)
    child = service.children(run_id)["lrm"]
    logs = service.filter("logs", logs={"flow_run_id": {"any_": [child["id"]]}}, limit=200)
    assert child["state"]["message"].startswith("ran")
    assert not any(f" 0/{KILLED_STEPS} " in line["message"] for line in logs), "it began again instead of going on"
    assert hashes(folder)["data/lrm"] == expected


def test_down_stops_what_up_started_and_nothing_else(service: Service) -> None:
    assert "worker" in service.down()
    assert processes(service.folder, "prefect") == [] and processes(service.folder, "http.server") == []
    assert "nothing was running" in service.down()
