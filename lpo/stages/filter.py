"""filter: data/pairs, data/collected, data/scores.parquet -> data/filtered: the contract, then MPCF on train pairs."""

from __future__ import annotations

import math
from dataclasses import asdict

import pandas as pd

from lpo import paths
from lpo.config import Filter, Params
from lpo.data import data_docs
from lpo.data.contract import check
from lpo.data.filtered import count_results, data_docs_tables, dropped_by
from lpo.data.limits import limits_of
from lpo.data.refused import forget, refuse, table_of
from lpo.data.schema import SPLITS, in_order, inspect_images, read_pairs, read_scores
from lpo.files import atomic_folder, write_json, write_parquet, write_text
from lpo.paths import COLLECTED, FILTERED, PAIRS
from lpo.paths import SCORES as SCORES_TABLE
from lpo.preference.mpcf import SCORES, gaps_from_scores, mpcf

COLUMNS = [
    "ranking_id", "split", "caption", "image_0_uid", "image_1_uid", "label_0", "label_1", "num_example_per_prompt",
    "category", "difference", "gap_aesthetic", "gap_clip", "gap_vqa",
]  # fmt: skip


def run(params: Params) -> None:
    """Write kept, dropped and quarantined pairs, the Data Docs and the metrics.

    Raises:
        LpoError: if the contract is broken by a table or by too many rows, or nothing of a split is left. The rows are
            then in data/refused/filter.parquet.
    """
    config = params.filter
    limits, folders = limits_of(params.model.path, config, params.dataset), (PAIRS, COLLECTED)
    scores = read_scores(SCORES_TABLE) if config.strategy != "none" else None
    pairs, images = in_order(read_pairs(folders), inspect_images(folders, "look at images"), COLLECTED)
    verdict = check(pairs, images, scores, limits)
    bad = verdict.reasons != ""
    quarantine = table_of(pairs[bad], verdict.reasons[bad])
    if what := verdict.too_many(config.max_quarantined):
        refuse("filter", quarantine, what, limits.remedy(verdict.counts))

    good = pairs[~bad].reset_index(drop=True).astype({"ranking_id": "int64", "num_example_per_prompt": "int64"})
    if scores is None:
        gaps = pd.DataFrame(math.nan, index=good.index, columns=SCORES)
        decided = _kept(good.index)
    else:
        gaps = gaps_from_scores(good, scores.drop_duplicates("image_uid"))  # repeated ones belong to no good pair
        decided = decide(good, gaps, config)
    filtered = pd.concat([good, gaps.add_prefix("gap_")], axis=1)[COLUMNS].assign(reason=decided["reason"])
    keep = decided["keep"]
    for split in SPLITS:
        if not (keep & (good["split"] == split)).any():
            found = verdict.counts | dropped_by(decided)
            what = f"no pair of the split {split} is left; rows by reason: {found}"
            rows = pd.concat([quarantine, table_of(good[~keep], decided["reason"][~keep])], ignore_index=True)
            refuse("filter", rows, what, "correct its pairs, or choose wider margins: filter.strategy in params.yaml")
    forget("filter")
    with atomic_folder(FILTERED) as folder:
        write_parquet(folder / "kept.parquet", filtered.loc[keep, COLUMNS])
        write_parquet(folder / "dropped.parquet", filtered[~keep])
        write_parquet(folder / "quarantine.parquet", quarantine)
        counts = count_results(pairs, filtered, decided, verdict)
        write_text(folder / "data_docs/index.html", data_docs.render(verdict.results, data_docs_tables(counts, config)))
        write_json(folder / "summary.json", verdict.summary)
    write_json(paths.metrics("filter"), counts)


def decide(pairs: pd.DataFrame, gaps: pd.DataFrame, config: Filter) -> pd.DataFrame:
    """What `mpcf` decides of train pairs; those of validation and test stay, so that they measure all preferences."""
    train = pairs["split"] == "train"
    margins = None if config.strategy == "none" else asdict(config.strategies[config.strategy])
    ties = (pairs["label_0"] == pairs["label_1"])[train]
    decided = mpcf(gaps[train], ties, margins, asdict(config.ties), config.strict)
    return pd.concat([decided, _kept(pairs.index[~train])]).sort_index()


def _kept(index: pd.Index) -> pd.DataFrame:
    """What `mpcf` returns for pairs that no rule drops."""
    rules = {f"failed_{name}": False for name in [*SCORES, "tie"]}
    return pd.DataFrame({"keep": True, "reason": "", **rules}, index=index)
