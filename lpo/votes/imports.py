"""Votes that others collected: a table, an export of Label Studio, or one of Argilla. They are kept as our own are.

    for vote in read_votes(Path("export.json"), images, columns): ...     a Vote, or a Left with its reason
    import_votes(store, votes)

    table          .csv, .tsv, .jsonl, .parquet: prompt, image a, image b, choice; and, if they are there, voter,
                   model a, model b, seconds. A choice is a word (first, A, left, 1; second, B, right, 2; tie), the name
                   of the picture's column, or empty: a skip.
    Label Studio   the JSON export: tasks with `data` and `annotations`. A result has the type pairwise
                   ({"selected": "left"}) or choices; completed_by is the voter, was_cancelled a skip.
    Argilla        records.to_json: `fields` and `responses` {question: [{"value", "user_id"}]}. A value is a label, or
                   a ranking [{"value": field, "rank": 1}, ...]; a response that was not submitted is passed by.

In the JSON exports a picture is a path under `images` or a data URI. Nothing is downloaded. The prompt is the first
field of `PROMPTS`; the pictures are the fields that hold pictures, in their order. `columns` names others.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpo.data.sources import IMAGE_LIMIT, Left, image_file
from lpo.data.sources.cells import is_hole
from lpo.errors import LpoError
from lpo.images import decode_picture
from lpo.tables import KINDS, open_table
from lpo.votes.store import Store, add_votes, ballots, to_png

PROMPTS = ("prompt", "caption", "text", "instruction")
SIDES = (("image_a", "image_b"), ("image a", "image b"), ("jpg_0", "jpg_1"), ("image_0", "image_1"),
         ("image_1", "image_2"), ("left", "right"))  # fmt: skip
NAMES = {
    "prompt": PROMPTS, "image_a": (), "image_b": (), "choice": ("choice", "preference", "winner"),
    "voter": ("voter", "annotator", "user_id", "user"), "model_a": ("model_a", "model a"),
    "model_b": ("model_b", "model b"), "seconds": ("seconds", "lead_time"),
}  # fmt: skip
NEEDED = ("prompt", "image_a", "image_b", "choice")
WORDS = {
    **dict.fromkeys(["first", "1st", "a", "left", "1", "image_a", "image a"], [0, 1]),
    **dict.fromkeys(["second", "2nd", "b", "right", "2", "image_b", "image b"], [1, 0]),
    **dict.fromkeys(["tie", "tied", "draw", "equal", "same", "both", "0.5"], [0, 0]),
}
SKIPS = ("", "skip", "skipped", "none")
DATA_URI = re.compile(r"data:image/[a-z.+-]+;base64,", re.IGNORECASE)
PICTURE = re.compile(r"\.(png|jpe?g|webp)$", re.IGNORECASE)
UNKNOWN = "unknown"
JSON_LIMIT = 2**30  # bytes of an export


@dataclass(frozen=True)
class Vote:
    """One answer: pictures (PNG) from left to right; ranks, the lowest is the best, None for a skip."""

    prompt: str
    images: list[bytes]
    models: list[str]
    ranks: list[float] | None
    voter: str
    seconds: float


def read_votes(path: Path, images: Path, columns: Mapping[str, str]) -> Iterator[Vote | Left]:
    """The votes of a file, in their order, and what is none.

    Args:
        images: the folder that picture paths are relative to; none may leave it.
        columns: our name -> the file's name, where they differ: prompt, image_a, image_b, choice, voter, ...

    Raises:
        LpoError: if the file as a whole cannot be read.
    """
    if path.suffix.lower() != ".json":
        yield from _table_votes(path, images, columns)
        return
    if path.stat().st_size > JSON_LIMIT:
        raise LpoError(f"the file has more than {JSON_LIMIT} bytes", str(path), "export it in parts")
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise LpoError(f"the file is not JSON: {error}", str(path), "export it again") from error
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise LpoError("the file is no list of tasks", str(path), "export the JSON of Label Studio or Argilla")
    for number, task in enumerate(tasks):
        read = _argilla if isinstance(task.get("fields"), dict) else _label_studio
        yield from _rows(path, number, read(task, images, columns))


def import_votes(store: Store, votes: Iterable[Vote | Left]) -> tuple[dict[str, int], list[Left]]:
    """Add votes to the store; those that are there already are not added again.

    Returns:
        {"new", "known", "left_out"} and the rows that were left out. The same answer of the same voter is one vote.
    """
    counts, left = {"new": 0, "known": 0, "left_out": 0}, []
    for vote in votes:
        if isinstance(vote, Left):
            left.append(vote)
            counts["left_out"] += 1
            continue
        names = [hashlib.sha256(data).hexdigest() for data in vote.images]
        set_id = store.add_set(vote.prompt, vote.images, vote.models, kind="imported", source="imported")
        voter = f"import-{hashlib.blake2b(vote.voter.encode(), digest_size=5).hexdigest()}"
        key = hashlib.sha256(json.dumps([voter, vote.prompt, names, vote.ranks]).encode()).hexdigest()[:32]
        with store.writing() as db:
            added = add_votes(
                db, f"import-{key}", set_id or 0, voter, "regular", ballots(names, vote.ranks), vote.seconds
            )
        counts["new" if added else "known"] += 1
    return counts, left


def _rows(path: Path, number: int, found: Iterator[Vote]) -> Iterator[Vote | Left]:
    try:
        for vote in found:
            if len({*vote.images}) < len(vote.images):
                raise LpoError("two of the pictures are the same")
            yield vote
    except LpoError as error:
        yield Left(path.name, number, None, error.what)


def _table_votes(path: Path, images: Path, columns: Mapping[str, str]) -> Iterator[Vote | Left]:
    table = open_table(path)
    unknown = sorted(columns.keys() - NAMES.keys())
    if unknown:
        raise LpoError(f"there is no column {', '.join(unknown)}", "--column", f"name one of {', '.join(NAMES)}")
    folded = {name.casefold().strip(): name for name in reversed(table.columns)}
    sides = next((pair for pair in SIDES if folded.keys() >= set(pair)), ("", ""))
    known = NAMES | {"image_a": (sides[0],), "image_b": (sides[1],)}
    named = {
        ours: columns.get(ours) or next((folded[name] for name in theirs if name in folded), None)
        for ours, theirs in known.items()
    }
    absent = [name for name in NEEDED if named[name] not in table.columns]
    if absent:
        what = f"the file has no column for {', '.join(absent)}; it has {', '.join(table.columns)}"
        raise LpoError(what, str(path), f"name them: --column prompt=caption; kinds are {', '.join(KINDS)} and .json")
    there = {ours: theirs for ours, theirs in named.items() if theirs in table.columns}
    for row in table.rows(list(dict.fromkeys(there.values()))):
        if row.problem:
            yield Left(path.name, row.number, None, row.problem)
        else:
            values = {ours: row.values.get(theirs) for ours, theirs in there.items()}
            names = [there["image_a"], there["image_b"]]
            yield from _rows(path, row.number, _table_vote(values, names, images))


def _table_vote(values: dict[str, Any], names: list[str], images: Path) -> Iterator[Vote]:
    pictures = [_picture(values[name], images) for name in ("image_a", "image_b")]
    models = [str(values.get(name) or UNKNOWN) for name in ("model_a", "model_b")]
    ranks, voter = _ranks(values["choice"], names), str(values.get("voter") or UNKNOWN)
    yield Vote(_prompt(values["prompt"]), pictures, models, ranks, voter, _seconds(values.get("seconds")))


def _label_studio(task: dict[str, Any], images: Path, columns: Mapping[str, str]) -> Iterator[Vote]:
    prompt, names, pictures = _fields(task.get("data"), images, columns)
    for annotation in task.get("annotations") or []:
        voter = annotation.get("completed_by")
        voter = str(voter.get("email") or voter.get("id")) if isinstance(voter, dict) else str(voter)
        ranks = None if annotation.get("was_cancelled") else _selected(annotation.get("result"), names)
        yield Vote(prompt, pictures, [UNKNOWN] * len(pictures), ranks, voter, _seconds(annotation.get("lead_time")))


def _selected(results: Any, names: list[str]) -> list[float] | None:
    for result in results if isinstance(results, list) else []:
        value = result.get("value", {})
        if result.get("type") == "pairwise":
            return _ranks(value.get("selected"))
        if result.get("type") == "choices" and value.get("choices"):
            return _ranks(value["choices"][0], names)
    raise LpoError("the annotation holds neither a pairwise result nor choices")


def _argilla(record: dict[str, Any], images: Path, columns: Mapping[str, str]) -> Iterator[Vote]:
    prompt, names, pictures = _fields(record["fields"], images, columns)
    responses = record.get("responses") or {}
    question = columns.get("choice") or next(iter(responses), "")
    for response in responses.get(question, []):
        if response.get("status") not in (None, "submitted"):
            continue
        value = response.get("value")
        ranks: list[float] | None
        if isinstance(value, list):
            places: dict[str, Any] = {str(i.get("value")): i.get("rank") for i in value if isinstance(i, dict)}
            if not places.keys() >= set(names) or not all(isinstance(places[name], int) for name in names):
                raise LpoError(f"the ranking does not rank {', '.join(names)}")
            ranks = [float(places[name]) for name in names]
        else:
            ranks = _ranks(value, names)
        yield Vote(prompt, pictures, [UNKNOWN] * len(pictures), ranks, str(response.get("user_id")), 0.0)


def _fields(fields: Any, images: Path, columns: Mapping[str, str]) -> tuple[str, list[str], list[bytes]]:
    """(the prompt, the names of the fields that hold pictures, those pictures) of a task or record."""
    if not isinstance(fields, dict):
        raise LpoError("the task has no data")
    named = [columns[name] for name in ("image_a", "image_b") if name in columns]
    found = named or [name for name, value in fields.items() if _is_picture(value)]
    if len(found) not in (2, 4):
        raise LpoError(f"the task shows {len(found)} pictures, not 2 or 4")
    prompt = columns.get("prompt") or next((name for name in PROMPTS if name in fields), "")
    return _prompt(fields.get(prompt)), found, [_picture(fields.get(name), images) for name in found]


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and bool(DATA_URI.match(value) or PICTURE.search(value.partition("?")[0]) or
                                           PICTURE.search(value))  # fmt: skip


def _picture(value: Any, images: Path) -> bytes:
    """A picture as it is stored: from bytes, a data URI, or a path under `images`."""
    if isinstance(value, dict):  # the struct of `datasets`: bytes, or a path
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str) and DATA_URI.match(value):
        try:
            value = base64.b64decode(value.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise LpoError("a picture is a broken data URI") from error
    if isinstance(value, str) and value:
        if re.match(r"https?://|s3://|gs://", value):
            raise LpoError(f"the picture is an address, and nothing is downloaded: {value[:100]!r}")
        served = value.startswith("/data/local-files/")  # of Label Studio
        value = image_file(images, value.partition("?d=")[2] if served else value.removeprefix("/data/upload/"))
    if not isinstance(value, bytes) or len(value) > IMAGE_LIMIT:
        raise LpoError("no picture: neither bytes nor a path")
    try:
        return to_png(decode_picture(value))
    except LpoError as error:
        raise LpoError(f"the picture {error.what}") from error


def _prompt(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise LpoError("there is no prompt")
    return value


def _ranks(value: Any, names: list[str] | None = None) -> list[float] | None:
    """The ranks of two pictures that a choice gives, None for a skip. `names`: what the two pictures are called."""
    if is_hole(value):
        return None
    if names and len(names) == 2 and str(value) in names:
        return [0, 1] if str(value) == names[0] else [1, 0]
    word = str(value).strip().casefold().removesuffix(".0")
    if word in SKIPS:
        return None
    if word not in WORDS:
        raise LpoError(f"the choice is no word such as A, B, left, right or tie: {str(value)[:40]!r}")
    return list(WORDS[word])


def _seconds(value: Any) -> float:
    try:
        return min(max(float(value), 0.0), 3600.0) if not is_hole(value) else 0.0
    except (TypeError, ValueError, OverflowError):
        return 0.0
