"""A preset is the part of params.yaml that one model family needs. Merging it changes the values and nothing else.

    text, changes = merge(params_text, preset_text)

Presets come with the package, in lpo/presets. A file of one's own is named by its path.

The file is edited as text: comments, order, quotes and number formats stay, and a new value is written as the preset
writes it. So `lpo preset sdxl` followed by `lpo preset emoji` restores every byte.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lpo.config import Params, check_params
from lpo.config.reader import parse_yaml, read_text
from lpo.config.scaling import scaled
from lpo.errors import LpoError
from lpo.outputs import edit_text

PRESETS = Path(__file__).resolve().parents[1] / "presets"
GAP = 3  # spaces before a comment that has no room in its column


class Edit(NamedTuple):
    """Put `text` in the place of the characters `start` to `end`."""

    start: int
    end: int
    text: str


def apply_preset(name: str, params: Path, gpus: int | None = None) -> list[str]:
    """Merge a preset into the file `params` and return the changes, one line each.

    Args:
        name: of a preset of the package, or the path of a file that ends in .yaml.
        gpus: how many share a training, each with the work that it has in the preset (lpo/config/scaling.py). None:
            the preset's batches as they are.

    Raises:
        LpoError: if there is no such preset, it cannot be scaled, or one of the two files is not YAML.
        ConfigError: if the merged file would not be valid; nothing is written then.
    """
    before, after, changes = _merged(name, params, gpus)
    check_params(parse_yaml(after, params), params)
    if after != before:
        edit_text(params, after)
    return changes


def _merged(name: str, params: Path, gpus: int | None = None) -> tuple[str, str, list[str]]:
    names = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name not in names and not name.endswith(".yaml"):
        near = difflib.get_close_matches(name, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}, or the path of a .yaml file"
        raise LpoError(f"no preset {name!r}", f"{PRESETS}/", remedy)
    file = PRESETS / f"{name}.yaml" if name in names else Path(name)
    before, preset = read_text(params), read_text(file)
    for text, path in ((before, params), (preset, file)):
        parse_yaml(text, path)
    if gpus is not None:
        changes = json.dumps(scaled(parse_yaml(preset, file), gpus))
        # JSON is YAML, but for a float without a dot, which YAML 1.1 reads as text.
        preset, _ = merge(preset, re.sub(r"(?<=[ :])(\d+)e-", r"\1.0e-", changes))
    return before, *merge(before, preset)


def with_preset(name: str, params: Path) -> Params:
    """The parameters as they would be with the preset merged; nothing is written. Raises as `apply_preset`."""
    return check_params(parse_yaml(_merged(name, params)[1], params), params)


def merge(params: str, preset: str) -> tuple[str, list[str]]:
    """The text of `params` with the values of `preset`, and a line "tune.beta: 500.0 -> 100.0" for each that changed.

    Sections merge key by key; a number, a text or a list takes the place of the old one.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    def read(text: str) -> tuple[Any, Any]:
        yaml = YAML(typ="safe", pure=True)
        return yaml.load(text), yaml.compose(text)

    edits: list[Edit] = []
    (values, node), (new, new_node) = read(params), read(preset)
    changes = list(_merge(values, node, new, new_node, (params, preset), "", edits))
    after = _apply(params, edits)
    try:
        same = read(after)[0] == _merged_values(values, new)
    except YAMLError:
        same = False
    if not same:  # an alias, for one, stands for a value at another place
        raise LpoError("this file cannot be edited as text", "the parameter file", "write every value at its key")
    return after, changes


def _merged_values(values: Any, new: Any) -> Any:
    if not isinstance(values, dict) or not isinstance(new, dict):
        return new
    return values | {key: _merged_values(values.get(key), value) for key, value in new.items()}


def _merge(
    values: Mapping[str, Any], node: Any, new: Mapping[str, Any], new_node: Any, texts: tuple[str, str], path: str,
    edits: list[Edit],
) -> Iterator[str]:  # fmt: skip
    """Note the edits that give the mapping `node` the values `new`, and describe each change of a value.

    texts: of the parameters and of the preset, which the marks of the nodes count in.
    """
    known = {key.value: (key, value) for key, value in node.value}
    given = {key.value: value for key, value in new_node.value}
    for key, value in new.items():
        old, source = values.get(key), given[str(key)]
        if isinstance(old, dict) and isinstance(value, dict):
            yield from _merge(old, known[str(key)][1], value, source, texts, f"{path}{key}.", edits)
        elif key not in values or old != value:
            yield f"{path}{key}: {_flat(old)} -> {_flat(value)}"
            text = texts[1][source.start_mark.index : source.end_mark.index]
            if "\n" in text or _is_block(source):
                text = json.dumps(value)  # JSON is YAML on one line
            if key in values:
                edits.append(_replace(*known[str(key)], text))
            else:
                edits.append(_add(node, f"{key}: {text}", texts[0]))


def _replace(key: Any, value: Any, text: str) -> Edit:
    start, end = value.start_mark.index, value.end_mark.index
    if start == end:  # nothing is written there, and the mark is that of the next key
        return Edit(key.start_mark.index, key.end_mark.index + 1, f"{key.value}: {text}")
    return Edit(key.end_mark.index, _end(value), f": {text}") if _is_block(value) else Edit(start, end, text)


def _add(node: Any, line: str, text: str) -> Edit:
    """A new last line of a section, or a new last entry of a mapping in braces."""
    end = _end(node)
    if not _is_block(node):
        return Edit(end - 1, end - 1, f", {line}")
    below = text.find("\n", end)
    end = len(text) if below < 0 else below
    return Edit(end, end, f"\n{' ' * node.value[0][0].start_mark.column}{line}")


def _end(node: Any) -> int:
    """Where the text of a node ends. A block itself ends where the next key begins, so its last entry tells."""
    while _is_block(node):
        node = node.value[-1][1] if isinstance(node.value[-1], tuple) else node.value[-1]
    return int(node.end_mark.index)


def _is_block(node: Any) -> bool:
    return isinstance(node.value, list) and not node.flow_style


def _apply(text: str, edits: list[Edit]) -> str:
    """The edited text, with the comments of changed lines where they stood or stand in their column."""
    column = _comment_column(text)
    for edit in sorted(edits, reverse=True):
        head, tail = text[: edit.start] + edit.text, text[edit.end :]
        rest, newline, below = tail.partition("\n")
        comment = rest.lstrip(" ")
        if comment.startswith("#") and "\n" not in edit.text:
            before = len(text[: edit.end]) - (text.rfind("\n", 0, edit.end) + 1)
            after = len(head) - (head.rfind("\n") + 1)
            place = before + len(rest) - len(comment)
            if place == _place(column, before) or place < after + 2:
                place = _place(column, after)
            rest = " " * (place - after) + comment
        text = head + rest + newline + below
    return text


def _place(column: int, end: int) -> int:
    """Where a comment begins behind a value: in the column of the others, or behind it where the value is too long."""
    return column if column >= end + 2 else end + GAP


def _comment_column(text: str) -> int:
    """Where most comments behind a value begin."""
    places = Counter(line.index(" #") + 1 for line in text.splitlines() if " #" in line and line.lstrip()[0] != "#")
    return places.most_common(1)[0][0] if places else 0


def _flat(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(list(value) if isinstance(value, list) else value)
