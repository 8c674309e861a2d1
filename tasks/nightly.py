"""What is special about a nightly run: `lpo ingest`, `lpo promote`, and nights that were missed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect import get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.sorting import FlowRunSort
from prefect.context import FlowRunContext

from lpo.errors import LpoError
from tasks import process

NIGHTLY = "nightly"  # the deployment that has a schedule


@task(cache_policy=NO_CACHE)
def ingest(folder: Path) -> dict[str, Any]:
    """Read the inbox. Returns what `lpo ingest` prints: {"new_pairs": n, ...}."""
    return _answer(folder, "ingest")


@task(cache_policy=NO_CACHE)
def promote(folder: Path) -> dict[str, Any]:
    """Apply the gate of params.yaml. Returns what `lpo promote` prints, a JSON object."""
    return _answer(folder, "promote")


def _answer(folder: Path, command: str) -> dict[str, Any]:
    """Run `lpo COMMAND` and return the JSON object on its last line."""
    logger = get_run_logger()
    done = process.run(["lpo", command], folder, logger.info)
    if done.code:
        raise LpoError(f"lpo {command} failed ({done.code}): {done.text[-2000:]}", str(folder), "see the message above")
    found = json.loads(done.lines[-1])
    assert isinstance(found, dict)
    return found


def later_night() -> str | None:
    """The time of a later night of this deployment that is due too, done or under way; None if this is the latest.

    After a server or its workers were off, every night that was missed is due at once. Only the latest one works.
    """
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if runtime.deployment.name != NIGHTLY or run is None or run.expected_start_time is None:
        return None
    due = {
        "state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING", "COMPLETED"]}},
        "expected_start_time": {"after_": run.expected_start_time, "before_": datetime.now(UTC)},
    }
    with get_client(sync_client=True) as client:
        latest, *_ = client.read_flow_runs(
            deployment_filter=DeploymentFilter.model_validate({"id": {"any_": [run.deployment_id]}}),
            flow_run_filter=FlowRunFilter.model_validate(due),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        )
    return None if latest.expected_start_time == run.expected_start_time else f"{latest.expected_start_time:%F %H:%M}"
