"""`python -m flows.service up|down`: the Prefect server, the pool and a worker of this clone, on 127.0.0.1.

Everything is under .prefect/: database, logs, and a file for each process that was started, with its number and its
start time. What is not in such a file was not started here, and is left alone. Both commands can be given again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from tasks.dispatch import POOL
from tasks.workspace import ROOT, STATE, locked

QUEUES = ("cpu", "gpu")
PATIENCE = float(os.environ.get("LPO_SERVICE_PATIENCE", "120"))  # seconds that a process has to answer, or to end


def up() -> None:
    url = get_current_settings().api.url or ""
    address = urlsplit(url)
    if address.hostname != "127.0.0.1" or address.port is None:
        raise LpoError(
            f"the Prefect API is {url or 'not set'}; make up only starts a server on 127.0.0.1",
            "prefect.toml, or PREFECT_API_URL",
            "docs/operations.md has the commands for a server elsewhere",
        )
    STATE.mkdir(exist_ok=True)
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


def start(name: str, words: list[str], environment: dict[str, str]) -> None:
    """Start a command in a process group of its own, its output in .prefect/NAME.log."""
    program = shutil.which(words[0], path=environment["PATH"])
    if program is None:
        raise LpoError(f"there is no program {words[0]!r}", environment["PATH"], "make .venv")
    with (STATE / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            [program, *words[1:]], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    note(name).write_text(json.dumps({"pid": process.pid, "started": start_time(process.pid)}))


def stop(name: str) -> bool:
    """Stop what `start` started, and its whole group; False if it was not running."""
    pid = alive(name)
    if pid:
        for number, seconds in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 10.0)):
            os.killpg(pid, number)
            deadline = time.monotonic() + seconds
            while group_alive(pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not group_alive(pid):
                break
    note(name).unlink(missing_ok=True)
    return bool(pid)


def alive(name: str) -> int:
    """The number of the process that `start` started, 0 if it is gone; the start time tells it from a later one."""
    try:
        found = json.loads(note(name).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return 0
    return int(found["pid"]) if start_time(found["pid"]) == found["started"] else 0


def note(name: str) -> Path:
    return STATE / f"{name}.pid"


def start_time(pid: int) -> float | None:
    """When the process started, None if there is none, or only what is left of it."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def group_alive(group: int) -> bool:
    import psutil

    for process in psutil.process_iter(["status"]):
        try:
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
        except ProcessLookupError:
            continue
    return False


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(name: str, ready: object) -> None:
    """Wait until `ready()`.

    Raises:
        LpoError: with the end of the log, if the process ends or does not get ready.
    """
    assert callable(ready)
    deadline = time.monotonic() + PATIENCE
    while not ready():
        if not alive(name) or time.monotonic() > deadline:
            end = "ended" if not alive(name) else f"did not answer within {PATIENCE:.0f} s"
            tail = "\n".join((STATE / f"{name}.log").read_text(errors="replace").splitlines()[-15:])
            stop(name)
            raise LpoError(f"the {name} {end}:\n{tail}", str(STATE / f"{name}.log"), "mend that, then make up")
        time.sleep(0.3)


@contextmanager
def alone() -> Iterator[None]:
    """One `up` or `down` at a time."""
    with locked(STATE / "service.lock", "", lambda holder: print("waiting for another make up or make down")):
        yield


def main() -> None:
    os.chdir(ROOT)
    action = {"up": up, "down": down}[sys.argv[1]]
    try:
        with alone():
            action()
    except LpoError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
