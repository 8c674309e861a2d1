"""dvc.lock as `dvc repro` leaves it after tune and evaluate, written out by hand: nothing here knows lpo's hashes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import yaml


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def md5_folder(path: Path) -> str:
    """As DVC writes it: JSON with ", " and ": ", keys sorted, files in the order of their names."""
    files = sorted(file for file in path.iterdir() if file.is_file())
    listing = ", ".join(f'{{"md5": "{md5(file)}", "relpath": "{file.name}"}}' for file in files)
    return hashlib.md5(f"[{listing}]".encode()).hexdigest() + ".dir"


def write_lock() -> None:
    """Of data/tuned, models/promoted and metrics/evaluate.json as they are."""
    lora = {"path": "data/tuned", "md5": md5_folder(Path("data/tuned"))}
    opponent = {"path": "models/promoted", "md5": md5_folder(Path("models/promoted"))}
    figures = {"path": "metrics/evaluate.json", "md5": md5(Path("metrics/evaluate.json"))}
    stages = {
        "tune": {"outs": [lora], "params": {"params.yaml": {"tune": {"beta": 150.0}}}},
        "evaluate": {"deps": [lora, opponent], "outs": [figures]},
    }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
