"""What the nightly run asks of the `lpo` command: take in new pairs, hold the gate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from lpo.errors import LpoError
from tasks import process


@task(cache_policy=NO_CACHE)
def ingest(folder: Path) -> dict[str, Any]:
    """Take in what lies in the inbox: {"new_pairs": n, ...}, as `lpo ingest` prints it."""
    return _answer(folder, "ingest")


@task(cache_policy=NO_CACHE)
def promote(folder: Path) -> dict[str, Any]:
    """Hold the new model against the gate of params.yaml: {"promoted": bool, "reason": text, "name": text}."""
    return _answer(folder, "promote")


def _answer(folder: Path, command: str) -> dict[str, Any]:
    """The JSON object that `lpo COMMAND` prints as its last line."""
    logger = get_run_logger()
    done = process.run(["lpo", command], folder, logger.info)
    if done.code:
        raise LpoError(f"lpo {command} failed ({done.code}): {done.text[-2000:]}", str(folder), "mend what it names")
    found = json.loads(done.lines[-1])
    assert isinstance(found, dict)
    return found
