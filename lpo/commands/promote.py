"""promote: data/tuned, metrics/evaluate.json, dvc.lock -> models/, if the model passes the gate of params.yaml.

This is not a DVC stage. It is a decision, recorded in the ledger with what the model was made from. dvc.lock says what
that was, and shows that the figures are those of this model against the promoted one. It is read as plain YAML.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer
from safetensors.numpy import load_file

from lpo import paths
from lpo.commands.people import what_people_said
from lpo.commands.publish import publish_in_use
from lpo.config import Params
from lpo.errors import LpoError
from lpo.files import alone
from lpo.registry.dvc_lock import LOCKED, dvc_hash, read_stages, recorded
from lpo.registry.gate import objections, people_objections, waits_for
from lpo.registry.ledger import (
    BUSY,
    LOCK,
    PROMOTED,
    WEIGHTS,
    append,
    collect,
    in_use,
    keep_files,
    name_of,
    published,
    read_ledger,
    settle,
)

CANDIDATE, FIGURES = paths.TUNED, paths.metrics("evaluate")


def run(params: Params) -> None:
    """Decide, record the decision, and print {"promoted", "waits", "reason", "name", "pending"} as one line of JSON.

    pending: what failed at each place that does not show the model in use yet.

    Nothing changes if the model is in use already, was refused before for the same reasons, or waits for votes. A model
    that was rolled back is not promoted again until `lpo models rollback NAME` puts it into use.

    Raises:
        LpoError: if there is no model, or the figures are not those of this model, the one in use and these judges.
    """
    if params.evaluate.tuned != str(CANDIDATE):
        what = f"evaluate.tuned is {params.evaluate.tuned}, and only {CANDIDATE} can be promoted"
        raise LpoError(what, "params.yaml: evaluate.tuned", f"set it to {CANDIDATE}, then dvc repro")
    with alone(LOCK, BUSY):
        records = read_ledger()
        settle(records)
        name, current = name_of(CANDIDATE), in_use(records)
        if name == current:
            event, reason = "known", "it is the promoted model already"
        else:
            stages = locked()
            figures = json.loads(FIGURES.read_text())
            reasons = _rolled_back(name, records) or _untouched()
            reasons = reasons or objections(figures, params.promote, params.evaluate.judges)
            people = what_people_said(params) if params.promote.people.votes and not reasons else None
            if people:
                figures["people"] = people
                reasons = people_objections(people, params.promote.people)
            waits = waits_for(people, params.promote.people) if people else ""
            event = "refused" if reasons else "waits" if waits else "promoted"
            reason = "; ".join(reasons) or waits or "the gate holds"
            record = {"event": event, "name": name, "reason": reason, "against": current}
            if event != "waits" and not any(record.items() <= old.items() for old in records if event == "refused"):
                if event == "promoted":
                    keep_files(CANDIDATE, name)
                gate = asdict(params.promote)
                append(record | {"metrics": figures, "made_from": made_from(stages) | {"gate": gate}})
                settle(read_ledger())
                collect(read_ledger(), params.promote.keep)
        left = publish_in_use(params)
        pending = [published(read_ledger())[place]["reason"] for place in left]
    answer = {"promoted": event == "promoted", "waits": event == "waits", "reason": reason, "name": name}
    typer.echo(json.dumps(answer | {"pending": pending}))


def locked() -> dict[str, Any]:
    """The stages of dvc.lock.

    Raises:
        LpoError: if the files here are not those that dvc.lock records for the stages tune and evaluate.
    """
    remedy = "dvc repro, so that the model and its figures belong together"
    if not LOCKED.exists():
        raise LpoError("there is no record of how the model was made", str(LOCKED), remedy)
    stages = read_stages()
    wanted = {
        str(CANDIDATE): recorded(stages, "tune", "outs", CANDIDATE),
        f"{CANDIDATE}, as evaluated": recorded(stages, "evaluate", "deps", CANDIDATE),
        f"{PROMOTED}, as evaluated": recorded(stages, "evaluate", "deps", PROMOTED),
        str(FIGURES): recorded(stages, "evaluate", "outs", FIGURES),
    }
    wrong = [what for what, md5 in wanted.items() if md5 != dvc_hash(Path(what.split(",")[0]))]
    if wrong:
        what = f"dvc.lock records other files than those here: {'; '.join(wrong)}"
        raise LpoError(what, str(LOCKED), remedy)
    return stages


def made_from(stages: dict[str, Any]) -> dict[str, Any]:
    """data: MD5 by path of all that the stages read and wrote. params: by stage. revision: of the repository."""
    items = [item for stage in stages.values() for key in ("deps", "outs") for item in stage.get(key, [])]
    return {
        "data": {item["path"]: item["md5"] for item in items},
        "params": {name: stage.get("params", {}).get("params.yaml", {}) for name, stage in stages.items()},
        "revision": revision(),
    }


def revision() -> dict[str, Any]:
    """commit and the paths that differ from it. The commit is "unknown" without a repository or without git."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        changed = [line[3:] for line in _git("status", "--porcelain", "--no-renames", "-z").split("\0") if line]
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {"commit": "unknown", "changed": []}
    return {"commit": commit, "changed": sorted(changed)}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], check=True, capture_output=True, text=True).stdout


def _untouched() -> list[str]:
    """Why an adapter that changes nothing is not promoted. The stage tune leaves one if no validation improved."""
    halves = [value for key, value in load_file(CANDIDATE / WEIGHTS).items() if key.endswith("lora_B.weight")]
    changes = not halves or any(bool(value.any()) for value in halves)
    return [] if changes else ["the adapter changes nothing, so the model is the base"]


def _rolled_back(name: str, records: list[dict[str, Any]]) -> list[str]:
    """Why a model that was rolled back is not promoted; empty for any other model."""
    out = ""
    for record in records:
        if record["event"] == "rolled_back" and record["against"] == name:
            out = f"it was rolled back on {record['time']}; `lpo models rollback {name}` puts it back into use"
        elif record["event"] in ("promoted", "rolled_back") and record["name"] == name:
            out = ""
    return [out] if out else []
