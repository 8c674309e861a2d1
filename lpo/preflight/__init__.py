"""The check before the work: everything that can be known before a stage runs, for all stages from that one on.

    require(params, "dataset")      `lpo dataset` calls it first, and so does the first stage that `dvc repro` runs
    mistakes(params, "dataset")     the same findings, for `lpo doctor`

`needs.py` says what each stage needs. A run that would fail at its end fails at once, with all mistakes in one message.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lpo.config import Params
from lpo.errors import LpoError
from lpo.files import key_of, write_json

STAGES = ("dataset", "score", "filter", "encode", "reward", "tune", "evaluate", "report")  # in order
PASSED = Path(".checkpoints/preflight.json")  # what was checked last: a key of all that the checks read, and from where
MADE = ("data/reward", "data/spm", "data/tuned")  # by the stages themselves, so that they change in a run


def mistakes(params: Params, first: str) -> list[LpoError]:
    """All that would stop the stage `first` or one after it, each mistake once."""
    from lpo.preflight.needs import of_chain

    chain = STAGES[STAGES.index(first) :]
    found: dict[tuple[str, str], LpoError] = {}
    for need in of_chain(chain):
        try:
            for mistake in need(params, chain):
                found.setdefault((mistake.what, mistake.where), mistake)
        except LpoError as mistake:
            found.setdefault((mistake.what, mistake.where), mistake)
    return list(found.values())


def require(params: Params, first: str) -> None:
    """Check the stages from `first` on, unless the same was checked before: in a run, by the stage before.

    Raises:
        LpoError: with all mistakes.
    """
    if first not in STAGES[:-1]:  # base and report need nothing
        return
    key = key_of(_signature(params))
    with suppress(OSError, ValueError, KeyError, TypeError):
        passed = json.loads(PASSED.read_text(encoding="utf-8"))
        if passed["key"] == key and STAGES.index(passed["first"]) <= STAGES.index(first):
            return
    if found := mistakes(params, first):
        raise summary(found, first)
    with suppress(OSError):
        write_json(PASSED, {"key": key, "first": first})


def summary(found: list[LpoError], first: str) -> LpoError:
    """One error that lists all mistakes."""
    if len(found) == 1:
        return found[0]
    listed = "\n".join("  " + str(mistake).replace("\n", "\n  ") for mistake in found)
    what = f"{len(found)} mistakes would stop the run:\n{listed}"
    return LpoError(what, f"{first} and the stages after it", "correct them and start again; nothing was run")


def _signature(params: Params) -> list[Any]:
    """All that the checks read: the parameters, and name, size and time of change of every file that they name."""
    sections = asdict(params)
    named = {text for text in _texts(sections) if text not in MADE}
    code = sorted(map(str, Path(__file__).parent.glob("*.py")))
    read = [*sorted(named), "data/prompts.parquet", "data/sources.json", "models/promoted", *code]
    return [sections, os.environ.get("HF_HUB_OFFLINE", ""), {name: _stamp(Path(name)) for name in read}]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        yield from _texts(part)


def _stamp(path: Path) -> list[Any]:
    """Of a folder, also that of its files and of those of its folders: a model's parts."""
    with suppress(OSError, ValueError):
        files = sorted([*path.glob("*"), *path.glob("*/*")]) if path.is_dir() else [path]
        return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]
    return []
