"""Nights: what somebody paused stays paused, missed nights run once, and a lost stage run ends and frees the lock.

The clone has one stage that only sleeps, since nothing here depends on what a stage computes.
"""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.service import Service, add_flows, processes, serving
from support.workspace import make

from tasks.workspace import locked

pytestmark = pytest.mark.prefect
SLEEPS = """\
stages:
  evaluate:
    cmd: sleep 3600
    deps: [params.yaml]
    outs: [slept]
    meta: {gpu: true}
"""


def replace(file: Path, before: str, after: str) -> None:
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = make(tmp_path_factory.mktemp("nights") / "clone")
    (folder / "dvc.yaml").write_text(SLEEPS)
    add_flows(folder, remote=False)
    replace(folder / "flows/lost_runs.yaml", "within: 300", "within: 75")
    replace(folder / "tasks/dispatch.py", "NO_WORKER = 120.0", "NO_WORKER = 10.0")
    with serving(folder) as found:
        yield found


def test_missed_nights_run_once(nights: Service) -> None:
    """Three nights are due when the worker comes back: the last one works, the others end at once."""
    nights.stop_worker()
    known = nights.get("deployments/name/lpo/nightly")["id"]
    midnight, missed = datetime.now(UTC).replace(microsecond=0), []
    for days in (3, 2, 1):
        when = (midnight - timedelta(days=days)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": when}}
        missed.append(nights.post(f"deployments/{known}/create_flow_run", {"state": state})["id"])
    nights.up()
    states = [nights.finish(run)["state"] for run in missed[:2]]
    assert [state["name"] for state in states] == ["Missed", "Missed"]
    expected = f"{midnight - timedelta(days=1):%Y-%m-%d %H:%M}"
    assert all(expected in state["message"] for state in states)
    nights.wait(lambda: nights.children(missed[2]))  # it has given its stage to a worker
    nights.call("prefect", "flow-run", "cancel", missed[2])
    nights.finish(missed[2], "CANCELLED")


def test_what_somebody_paused_stays_paused(nights: Service) -> None:
    deployment = nights.get("deployments/name/lpo/nightly")
    (schedule,) = deployment["schedules"]
    (automation,) = nights.filter("automations", automations={"name": {"any_": ["lpo-lost-runs"]}})
    assert schedule["active"] and not deployment["paused"] and automation["enabled"]

    def change(path: str, **body: Any) -> None:
        nights.client.patch(path, json=body).raise_for_status()

    try:
        change(f"deployments/{deployment['id']}/schedules/{schedule['id']}", active=False)
        change(f"automations/{automation['id']}", enabled=False)
        change("work_pools/lpo/queues/gpu", is_paused=True)
        assert f"prefect deployment schedule resume lpo/nightly {schedule['id']}" in nights.up()
        (schedule,) = nights.get("deployments/name/lpo/nightly")["schedules"]
        assert not schedule["active"]
        with closing(sqlite3.connect(nights.folder / ".prefect/prefect.db", timeout=60)) as database, database:
            database.execute("UPDATE deployment_schedule SET slug = NULL")  # as an older prefect.yaml left it
        assert "none, since the schedule is paused" in nights.up()
        (schedule,) = nights.get("deployments/name/lpo/nightly")["schedules"]
        assert not schedule["active"] and schedule["slug"] == "nightly"
        (again,) = nights.filter("automations", automations={"name": {"any_": ["lpo-lost-runs"]}})
        assert again["id"] == automation["id"] and not again["enabled"]
        assert nights.get("work_pools/lpo/queues/gpu")["is_paused"]
        change(f"deployments/{deployment['id']}/schedules/{schedule['id']}", active=True)
        nights.client.post(f"deployments/{deployment['id']}/pause_deployment").raise_for_status()
        assert "none, since the deployment is paused" in nights.up()
        assert nights.get("deployments/name/lpo/nightly")["paused"]
    finally:
        for schedule in nights.get("deployments/name/lpo/nightly")["schedules"]:
            change(f"deployments/{deployment['id']}/schedules/{schedule['id']}", active=True)
        nights.client.post(f"deployments/{deployment['id']}/resume_deployment").raise_for_status()
        change(f"automations/{automation['id']}", enabled=True)
        change("work_pools/lpo/queues/gpu", is_paused=False)
    assert " UTC (" in nights.up()


def test_a_stage_run_without_heartbeats_ends_and_frees_the_lock(nights: Service) -> None:
    """The worker of the queue gpu and its stage run are killed at once; the run that waits for them is not."""
    folder = nights.folder
    nights.stop_worker()
    with nights.worker(folder, "cpu"), nights.worker(folder, "gpu") as lost:
        run = nights.start()
        nights.wait(lambda: processes(folder, "sleep 3600"))
        child = nights.children(run)["evaluate"]["id"]
        begun = nights.wait(lambda: heartbeats(nights, child))
        assert begun
        os.killpg(lost.pid, signal.SIGKILL)
        nights.wait(lambda: not processes(folder, "sleep 3600"))
        crashed = nights.finish(child, "CRASHED")
        assert "No heartbeat" in crashed["state"]["message"]
        ended = nights.finish(run, "FAILED")
        assert "no worker has asked for work of the queue 'gpu'" in ended["state"]["message"]
        with locked(folder / ".prefect/run.lock", "test", lambda holder: pytest.fail(f"{holder} holds the lock")):
            pass


def heartbeats(service: Service, run: str) -> list[Any]:
    about = {"resource": {"id": [f"prefect.flow-run.{run}"]}, "event": {"name": ["prefect.flow-run.heartbeat"]}}
    return service.post("events/filter", {"filter": about})["events"]  # type: ignore[no-any-return]
