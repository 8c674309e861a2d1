"""A real server, a real worker and the small pipeline: states, artifacts, files, queues, refusals, nights."""

from __future__ import annotations

import json
import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from support.service import Service, processes
from support.workspace import contents, git, hashes, outs, run, stages

from tasks.graph import read_graph

pytestmark = pytest.mark.prefect
STAGES = ["dataset", "score", "filter", "encode", "reward", "tune", "evaluate", "report"]
GPU = {"score", "encode", "reward", "tune", "evaluate"}
REFUSED: dict[str, dict[str, Any]] = {  # words of the message, and the parameters that it is about
    "did you mean reward": {"stages": {"from": "rewrd"}},
    "2 mistakes": {"params": ["tune.bta=1", "reward.steps=0"]},
    "tune.method": {"method": "ppo"},
    "cannot be combined with overrides": {"promote": True, "params": ["tune.beta=7"]},
}
# `dvc repro` notes them, the flow lets them be
FROZEN = {"data/base", "data/scorers", "data/validators", "metrics/base.json"}


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
    assert {child["state"]["name"] for child in children.values()} == {"Ran"}
    assert {name for name, child in children.items() if child["work_queue_name"] == "gpu"} == GPU
    ends = {name: (time_of(child["start_time"]), time_of(child["end_time"])) for name, child in children.items()}
    for name, stage in read_graph(service.folder).items():
        for other in set(stage.upstream) - {"base"}:
            assert ends[other][1] <= ends[name][0], f"{name} began before {other} was done"


def test_two_runs_from_nothing_make_equal_artifacts(service: Service, first: dict[str, Any], finished: Path) -> None:
    """One by the flow, one by `dvc repro`: every artifact, metric, plot and entry of dvc.lock has the same bytes.

    But the report, which shows the hashes of dvc.lock, where `dvc repro` notes the frozen base too.
    """
    wanted = {name for stage in stages(finished).values() for name in outs(stage)}
    one, other = hashes(finished), hashes(service.folder)
    assert one.keys() == wanted and other.keys() == wanted - FROZEN
    assert one.items() >= {name: md5 for name, md5 in other.items() if name != "data/report"}.items()
    locks = [yaml.safe_load((folder / "dvc.lock").read_text())["stages"] for folder in (finished, service.folder)]
    for lock in locks:
        lock.pop("base", None)
        lock["report"].pop("outs")
    assert locks[0] == locks[1]
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
    child = service.children(first["id"])["reward"]
    assert float(service.artifacts(child["id"])["progress-reward"]["data"]) == 100
    logs = service.filter("logs", logs={"flow_run_id": {"any_": [child["id"]]}})
    assert any(line["message"] == "> lpo reward" for line in logs)


def test_an_unchanged_workspace_costs_seconds(service: Service, first: dict[str, Any]) -> None:
    before = time.monotonic()
    printed = service.call("prefect", "deployment", "run", "lpo/full", "--watch")
    print(f"\nunchanged: {time.monotonic() - before:.1f} s with the command line")
    assert "Completed" in printed
    done = {"state": {"type": {"any_": ["COMPLETED"]}}}
    (newest,) = service.filter("flow_runs", flow_runs=done, sort="END_TIME_DESC", limit=1)
    assert newest["state"]["message"].startswith("nothing to do") and not service.children(newest["id"])
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
    assert all(text in printed for text in ("server: already running", "worker: already running", "next nightly run"))
    assert {name: (service.folder / f".prefect/{name}.pid").read_text() for name in before} == before


def test_a_second_clone_recomputes_nothing_and_its_night_uses_both(service: Service, first: dict[str, Any]) -> None:
    """They share git and the remote; dvc.lock was never committed.

    Then its model is promoted, and a night brings new pairs: the first clone works on the GPU stages, so the pairs and
    the model to compare with must travel with them.
    """
    clone = service.folder.parent / "second"
    git(service.folder.parent, "clone", "-q", str(service.folder), str(clone))
    assert not (clone / "dvc.lock").exists() and not (clone / "data/pairs").exists()
    service.stop_worker()
    try:
        with service.worker(clone, "cpu"), service.worker(service.folder, "gpu"):
            run_id = service.start()
            service.finish(run_id)
            assert service.children(run_id) == {}, "something was computed again"
            summary = service.artifacts(run_id)["summary"]["data"]
            assert all(f"| {stage} | fetched |" in summary for stage in STAGES)
            roots = ("data/reward", "data/tuned", "data/evaluation", "data/report", "metrics", "plots")
            assert contents(clone, *roots) == contents(service.folder, *roots)
            run(clone, "lpo", "promote")
            a_night_with_new_pairs(service, clone)
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
    old, record = map(json.loads, (clone / "models/ledger.jsonl").read_text().splitlines())
    assert record["event"] == "promoted" and record["against"] == old["name"] != record["name"]
    compared = json.loads((clone / "metrics/evaluate.json").read_text())["promoted"]
    assert compared["name"] == old["name"] and "win_rate" in compared
    assert f"**{record['name']} was promoted:**" in service.artifacts(run_id)["summary"]["data"]
    new = [line for line in git(clone, "status", "--porcelain", "-uall").splitlines() if line.endswith(".dvc")]
    folders = {str(Path(line[3:]).parent) for line in new}
    assert folders == {"data/collected", "models", "models/promoted"}


def test_an_override_leaves_the_clone_as_it_is_and_two_runs_queue(service: Service, first: dict[str, Any]) -> None:
    def state() -> tuple[dict[str, str], str]:
        """The report is left out: it was made again, and says when and how long each stage ran."""
        files = contents(service.folder, "data", "metrics", "plots")
        return {k: v for k, v in files.items() if "report/" not in k}, git(service.folder, "status", "--porcelain")

    before = state()
    words = ["prefect", "deployment", "run", "lpo/full", "--param", 'params=["report.examples=1"]']
    by_command = re.findall(r"UUID: ([-0-9a-f]{36})", service.call(*words))
    runs = [*by_command, service.start(stages={"from": "report"}, force=True)]
    ended = [service.finish(run_id) for run_id in runs]
    works = [service.children(run_id)["report"] for run_id in runs]
    assert all(work["state"]["name"] == "Ran" for work in works)
    one, other = sorted((time_of(work["start_time"]), time_of(work["end_time"])) for work in works)
    assert one[1] <= other[0], "the runs collided"
    assert "workspaces/run-" in service.artifacts(ended[0]["id"])["summary"]["data"]
    assert state() == before


@pytest.fixture(scope="module")
def refused(service: Service, first: dict[str, Any]) -> dict[str, str]:
    """The ids of the runs that are to be refused, all started at once."""
    return {words: service.start(**parameters) for words, parameters in REFUSED.items()}


@pytest.mark.parametrize("words", REFUSED)
def test_what_is_not_supported_is_refused_before_anything_starts(
    service: Service, refused: dict[str, str], words: str
) -> None:
    run = service.finish(refused[words], "FAILED")
    assert words in run["state"]["message"]
    assert service.tasks(run["id"]) == [] and service.children(run["id"]) == {}


def test_down_stops_what_up_started_and_nothing_else(service: Service) -> None:
    assert "worker" in service.down()
    assert processes(service.folder, "prefect") == [] and processes(service.folder, "http.server") == []
    assert "nothing to stop" in service.down()
