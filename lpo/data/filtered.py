"""What became of the pairs in the filter, counted for metrics/filter.json and for the Data Docs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas as pd

from lpo.config import Filter
from lpo.data import data_docs
from lpo.data.contract import Verdict
from lpo.data.schema import SPLITS
from lpo.preference.mpcf import SCORES


def dropped_by(decided: pd.DataFrame) -> dict[str, int]:
    """Pairs that each rule of MPCF dropped, ties apart; a pair can break several rules. `decided`: see `mpcf`."""
    return {name: int(decided[f"failed_{name}"].sum()) for name in [*SCORES, "tie"]}


def count_results(
    pairs: pd.DataFrame, filtered: pd.DataFrame, decided: pd.DataFrame, verdict: Verdict
) -> dict[str, Any]:
    """Counts and shares of all pairs and of every split; how often the scores agree with who won.

    Args:
        pairs: all of them, with the contract's `verdict`.
        filtered: the good ones with their gaps, and what `mpcf` `decided` of each.
    """
    keep, bad = decided["keep"], verdict.reasons != ""
    tables = {"input": pairs, "kept": filtered[keep], "dropped": filtered[~keep], "quarantined": pairs[bad]}
    counts: dict[str, Any] = {name: len(table) for name, table in tables.items()}
    counts["share"] = {name: round(len(tables[name]) / len(pairs), 5) for name in ("kept", "dropped", "quarantined")}
    counts["by_split"] = {
        split: {name: int((table["split"] == split).sum()) for name, table in tables.items()} for split in SPLITS
    }
    counts["kept_ties"] = int((tables["kept"]["label_0"] == 0.5).sum())
    counts["dropped_by"] = dropped_by(decided)
    counts["quarantined_by"] = verdict.counts
    counts["captions_cut"] = int(verdict.cut.sum())
    won = (filtered["split"] == "train") & (filtered["label_0"] != filtered["label_1"])
    won &= filtered["gap_clip"].notna()  # all of them, or none where no strategy needed scores
    counts["agreement"] = {"all": _agreement(filtered[won]), "kept": _agreement(filtered[won & keep])}
    return counts


def data_docs_tables(counts: dict[str, Any], config: Filter) -> list[data_docs.Counts]:
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
