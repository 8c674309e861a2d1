"""data/prompts.parquet of a real source: prompt, split, category; no prompt is in two splits, however it is written.

The prompts of a split are those of `dataset.prompts`, else the source's own prompt set, else captions of the split's
pairs. Train gets a random sample (the paper tunes on 4000 prompts of Pick-a-Pic); the other splits keep their order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lpo.data import schema
from lpo.data.captions import plain
from lpo.data.schema import SPLITS
from lpo.data.sources import Left
from lpo.errors import LpoError
from lpo.evaluate.prompt_files import NO_CATEGORY, read_prompts

SETTING = "dataset.prompts"


def choose(
    pairs: Path, own: dict[str, list[str]], named: pd.DataFrame, sizes: dict[str, int], seed: int
) -> tuple[pd.DataFrame, int]:
    """(prompt, split, category; how many were left out because an earlier split has them), at most `sizes` a split.

    Held-out prompts are chosen first: what validation or test has is never trained on.

    Args:
        own: the source's own prompts by split.
        named: the prompts of a file, see `read_named`; they replace those of the source.

    Raises:
        LpoError: if a split is left without a prompt.
    """
    taken: set[str] = set()
    frames, doubled = [], 0
    for split in ("test", "validation", "train"):
        table = named[named["split"] == split]
        if table.empty:
            prompts = own.get(split) or _captions(pairs, split)
            table = pd.DataFrame({"prompt": prompts, "split": split, "category": NO_CATEGORY})
        table = table.assign(plain=table["prompt"].map(plain)).drop_duplicates("plain")
        fresh = table[~table["plain"].isin(taken) & (table["plain"] != "")]
        doubled += int(table["plain"].isin(taken).sum())
        if split == "train":
            fresh = fresh.iloc[np.random.default_rng([seed, sizes[split]]).permutation(len(fresh))]
        fresh = fresh.head(sizes[split])
        if fresh.empty:
            what = f"no prompts are left for {split}; {doubled} are in a held-out split too"
            raise LpoError(what, str(pairs), f"name a file of prompts: {SETTING} in params.yaml")
        taken |= set(fresh["plain"]) if split == "train" else set(table["plain"])
        frames.append(fresh[["prompt", "split", "category"]])
    return pd.concat(frames[::-1], ignore_index=True).astype(str), doubled


def read_named(file: str | None) -> tuple[pd.DataFrame, list[Left]]:
    """(prompt, split, category of the file `dataset.prompts`, what was left out of it); nothing where it is None.

    A prompt without a split is of test.

    Raises:
        LpoError: if the file cannot be read, has no column of prompts, or names another split.
    """
    if file is None:
        return pd.DataFrame(columns=["prompt", "split", "category"]), []
    table, left = read_prompts(file, setting=SETTING)
    table = table.assign(split=[split or "test" for split in table["split"]])
    strange = sorted({str(split) for split in table["split"]} - set(SPLITS))
    if strange:
        raise LpoError(f"no such split: {', '.join(strange[:5])}", file, f"use {', '.join(SPLITS)}")
    reasons = zip(left.index, left["reason"], strict=True)
    rows = [Left(file, number, None, f"prompt: {reason}") for number, reason in reasons]
    return table[["prompt", "split", "category"]], rows


def _captions(pairs: Path, split: str) -> list[str]:
    """Captions of a split's pairs, each once, in their order."""
    found = schema.read_captions(pairs, split)
    return list(dict.fromkeys(found.dropna()))
