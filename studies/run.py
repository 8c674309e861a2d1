"""Run a study of studies/study.yaml: every cell a DVC experiment, then table and page.

    python studies/run.py quick            what `make study-quick` runs; so for methods and full
    python studies/run.py full --dry       list the cells, say which are done

A cell is an arm and a seed, of the whole pipeline or of the tuning alone. `dvc exp run --temp` trains it in a copy of
the project (what is not committed goes with it), with DVC's cache for everything that arms share. Its results are
copied to studies/cells/STUDY/ARM-SEED/, with a key of all that made them: a cell whose key is there already is not run
again, so a study that was killed goes on where it was, and one whose code or parameters changed starts anew. A cell
that fails is told, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / "studies" / "cells"
FILES = {"results.parquet": "studies/cell/results.parquet", "summary.json": "studies/cell/summary.json"}
REWARDS = {"data/lrm": "metrics/lrm.json", "data/spm": "studies/spm.json"}
REFERENCE = "lpo"


@dataclass(frozen=True)
class Cell:
    """study, arm: their names. changes: of params.yaml, by path. key: of changes, parameters and code."""

    study: str
    arm: str
    question: str
    seed: int
    changes: dict[str, Any]
    key: str

    @property
    def folder(self) -> Path:
        return CELLS / self.study / f"{self.arm}-{self.seed}"

    @property
    def experiment(self) -> str:
        """A name that a git reference may have."""
        return f"study-{self.arm}-{self.seed}-{self.key}".replace(".", "_").replace("_", "-")

    @property
    def done(self) -> bool:
        file = self.folder / "cell.json"
        return file.exists() and json.loads(file.read_text())["key"] == self.key


def cells_of(study: dict[str, Any], name: str, fingerprint: str) -> list[Cell]:
    """The cells of a study, seeds outermost, so that whole runs are finished first."""
    plan = study[name]
    chosen = study["questions"] if plan["questions"] == "all" else plan["questions"]
    arms = {REFERENCE: ("reference", {})}
    for question in chosen:
        arms |= {arm: (question, changes) for arm, changes in study["questions"][question]["arms"].items()}
    found = []
    for seed in plan["seeds"]:
        for arm, (question, changes) in arms.items():
            everything = study["common"] | plan["set"] | changes | {plan.get("seeds_of", "seed"): seed}
            text = json.dumps(everything, sort_keys=True) + fingerprint
            key = hashlib.sha256(text.encode()).hexdigest()[:8]
            found.append(Cell(name, arm, question, seed, everything, key))
    return found


def fingerprint() -> str:
    """SHA-256 of parameters, stages and code."""
    digest = hashlib.sha256()
    files = [ROOT / "params.yaml", ROOT / "dvc.yaml", ROOT / "studies/dvc.yaml", *sorted((ROOT / "lpo").rglob("*.py"))]
    for file in files:
        digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def command(cell: Cell) -> list[str]:
    changes = [word for path, value in cell.changes.items() for word in ("-S", f"{path}={_written(value)}")]
    return ["dvc", "exp", "run", "--temp", "--name", cell.experiment, *changes, "studies/dvc.yaml:cell"]


def reference(cell: Cell) -> str | None:
    """The git reference of the cell's experiment, None where there is none."""
    names = _git("for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
    return next((name for name in names if name.endswith(f"/{cell.experiment}")), None)


def export(cell: Cell, ref: str) -> None:
    """Copy what an experiment made out of git; cell.json is written last and says that all is there."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / "cell.json").unlink(missing_ok=True)
    params = yaml.safe_load(_git("show", f"{ref}:params.yaml"))
    reward = REWARDS.get(params["lpo"]["reward"])
    for name, path in (FILES | ({"reward.json": reward} if reward else {})).items():
        (cell.folder / name).write_bytes(_git("show", f"{ref}:{path}"))
    revision = _git("rev-parse", "--short=12", f"{ref}^").decode().strip()
    about = {
        "arm": cell.arm, "question": cell.question, "seed": cell.seed, "changes": cell.changes, "key": cell.key,
        "seeds_of": "tuning" if "study.seed" in cell.changes else "pipeline",
    }  # fmt: skip
    (cell.folder / "cell.json").write_text(json.dumps(about | {"revision": revision}, indent=2, sort_keys=True) + "\n")


def run(cell: Cell) -> bool:
    """Whether the cell is there now."""
    ref = reference(cell)
    if ref is None:
        if subprocess.run(command(cell), cwd=ROOT).returncode != 0:
            return False
        ref = reference(cell)
    if ref is None:
        return False
    export(cell, ref)
    return True


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=["quick", "methods", "full"])
    parser.add_argument("--dry", action="store_true", help="only list the cells")
    asked = parser.parse_args(arguments)
    study = yaml.safe_load((ROOT / "studies/study.yaml").read_text())
    cells, failed = cells_of(study, asked.study, fingerprint()), []
    for i, cell in enumerate(cells):
        print(f"[{i + 1}/{len(cells)}] {cell.arm}, seed {cell.seed}: {'done' if cell.done else 'to run'}", flush=True)
        if not asked.dry and not cell.done and not run(cell):
            print(f"FAILED: {cell.arm}, seed {cell.seed}", file=sys.stderr, flush=True)
            failed.append(cell)
    if asked.dry:
        return 0
    flips = subprocess.run(["dvc", "repro", "studies/dvc.yaml:flips"], cwd=ROOT).returncode
    page = subprocess.run(
        ["lpo", "study", "--cells", f"studies/cells/{asked.study}", "--out", f"studies/results/{asked.study}"], cwd=ROOT
    ).returncode
    return int(bool(failed) or flips != 0 or page != 0)


def _written(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
