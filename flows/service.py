"""`python -m flows.service up|down`: the Prefect server, work pool and worker of this clone, on 127.0.0.1.

`python -m flows.service prepare` creates work pool, queues, GPU limit, automation and deployments on any server.

Everything is kept under .prefect/: the database, the logs, and a file for each process that was started here. Other
processes are left alone. Both commands can be repeated.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from datetime import UTC
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events.schemas.automations import AutomationCore
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from lpo.errors import LpoError
from lpo.timings.gpus import visible
from tasks.daemons import PATIENCE, alive, free_port, start, stop, taken, wait_for
from tasks.dispatch import POOL
from tasks.workspace import ROOT, STATE, locked

QUEUES = ("cpu", "gpu")
LOST_RUNS = "flows/lost_runs.yaml"


def up() -> None:
    url = get_current_settings().api.url or ""
    address = urlsplit(url)
    if address.hostname != "127.0.0.1" or address.port is None:
        raise LpoError(
            f"the Prefect API is {url or 'not set'}, but make up only starts a server on 127.0.0.1",
            "prefect.toml, or PREFECT_API_URL",
            "see docs/operations.md for a server on another machine",
        )
    environment = {
        **os.environ,
        "PREFECT_HOME": str(STATE),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{STATE}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    start_server(url, address.port, environment)
    reports = start_reports(environment)
    with get_client(sync_client=True) as client:
        prepare(client)
        deploy(client, environment)
        start_worker(client, environment | {"LPO_REPORTS_URL": reports})
        print(f"Prefect: {url.removesuffix('/api')}")
        print(f"next nightly run: {next_nightly(client)}")
    print("run the pipeline: prefect deployment run lpo/full --watch")


def down() -> None:
    stopped = [name for name in ("worker", "reports", "server") if stop(name)]
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing to stop")


def prepare_server() -> None:
    """Prepare the server that PREFECT_API_URL names for workers of this project."""
    with get_client(sync_client=True) as client:
        prepare(client)
        deploy(client, dict(os.environ))


def start_server(url: str, port: int, environment: dict[str, str]) -> None:
    """Start the server unless it is running.

    Raises:
        LpoError: if another program uses the port, or if the server does not start.
    """
    pid = alive("server")
    if pid and healthy(url):
        print("server: already running")
        return
    if pid:
        print("server: running, but does not answer; restarting it")
        stop("worker")
        stop("server")
    if taken(port):
        raise LpoError(
            f"port {port} is used by another program",
            f"127.0.0.1:{port}",
            f"stop that program, or use another port: PREFECT_API_URL=http://127.0.0.1:{free_port()}/api make up "
            "(permanently: in prefect.toml)",
        )
    start("server", ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], environment)
    wait_for("server", lambda: healthy(url))
    print("server: started")


def start_reports(environment: dict[str, str]) -> str:
    """Serve .prefect/reports, which the UI links to. Returns the address."""
    note = STATE / "reports.port"
    if alive("reports") and note.exists():
        return f"http://127.0.0.1:{note.read_text()}"
    stop("reports")
    port = free_port()
    (STATE / "reports").mkdir(exist_ok=True)
    words = ["python", "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(STATE / "reports")]
    start("reports", words, environment)
    note.write_text(str(port))
    return f"http://127.0.0.1:{port}"


def prepare(client: SyncPrefectClient) -> None:
    """Create the work pool, its queues, the GPU limit and the automation. What exists keeps its settings."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        print(f"work pool {POOL}: created")
    for queue in QUEUES:
        try:
            client.read_work_queue_by_name(queue, work_pool_name=POOL)
        except ObjectNotFound:
            client.create_work_queue(name=queue, work_pool_name=POOL)
    try:
        client.read_global_concurrency_limit_by_name("gpu")
    except ObjectNotFound:
        slots = max(1, len(visible()))
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=slots))
    automation = AutomationCore.model_validate(yaml.safe_load((ROOT / LOST_RUNS).read_text(encoding="utf-8")))
    if not client.read_automations_by_name(automation.name):
        client.create_automation(automation)


def deploy(client: SyncPrefectClient, environment: dict[str, str]) -> None:
    """Create or update the deployments of prefect.yaml, and keep paused what is paused.

    `prefect deploy` resumes a paused deployment, and a paused schedule that has no slug yet.
    """
    known = client.read_deployments()
    paused = [deployment.id for deployment in known if deployment.paused]
    unscheduled = [found.id for found in known if found.schedules and not any(s.active for s in found.schedules)]
    done = subprocess.run(
        ["prefect", "--no-prompt", "deploy", "--all"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    for deployment in paused:
        client.pause_deployment(deployment)
    for deployment in unscheduled:
        for schedule in client.read_deployment_schedules(deployment):
            client.update_deployment_schedule(deployment, schedule.id, active=False)
    if done.returncode:
        raise LpoError(
            f"prefect deploy failed:\n{done.stdout[-3000:]}{done.stderr[-2000:]}", "prefect.yaml", "see above"
        )
    print("deployments: lpo/full, lpo/nightly, stage/cpu, stage/gpu")


def start_worker(client: SyncPrefectClient, environment: dict[str, str]) -> None:
    if alive("worker"):
        print("worker: already running")
        return
    name = f"{socket.gethostname()}-{os.getpid()}"
    words = ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    words += [word for queue in QUEUES for word in ("--work-queue", queue)]
    start("worker", words, environment)
    wait_for("worker", lambda: any(w.name == name for w in client.read_workers_for_work_pool(POOL)))
    print("worker: started")


def next_nightly(client: SyncPrefectClient) -> str:
    """When the next run of lpo/nightly is due, or how to resume it if somebody paused it.

    Raises:
        LpoError: if the server's scheduler creates no run: the nightly would never run.
    """
    deployment = client.read_deployment_by_name("lpo/nightly")
    if deployment.paused:
        return "none, since the deployment is paused (resume it in the UI)"
    if not any(schedule.active for schedule in deployment.schedules):
        words = [f"prefect deployment schedule resume lpo/nightly {schedule.id}" for schedule in deployment.schedules]
        return f"none, since the schedule is paused ({' or '.join(words) or 'there is none'})"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        runs = client.read_flow_runs(
            deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [deployment.id]}}),
            flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": ["SCHEDULED"]}}}),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=1,
        )
        if runs and (due := runs[0].expected_start_time):
            zone = getattr(deployment.schedules[0].schedule, "timezone", None) or "UTC"
            return f"{due.astimezone(UTC):%Y-%m-%d %H:%M} UTC (time zone of the schedule: {zone})"
        time.sleep(0.5)
    raise LpoError(
        "the server schedules no nightly run", str(STATE / "server.log"), "read that log; sqlalchemy must be below 2.1"
    )


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    os.chdir(ROOT)
    action = {"up": up, "down": down, "prepare": prepare_server}[sys.argv[1]]
    try:
        with locked(STATE / "service.lock", "", lambda holder: print("waiting for another make up or down")):
            action()
    except LpoError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
