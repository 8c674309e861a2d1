"""ingest: parquet files of the inbox -> data/collected, data/quarantine. Not a stage of DVC: it moves files.

    INBOX/NAME.parquet        what somebody put there, a folder or an S3 prefix (`ingest.source`)
    INBOX/taken/HASH-NAME     read; nothing reads it again, delete it whenever you like
    INBOX/refused/HASH-NAME   of no use as a whole; the reason is in data/quarantine/HASH.json
    data/collected/train-HASH.parquet   the new pairs of one file, which score, filter and encode read beside data/pairs
    data/quarantine/HASH.parquet        its bad rows, each with its reason

HASH is that of the file's bytes, so a file that was interrupted is done again under the same names. A file leaves the
inbox last, after all that it brought is on the disk: killed anywhere, nothing is lost, and nothing is there twice.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import typer

from lpo.config import Params
from lpo.errors import LpoError
from lpo.files import alone, file_hash, write_json

SOURCES = (Path("data/pairs"), Path("data/prompts.parquet"))
COLLECTED, QUARANTINE = Path("data/collected"), Path("data/quarantine")
VOTES = Path("data/votes.sqlite")
WORK, LOCK = Path("data/.inbox.partial"), Path("data/.ingest.lock")
HELD_OUT = ("validation", "test")
DONE = ("taken", "refused")  # folders of the inbox
DIGITS = 16  # of a file's hash, in names


def run(params: Params) -> None:
    """Take in what lies in the inbox, new votes of people among it, and print one line of JSON.

    {"new_pairs", "quarantined", "duplicates": rows, "files": [{"name", the same three, "reason"}]}; a file with a
    reason was refused as a whole, and counts as quarantined rows (at least one).

    Raises:
        LpoError: if the inbox cannot be read, another ingest is at work, or held-out captions are not known yet.
    """
    with alone(LOCK, "another `lpo ingest` is at work"):
        shutil.rmtree(WORK, ignore_errors=True)
        if VOTES.exists():  # what people said on the page of `lpo vote`
            from lpo.votes.export import export

            export(VOTES, params.ingest.source, params.vote.min_consistency)
        inbox = Inbox(params.ingest.source)
        files = [inbox.fetch(name) for name in inbox.names]
        reports = _take(sorted(files, key=lambda file: (file.digest, file.name)), inbox, params) if files else []
        shutil.rmtree(WORK, ignore_errors=True)
    reports += [_report(name, {}, f"{why}; it was left where it is") for name, why in sorted(inbox.odd.items())]
    totals = {key: sum(report[key] for report in reports) for key in ("new_pairs", "quarantined", "duplicates")}
    typer.echo(json.dumps(totals | {"files": reports}))


@dataclass(frozen=True)
class Fetched:
    """A copy of one file of the inbox, alone in a folder, under the name of a train shard."""

    name: str
    digest: str
    path: Path

    @property
    def label(self) -> str:
        """A plain file name, whatever somebody called the file."""
        return f"{self.digest}-{re.sub(r'[^A-Za-z0-9._-]', '_', self.name)[-100:]}"


def _not_taken(name: str, info: dict[str, Any]) -> str:
    """Why an entry of the inbox is not a file of pairs, "" if it may be one."""
    if info["type"] != "file" or info.get("islink"):
        return "it is not a plain file"
    if not name.endswith(".parquet"):
        return "only .parquet files are taken; `lpo data import` reads other tables"
    return ""


class Inbox:
    """The parquet files that lie directly in a folder or under a prefix; hidden ones are still being written."""

    def __init__(self, source: str) -> None:
        import fsspec

        self.source = source
        self.files, self.root = fsspec.core.url_to_fs(source)
        if "://" not in source:
            self.files.makedirs(self.root, exist_ok=True)
        self.taken = {name[:DIGITS] for name, _ in self._listed(f"{self.root}/taken")}
        found = [(name, info) for name, info in self._listed(self.root) if not name.startswith((".", "_"))]
        self.odd = {name: why for name, info in found if name not in DONE and (why := _not_taken(name, info))}
        self.names = sorted({name for name, _ in found} - self.odd.keys() - set(DONE))

    def _listed(self, path: str) -> list[tuple[str, dict[str, Any]]]:
        self.files.invalidate_cache()
        try:
            return [(info["name"].rsplit("/", 1)[-1], info) for info in self.files.ls(path, detail=True)]
        except FileNotFoundError:
            return []  # a prefix under which there is nothing does not exist
        except PermissionError as error:
            remedy = "correct ingest.source, or its access rights"
            raise LpoError(f"the inbox cannot be read: {error}", path, remedy) from error

    def fetch(self, name: str) -> Fetched:
        """Copy a file: what is checked is then what is kept, even if somebody writes to the original."""
        typer.echo(f"reading {self.source}/{name}", err=True)
        folder = WORK / str(self.names.index(name))
        folder.mkdir(parents=True)
        copy = folder / "copy"
        self.files.get_file(f"{self.root}/{name}", str(copy))
        digest = file_hash(copy)[:DIGITS]
        return Fetched(name, digest, copy.rename(folder / f"train-{digest}.parquet"))

    def move(self, file: Fetched, folder: str) -> None:
        source, target = f"{self.root}/{file.name}", f"{self.root}/{folder}/{file.label}"
        if "://" in self.source:  # fsspec's mv would read a * in the name as a pattern
            self.files.cp_file(source, target)
            self.files.rm_file(source)
        else:
            Path(target).parent.mkdir(exist_ok=True)
            Path(source).replace(target)


def _take(files: list[Fetched], inbox: Inbox, params: Params) -> list[dict[str, Any]]:
    from lpo.data.inbox import Known, found_keys, plain_captions
    from lpo.data.limits import limits_of
    from lpo.data.schema import read_pairs

    missing = [str(path) for path in SOURCES if not path.exists()]
    if missing:
        what = "without the held-out captions a leak could not be seen"
        raise LpoError(what, ", ".join(missing), "run `dvc repro dataset`, or pull it, first")
    pairs, prompts = read_pairs(SOURCES[0]), pd.read_parquet(SOURCES[1])
    held_out = plain_captions(prompts["split"], prompts["prompt"]) | plain_captions(pairs["split"], pairs["caption"])
    found, limits = set(found_keys(pairs)), limits_of(params.model.path, params.filter, params.dataset)
    reports = []
    for file in files:
        known = Known(held_out, found, collected_ids(except_for=file.path.name))
        report = _take_one(file, known, limits, inbox)
        typer.echo(", ".join(f"{key}: {value}" for key, value in report.items() if value != ""), err=True)
        reports.append(report)
    return reports


def _take_one(file: Fetched, known: Any, limits: Any, inbox: Inbox) -> dict[str, Any]:
    from lpo.data.inbox import examine, write_quarantine, write_shard

    if file.digest in inbox.taken:
        rows = pq.read_metadata(file.path).num_rows
        inbox.move(file, "taken")
        return _report(file.name, {"duplicates": rows})
    split = file.name.split("-")[0].removesuffix(".parquet")
    try:
        if split in HELD_OUT:
            raise LpoError(f"it is named after the split {split}, and new pairs are for train")
        findings = examine(file.path.parent, known, limits)
    except LpoError as error:
        reason = str(error).replace(str(file.path), file.name)
        write_json(QUARANTINE / f"{file.digest}.json", {"file": file.name, "sha256": file_hash(file.path),
                                                        "reason": reason})  # fmt: skip
        inbox.move(file, "refused")
        return _report(file.name, {"quarantined": _rows(file.path)}, reason)
    counts = findings.counts()
    if counts["quarantined"]:
        write_quarantine(file.path, findings, file.name, QUARANTINE / f"{file.digest}.parquet")
    if counts["new_pairs"]:
        write_shard(file.path, findings, COLLECTED / file.path.name)
    inbox.move(file, "taken")
    inbox.taken.add(file.digest)
    return _report(file.name, counts)


def collected_ids(except_for: str = "") -> set[int]:
    """The ranking_ids in data/collected, without those of one shard."""
    shards = sorted(shard for shard in COLLECTED.glob("*.parquet") if shard.name != except_for)
    return {i for shard in shards for i in pq.read_table(shard, columns=["ranking_id"])["ranking_id"].to_pylist()}


def _rows(path: Path) -> int:
    try:
        return max(1, int(pq.read_metadata(path).num_rows))
    except Exception:  # pyarrow has many names for a damaged file
        return 1


def _report(name: str, counts: dict[str, int], reason: str = "") -> dict[str, Any]:
    return {"name": name, "new_pairs": 0, "quarantined": 0, "duplicates": 0} | counts | {"reason": reason}
