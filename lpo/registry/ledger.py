"""models/: the promoted LoRAs, the one in use, and the ledger of all decisions.

    models/NAME/          a copy of data/tuned; NAME is lpo- and the start of the SHA-256 of its weights
    models/promoted/      the weights in use, which evaluate compares with. Empty: the base is in use
    models/ledger.jsonl   one JSON object a line: event (promoted, refused, rolled_back), name, time, reason, against
                          (the model that was in use), metrics, and what the model was made from. Of a push to a
                          registry: event (published, pending), name, time, place, where, reason

The ledger is the authority: a line is on the disk before the weights are replaced, and `settle` completes what a killed
process left unfinished.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from lpo.errors import LpoError
from lpo.files import alone, atomic_folder, file_hash, inside, write_bytes, write_text

ROOT = Path("models")
PROMOTED, LEDGER, LOCK = ROOT / "promoted", ROOT / "ledger.jsonl", ROOT / ".lock"
WEIGHTS = "pytorch_lora_weights.safetensors"
BASE = "base"  # stands for no LoRA
BUSY = "another `lpo promote`, `lpo models rollback` or `lpo models publish` is running"
Record = dict[str, Any]


def show() -> None:
    """Print every decision and push, the oldest first, then what is in use, and which model each place shows."""
    records = read_ledger()
    for record in records:
        gone = record["event"] == "promoted" and not (ROOT / record["name"]).exists()
        note = "  (its files are not here)" if gone else ""
        typer.echo(f"{record['time']}  {record['event']:<11}  {record['name']}  {record['reason']}{note}")
    typer.echo(f"in use: {in_use(records)}")
    for place, record in published(records).items():
        at = f" at {record['where']}" if record["where"] else ""
        typer.echo(f"{place}: {record['name']}{at}{_waits(record, in_use(records))}")


def _waits(record: Record, current: str) -> str:
    """What is left to do at a place, whose last line this is."""
    if record["event"] == "published" and record["name"] == current:
        return ""
    return " was not sent; `lpo models publish` tries again" if record["event"] == "pending" else (
        "; take it down there" if current == BASE else f"; `lpo models publish` sends {current}"
    )


def rollback(name: str | None) -> None:
    """Put `name` into use, or the model that was in use before the current one. Print one line of JSON.

    Raises:
        LpoError: if there is no earlier model, or the model's files are missing or were changed.
    """
    with alone(LOCK, BUSY):
        records = read_ledger()
        settle(records)
        before = chain(records)
        if name is None and len(before) < 2:
            raise LpoError("no model is promoted, so nothing can be rolled back", str(LEDGER), "lpo models")
        target = before[-2] if name is None else name
        current = before[-1]
        if target != current:
            if target != BASE:
                check_files(target)
            append(
                {"event": "rolled_back", "name": target, "reason": "asked for by hand", "against": current,
                 "metrics": None, "made_from": None}
            )  # fmt: skip
            settle(read_ledger())
    typer.echo(json.dumps({"in_use": target, "before": current}))


def folder_of(lora: Path) -> Path:
    """The path itself, or the folder of the promoted model that it names ("promoted" is the one in use)."""
    named = ROOT / lora
    return named if not lora.exists() and len(lora.parts) == 1 and named.is_dir() else lora


def name_of(folder: Path) -> str:
    """The name of the LoRA in a folder, made from its weights. Raises LpoError if there are none."""
    if not (folder / WEIGHTS).exists():
        raise LpoError("no LoRA here", str(folder), "run `dvc repro`, or `dvc pull` it")
    return f"lpo-{file_hash(folder / WEIGHTS)[:12]}"


def read_ledger() -> list[Record]:
    return [json.loads(line) for line in LEDGER.read_text().splitlines()] if LEDGER.exists() else []


def append(record: Record) -> None:
    """Add a line with the current time to the ledger, atomically."""
    record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), **record}
    before = LEDGER.read_text() if LEDGER.exists() else ""
    write_text(LEDGER, before + json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def chain(records: list[Record]) -> list[str]:
    """The models that were in use, the oldest first, without those rolled back. The first is the base, the last is in
    use now."""
    names = [BASE]
    for record in records:
        if record["event"] == "rolled_back" and record["name"] in names:
            names = names[: names.index(record["name"]) + 1]
        elif record["event"] in ("promoted", "rolled_back"):
            names.append(record["name"])
    return names


def published(records: list[Record]) -> dict[str, Record]:
    """place -> the last line about it, which says what it shows (published) or what failed (pending)."""
    return {record["place"]: record for record in records if record["event"] in ("published", "pending")}


def in_use(records: list[Record]) -> str:
    return chain(records)[-1]


def check_files(name: str) -> Path:
    """The folder of a promoted model. Raises LpoError if it is missing, or its weights do not match its name."""
    folder = inside(ROOT, name)
    known = sorted(path.name for path in ROOT.glob("lpo-*") if path.is_dir())
    if name not in known:
        remedy = f"here are: {', '.join(known) or 'none'}; others perhaps with `dvc pull models/{name}.dvc`"
        raise LpoError(f"there are no files of a promoted model {name!r}", str(ROOT), remedy)
    if name_of(folder) != name:
        raise LpoError("the weights are not those that were promoted", str(folder), f"dvc checkout {folder}")
    return folder


def settle(records: list[Record]) -> None:
    """Make models/promoted hold what the ledger says."""
    name, weights = in_use(records), PROMOTED / WEIGHTS
    if name == BASE:
        for file in (weights, weights.with_name(f"{WEIGHTS}.dvc")):
            file.unlink(missing_ok=True)  # with its .dvc file, from which a run would fetch it again
    elif not weights.exists() or name_of(PROMOTED) != name:
        write_bytes(weights, (check_files(name) / WEIGHTS).read_bytes())


def keep_files(source: Path, name: str) -> None:
    """Copy a LoRA to models/NAME."""
    with atomic_folder(ROOT / name) as folder:
        for file in sorted(path for path in source.iterdir() if path.is_file()):
            shutil.copyfile(file, folder / file.name)


def collect(records: list[Record], keep: int) -> None:
    """Remove the files of promoted models, except the one in use and the `keep` models that were in use last.

    Their lines stay in the ledger. NAME.dvc is removed too, so that `dvc gc` can free what DVC stored of it.
    """
    used = [record["name"] for record in records if record["event"] in ("promoted", "rolled_back")]
    newest = [name for name in dict.fromkeys(reversed(used)) if name not in (in_use(records), BASE)]
    stay = {in_use(records), *newest[:keep]}
    for folder in sorted(path for path in ROOT.glob("lpo-*") if path.is_dir() and path.name not in stay):
        shutil.rmtree(folder)
        folder.with_name(f"{folder.name}.dvc").unlink(missing_ok=True)
