"""What people said: win rates, strengths, and whether there are enough votes, from the table of votes.

    people(votes, tuned, opponents)      what metrics/people.json holds, and what the gate reads

A vote counts if it was not undone, is no attention check, is no skip, and, where the table has a column `reason`, no
reason speaks against it. A tie counts as half a win. The columns are those of `lpo.votes.store.votes_frame`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from lpo.statistics import Figures
from lpo.votes.statistics_levels import share_interval
from lpo.votes.statistics_sequence import ERROR, stopping
from lpo.votes.statistics_strengths import strengths


def people(votes: pd.DataFrame, tuned: str, opponents: Mapping[str, str]) -> Figures:
    """All figures of one table of votes.

    Args:
        votes: rows of every kind.
        tuned: the model that is asked about.
        opponents: a key such as base or promoted -> the model.

    Returns:
        {tuned, votes, voters, prompts, skipped, seconds (median of a vote), against: {key: {opponent, win_rate,
        stopping}}, strengths}. win_rate and seconds are None where no vote says anything. The comparisons under
        `against` read votes on held-out prompts alone (split validation): no training saw these. The rest reads all
        that count.
    """
    mine = counted(votes)
    held_out = mine[mine["split"] == "validation"]
    kept = votes[~votes["undone"] & (votes["kind"] == "regular")]
    return {
        "tuned": tuned,
        "votes": len(mine),
        "voters": int(mine["voter"].nunique()),
        "prompts": int(mine["prompt"].nunique()),
        "skipped": int((kept["choice"] == "skip").sum()),
        "seconds": float(mine["seconds"].median()) if mine["seconds"].notna().any() else None,
        "against": {key: {"opponent": name} | against(held_out, tuned, name) for key, name in opponents.items()},
        "strengths": strengths(mine),
    }


def counted(votes: pd.DataFrame) -> pd.DataFrame:
    """The rows that count, in their order."""
    keep = ~votes["undone"] & (votes["kind"] == "regular") & (votes["choice"] != "skip")
    return votes[keep & (votes["reason"] == "")] if "reason" in votes else votes[keep]


def against(votes: pd.DataFrame, model: str, opponent: str, error: float = ERROR) -> Figures:
    """{win_rate, stopping} of one model against another, from rows that count.

    win_rate {value, low, high, ties, votes, voters, prompts}: the share of votes for `model`, with a 95% interval over
    voters and prompts; None without votes. stopping: see `stopping`, whose bounds hold however often one looks. It
    reads one number for each voter and prompt, the mean of their votes: ranking four images gives several at once.
    """
    turned = (votes["model_a"] == opponent) & (votes["model_b"] == model)
    met = votes[((votes["model_a"] == model) & (votes["model_b"] == opponent)) | turned]
    turned = turned[met.index]
    shares = np.where(turned, 1 - met["share_a"], met["share_a"]).astype(np.float64)
    if len(met) == 0 or model == opponent:
        return {"win_rate": None, "stopping": stopping([], error)}
    rate = share_interval(shares, met["voter"].to_numpy(), met["prompt"].to_numpy())
    means = pd.Series(shares).groupby([met["voter"].to_numpy(), met["prompt"].to_numpy()]).mean()
    return {"win_rate": rate | {"ties": float((shares == 0.5).mean())}, "stopping": stopping(means, error)}
