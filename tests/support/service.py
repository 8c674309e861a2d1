"""A clone whose Prefect server and worker really run, and what tests ask of them."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
from support.workspace import ENVIRONMENT, REPOSITORY, commit, kill, run

PATIENCE = 900.0  # seconds: the machine may be busy


def add_flows(folder: Path, remote: bool = True) -> None:
    """Make a workspace of this folder that can run flows."""
    for name in ("flows", "tasks"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "prefect.toml", ".gitignore", ".dvcignore"):
        shutil.copy(REPOSITORY / name, folder / name)
    if not remote:
        shutil.copy(REPOSITORY / ".dvc/config", folder / ".dvc/config")
    commit(folder)


class Service:
    """The server of the clone `folder`, on a free port."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.folder = folder
        # One for all: each new one reads the certificates again. The server closes connections that nobody uses.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.client = httpx.Client(base_url=f"{self.address}/api/", timeout=60, limits=limits)

    def environment(self, clone: Path) -> dict[str, str]:
        return {
            **os.environ, **ENVIRONMENT, "PYTHONPATH": str(clone), "PREFECT_API_URL": f"{self.address}/api",
            "PREFECT_HOME": str(self.folder / ".prefect"), "DVC_SITE_CACHE_DIR": str(self.folder.parent / "site"),
            "LPO_SERVICE_PATIENCE": str(PATIENCE), "CUDA_VISIBLE_DEVICES": "",  # one slot, whatever the machine has
        }  # fmt: skip

    def call(self, *words: str, code: int = 0) -> str:
        """What the command prints, run in the clone; it must end with `code`."""
        done = subprocess.run(
            words, cwd=self.folder, env=self.environment(self.folder), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == code, f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def up(self) -> str:
        return self.call(sys.executable, "-m", "flows.service", "up")

    def down(self) -> str:
        return self.call(sys.executable, "-m", "flows.service", "down")

    def stop_worker(self) -> None:
        self.call(sys.executable, "-c", "from flows import service; service.stop('worker')")

    @contextmanager
    def worker(self, clone: Path, *queues: str, limit: int = 8) -> Iterator[subprocess.Popen[bytes]]:
        """A second worker, of another clone; `limit` runs at a time."""
        words = [word for queue in queues for word in ("--work-queue", queue)] + ["--limit", str(limit)]
        with (clone / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                [shutil.which("prefect", path=ENVIRONMENT["PATH"]) or "", "worker", "start", "--pool", "lpo", *words],
                cwd=clone, env=self.environment(clone), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            kill(process)

    def start(self, deployment: str = "lpo/full", **parameters: Any) -> str:
        """Start a run and return its id. `prefect deployment run` does the same, seconds later."""
        known = self.get(f"deployments/name/{deployment}")["id"]
        return self.post(f"deployments/{known}/create_flow_run", {"parameters": parameters})["id"]

    def finish(self, run_id: str, kind: str = "COMPLETED") -> dict[str, Any]:
        """The run, when it has ended; it must have ended in that kind of state."""
        self.wait(lambda: self.state(run_id)["type"] in ("COMPLETED", "FAILED", "CANCELLED", "CRASHED"), 1.0)
        run = self.get(f"flow_runs/{run_id}")
        worker = (self.folder / ".prefect/worker.log").read_text()[-6000:]
        assert run["state"]["type"] == kind, f"{run['state']['message']}\n{worker}"
        return run

    def wait(self, ready: Callable[[], Any], pause: float = 0.2) -> Any:
        """What `ready` finds, asked again after every pause (seconds): each question costs the server some work."""
        deadline = time.monotonic() + PATIENCE
        while not (found := ready()):
            assert time.monotonic() < deadline, (self.folder / ".prefect/worker.log").read_text()[-6000:]
            time.sleep(pause)
        return found

    def state(self, run_id: str) -> dict[str, Any]:
        return self.get(f"flow_runs/{run_id}")["state"]

    def get(self, path: str) -> dict[str, Any]:
        return self.ask("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self.ask("POST", path, json=body)

    def ask(self, *words: str, **body: Any) -> Any:
        """The server's answer. While SQLite is locked it says 503 or nothing; Prefect's own client asks again too."""

        def answer() -> httpx.Response | None:
            try:
                response = self.client.request(*words, **body)
            except httpx.TimeoutException:
                if words[0] != "GET":
                    raise  # it may have been carried out
                return None
            return None if response.status_code == 503 else response

        return self.wait(answer).raise_for_status().json()

    def filter(self, what: str, **filters: Any) -> list[dict[str, Any]]:
        return self.post(f"{what}/filter", filters)

    def tasks(self, run_id: str) -> list[dict[str, Any]]:
        return self.filter("task_runs", flow_runs={"id": {"any_": [run_id]}})

    def children(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The stage runs of a run, by their stage."""
        found = self.filter("flow_runs", flow_runs={"parent_flow_run_id": {"any_": [run_id]}})
        return {child["name"]: child for child in found}

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        found = self.filter("artifacts", artifacts={"flow_run_id": {"any_": [run_id]}})
        return {artifact["key"]: artifact for artifact in found if artifact["key"]}


@contextmanager
def serving(folder: Path) -> Iterator[Service]:
    """Server and worker of a clone, inside."""
    found = Service(folder)
    try:
        found.up()
        yield found
    finally:
        found.down()


def processes(folder: Path, words: str) -> list[psutil.Process]:
    """Living processes that work in the folder, with these words in their command line."""
    found = []
    for process in psutil.process_iter():
        try:
            lives = process.status() != psutil.STATUS_ZOMBIE
            if lives and words in " ".join(process.cmdline()) and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def drop(folder: Path, stage: str) -> None:
    """Remove a stage's artifact, its checkpoints and its traces in the cache, so that it must run from nothing."""
    shutil.rmtree(folder / f"data/{stage}", ignore_errors=True)
    shutil.rmtree(folder / f".checkpoints/{stage}", ignore_errors=True)
    shutil.rmtree(folder / ".dvc/cache/runs", ignore_errors=True)
    run(folder, "git", "checkout", "-q", "dvc.lock")
