"""Prompt files, of `dataset.prompts` and of `evaluate.prompts_file`: one row a prompt.

    .txt                    a prompt a line
    .csv .tsv               a column prompt or caption; perhaps category and split. PartiPrompts.tsv is one
    .jsonl                  the same as keys. GenEval's evaluation_metadata.jsonl (prompt, tag, include, exclude) is one
    .parquet                the same as columns. Pick-a-Pic's validation_unique shard is one; its pictures are not read
    .txt.gz .csv.gz ...     the text kinds, compressed
    hf://datasets/OWNER/NAME/PATH   any of these from the hub

`lpo.tables` says how files are read: UTF-8 or UTF-16, and lines that end at LF, CR LF or CR only. Capitals in names of
columns do not matter. `task` is the JSON text of a GenEval prompt, None elsewhere; its tag is the category. Prompts
that cannot be used are not lost: they come back in a second frame with the columns prompt and reason, whose index is
the row of the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lpo.errors import LpoError
from lpo.hub import file_of
from lpo.tables import KINDS, Row, kind_of, open_table, text_lines

HUB = "hf://datasets/"
NAMES = ("prompt", "caption")  # of the column, the first that is there
TASK = ("tag", "include", "exclude")  # the keys of a GenEval task
LONGEST = 2000  # characters; text encoders read 77 tokens, and nobody reads more on a page
NO_CATEGORY = "all"
SETTING = "evaluate.prompts_file"  # the parameter that messages name


def read_prompts(source: str, trained: Iterable[str] = (), setting: str = SETTING) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(prompt, category, task, split in the order of the file; what was left out: prompt and reason).

    Left out are rows that cannot be read, and prompts that are empty, longer than 2000 characters, there before in the
    same split, or among `trained`: the prompts that the model was tuned on (capitals and spaces do not count). `split`
    is None where the file has no such column.

    Raises:
        LpoError: if there is no such file, it cannot be read, has no column of prompts, or none of its rows is one;
            `setting` is the parameter to change.
    """
    path = prompt_file(source, setting)
    seen, known = set(), {_plain(prompt) for prompt in trained}
    kept: list[dict[str, Any]] = []
    left: list[tuple[int, str, str]] = []
    for row in _rows(path, setting):
        prompt = row.values.get("prompt", "")
        place = (row.values.get("split"), prompt)
        reason = row.problem
        if not reason and not prompt:
            reason = "empty"
        elif len(prompt) > LONGEST:
            reason = f"longer than {LONGEST} characters"
        elif not reason and place in seen:
            reason = "there before"
        elif not reason and _plain(prompt) in known:
            reason = "a training prompt"
        if reason:
            left.append((row.number, prompt, reason))
        else:
            seen.add(place)
            kept.append(row.values)
    if left and all(reason.startswith("unreadable") for _, _, reason in left) and not kept:
        remedy = f"write it again, or name another file in {setting}"
        raise LpoError(f"can't read the prompts: {left[0][2]}", str(path), remedy)
    frame = pd.DataFrame(kept, columns=["prompt", "category", "task", "split"], dtype=object)
    index = [number for number, _, _ in left]
    rest = pd.DataFrame([item[1:] for item in left], columns=["prompt", "reason"], index=index, dtype=object)
    return frame, rest


def prompt_file(source: str, setting: str = SETTING) -> Path:
    """The local path of a prompt file, downloaded if it is one of the hub. Raises LpoError if it is absent."""
    if source.startswith(HUB):
        owner, _, rest = source.removeprefix(HUB).partition("/")
        name, _, path = rest.partition("/")
        if not path:
            raise LpoError(f"no file is named in {source}", setting, f"write {HUB}OWNER/NAME/FILE")
        return file_of(f"{owner}/{name}", path, repo_type="dataset")
    if not Path(source).is_file():
        raise LpoError("there is no such file of prompts", source, f"name another one in {setting}")
    return Path(source)


def _rows(path: Path, setting: str) -> Iterator[Row]:
    """Rows with the keys prompt, category, task and split."""
    try:
        if kind_of(path, (".txt", *KINDS)) == ".txt":
            lines = (line.strip() for line in text_lines(path))
            yield from (Row(number, _values({"prompt": line})) for number, line in enumerate(lines) if line)
            return
        table = open_table(path)
        wanted = [name for name in table.columns if name.lower() in (*NAMES, *TASK, "category", "split")]
        if not any(name.lower() in NAMES for name in wanted):
            names = ", ".join(table.columns) or "nothing"
            raise LpoError(f"there is no column {' or '.join(NAMES)} among {names}", str(path))
        for row in table.rows(wanted):
            if row.problem:
                yield row._replace(problem=f"unreadable: {row.problem}")
            else:
                yield row._replace(values=_values({name.lower(): value for name, value in row.values.items()}))
    except LpoError as error:
        remedy = error.remedy or f"call it prompt, or name another file in {setting}"
        raise LpoError(f"can't read the prompts: {error.what}", error.where, remedy) from error


def _values(row: dict[str, Any]) -> dict[str, Any]:
    prompt, task = next((row[name] for name in NAMES if name in row), None), None
    category = row.get("category") or NO_CATEGORY
    if row.get("include") is not None and row.get("tag") is not None:
        category = row["tag"]
        task = json.dumps({key: row[key] for key in TASK if row.get(key) is not None}, sort_keys=True, default=str)
    text = prompt.strip() if isinstance(prompt, str) else ""
    return {"prompt": text, "category": str(category), "task": task, "split": row.get("split") or None}


def _plain(prompt: str) -> str:
    return " ".join(prompt.lower().split())
