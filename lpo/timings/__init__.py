"""How long each stage took the last time on this machine, for `lpo doctor` and the report.

    .checkpoints/timings.json    stage -> {seconds, model, finished, machine, metrics, gpu}

finished is a date, metrics the hash of metrics/STAGE.json as the stage wrote it, gpu what GPUs did (gpus.py).

The file is no output of DVC: times differ from run to run, and results do not.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from lpo import paths
from lpo.files import file_hash, write_json
from lpo.timings.gpus import Use

TIMINGS = Path(".checkpoints/timings.json")


def record(stage: str, seconds: float, model: str, use: Use | None = None) -> None:
    """Note a stage that has just ended, and what GPUs did for it."""
    row: dict[str, Any] = {
        "seconds": round(seconds, 1), "model": model, "finished": date.today().isoformat(), "machine": machine(),
    }  # fmt: skip
    if use is not None:
        row["gpu"] = asdict(use)
    if paths.metrics(stage).exists():
        row["metrics"] = file_hash(paths.metrics(stage))
    write_json(TIMINGS, known() | {stage: row})


def known() -> dict[str, Any]:
    """Every stage that was timed; empty where there is no file, or none that can be read."""
    try:
        found = json.loads(TIMINGS.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def current(stages: Iterable[str]) -> dict[str, Any]:
    """The stages among `stages` whose metrics are those of the run that was timed, not of another one."""
    rows, found = known(), {}
    for stage in stages:
        row, path = rows.get(stage), paths.metrics(stage)
        if isinstance(row, dict) and row.get("metrics") == (file_hash(path) if path.exists() else None):
            found[stage] = row
    return found


def machine() -> str:
    """The processor, the number of cores, and the GPUs that torch sees, if the stage has used torch."""
    name = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch = sys.modules.get("torch")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch is not None else []
    return ", ".join([name, f"{cores} cores", *gpus])
