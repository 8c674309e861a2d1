"""study: the cells of a study, study.yaml, flips.parquet, verifier.parquet -> table.parquet, table.csv, index.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from lpo.config.reader import parse_yaml, read_text
from lpo.errors import LpoError
from lpo.files import atomic_folder, write_parquet, write_text
from lpo.study.compare import REFERENCE, comparison, curves, flip_rates
from lpo.study.page import render
from lpo.study.verifier_section import searches

DECLARED, FLIPS, VERIFIER = (Path("studies") / name for name in ("study.yaml", "flips.parquet", "verifier.parquet"))


def run(cells: Path, out: Path) -> Path:
    """Write the table and the page; the page's path. Raises LpoError where no cell of the reference lies there."""
    found = [folder.parent for folder in sorted(cells.glob("*/cell.json"))]
    about = [json.loads((folder / "cell.json").read_text()) for folder in found]
    if not any(cell["arm"] == REFERENCE for cell in about):
        raise LpoError(f"no cell of the arm {REFERENCE} here", str(cells), "run `make study-quick`")
    frame = pd.concat(
        [
            results(folder).assign(arm=cell["arm"], run=cell["seed"], reward_seconds=reward_seconds(folder))
            for folder, cell in zip(found, about, strict=True)
        ],
        ignore_index=True,
    )
    declared = parse_yaml(read_text(DECLARED), DECLARED)
    compared = declared.get(cells.name, {}).get("equal", ["seconds", "prompts"])
    rows: list[dict[str, Any]] = []
    for question in declared["questions"]:
        arms = [arm for arm in declared["questions"][question]["arms"] if arm in set(frame["arm"])]
        for equal in compared if arms else ():
            rows += comparison(frame, question, arms, equal)
    if not rows:
        raise LpoError(f"no arm has a cell of a seed that {REFERENCE} has", str(cells), "run the study to its end")
    revisions = sorted({cell["revision"] for cell in about})
    table = pd.DataFrame(rows).assign(revision=", ".join(revisions))
    methods = [REFERENCE, *declared["questions"]["methods"]["arms"]]
    flips = flip_rates(pd.read_parquet(FLIPS)) if FLIPS.exists() else []
    verified = searches(pd.read_parquet(VERIFIER)) if VERIFIER.exists() else []
    titles = {name: question["title"] for name, question in declared["questions"].items()}
    seeds_of = sorted({cell["seeds_of"] for cell in about})
    drawn, rewards = curves(frame, methods) if "seconds" in compared else [], accuracies(found, about)
    html = render(table, drawn, rewards, flips, titles, declared["paper"], revisions, seeds_of, verified)
    with atomic_folder(out) as folder:
        write_parquet(folder / "table.parquet", table)
        write_text(folder / "table.csv", table.round(5).to_csv(index=False))
        write_text(folder / "index.html", html)
    return out / "index.html"


def results(folder: Path) -> pd.DataFrame:
    """A cell's pictures. Cells of the ablations that were run before 22 November 2026 have no validation, and one
    snapshot, so that there is nothing to choose. Raises LpoError where there is."""
    frame = pd.read_parquet(folder / "results.parquet")
    if "validation" in frame:
        return frame
    if frame["snapshot"].nunique() > 2:  # the base is one of them
        raise LpoError("its snapshots were never validated, so none can be chosen", str(folder), "run the cell again")
    return frame.assign(validation=0.0)


def reward_seconds(folder: Path) -> float:
    """What the training of a cell's reward takes on its machine: steps that were trained, times the clocked step."""
    of_a_step = json.loads((folder / "summary.json").read_text())["reward_step_seconds"]
    file = folder / "reward.json"
    return float(of_a_step * json.loads(file.read_text())["steps"]) if of_a_step else 0.0


def accuracies(folders: list[Path], about: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy by timestep of every reward that was trained, first run: reward, t, value, low, high."""
    rows, seen = [], set()
    for folder, cell in zip(folders, about, strict=True):
        arm, changed = cell["arm"], [path.split(".")[0] for path in cell["changes"]]
        own = arm == REFERENCE or "lrm" in changed or "filter" in changed or "data/spm" in cell["changes"].values()
        if own and arm not in seen and (folder / "reward.json").exists():
            seen.add(arm)
            by_timestep = json.loads((folder / "reward.json").read_text())["accuracy"]["by_timestep"]
            rows += [{"reward": arm, "t": (row["t_low"] + row["t_high"]) / 2, **row} for row in by_timestep]
    return rows
