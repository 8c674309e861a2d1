"""What people said, in words and rows of tables, from metrics/people.json (lpo/commands/people.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lpo.format import many, percent, percents, plain, signed

Json = Mapping[str, Any]
WINS = ["against", "win rate", "95% interval", "at every look", "ties", "votes", "voters", "prompts", "enough"]
STRENGTHS = ["model", "strength", "95% interval", "votes"]
WINS_NOTE = (
    "The share of votes for the tuned model, by people who saw both images without knowing which model drew them. A "
    "tie counts as half a win. Prompts are held out from training. The first interval counts voters and prompts as two "
    "levels. The second holds at all looks together, so voting may stop as soon as it excludes 50%."
)
STRENGTHS_NOTE = (
    "Bradley-Terry strengths of all models voted on, in logits, with a mean of 0. A model that is 1 stronger wins 73% "
    "of votes. Intervals count voters and prompts."
)


def of_whom(said: Json) -> str:
    """How many votes there are, of how many voters and prompts, as '1 vote of 1 voter on 1 prompt'."""
    return f"{many(said['votes'], 'vote')} of {many(said['voters'], 'voter')} on {many(said['prompts'], 'prompt')}"


def who(said: Json) -> str:
    """How many people voted on what, and how far they agree."""
    words = f"Counted: {of_whom(said)}."
    if said["simulated"]:
        who = "All" if said["simulated"] == said["voters"] else plain(said["simulated"])
        words += f" {who} of the voters are simulated annotators: programs, not people."
    if said["agreement"] is not None:
        words += f" Agreement between voters: Krippendorff's alpha {said['agreement']:.2f}."
    return words


def wins(said: Json) -> list[list[str]]:
    """One row for each opponent, in the columns of `WINS`."""
    rows = []
    for row in said["against"].values():
        rate, stopping = row["win_rate"], row["stopping"]
        if rate is None:
            rows.append([row["opponent"], "no votes", *[""] * (len(WINS) - 2)])
            continue
        more = stopping["more_votes"]
        enough = stopping["verdict"] or ("no" if more is None else f"about {plain(more)} more")
        counts = [plain(rate[name]) for name in ("votes", "voters", "prompts")]
        shares = [percent(rate["value"]), percents(rate), percents(stopping), percent(rate["ties"])]
        rows.append([row["opponent"], *shares, *counts, enough])
    return rows


def strengths(said: Json) -> list[list[str]]:
    """One row for each model, in the columns of `STRENGTHS`, the strongest first."""
    return [
        [name, signed(row["strength"], 2), f"{signed(row['low'], 2)} to {signed(row['high'], 2)}", plain(row["votes"])]
        for name, row in said["strengths"]["models"].items()
    ]
