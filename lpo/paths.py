"""The files and folders that stages read and write, relative to the project's folder."""

from __future__ import annotations

from pathlib import Path

BASE, SCORERS, VALIDATORS = (Path("data") / name for name in ("base", "scorers", "validators"))
FEW = Path("data/few")  # a U-Net of few steps (`lpo distill`)
SOURCES = Path("data/sources")  # downloads and imports, which neither git nor DVC holds
PAIRS, COLLECTED = Path("data/pairs"), Path("data/collected")  # of the source; of the inbox
PROMPTS, LEFT_OUT = Path("data/prompts.parquet"), Path("data/left_out.parquet")
SCORES = Path("data/scores.parquet")
FILTERED, KEPT = Path("data/filtered"), Path("data/filtered/kept.parquet")
LATENTS = Path("data/latents")
REWARD, SPM = Path("data/reward"), Path("data/spm")
TUNED = Path("data/tuned")
EVALUATION, RESULTS = Path("data/evaluation"), Path("data/evaluation/results.parquet")
REPORT = Path("data/report")
COPIES = (".dvc/tmp/exps/", ".prefect/workspaces/")  # where `dvc exp run --temp` and Prefect put copies of a workspace


def metrics(stage: str) -> Path:
    return Path(f"metrics/{stage}.json")


def plot(name: str) -> Path:
    return Path(f"plots/{name}.json")


def share_sources() -> None:
    """In a copy of the workspace, make data/sources a link to the original's; elsewhere do nothing.

    A copy has what git and DVC hold. Without the link it would not find what was imported, and would download a source
    again.
    """
    here = Path.cwd()
    for original in here.parents:
        if here.relative_to(original).as_posix().startswith(COPIES) and not (SOURCES.is_symlink() or SOURCES.exists()):
            (original / SOURCES).mkdir(parents=True, exist_ok=True)
            SOURCES.parent.mkdir(exist_ok=True)
            SOURCES.symlink_to(original / SOURCES)
