"""Prompt files for evaluation: a frame with the columns prompt, category and task, one row a prompt.

    .txt              a prompt a line
    .csv .tsv         a column prompt or caption, perhaps category; PartiPrompts.tsv (Prompt, Category, ...) is one
    .jsonl            the same as keys; GenEval's evaluation_metadata.jsonl (prompt, tag, include, exclude) is one
    .parquet          the same as columns; Pick-a-Pic's validation_unique shard is one, its pictures are not read
    hf://datasets/OWNER/NAME/PATH   any of these from the hub

`task` is the JSON text of a GenEval prompt, None elsewhere; its tag is the category. Capitals in names of columns do
not matter. Prompts that cannot be used are not lost: they come back in a second frame with the columns prompt and
reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from lpo.errors import LpoError
from lpo.hub import file_of

HUB = "hf://datasets/"
NAMES = ("prompt", "caption")  # of the column, the first that is there
LONGEST = 2000  # characters; text encoders read 77 tokens, and nobody reads more on a page
NO_CATEGORY = "all"


def read_prompts(source: str, trained: Iterable[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(prompts in the order of the file, what was left out with its reason).

    Left out are prompts that are empty, longer than 2000 characters, there a second time, or among `trained`: the
    prompts that the model was tuned on (capitals and spaces do not count).

    Raises:
        LpoError: if there is no such file, it cannot be read, or has no column of prompts.
    """
    path = prompt_file(source)
    rows = _rows(path)
    seen, known = set(), {_plain(prompt) for prompt in trained}
    kept: list[dict[str, Any]] = []
    left: list[dict[str, str]] = []
    for row in rows:
        prompt = row["prompt"].strip()
        reason = ""
        if not prompt:
            reason = "empty"
        elif len(prompt) > LONGEST:
            reason = f"longer than {LONGEST} characters"
        elif prompt in seen:
            reason = "there before"
        elif _plain(prompt) in known:
            reason = "a training prompt"
        if reason:
            left.append({"prompt": prompt, "reason": reason})
        else:
            seen.add(prompt)
            kept.append(row | {"prompt": prompt})
    frame = pd.DataFrame(kept, columns=["prompt", "category", "task"], dtype=object)
    return frame, pd.DataFrame(left, columns=["prompt", "reason"], dtype=object)


def prompt_file(source: str) -> Path:
    """The local path of a prompt file, downloaded if it is one of the hub. Raises LpoError if it is absent."""
    if source.startswith(HUB):
        owner, _, rest = source.removeprefix(HUB).partition("/")
        name, _, path = rest.partition("/")
        if not path:
            raise LpoError(f"no file is named in {source}", "evaluate.prompts_file", f"write {HUB}OWNER/NAME/FILE")
        return file_of(f"{owner}/{name}", path, repo_type="dataset")
    if not Path(source).is_file():
        raise LpoError("there is no such file of prompts", source, "name another one in evaluate.prompts_file")
    return Path(source)


def _rows(path: Path) -> list[dict[str, Any]]:
    kind = path.suffix.lower()
    try:
        if kind == ".txt":
            return [_row({"prompt": line}) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if kind == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            return [_row(json.loads(line)) for line in lines if line.strip()]
        if kind == ".parquet":
            frame = _parquet(path)
        elif kind in (".csv", ".tsv"):
            frame = pd.read_csv(path, sep="\t" if kind == ".tsv" else ",", dtype=str, keep_default_na=False)
        else:
            remedy = "use .txt, .csv, .tsv, .jsonl or .parquet"
            raise LpoError(f"{kind or 'no ending'} is no kind of prompt file", str(path), remedy)
        return [_row(row) for row in frame.to_dict("records")]
    except (KeyError, ValueError, AttributeError, OSError) as error:  # a broken file of any kind
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = "see the kinds of files in lpo/evaluate/prompt_files.py"
        raise LpoError(f"can't read the prompts: {first}", str(path), remedy) from error


def _parquet(path: Path) -> pd.DataFrame:
    """Without the columns of pictures, which a shard of Pick-a-Pic has too."""
    import pyarrow.parquet as pq

    names = [name for name in pq.read_schema(path).names if name.lower() in (*NAMES, "category")]
    return pd.read_parquet(path, columns=names)


def _row(found: dict[str, Any]) -> dict[str, Any]:
    row = {str(key).lower(): value for key, value in found.items()}
    name = next((name for name in NAMES if name in row), None)
    if name is None:
        raise KeyError(f"no column {' or '.join(NAMES)} among {', '.join(map(str, found))}")
    prompt, task = row[name] if isinstance(row[name], str) else "", None
    category = row.get("category") or NO_CATEGORY
    if "include" in row and "tag" in row:
        category = row["tag"]
        task = json.dumps({key: row[key] for key in ("tag", "include", "exclude") if key in row}, sort_keys=True)
    return {"prompt": prompt, "category": str(category), "task": task}


def _plain(prompt: str) -> str:
    return " ".join(prompt.lower().split())
