"""The files and folders that stages read and write, relative to the project's folder."""

from __future__ import annotations

from pathlib import Path

BASE, SCORERS = Path("data/base"), Path("data/scorers")
SOURCES = Path("data/sources")  # downloads of data sets
PAIRS, COLLECTED = Path("data/pairs"), Path("data/collected")  # of the source; of the inbox
PROMPTS, LEFT_OUT = Path("data/prompts.parquet"), Path("data/left_out.parquet")
SCORES = Path("data/scores.parquet")
FILTERED, KEPT = Path("data/filtered"), Path("data/filtered/kept.parquet")
LATENTS = Path("data/latents")
REWARD, SPM = Path("data/reward"), Path("data/spm")
TUNED = Path("data/tuned")
EVALUATION, RESULTS = Path("data/evaluation"), Path("data/evaluation/results.parquet")
REPORT = Path("data/report")


def metrics(stage: str) -> Path:
    return Path(f"metrics/{stage}.json")


def plot(name: str) -> Path:
    return Path(f"plots/{name}.json")
