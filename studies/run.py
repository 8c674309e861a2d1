"""Run a study of studies/study.yaml: every cell a DVC experiment, then table and page.

    python studies/run.py quick              what `make study-quick` runs; so for trials, methods and ablations
    python studies/run.py ablations --dry    list the cells, say which are done
    python studies/run.py ablations --arms lpo beta_20    some arms alone

A cell is an arm and a seed: of the tuning, of reward and tuning, or of the whole pipeline. `dvc exp run --temp` trains
it in a copy of the project (what is not committed goes with it), with DVC's cache for everything that arms share. Its
results are added to studies/STUDY.json and studies/STUDY.parquet (lpo/study/evidence.py), with a key of all that made
them. A cell whose key is there is not run again. So a study that was killed resumes, and one whose code or parameters
changed starts over. If a cell fails, the others still run, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lpo.files import folder_hash
from lpo.study import evidence

ROOT = Path(__file__).resolve().parents[1]
REWARDS = {"data/reward": "metrics/reward.json", "data/spm": "studies/spm.json"}
DEFAULT_REWARD = "data/reward"
REFERENCE = "lpo"


@dataclass(frozen=True)
class Cell:
    """study, arm: their names. changes: of params.yaml, by path. key: of changes and `fingerprint`."""

    study: str
    arm: str
    question: str
    seed: int
    changes: dict[str, Any]
    key: str

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def experiment(self) -> str:
        """A name that a git reference may have."""
        return f"study-{self.arm}-{self.seed}-{self.key}".replace(".", "_").replace("_", "-")

    @property
    def done(self) -> bool:
        held = evidence.read(self.study, ROOT / evidence.FOLDER).cells.get(self.name)
        return held is not None and held["key"] == self.key


def cells_of(study: dict[str, Any], name: str, fingerprint: Callable[[str], str]) -> list[Cell]:
    """The cells of a study, seeds outermost, so that whole runs are finished first. `fingerprint`: by reward."""
    plan = study[name]
    arms: dict[str, tuple[str, dict[str, Any]]] = {REFERENCE: ("reference", {})}
    for question in plan["questions"]:
        arms |= {arm: (question, changes) for arm, changes in study["questions"][question]["arms"].items()}
    found = []
    for seed in plan["seeds"]:
        for arm, (question, changes) in arms.items():
            seeded = {path: seed for path in plan.get("seeds_of", ["seed"])}
            everything = study["common"] | plan["set"] | changes | seeded
            text = json.dumps(everything, sort_keys=True) + fingerprint(changes.get("tune.reward", DEFAULT_REWARD))
            if folder := denoiser_of(everything):
                text += folder_hash(folder) if folder.exists() else "missing"
            key = hashlib.sha256(text.encode()).hexdigest()[:8]
            found.append(Cell(name, arm, question, seed, everything, key))
    return found


def denoiser_of(changes: dict[str, Any]) -> Path | None:
    """The folder of the denoiser that takes the place of the base's, if the changes name one."""
    return ROOT / changes["model.denoiser"] if "model.denoiser" in changes else None


@functools.cache
def fingerprint(reward: str) -> str:
    """SHA-256 of what decides the results of a cell with this reward, beside its changes.

    That is what the stage `cell` names, and the stages that it stands on: code, parameters, and files that no stage
    makes again, such as the base. What only draws pages is not among it.
    """
    stages: dict[str, Any] = {}
    for name in ("studies/dvc.yaml", "dvc.yaml"):
        stages |= yaml.safe_load((ROOT / name).read_text().replace("${tune.reward}", reward))["stages"]
    makers = {_name(out): name for name, stage in stages.items() if not stage.get("frozen") for out in stage["outs"]}
    tree, digest = yaml.safe_load((ROOT / "params.yaml").read_text()), hashlib.sha256()
    wanted, seen = ["cell"], set()
    while wanted:
        stage = wanted.pop()
        if stage in seen:
            continue
        seen.add(stage)
        digest.update(stages[stage]["cmd"].encode() + b"\0")
        for path in stages[stage]["params"]:
            value = functools.reduce(lambda section, key: section[key], path.split("."), tree)
            digest.update(f"{path}={json.dumps(value, sort_keys=True)}".encode() + b"\0")
        for dep in stages[stage]["deps"]:
            if dep in makers:
                wanted.append(makers[dep])
                continue
            for file in _files(ROOT / dep):
                digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """The file, or all files of the folder but compiled code."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [file for file in found if file.is_file() and "__pycache__" not in file.parts]


def _name(out: Any) -> str:
    """The path of an output of dvc.yaml, which may have options."""
    return next(iter(out)) if isinstance(out, dict) else str(out)


def command(cell: Cell) -> list[str]:
    changes = [word for path, value in cell.changes.items() for word in ("-S", f"{path}={_written(value)}")]
    return ["dvc", "exp", "run", "--temp", "--name", cell.experiment, *changes, "studies/dvc.yaml:cell"]


def reference(cell: Cell) -> str | None:
    """The git reference of the cell's experiment, None where there is none."""
    names = _git("for-each-ref", "--format=%(refname)", "refs/exps").decode().split()
    return next((name for name in names if name.endswith(f"/{cell.experiment}")), None)


def export(cell: Cell, ref: str) -> None:
    """Add what an experiment made, out of git, to the study's evidence."""
    params = yaml.safe_load(_git("show", f"{ref}:params.yaml"))
    reward = REWARDS.get(params["tune"]["reward"])
    about = {
        "arm": cell.arm, "question": cell.question, "seed": cell.seed, "changes": cell.changes, "key": cell.key,
        "seeds_of": seeds_of(cell.changes),
        "revision": _git("rev-parse", "--short=12", f"{ref}^").decode().strip(),
        "summary": json.loads(_git("show", f"{ref}:studies/cell/summary.json")),
    }  # fmt: skip
    results = pd.read_parquet(io.BytesIO(_git("show", f"{ref}:studies/cell/results.parquet")))
    metrics = json.loads(_git("show", f"{ref}:{reward}")) if reward else None
    evidence.add(cell.study, cell.name, about, results, metrics, ROOT / evidence.FOLDER)


def seeds_of(changes: dict[str, Any]) -> str:
    """What the seed of a cell with these changes is of."""
    if "seed" in changes:
        return "pipeline"
    return "reward" if "reward.seed" in changes else "tuning"


def run(cell: Cell) -> bool:
    """Whether the cell is there now."""
    ref = reference(cell)
    if ref is None:
        # The copy's own code, whatever is edited here meanwhile: its commands start in its folder. And one core, for
        # which the learning rates were chosen: on all cores of a machine the same seconds would be more training.
        environment = {"OMP_NUM_THREADS": "1"} | os.environ | {"PYTHONPATH": "."}
        if subprocess.run(command(cell), cwd=ROOT, env=environment).returncode != 0:
            return False
        ref = reference(cell)
    if ref is None:
        return False
    export(cell, ref)
    return True


def main(arguments: list[str]) -> int:
    study = yaml.safe_load((ROOT / "studies/study.yaml").read_text())
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=[name for name, section in study.items() if "seeds" in section])
    parser.add_argument("--arms", nargs="+", help="run these alone; the page shows all that are there")
    parser.add_argument("--dry", action="store_true", help="only list the cells")
    asked = parser.parse_args(arguments)
    cells, failed = cells_of(study, asked.study, fingerprint), []
    if unknown := sorted(set(asked.arms or ()) - {cell.arm for cell in cells}):
        parser.error(f"--arms: {asked.study} has no {', '.join(unknown)}; nothing was run")
    folders = {folder for cell in cells if (folder := denoiser_of(cell.changes))}
    for folder in sorted(folders):  # a cell's copy of the project has what git knows of
        if not asked.dry and not _git("ls-files", str(folder)):
            parser.error(f"git does not know {folder.name}: dvc repro studies/dvc.yaml:distill && git add {folder}")
    for i, cell in enumerate(cells):
        print(f"[{i + 1}/{len(cells)}] {cell.arm}, seed {cell.seed}: {'done' if cell.done else 'to run'}", flush=True)
        chosen = not asked.arms or cell.arm in asked.arms
        if chosen and not asked.dry and not cell.done and not run(cell):
            print(f"FAILED: {cell.arm}, seed {cell.seed}", file=sys.stderr, flush=True)
            failed.append(cell)
    if asked.dry:
        return 0
    beside = ["flips"] if asked.study in ("quick", "trials") else ["flips", "verifier"]  # the second takes minutes
    shown = subprocess.run(["dvc", "repro", *(f"studies/dvc.yaml:{name}" for name in beside)], cwd=ROOT).returncode
    page = subprocess.run(["lpo", "study", asked.study], cwd=ROOT).returncode
    return int(bool(failed) or shown != 0 or page != 0)


def _written(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _git(*words: str) -> bytes:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True).stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
