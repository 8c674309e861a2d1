"""data/prompts.parquet of a real source: prompt, split, category; capitals and spaces apart, none is in two splits.

A split's prompts are those of `dataset.prompts`, else the source's own prompt set, else captions of the split's pairs.
Of train a random sample is drawn (the paper tunes on 4000 of Pick-a-Pic's); the others keep their order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from lpo.data import schema
from lpo.data.schema import SPLITS
from lpo.errors import LpoError

CATEGORY = "all"  # of prompts that no source sorts


def choose(
    pairs: Path, own: dict[str, list[str]], file: str | None, sizes: dict[str, int], seed: int
) -> tuple[pd.DataFrame, int]:
    """(prompt, split, category; how many were left out because a split before has them), at most `sizes` of each split.

    Held-out prompts come first: what validation or test has is never trained on.

    Raises:
        LpoError: if the file cannot be read, or a split is left without a prompt.
    """
    named = read_prompts(file) if file else pd.DataFrame(columns=["prompt", "split", "category"])
    taken: set[str] = set()
    frames, doubled = [], 0
    for split in ("test", "validation", "train"):
        table = named[named["split"] == split]
        if table.empty:
            prompts = own.get(split) or _captions(pairs, split)
            table = pd.DataFrame({"prompt": prompts, "split": split, "category": CATEGORY})
        table = table.assign(plain=table["prompt"].map(plain)).drop_duplicates("plain")
        fresh = table[~table["plain"].isin(taken) & (table["plain"] != "")]
        doubled += int(table["plain"].isin(taken).sum())
        if split == "train":
            fresh = fresh.iloc[np.random.default_rng([seed, sizes[split]]).permutation(len(fresh))]
        fresh = fresh.head(sizes[split])
        if fresh.empty:
            what = f"no prompts are left for {split}; {doubled} are in a held-out split too"
            raise LpoError(what, file or str(pairs), "name a file of prompts: dataset.prompts in params.yaml")
        taken |= set(fresh["plain"]) if split == "train" else set(table["plain"])
        frames.append(fresh[["prompt", "split", "category"]])
    return pd.concat(frames[::-1], ignore_index=True).astype(str), doubled


def read_prompts(file: str) -> pd.DataFrame:
    """prompt, split, category of a .parquet or .csv file with these columns, or of a text file, a prompt a line.

    Without split, all of them are of test; without category, they have one.

    Raises:
        LpoError: if there is no such file, it has no column prompt, or a split of another name.
    """
    path = Path(file)
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        elif path.suffix in (".csv", ".tsv"):
            table = pd.read_csv(path, dtype=str, keep_default_na=False, sep="\t" if path.suffix == ".tsv" else ",")
        else:
            table = pd.DataFrame({"prompt": path.read_text(encoding="utf-8").splitlines()})
    except (OSError, ValueError, pa.ArrowException) as error:
        raise LpoError(f"no prompts can be read: {error}", file, "name a .parquet, .csv, .tsv or .txt file") from error
    if "prompt" not in table:
        raise LpoError(f"there is no column prompt; there are {', '.join(table)}", file, "call it prompt")
    table = pd.DataFrame({"split": "test", "category": CATEGORY} | {c: table[c] for c in table}, index=table.index)
    table = table[table["prompt"].map(lambda prompt: isinstance(prompt, str) and bool(prompt.strip()))]
    strange = sorted(set(table["split"]) - set(SPLITS))
    if strange:
        raise LpoError(f"no such split: {', '.join(map(str, strange[:5]))}", file, f"use {', '.join(SPLITS)}")
    return table[["prompt", "split", "category"]]


def plain(prompt: str) -> str:
    """A prompt without what tokenizers of CLIP do not see either: capitals, runs of spaces."""
    return " ".join(prompt.casefold().split())


def _captions(pairs: Path, split: str) -> list[str]:
    """Captions of a split's pairs, each once, in their order."""
    found = schema.read_captions(pairs, split)
    return list(dict.fromkeys(found.dropna()))
