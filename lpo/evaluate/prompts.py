"""The prompts of an evaluation: those of the test split, or of a file that `evaluate.prompts_file` names."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from lpo.config import Evaluate
from lpo.errors import LpoError
from lpo.evaluate.prompt_files import read_prompts

SEED = 42_000_000  # of the first picture; the seeds of training pairs and of validation are far from it

log = logging.getLogger(__name__)


def evaluation_prompts(config: Evaluate, known: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(prompt, category, task) of `config.prompts` prompts, and (prompt, reason) of those left out of the file,
    whose index is the row of the file.

    Args:
        known: data/prompts.parquet. Its training prompts are left out of a file; without a file its test split is used.

    Raises:
        LpoError: if no prompts are named, the file is broken, or there are fewer than `config.prompts`.
    """
    table = pd.read_parquet(known) if known.exists() else pd.DataFrame({"prompt": [], "split": []})
    left_out = pd.DataFrame(columns=["prompt", "reason"], dtype=object)
    if config.prompts_file is not None:
        found, left_out = read_prompts(config.prompts_file, table.loc[table["split"] == "train", "prompt"])
    elif known.exists():
        found = table.query("split == 'test'").assign(task=None)
    else:
        remedy = "name a file of prompts, or run `dvc repro dataset`"
        raise LpoError("there are no test prompts", "params.yaml: evaluate.prompts_file", remedy)
    if len(left_out):
        counts = ", ".join(f"{count} {reason}" for reason, count in left_out["reason"].value_counts().items())
        log.warning("%d prompts are left out (%s): see data/evaluation/left_out.parquet", len(left_out), counts)
    if len(found) < config.prompts:
        here = f"{len(found)} ({len(left_out)} left out)" if config.prompts_file else f"{len(found)}"
        remedy = "lower it, or name a longer file" if config.prompts_file else "lower it, or raise dataset.test_prompts"
        raise LpoError(
            f"evaluate.prompts asks for {config.prompts} prompts, there are {here}",
            "params.yaml: evaluate.prompts",
            remedy,
        )
    return found.head(config.prompts)[["prompt", "category", "task"]].reset_index(drop=True), left_out


def pictures_of(prompts: pd.DataFrame, images_per_prompt: int) -> pd.DataFrame:
    """(prompt, category, seed): one row a picture to draw, each with a seed of its own."""
    rows = prompts[["prompt", "category"]]
    rows = rows.loc[rows.index.repeat(images_per_prompt)].reset_index(drop=True)
    return rows.assign(seed=range(SEED, SEED + len(rows)))
