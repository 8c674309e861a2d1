"""study: a study's cells, study.yaml, flips.parquet, verifier.parquet -> table.csv, index.html, docs/results.md."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lpo.config.reader import parse_yaml, read_text
from lpo.errors import LpoError
from lpo.files import write_bytes, write_text
from lpo.outputs import output_folder
from lpo.study import evidence, markdown, plots
from lpo.study.choices import choices, sentence
from lpo.study.compare import REFERENCE, comparison, curves, flip_rates
from lpo.study.evidence import Evidence
from lpo.study.page import render
from lpo.study.verifier_section import searches

DECLARED, FLIPS, VERIFIER = (Path("studies") / name for name in ("study.yaml", "flips.parquet", "verifier.parquet"))
RESULTS = Path("docs/results.md")


@dataclass(frozen=True)
class Collected:
    """table: rows of `compare.comparison`, and the revisions. frame: verdicts of all cells, with arm and run."""

    table: pd.DataFrame
    frame: pd.DataFrame
    revisions: list[str]
    declared: dict[str, Any]
    by_time: bool

    @property
    def methods(self) -> list[str]:
        """Arms that are drawn against time and data."""
        return [REFERENCE, *self.declared["questions"]["methods"]["arms"]]


def collect(name: str) -> tuple[Evidence, Collected]:
    """The study's table, from the evidence in studies/.

    Raises:
        LpoError: if there is no cell of the reference, or no arm shares a seed with it.
    """
    held, where = evidence.read(name), str(evidence.FOLDER / f"{name}.json")
    if not any(cell["arm"] == REFERENCE for cell in held.cells.values()):
        raise LpoError(f"no cell of the arm {REFERENCE} here", where, f"python studies/run.py {name}")
    frame = pd.concat(
        [
            held.of(cell).assign(arm=about["arm"], run=about["seed"], reward_seconds=reward_seconds(held, cell))
            for cell, about in held.cells.items()
        ],
        ignore_index=True,
    )
    declared = parse_yaml(read_text(DECLARED), DECLARED)
    compared = declared.get(name, {}).get("equal", ["seconds", "prompts"])
    rows: list[dict[str, Any]] = []
    for question in declared["questions"]:
        arms = [arm for arm in declared["questions"][question]["arms"] if arm in set(frame["arm"])]
        for equal in compared if arms else ():
            rows += comparison(frame, question, arms, equal)
    if not rows:
        raise LpoError(f"no arm has a cell of a seed that {REFERENCE} has", where, f"python studies/run.py {name}")
    revisions = sorted({cell["revision"] for cell in held.cells.values()})
    table = pd.DataFrame(rows).assign(revision=", ".join(revisions))
    return held, Collected(table, frame, revisions, declared, "seconds" in compared)


def run(name: str, out: Path) -> Path:
    """Write the table and the page to `out`, and the study's part of docs/results.md; returns the page's path.

    Raises:
        LpoError: see `collect`.
    """
    held, found = collect(name)
    declared = found.declared
    flips = flip_rates(pd.read_parquet(FLIPS)) if FLIPS.exists() else []
    verified = searches(pd.read_parquet(VERIFIER)) if VERIFIER.exists() else []
    titles = {question: about["title"] for question, about in declared["questions"].items()}
    seeds_of = sorted({cell["seeds_of"] for cell in held.cells.values()})
    drawn = curves(found.frame, found.methods) if found.by_time else []
    chosen = choices(found.frame, found.methods)
    html = render(
        found.table, drawn, accuracies(held), flips, titles, declared["paper"], found.revisions, seeds_of, verified,
        chosen,
    )  # fmt: skip
    with output_folder(out, "lpo study") as folder:
        write_text(folder / "table.csv", found.table.round(5).to_csv(index=False))
        write_text(folder / "index.html", html)
    if name == "methods" and chosen and RESULTS.exists():
        write_bytes(RESULTS.with_name("validation.svg"), base64.b64decode(plots.choices(chosen).split(",", 1)[1]))
    if RESULTS.exists():
        write_text(RESULTS, markdown.put(RESULTS.read_text(encoding="utf-8"), name, PARTS[name](found, titles)))
    return out / "index.html"


def _methods(found: Collected, titles: dict[str, str]) -> str:
    rows = choices(found.frame, found.methods)
    return "\n\n".join([markdown.methods(found.table), *([sentence(rows)] if rows else [])])


PARTS: dict[str, Callable[[Collected, dict[str, str]], str]] = {
    **dict.fromkeys(("quick", "methods"), _methods),
    "trials": lambda found, titles: markdown.trials(found.frame),
    **dict.fromkeys(
        ("default", "guidance", "few", "hacking"),
        lambda found, titles: markdown.snapshots(found.frame, found.revisions),
    ),
    **dict.fromkeys(("ablations", "others"), lambda found, titles: markdown.ablations(found.table, titles)),
}


def reward_seconds(held: Evidence, cell: str) -> float:
    """What the training of a cell's reward takes on its machine: steps that were trained, times the timed step."""
    of_a_step, reward = held.cells[cell]["summary"]["reward_step_seconds"], held.reward_of(cell)
    return float(of_a_step * reward["steps"]) if of_a_step and reward is not None else 0.0


def accuracies(held: Evidence) -> list[dict[str, Any]]:
    """Accuracy by timestep of every reward that was trained, first run: reward, t, value, low, high."""
    rows, seen = [], set()
    for name, cell in held.cells.items():
        arm, changed = cell["arm"], {path.split(".")[0] for path in cell["changes"]}
        own = arm == REFERENCE or changed & {"reward", "filter"} or "data/spm" in cell["changes"].values()
        reward = held.reward_of(name)
        if own and arm not in seen and reward is not None:
            seen.add(arm)
            by_timestep = reward["accuracy"]["by_timestep"]
            rows += [{"reward": arm, "t": (row["t_low"] + row["t_high"]) / 2, **row} for row in by_timestep]
    return rows
