"""GenEval: does a picture hold the objects, numbers, colours and places that its prompt names?

A task names its tag (single_object, two_object, counting, colors, position, color_attr) and clauses. A picture is right
if every clause of `include` is met and none of `exclude`:

    {class, count}      at least `count` objects of the class; the most confident ones are looked at further
    color               all of those have this colour, by a zero-shot classifier on the object cut out
    position [r, i]     each lies r (left of, right of, above, below) of each object of clause i
    exclude             fewer than `count` objects of the class

    offset o = centre(a) - centre(b),   o' = max(|o| - 0.1 (size(a) + size(b)), 0) sign(o),   d = o' / |o|
    left of: d_x < -1/2     right of: d_x > 1/2     above: d_y < -1/2     below: d_y > 1/2

Objects count above a confidence of 0.3, in counting tasks of 0.9, and at most 16 a class.
Source: Ghosh et al. 2023 (arXiv 2310.11513), its released code and evaluation_metadata.jsonl (553 prompts, 4 pictures
each; the overall figure is the mean over the six tags). The detector is another build of the same model, see
lpo/scorers/detector.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lpo.errors import LpoError

CONFIDENCE, COUNTING_CONFIDENCE = 0.3, 0.9
MOST = 16  # objects of a class
SLACK = 0.1  # of the objects' sizes, before one lies beside the other
RELATIONS = ("left of", "right of", "above", "below")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")


@dataclass(frozen=True)
class Found:
    """One detected object: box (4,) as left, top, right, bottom in pixels, mask (H, W) of bool, score in 0..1."""

    box: np.ndarray
    mask: np.ndarray
    score: float


Objects = Mapping[str, Sequence[Found]]  # by class
Colours = Callable[[Sequence[Found], str], list[str]]  # objects of a class -> the colour of each


def check_task(text: str, classes: Sequence[str]) -> dict[str, Any]:
    """A task of the metadata, as a dict.

    Raises:
        LpoError: if it lacks a part, or names a class, colour or relation that nothing here knows.
    """
    task = json.loads(text)
    wrong = []
    for place, clause in enumerate(task["include"]):
        if clause.get("color", COLOURS[0]) not in COLOURS:
            wrong.append(f"colour {clause['color']!r}")
        relation, target = clause.get("position", (RELATIONS[0], place - 1))
        if relation not in RELATIONS:
            wrong.append(f"relation {relation!r}")
        if "position" in clause and not 0 <= target < place:
            wrong.append(f"position beside clause {target}")
    for clause in (*task["include"], *task.get("exclude", ())):
        if clause.get("class") not in classes:
            wrong.append(f"class {clause.get('class')!r}")
        if not isinstance(clause.get("count"), int):
            wrong.append(f"count {clause.get('count')!r}")
    if wrong:
        raise LpoError(f"GenEval can't ask for {', '.join(wrong)}", text, "fix that line of evaluate.prompts_file")
    return task


def counted(found: Objects, tag: str) -> dict[str, list[Found]]:
    """The objects that count for a tag, the most confident first."""
    least = COUNTING_CONFIDENCE if tag == "counting" else CONFIDENCE
    kept = {
        name: sorted((o for o in objects if o.score > least), key=lambda o: -o.score)[:MOST]
        for name, objects in found.items()
    }
    return {name: objects for name, objects in kept.items() if objects}


def correct(task: Mapping[str, Any], objects: Objects, colours: Colours) -> bool:
    """Whether the objects (as `counted` gives them) are what the task asks for."""
    groups: list[Sequence[Found] | None] = []  # what met each clause so far
    for clause in task["include"]:
        mine: Sequence[Found] | None = objects.get(clause["class"], [])[: clause["count"]]
        if len(mine or []) < clause["count"]:
            mine = None
        if mine is not None and "color" in clause:
            mine = mine if colours(mine, clause["class"]).count(clause["color"]) >= clause["count"] else None
        if mine is not None and "position" in clause:
            relation, target = clause["position"]
            beside = groups[target]
            if beside is None or any(relation not in relations(a.box, b.box) for a in mine for b in beside):
                mine = None
        groups.append(mine)
    too_many = any(len(objects.get(c["class"], [])) >= c["count"] for c in task.get("exclude", ()))
    return all(group is not None for group in groups) and not too_many


def relations(a: np.ndarray, b: np.ndarray) -> set[str]:
    """Where the box a (4,) lies from the box b: none, one or two of RELATIONS (see the top of this file)."""
    corners = np.array([a, b], dtype=float).reshape(2, 2, 2)  # box, corner, axis
    offset = corners[0].mean(0) - corners[1].mean(0)
    sizes = np.abs(corners[:, 1] - corners[:, 0]).sum(0)
    beyond = np.maximum(np.abs(offset) - SLACK * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    x, y = beyond / np.linalg.norm(offset)
    tests = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in tests.items() if holds}
