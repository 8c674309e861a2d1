"""A preset is the part of params.yaml that one model family needs; merging it keeps the file's comments and order.

text, changes = merge(params_text, preset_text)
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from lpo.config import Params, check_params
from lpo.config.reader import parse_yaml, read_text
from lpo.errors import LpoError
from lpo.outputs import edit_text


def apply_preset(name: str, params: Path, folder: Path = Path("presets")) -> list[str]:
    """Merge `folder/NAME.yaml` into the file `params` and return the changes, one line each.

    Raises:
        LpoError: if there is no such preset, or if one of the two files is no YAML.
        ConfigError: if the merged file would not be valid; nothing is written then.
    """
    _, after, changes = _merged(name, params, folder)
    check_params(parse_yaml(after, params), params)
    if changes:
        edit_text(params, after)
    return changes


def _merged(name: str, params: Path, folder: Path) -> tuple[str, str, list[str]]:
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"use one of: {', '.join(names) or 'there is none here'}"
        raise LpoError(f"no preset {name!r}", f"{folder}/", remedy)
    file = folder / f"{name}.yaml"
    before, preset = read_text(params), read_text(file)
    for text, path in ((before, params), (preset, file)):
        parse_yaml(text, path)
    return before, *merge(before, preset)


def with_preset(name: str, params: Path, folder: Path = Path("presets")) -> Params:
    """The parameters as they would be with the preset merged; nothing is written. Raises as `apply_preset`."""
    return check_params(parse_yaml(_merged(name, params, folder)[1], params), params)


def merge(params: str, preset: str) -> tuple[str, list[str]]:
    """The text of `params` with the values of `preset`, and a line "tune.beta: 500.0 -> 100.0" for each that changed.

    Sections merge key by key; a number, a text or a list takes the place of the old one.
    """
    from ruamel.yaml import YAML

    yaml = YAML()  # the round trip keeps comments, quotes and number formats
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    tree = yaml.load(params)
    changes = list(_merge(tree, yaml.load(preset), ""))
    out = io.StringIO()
    yaml.dump(tree, out)
    return out.getvalue() if changes else params, changes


def _merge(tree: MutableMapping[str, Any], preset: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, new in preset.items():
        old = tree.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _merge(old, new, f"{path}{key}.")
        elif key not in tree or old != new:
            yield f"{path}{key}: {_flat(old)} -> {_flat(new)}"
            if isinstance(old, list) and isinstance(new, list):
                old[:] = new  # the list in the file keeps its style
            else:
                tree[key] = new


def _flat(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(list(value) if isinstance(value, list) else value)
