"""filter: data/pairs, data/collected, data/scores.parquet -> data/filtered: the contract, then MPCF on train pairs."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from lpo.config import Filter, Params
from lpo.data import data_docs
from lpo.data.contract import Verdict, check
from lpo.data.limits import limits_of
from lpo.data.refused import forget, refuse, table_of
from lpo.data.schema import SPLITS, in_order, inspect_images, read_pairs, read_scores
from lpo.files import atomic_folder, write_json, write_parquet, write_text
from lpo.preference.mpcf import SCORES, gaps_from_scores, mpcf

PAIRS, COLLECTED = Path("data/pairs"), Path("data/collected")
TABLE, OUT = Path("data/scores.parquet"), Path("data/filtered")
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
    limits, folders = limits_of(params), (PAIRS, COLLECTED)
    scores = read_scores(TABLE) if config.strategy != "none" else None
    pairs, images = in_order(read_pairs(folders), inspect_images(folders, "look at images"), COLLECTED)
    verdict = check(pairs, images, scores, limits)
    bad = verdict.reasons != ""
    quarantine = table_of(pairs[bad], verdict.reasons[bad])
    if what := verdict.too_many(config.max_quarantined):
        refuse("filter", quarantine, what, limits.remedy(verdict.counts))

    good = pairs[~bad].reset_index(drop=True).astype({"ranking_id": "int64", "num_example_per_prompt": "int64"})
    if scores is None:
        gaps = pd.DataFrame(math.nan, index=good.index, columns=SCORES)
        decided = pd.DataFrame({"keep": True, "reason": ""}, index=good.index)
    else:
        gaps = gaps_from_scores(good, scores.drop_duplicates("image_uid"))  # repeated ones belong to no good pair
        decided = decide(good, gaps, config)
    filtered = pd.concat([good, gaps.add_prefix("gap_")], axis=1)[COLUMNS].assign(reason=decided["reason"])
    keep = decided["keep"]
    for split in SPLITS:
        if not (keep & (good["split"] == split)).any():
            found = verdict.counts | dropped_by(decided["reason"])
            what = f"no pair of the split {split} is left; rows by reason: {found}"
            rows = pd.concat([quarantine, table_of(good[~keep], decided["reason"][~keep])], ignore_index=True)
            refuse("filter", rows, what, "correct its pairs, or choose wider margins: filter.strategy in params.yaml")
    forget("filter")
    with atomic_folder(OUT) as folder:
        write_parquet(folder / "kept.parquet", filtered.loc[keep, COLUMNS])
        write_parquet(folder / "dropped.parquet", filtered[~keep])
        write_parquet(folder / "quarantine.parquet", quarantine)
        counts = metrics(pairs, bad, filtered, keep, verdict)
        write_text(folder / "data_docs/index.html", data_docs.render(verdict.results, tables_of(counts, config)))
        write_json(folder / "summary.json", verdict.summary)
    write_json("metrics/filter.json", counts)


def decide(pairs: pd.DataFrame, gaps: pd.DataFrame, config: Filter) -> pd.DataFrame:
    """keep and reason of every pair; those of validation and test stay, so that they measure all preferences."""
    train = pairs["split"] == "train"
    margins = None if config.strategy == "none" else asdict(config.strategies[config.strategy])
    ties = (pairs["label_0"] == pairs["label_1"])[train]
    rest = pd.DataFrame({"keep": True, "reason": ""}, index=pairs.index[~train])
    return pd.concat([mpcf(gaps[train], ties, margins, asdict(config.ties), config.strict), rest]).sort_index()


def dropped_by(reasons: pd.Series) -> dict[str, int]:
    """Pairs that each rule of MPCF dropped, ties apart; a pair can break several rules."""
    tie = reasons.str.startswith("mpcf: tie")
    rules = {name: int((~tie & reasons.str.contains(f"{name} ")).sum()) for name in SCORES}
    return rules | {"tie": int(tie.sum())}


def metrics(
    pairs: pd.DataFrame, bad: pd.Series, filtered: pd.DataFrame, keep: pd.Series, verdict: Verdict
) -> dict[str, Any]:
    """Counts and shares of all pairs and of every split; how often the scores agree with who won."""
    tables = {"input": pairs, "kept": filtered[keep], "dropped": filtered[~keep], "quarantined": pairs[bad]}
    counts: dict[str, Any] = {name: len(table) for name, table in tables.items()}
    counts["share"] = {name: round(len(tables[name]) / len(pairs), 5) for name in ("kept", "dropped", "quarantined")}
    counts["by_split"] = {
        split: {name: int((table["split"] == split).sum()) for name, table in tables.items()} for split in SPLITS
    }
    counts["kept_ties"] = int((tables["kept"]["label_0"] == 0.5).sum())
    counts["dropped_by"] = dropped_by(filtered["reason"])
    counts["quarantined_by"] = verdict.counts
    counts["captions_cut"] = int(verdict.cut.sum())
    won = (filtered["split"] == "train") & (filtered["label_0"] != filtered["label_1"])
    won &= filtered["gap_clip"].notna()  # all of them, or none where no strategy needed scores
    counts["agreement"] = {"all": _agreement(filtered[won]), "kept": _agreement(filtered[won & keep])}
    return counts


def tables_of(counts: dict[str, Any], config: Filter) -> list[data_docs.Counts]:
    """What became of the pairs, by rule, for the Data Docs; the reasons of every pair are in the tables it names."""
    results = {
        "in": counts["input"], "kept (kept.parquet)": counts["kept"],
        "dropped by MPCF (dropped.parquet, each with its reasons)": counts["dropped"],
        "quarantined by the contract (quarantine.parquet, each with its reasons)": counts["quarantined"],
    }  # fmt: skip
    dropped = counts["dropped_by"]
    if config.strategy == "none":
        rules = {"no rule: every pair stays": 0}
    else:
        least, most = asdict(config.strategies[config.strategy]), asdict(config.ties)
        sign = "<=" if config.strict else "<"
        rules = {f"winner less loser: {name} {sign} {least[name]:g}": dropped[name] for name in SCORES}
        limits = " or ".join(f"|{name}| > {most[name]:g}" for name in SCORES)
        rules[f"tie: {limits}"] = dropped["tie"]
    reasons = list(counts["quarantined_by"].items())
    return [
        data_docs.Counts("What became of the pairs", "result", list(results.items())),
        data_docs.Counts(
            f"MPCF on train, strategy {config.strategy}: a pair can break several rules", "rule", list(rules.items())
        ),
        data_docs.Counts("The contract: a row can have several reasons", "reason", reasons),
    ]


def _agreement(won: pd.DataFrame) -> dict[str, float]:
    """Share of train pairs whose winner scores no less than the loser, by each score and by all of them."""
    if won.empty:
        return {}
    agree = won[[f"gap_{name}" for name in SCORES]] >= 0
    shares = {name: round(float(agree[f"gap_{name}"].mean()), 5) for name in SCORES}
    return shares | {"every": round(float(agree.all(axis=1).mean()), 5), "pairs": len(won)}
