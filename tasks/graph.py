"""The stages of dvc.yaml and what each waits for. There is no second list of stages anywhere in flows or tasks."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from lpo.errors import LpoError

FILE = "dvc.yaml"


@dataclass(frozen=True)
class Stage:
    name: str
    gpu: bool  # `meta: {gpu: true}` of dvc.yaml
    frozen: bool
    deps: tuple[str, ...]
    outs: tuple[str, ...]  # metrics and plots are outputs too
    upstream: tuple[str, ...]  # the stages that make what this one reads

    @property
    def queue(self) -> str:
        return "gpu" if self.gpu else "cpu"


def read_graph(folder: Path) -> dict[str, Stage]:
    """The stages of `folder`/dvc.yaml by name, each after all that it waits for.

    Raises:
        LpoError: if the file is absent, holds no stages, or uses what this reader does not know.
    """
    path = folder / FILE
    if not path.exists():
        raise LpoError("there is no dvc.yaml", str(folder), "start the worker in a clone of the project")
    found = (yaml.safe_load(_filled(path)) or {}).get("stages") or {}
    if not found:
        raise LpoError("dvc.yaml has no stages", str(path), "restore it from the repository")
    unknown = [name for name, stage in found.items() if {"foreach", "matrix"} & stage.keys() or "wdir" in stage]
    if unknown:
        raise LpoError(
            f"foreach, matrix and wdir are not supported: {', '.join(unknown)}", str(path), "write the stages out"
        )
    outs = {name: tuple(_outs(stage)) for name, stage in found.items()}
    stages = {
        name: Stage(
            name,
            bool((stage.get("meta") or {}).get("gpu")),
            bool(stage.get("frozen")),
            deps := tuple(_names(stage.get("deps", []))),
            outs[name],
            tuple(other for other in found if other != name and _overlap(deps, outs[other])),
        )
        for name, stage in found.items()
    }
    return {name: stages[name] for name in _ordered(stages)}


def _filled(path: Path) -> str:
    """dvc.yaml with every ${section.key} as params.yaml beside it has it, which is how DVC reads it."""

    def value(match: re.Match[str]) -> str:
        found: Any = yaml.safe_load((path.parent / "params.yaml").read_text(encoding="utf-8"))
        for key in match[1].split("."):
            if not isinstance(found, dict) or key not in found:
                raise LpoError(f"{match[0]} names no parameter", str(path), "mend it, or add the key to params.yaml")
            found = found[key]
        return str(found)

    return re.sub(r"\$\{([\w.]+)\}", value, path.read_text(encoding="utf-8"))


def select(graph: Mapping[str, Stage], first: str | None, until: str | None) -> list[str]:
    """The stages that a run looks at: `first` and what follows it, of those that `until` needs; without both, all.

    Raises:
        LpoError: if a name is unknown, or if nothing lies between the two.
    """
    for name in (first, until):
        if name is not None and name not in graph:
            near = difflib.get_close_matches(name, graph, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"use one of: {', '.join(graph)}"
            raise LpoError(f"no stage {name!r}", "parameter stages", remedy)
    below = after(graph, [first]) if first else set(graph)
    above = before(graph, [until]) if until else set(graph)
    chosen = [name for name in graph if name in below & above]
    if not chosen:
        raise LpoError(f"{until} does not come after {first}", "parameter stages", "exchange the two")
    return chosen


def before(graph: Mapping[str, Stage], names: Iterable[str]) -> set[str]:
    """The named stages and all that they wait for."""
    found = set(names)
    for name in reversed(list(graph)):
        if name in found:
            found.update(graph[name].upstream)
    return found


def after(graph: Mapping[str, Stage], names: Iterable[str]) -> set[str]:
    """The named stages and all that wait for them."""
    found = set(names)
    for name, stage in graph.items():
        if found & set(stage.upstream):
            found.add(name)
    return found


def _ordered(stages: Mapping[str, Stage]) -> list[str]:
    done: list[str] = []
    while len(done) < len(stages):
        ready = [n for n, s in stages.items() if n not in done and set(s.upstream) <= set(done)]
        if not ready:
            circle = ", ".join(sorted(stages.keys() - set(done)))
            raise LpoError(f"stages wait for each other: {circle}", FILE, "break the circle")
        done += ready
    return done


def _names(items: list[Any]) -> list[str]:
    """The paths of a list of dvc.yaml, whose items are PATH or {PATH: options}."""
    return [item if isinstance(item, str) else next(iter(item)) for item in items]


def _outs(stage: Mapping[str, Any]) -> list[str]:
    return [name for key in ("outs", "metrics", "plots") for name in _names(stage.get(key, []))]


def _overlap(deps: Iterable[str], outs: Iterable[str]) -> bool:
    """A stage reads another's output if one of the two paths is, or lies in, the other."""
    pairs = [(PurePosixPath(dep), PurePosixPath(out)) for dep in deps for out in outs]
    return any(dep.is_relative_to(out) or out.is_relative_to(dep) for dep, out in pairs)
