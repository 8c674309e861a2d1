"""Pictures of your own to vote on: a folder with a table metadata.csv (or .jsonl, .parquet) beside them.

    file_name    the picture, relative to the folder       prompt (or caption, text)    what it was to show
    model        optional: who drew it; it is never shown

This is the ImageFolder layout of `datasets`. Pictures of one prompt are compared, `size` of them at a time, in the
order of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lpo.data.sources import image_file
from lpo.errors import LpoError
from lpo.images import decode_picture
from lpo.tables import KINDS, open_table
from lpo.votes.drawing import Drawn
from lpo.votes.store import to_png

PROMPTS = ("prompt", "caption", "text")
UNKNOWN = "unknown"  # the model of a picture whose table names none


def folder_sets(folder: Path, size: int) -> list[list[tuple[str, str, str]]]:
    """The sets of a folder, each a list of (prompt, file name, model). No picture is opened.

    Raises:
        LpoError: if there is no table or it lacks a column, or no prompt has `size` pictures.
    """
    tables = [folder / f"metadata{kind}" for kind in KINDS if (folder / f"metadata{kind}").is_file()]
    if not tables:
        what = "the folder has no table that says which picture belongs to which prompt"
        raise LpoError(what, str(folder), "write metadata.csv there, with the columns file_name and prompt")
    table = open_table(tables[0])
    prompt_column = next((name for name in PROMPTS if name in table.columns), None)
    if "file_name" not in table.columns or prompt_column is None:
        what = f"the table has the columns {', '.join(table.columns)}"
        raise LpoError(what, str(tables[0]), "name the columns file_name and prompt")
    by_prompt: dict[str, list[tuple[str, str, str]]] = {}
    for row in table.rows(["file_name", prompt_column, *(["model"] if "model" in table.columns else [])]):
        name, prompt = row.values.get("file_name"), row.values.get(prompt_column)
        if isinstance(name, str) and isinstance(prompt, str) and prompt.strip():
            by_prompt.setdefault(prompt, []).append((prompt, name, str(row.values.get("model") or UNKNOWN)))
    sets = [
        pictures[start : start + size]
        for pictures in by_prompt.values()
        for start in range(0, len(pictures) - size + 1, size)
    ]
    if not sets:
        raise LpoError(f"no prompt has {size} pictures", str(tables[0]), "list the pictures of each prompt")
    return sets


def read_sets(folder: Path, sets: list[list[tuple[str, str, str]]]) -> Iterator[Drawn]:
    """The sets with their pictures. Raises LpoError at a picture that cannot be read."""
    for one in sets:
        images = []
        for _, name, _ in one:
            try:
                images.append(to_png(decode_picture(image_file(folder, name))))
            except LpoError as error:
                where = str(folder / name) if len(name) < 200 else str(folder)
                raise LpoError(f"the picture {error.what}", where, "correct it, or its line in the table") from error
        yield Drawn(one[0][0], images, [model for _, _, model in one])
