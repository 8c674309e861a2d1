"""The stages of dvc.yaml and their order. DVC reports both; flows and tasks keep no list of stages of their own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import yaml

from lpo.errors import LpoError
from tasks import reproduce

FILE = "dvc.yaml"
ARROW = re.compile(r'^"([^"]+)"(?: -> "([^"]+)")?;$')  # a line of `dvc dag --dot`: a stage, or a stage and its reader


@dataclass(frozen=True)
class Stage:
    name: str
    gpu: bool  # `meta: {gpu: true}` in dvc.yaml
    frozen: bool
    upstream: tuple[str, ...]  # the stages whose outputs this one reads
    shared: bool = False  # `meta: {shared: true}`: several machines can share its parts (`lpo STAGE --share K/N`)

    @property
    def queue(self) -> str:
        return "gpu" if self.gpu else "cpu"


def read_graph(folder: Path) -> dict[str, Stage]:
    """The stages of `folder`/dvc.yaml by name, each after the stages that it reads from.

    Raises:
        LpoError: if the folder has no dvc.yaml.
        StageFailed: if DVC refuses the file; the message is DVC's.
    """
    path = folder / FILE
    if not path.exists():
        raise LpoError("there is no dvc.yaml", str(folder), "start the worker in a clone of the project")
    definitions = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    upstream: dict[str, list[str]] = {}
    for line in reproduce.dag(folder):
        if match := ARROW.match(line):
            # Other nodes are .dvc files and stages of other folders.
            one, reader = (name if name and name.partition("@")[0] in definitions else None for name in match.groups())
            if one and not match[2]:
                upstream[one] = []
            elif one and reader:
                upstream[reader].append(one)
    stages = {}
    for name in TopologicalSorter(upstream).static_order():
        definition = definitions[name.partition("@")[0]]
        definition = definition.get("do", definition)  # of a foreach or matrix stage
        meta = definition.get("meta") or {}
        gpu, shared = bool(meta.get("gpu")), bool(meta.get("shared"))
        stages[name] = Stage(name, gpu, bool(definition.get("frozen")), tuple(upstream[name]), shared)
    return stages


def find(graph: Mapping[str, Stage], name: str) -> Stage:
    """The stage of that name.

    Raises:
        LpoError: if there is none.
    """
    if name not in graph:
        near = difflib.get_close_matches(name, graph, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"use one of: {', '.join(graph)}"
        raise LpoError(f"there is no stage {name!r}", FILE, remedy)
    return graph[name]


def select(graph: Mapping[str, Stage], first: str | None, until: str | None) -> list[str]:
    """The stages of a run: `first` and the stages after it, as far as `until` needs them. Without bounds: all stages.

    Raises:
        LpoError: if a name is unknown, or `until` does not depend on `first`.
    """
    below = after(graph, [find(graph, first).name]) if first else set(graph)
    above = before(graph, [find(graph, until).name]) if until else set(graph)
    chosen = [name for name in graph if name in below & above]
    if not chosen:
        raise LpoError(f"{until} does not come after {first}", "parameter stages", "swap the two")
    return chosen


def before(graph: Mapping[str, Stage], names: Iterable[str]) -> set[str]:
    """The named stages and every stage that they depend on."""
    found = set(names)
    for name in reversed(list(graph)):
        if name in found:
            found.update(graph[name].upstream)
    return found


def after(graph: Mapping[str, Stage], names: Iterable[str]) -> set[str]:
    """The named stages and every stage that depends on them."""
    found = set(names)
    for name, stage in graph.items():
        if found & set(stage.upstream):
            found.add(name)
    return found
