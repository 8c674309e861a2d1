"""A YAML mapping read as a frozen dataclass: types, ranges and choices come from the annotations.

`read_fields` returns what could be read and notes a line for each thing that could not, so that a person sees all
mistakes in one message. Understood are int, float, str, bool, Literal, X | None, tuple[X, Y] of that length and
tuple[X, ...] of one entry at least,
dict[str, X], other dataclasses, and Annotated[X, Range(...)] of numbers.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from lpo.errors import LpoError

BROKEN = object()  # stands for a value whose mistake has been noted; None is a value
NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Range:
    """Bounds of a number, or of each number of a list; `ascending` asks that a list never falls."""

    at_least: float = -math.inf
    at_most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    ascending: bool = False

    def problem(self, value: Any) -> str:
        """What is wrong with the value, "" if nothing is."""
        for number in value if isinstance(value, tuple) else (value,):
            if number < self.at_least:
                return f"must be >= {self.at_least:g}"
            if number > self.at_most:
                return f"must be <= {self.at_most:g}"
            if number <= self.above:
                return f"must be > {self.above:g}"
            if number >= self.below:
                return f"must be < {self.below:g}"
        return "must be ascending" if self.ascending and list(value) != sorted(value) else ""


@dataclass
class Reading:
    """What reading has found so far: lines for people, and every value that is right by its YAML path."""

    mistakes: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def note(self, path: str, problem: str, value: Any) -> Any:
        shown = "empty" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
        self.mistakes.append(f"{path}: {problem}, is {shown}")
        return BROKEN


def read_text(path: str | Path) -> str:
    """A parameter file's text.

    Raises:
        LpoError: if there is no such file, or it cannot be read as text.
    """
    remedy = "run in the project's folder, or name the file"
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise LpoError("no such parameter file", str(path), remedy) from error
    except (OSError, UnicodeDecodeError) as error:  # a folder, a loop of links, no permission, no UTF-8
        reason = getattr(error, "strerror", None) or str(error)
        raise LpoError(f"the parameter file cannot be read: {reason}", str(path), remedy) from error


def parse_yaml(text: str, path: str | Path) -> dict[str, Any]:
    """The mapping in YAML 1.2 text, read as DVC reads it: 1e-5 is a number, `off` is text, a key stands once.

    Raises:
        LpoError: if the text is no YAML or holds no mapping; `path` is what the message names.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    try:
        node = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        line = f"{path}, line {error.problem_mark.line + 1}" if error.problem_mark else str(path)
        raise LpoError(f"not valid YAML: {error.problem}", line, "fix that line") from error
    if not isinstance(node, dict):
        raise LpoError("the file holds no sections", str(path), "restore params.yaml from the repository")
    return node


def read_fields(cls: type, node: dict[str, Any], path: str, reading: Reading) -> dict[str, Any]:
    """The fields of dataclass `cls` that `node` gives rightly; the rest is noted with its path."""
    hints = get_type_hints(cls, include_extras=True)
    missing = [name for name in hints if name not in node]
    for key in node:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            reading.mistakes.append(f"{_join(path, key)}: unknown key{hint}")
            missing = [name for name in missing if name not in near]
    reading.mistakes += [f"{_join(path, name)}: missing" for name in missing]
    read = {name: _read(hints[name], node[name], _join(path, name), reading) for name in hints if name in node}
    return {name: value for name, value in read.items() if value is not BROKEN}


def _read(hint: Any, value: Any, path: str, reading: Reading) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        result = _read(args[0], value, path, reading)
        problem = "" if result is BROKEN else args[1].problem(result)
        if problem:
            reading.values.pop(path)
            return reading.note(path, problem, value)
        return result
    if NoneType in args:
        if value is None:
            reading.values[path] = None
            return None
        return _read(args[0], value, path, reading)
    if is_dataclass(hint):
        return _section(cast(type, hint), value, path, reading)
    if origin is dict:
        result = _table(args[1], value, path, reading)
    else:
        result = _list(args, value, path, reading) if origin is tuple else _scalar(hint, value, path, reading)
    if result is not BROKEN:
        reading.values[path] = result
    return result


def _section(cls: type, value: Any, path: str, reading: Reading) -> Any:
    if not isinstance(value, dict):
        return reading.note(path, "must be a section with keys of its own", value)
    read = read_fields(cls, value, path, reading)
    return cls(**read) if len(read) == len(fields(cls)) else BROKEN


def _table(hint: Any, value: Any, path: str, reading: Reading) -> Any:
    if not isinstance(value, dict):
        return reading.note(path, "must be a section of named entries", value)
    read = {str(key): _read(hint, entry, _join(path, key), reading) for key, entry in value.items()}
    return BROKEN if BROKEN in read.values() else read


def _list(hints: tuple[Any, ...], value: Any, path: str, reading: Reading) -> Any:
    if hints[-1] is Ellipsis:
        if not isinstance(value, list) or not value:
            return reading.note(path, "must be a list with something in it", value)
        hints = hints[:1] * len(value)
    if not isinstance(value, list) or len(value) != len(hints):
        return reading.note(path, f"must be a list of {len(hints)} numbers", value)
    numbers = [_read(hint, value[i], f"{path}[{i}]", reading) for i, hint in enumerate(hints)]
    return BROKEN if BROKEN in numbers else tuple(numbers)


def _scalar(kind: Any, value: Any, path: str, reading: Reading) -> Any:
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return value if value in choices else reading.note(path, f"must be one of {', '.join(choices)}{hint}", value)
    # A whole number is a number too, and is the text of its digits: `dvc exp run -S filter.strategy=1` has no quotes.
    if type(value) is int and kind in (float, str):
        value = kind(value)
    if type(value) is not kind:
        return reading.note(path, f"must be {NAMES[kind]}", value)
    if kind is float and not math.isfinite(value):
        return reading.note(path, "must be finite", value)
    return value if value != "" else reading.note(path, "must not be empty", value)


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)
