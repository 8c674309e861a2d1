"""`python -m flows.service up|down`: the Prefect server, the pool and a worker of this clone, on 127.0.0.1.

Everything is under .prefect/: database, logs, and a file for each process that was started, with its number and its
start time. What is not in such a file was not started here, and is left alone. Both commands can be given again.
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
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from lpo.errors import LpoError
from tasks.daemons import PATIENCE, alive, free_port, start, stop, taken, wait_for
from tasks.dispatch import POOL
from tasks.workspace import ROOT, STATE, locked

QUEUES = ("cpu", "gpu")


def up() -> None:
    url = get_current_settings().api.url or ""
    address = urlsplit(url)
    if address.hostname != "127.0.0.1" or address.port is None:
        raise LpoError(
            f"the Prefect API is {url or 'not set'}; make up only starts a server on 127.0.0.1",
            "prefect.toml, or PREFECT_API_URL",
            "docs/operations.md has the commands for a server elsewhere",
        )
    environment = {
        **os.environ,
        "PREFECT_HOME": str(STATE),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{STATE}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    start_server(url, address.port, environment)
    reports = start_reports(environment)
    with get_client(sync_client=True) as client:
        prepare(client)
        deploy(environment)
        start_worker(client, environment | {"LPO_REPORTS_URL": reports})
        print(f"Prefect: {url.removesuffix('/api')}")
        print(f"next nightly run: {next_nightly(client)}")
    print("now: prefect deployment run lpo/full --watch")


def down() -> None:
    stopped = [name for name in ("worker", "reports", "server") if stop(name)]
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running that make up had started")


def start_server(url: str, port: int, environment: dict[str, str]) -> None:
    """Start the server unless it runs.

    Raises:
        LpoError: if somebody else has the port, or if it does not come up.
    """
    pid = alive("server")
    if pid and healthy(url):
        print("server: runs already")
        return
    if pid:
        print("server: runs but does not answer; it is stopped and started again")
        stop("worker")
        stop("server")
    if taken(port):
        raise LpoError(
            f"port {port} is in use by another program",
            f"127.0.0.1:{port}",
            f"stop that program, or take another port: PREFECT_API_URL=http://127.0.0.1:{free_port()}/api make up "
            "(to keep it, change prefect.toml)",
        )
    start("server", ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)], environment)
    wait_for("server", lambda: healthy(url))
    print("server: started")


def start_reports(environment: dict[str, str]) -> str:
    """Serve .prefect/reports for the links in the UI; returns its address."""
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
    """Work pool, its two queues and the limit of the GPU; what is there already stays as it is."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        print(f"work pool {POOL}: made")
    for queue in QUEUES:
        try:
            client.read_work_queue_by_name(queue, work_pool_name=POOL)
        except ObjectNotFound:
            client.create_work_queue(name=queue, work_pool_name=POOL)
    try:
        client.read_global_concurrency_limit_by_name("gpu")
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=1))


def deploy(environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["prefect", "--no-prompt", "deploy", "--all"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise LpoError(f"prefect deploy failed:\n{done.stdout[-3000:]}{done.stderr[-2000:]}", "prefect.yaml", "mend it")
    print("deployments: lpo/full, lpo/nightly, stage/cpu, stage/gpu")


def start_worker(client: SyncPrefectClient, environment: dict[str, str]) -> None:
    if alive("worker"):
        print("worker: runs already")
        return
    name = f"{socket.gethostname()}-{os.getpid()}"
    words = ["prefect", "worker", "start", "--pool", POOL, "--type", "process", "--name", name]
    words += [word for queue in QUEUES for word in ("--work-queue", queue)]
    start("worker", words, environment)
    wait_for("worker", lambda: any(w.name == name for w in client.read_workers_for_work_pool(POOL)))
    print("worker: started")


def next_nightly(client: SyncPrefectClient) -> str:
    """When the next run of lpo/nightly is due.

    Raises:
        LpoError: if the server's scheduler makes none: it would never run.
    """
    deployment = client.read_deployment_by_name("lpo/nightly")
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
            return f"{due.astimezone(UTC):%Y-%m-%d %H:%M} UTC (cron at 02:00 {zone})"
        time.sleep(0.5)
    raise LpoError(
        "the server schedules no nightly run", str(STATE / "server.log"), "look there; sqlalchemy must be below 2.1"
    )


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    os.chdir(ROOT)
    action = {"up": up, "down": down}[sys.argv[1]]
    try:
        with locked(STATE / "service.lock", "", lambda holder: print("waiting for another make up or make down")):
            action()
    except LpoError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
