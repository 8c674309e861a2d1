"""The reward as a verifier: what choosing among candidates brought, and what it cost (`lpo verifier`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lpo.format import percent, percents, signed
from lpo.report.html import section, table, text
from lpo.statistics import mean_difference, share, win_rate

ABOUT = (
    "The untuned base draws each prompt, and the reward of the pipeline chooses: among K candidates of every step "
    "(search) or among N finished pictures (best of). Nothing is trained. Each search is compared with the "
    "plain picture of the same prompt, which starts from the same noise, by the judge; {prompts} test prompts, "
    "intervals over prompts. Passes of the denoiser and of the reward, and seconds on the machine that ran it, are of "
    "one picture."
)
HEAD = (
    "search", "right in everything, %", "change, points", "relations, change, points", "win rate, %", "gain of utility",
    "denoiser passes", "reward passes", "seconds",
)  # fmt: skip


def searches(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """One row a search, in the frame's order: all_correct, and against the first search change, relations (the change
    on relation prompts), win_rate, gain; each {value, low, high, prompts}. denoiser, reward, seconds: means.

    Args:
        frame: studies/verifier.parquet. Every search has the same prompts and seeds.
    """
    plain = frame[frame["search"] == frame["search"].iloc[0]].sort_values("seed")
    rows = []
    for name, found in frame.groupby("search", sort=False):
        mine = found.sort_values("seed")
        assert mine["seed"].tolist() == plain["seed"].tolist(), f"{name} has other seeds than the first search"
        prompts, related = plain["prompt"].to_numpy(), (plain["category"] == "relation").to_numpy()
        right, before = (f["all_correct"].to_numpy(float) for f in (mine, plain))
        utility, utility_before = (f["utility"].to_numpy(float) for f in (mine, plain))
        rows.append(
            {
                "search": name,
                "all_correct": share(right, prompts),
                "change": mean_difference(right, before, prompts),
                "relations": mean_difference(right[related], before[related], prompts[related]),
                "win_rate": win_rate(utility, utility_before, prompts),
                "gain": mean_difference(utility, utility_before, prompts),
                **{cost: float(mine[cost].mean()) for cost in ("denoiser", "reward", "seconds")},
            }
        )
    return rows


def verifier_section(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section of the study's page; rows as `searches` gives them, none where it was not run."""
    title = "The reward as a verifier"
    if not rows:
        return section("verifier", title, text("Not measured: run `dvc repro studies/dvc.yaml:verifier`.", "missing"))
    lines = []
    for k, row in enumerate(rows):
        right = row["all_correct"]
        line = [str(row["search"]), _share(right)]
        if k == 0:
            line += ["", "", "", ""]
        else:
            line += [_change(row["change"], 100, 1), _change(row["relations"], 100, 1)]
            line += [_share(row["win_rate"]), _change(row["gain"], 1, 3)]
        lines.append([*line, f"{row['denoiser']:.0f}", f"{row['reward']:.0f}", f"{row['seconds']:.2f}"])
    about = text(ABOUT.format(prompts=rows[0]["all_correct"]["prompts"]))
    return section("verifier", title, about, table(HEAD, lines))


def _share(figures: Mapping[str, float]) -> str:
    return f"{percent(figures['value'])} ({percents(figures)})"


def _change(figures: Mapping[str, float], scale: float, digits: int) -> str:
    value, low, high = (signed(scale * figures[name], digits) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
