"""MLflow's model registry, by its REST API: a version of a registered model, with the alias promoted.

    MLFLOW_TRACKING_URI=http://HOST:5000   with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD

The files are artifacts of a run in an experiment of the model's name. Its metrics are the evaluation, its tags the
lineage. MLflow itself is not needed; its server must take artifacts (--serve-artifacts, its default).

Source: https://mlflow.org/docs/latest/rest-api.html
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from lpo.errors import LpoError
from lpo.publish.package import ALIAS, Package

TAG = "lpo.model"  # of versions and runs: the name of the promoted model
MOST_METRICS, LONGEST_TAG = 1000, 5000  # of MLflow, in one request and of one value
TIMEOUT = 60.0  # seconds
KNOWN = "RESOURCE_ALREADY_EXISTS"


def push(package: Package, place: str) -> str:
    """Make a version of the registered model `place` unless it has this model, and let `promoted` name that version.

    Raises:
        LpoError: if no server is named, or it refuses or cannot be reached.
    """
    with Server() as server:
        server.post("registered-models/create", known_is_fine=True, name=place)
        version = version_of(server, package, place) or new_version(server, package, place)
        server.post("registered-models/alias", name=place, alias=ALIAS, version=version)
        return f"{server.address}/#/models/{quote(place)}/versions/{version}"


def version_of(server: Server, package: Package, place: str) -> str | None:
    """The version that holds this model: a push may have failed after it was made, or the model was in use before."""
    page = ""
    while True:
        query = {"filter": f"name='{place}'", "max_results": "200"} | ({"page_token": page} if page else {})
        found = server.get("model-versions/search", query)
        for version in found.get("model_versions", []):
            tags = {tag["key"]: tag.get("value") for tag in version.get("tags", [])}
            if tags.get(TAG) == package.name:
                return str(version["version"])
        page = found.get("next_page_token", "")
        if not page:
            return None


def new_version(server: Server, package: Package, place: str) -> str:
    """Upload the files to a run of their own, log metrics and lineage there, and register it."""
    lineage = {key: value[:LONGEST_TAG] for key, value in package.lineage.items()}
    tags = [{"key": key, "value": value} for key, value in ({TAG: package.name} | lineage).items()]
    names = {"mlflow.runName": package.name, "mlflow.source.git.commit": lineage["git.commit"]}
    run = server.post(
        "runs/create", experiment_id=experiment(server, place), run_name=package.name, start_time=now(),
        tags=[*tags, *({"key": key, "value": value} for key, value in names.items())],
    )["run"]["info"]  # fmt: skip
    run_id = run["run_id"]
    try:
        for name, path in package.files.items():
            server.upload(run["artifact_uri"], name, path)
        rows = [{"key": key, "value": value, "timestamp": now(), "step": 0} for key, value in package.metrics.items()]
        for start in range(0, len(rows), MOST_METRICS):
            server.post("runs/log-batch", run_id=run_id, metrics=rows[start : start + MOST_METRICS])
        made = server.post(
            "model-versions/create", name=place, source=run["artifact_uri"], run_id=run_id, tags=tags,
            description=package.record["reason"],
        )  # fmt: skip
    except Exception:
        server.post("runs/update", run_id=run_id, status="FAILED", end_time=now())
        raise
    server.post("runs/update", run_id=run_id, status="FINISHED", end_time=now())
    return str(made["model_version"]["version"])


def experiment(server: Server, name: str) -> str:
    """The id of the experiment of that name, which is made if it is missing."""
    made = server.post("experiments/create", known_is_fine=True, name=name)
    if "experiment_id" in made:
        return str(made["experiment_id"])
    return str(server.get("experiments/get-by-name", {"experiment_name": name})["experiment"]["experiment_id"])


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


class Server:
    """The server that the environment names."""

    def __init__(self) -> None:
        parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
        if parts.scheme not in ("http", "https") or not parts.hostname:
            remedy = "set MLFLOW_TRACKING_URI=http://HOST:5000 in the environment"
            raise LpoError("no MLflow server is named", "MLFLOW_TRACKING_URI", remedy)
        self.address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        user = os.environ.get("MLFLOW_TRACKING_USERNAME") or parts.username
        password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or parts.password or ""
        self.client = httpx2.Client(
            auth=(user, password) if user and not token else None,
            headers={"authorization": f"Bearer {token}"} if token else {}, timeout=TIMEOUT,
        )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.client.close()

    def post(self, path: str, known_is_fine: bool = False, **body: Any) -> dict[str, Any]:
        return self._ask("POST", f"api/2.0/mlflow/{path}", known_is_fine, json=body)

    def get(self, path: str, query: dict[str, str]) -> dict[str, Any]:
        return self._ask("GET", f"api/2.0/mlflow/{path}", params=query)

    def upload(self, artifact_uri: str, name: str, path: Path) -> None:
        """PUT a file into a run's artifacts through the server."""
        parts = urlsplit(artifact_uri)
        if parts.scheme != "mlflow-artifacts":
            what = f"its artifacts go to {parts.scheme}:, which only MLflow's own client can write"
            raise LpoError(what, self.address, "start the server with --serve-artifacts, and use a new experiment")
        target = quote(f"{parts.path.strip('/')}/{name}")
        with path.open("rb") as file:
            self._ask("PUT", f"api/2.0/mlflow-artifacts/artifacts/{target}", content=file)

    def _ask(self, method: str, path: str, known_is_fine: bool = False, **content: Any) -> dict[str, Any]:
        try:
            answer = self.client.request(method, f"{self.address}/{path}", **content)
        except httpx2.HTTPError as error:
            what = f"the server cannot be reached: {error or type(error).__name__}"
            raise LpoError(what, self.address, "check MLFLOW_TRACKING_URI and that the server runs") from error
        try:
            found = answer.json() if answer.content else {}
        except ValueError:
            found = {}
        if answer.is_success or (known_is_fine and found.get("error_code") == KNOWN):
            return found if answer.is_success and isinstance(found, dict) else {}
        said = found.get("message") or answer.reason_phrase
        what = f"the server answers {answer.status_code} to {path.rpartition('mlflow/')[2][:80]}: {str(said)[:200]}"
        raise LpoError(what, self.address, "check the server's log, and the credentials in MLFLOW_TRACKING_*")
