"""The page of a study: what was asked, what came out, with intervals, and the paper's figures beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from lpo.format import percent, plain
from lpo.report.html import figure, heading, page, section, table, text
from lpo.report.plots import forest
from lpo.study import plots
from lpo.study.choices import sentence
from lpo.study.compare import REFERENCE
from lpo.study.verifier_section import verifier_section

HOW = (
    "{budget} Its pictures are compared with those "
    "that the base draws from the same prompts and seeds, by the judge, which no arm was trained on or selected with. "
    "A win rate counts a tie half. It says how often and not how much: an adapter that changes hardly anything can win "
    "most prompts. The gain is the mean change of the judge's utility. Intervals are 95%, from drawing runs and, "
    "within runs, prompts again; with {runs} run(s) the upper level {coarse}. p is corrected by Holm's method over the "
    "arms of a question. The reward's own training is not counted: its seconds, estimated from a few of its steps "
    "on the same machine, stand beside."
)
CLOCK = "Every arm trains on the same clock; validation and judging are not on it."
PROMPTS = "Every arm trains on as many prompts, however long that takes."
SEEDS = {
    "pipeline": "A run has its own seed from the data on.",
    "reward": "A run has its own seed of the reward's training and of the tuning, on the same pairs.",
    "tuning": "A run has its own seed of the tuning; data and reward are the same in all runs, so what they add to the "
    "differences between runs is not in the intervals.",
}

SHOWN = ("utility", "alignment", "aesthetic")  # axes whose win rates are drawn
SIGNIFICANT = 0.05  # of a p-value after correction

HEAD = (
    "arm", "overall, %", "alignment, %", "aesthetics, %", "ties", "less the reference", "p (Holm)", "gain",
    "less the reference's", "p (Holm)", "seconds", "of its reward", "prompts",
)  # fmt: skip


def render(
    rows: pd.DataFrame, curves: Sequence[Mapping[str, Any]], accuracy: Sequence[Mapping[str, Any]],
    flips: Sequence[Mapping[str, Any]], titles: Mapping[str, str], paper: Mapping[str, Any], revisions: Sequence[str],
    seeds_of: Sequence[str], verified: Sequence[Mapping[str, Any]], chosen: Sequence[Mapping[str, Any]],
) -> str:  # fmt: skip
    """HTML of the study.

    Args:
        rows: the table, see `study.comparison`. curves: see `study.curves`. flips: see `study.flip_rates`.
        accuracy: reward, t, value, low, high. titles: of questions. paper: columns, and figures by arm.
        revisions: commits that the cells were made with. seeds_of: what the seeds are of, see SEEDS.
        verified: see `verifier_section.searches`. chosen: see `choices.choices`.
    """
    fewest, runs = int(rows["runs"].min()), int(rows["runs"].max())
    coarse = "does not exist: differences between seeds are not in the interval" if runs == 1 else "is coarse"
    budget = CLOCK if (rows["equal"] == "seconds").any() else PROMPTS
    bodies = [
        "<header><h1>The study</h1>",
        text(conclusion(rows), "lead"),
        text(HOW.format(budget=budget, runs=runs if fewest == runs else f"{fewest} to {runs}", coarse=coarse)),
        *(text(SEEDS[kind]) for kind in seeds_of),
        text(f"Made with revision {', '.join(revisions)}.", "soft"),
        "</header><main>",
    ]
    if curves:
        pictures = [
            figure(plots.win_rates(curves, axis), f"Win rate, {axis}", f"Judge's {axis}; a line is one run.")
            for axis in SHOWN
        ]
        bodies.append(section("curves", "Win rate against time and data", *pictures))
    if chosen:
        caption = "A line is one training, from its first snapshot on; the ring is the snapshot that validation chose."
        drawn = figure(plots.choices(chosen), "Validation and judge", caption)
        bodies.append(section("validation", "What validation chose", text(sentence(chosen)), drawn))
    for question, found in rows.groupby("question", sort=False):
        title = titles.get(str(question), str(question))
        bodies.append(section(str(question), title, *_question(found, paper)))
    if accuracy:
        uri = plots.lines(accuracy, "t", "reward", "held-out pairs ranked right", 0.5)
        caption = "Accuracy of each reward by timestep, on test pairs; the band is its interval over prompts."
        bodies.append(section("rewards", "The rewards", figure(uri, "Accuracy by timestep", caption)))
    bodies.append(verifier_section(verified))
    bodies.append(section("open", "Open questions", *_open(rows, flips)))
    return page("The study", "\n".join(bodies) + "</main>")


def conclusion(rows: pd.DataFrame) -> str:
    """Which arms differ from the reference after correction, by win rate and by mean gain.

    At equal time; at equal data where no arm had a clock.
    """
    equal = "seconds" if (rows["equal"] == "seconds").any() else "prompts"
    found = rows[(rows["axis"] == "utility") & (rows["equal"] == equal)]
    mine, others = found[found["arm"] == REFERENCE].iloc[0], found[found["arm"] != REFERENCE]
    if others.empty:
        return f"Nothing was compared with {REFERENCE} yet."
    by_wins = _verdict(others, "difference", lambda row: percent(row["value"]))
    by_gain = _verdict(others, "gain_difference", lambda row: _units(row["gain_value"]))
    budget = f"{mine['seconds']:.0f} s" if equal == "seconds" else f"{mine['prompts']:.0f} prompts"
    return (
        f"After {budget} {REFERENCE} wins {_interval(mine)} over the base; {by_wins}. "
        f"Its mean gain is {_gained(mine)}; {by_gain}. All of it at p < {SIGNIFICANT} after correction."
    )


def _verdict(others: pd.DataFrame, kind: str, show: Callable[[Any], str]) -> str:
    """The arms less than the reference, those above it, how many are neither; kind: difference or gain_difference."""
    clear = others[others[f"{kind}_p_holm"] < SIGNIFICANT].sort_values(f"{kind}_value")
    said = []
    for word, part in (("less", clear[clear[f"{kind}_value"] < 0]), ("more", clear[clear[f"{kind}_value"] > 0])):
        names = ", ".join(f"{row['arm'].replace('_', ' ')} ({show(row)})" for _, row in part.iterrows())
        said.append(f"{len(part)} of {len(others)} arms have {word}" + (f": {names}" if names else ""))
    return "; ".join(said)


def _question(rows: pd.DataFrame, paper: Mapping[str, Any]) -> list[str]:
    bodies = []
    for equal, unit in (("seconds", "s of training"), ("prompts", "prompts")):
        part = rows[rows["equal"] == equal]
        if part.empty:
            continue
        bodies.append(
            heading(
                f"At equal {'time' if equal == 'seconds' else 'data'}: at most {part['limit'].iloc[0]:.0f} {unit}; "
                f"{part['runs'].iloc[0]} run(s)"
            )
        )
        utility = part[part["axis"] == "utility"]
        shown: list[tuple[str, Mapping[str, Any]]] = [(str(row["arm"]), row.to_dict()) for _, row in utility.iterrows()]
        bodies.append(figure(forest(shown), "Win rates", "Judge's utility, win rate over the base."))
        columns = paper.get("columns", [])
        head = [*HEAD]
        head += [f"paper: {name}" for name in columns]
        lines = []
        for arm in utility["arm"]:
            by_axis = {row["axis"]: row for _, row in part[part["arm"] == arm].iterrows()}
            main = by_axis["utility"]
            line = [str(arm).replace("_", " "), *(_short(by_axis[axis]) for axis in SHOWN)]
            line += [percent(main["ties"]), _difference(main), _p(main, "difference"), *_gain(main)]
            line += [f"{main[name]:.0f}" for name in ("seconds", "reward_seconds", "prompts")]
            known = list(paper.get(arm, []))
            lines.append(line + [plain(value) for value in known] + [""] * (len(columns) - len(known)))
        bodies.append(table(head, lines))
    return bodies


def _open(rows: pd.DataFrame, flips: Sequence[Mapping[str, Any]]) -> list[str]:
    bodies = [heading("Does the order of two pictures flip with noise?")]
    if flips:
        every = [row | {"series": row["axis"]} for row in map(dict, flips) if row["pairs"] == "all"]
        uri = plots.lines(every, "t", "series", "share of orders that flip", 0.5)
        caption = (
            "Test pairs noised alike, x_0 predicted by the base, ordered by the judge; ties left out, 50% is chance."
        )
        bodies.append(figure(uri, "Flips", caption))
        at = max((row["t"] for row in every if row["t"] <= 500), default=None)
        for name in ("kept", "dropped"):
            here = [r for r in flips if r["pairs"] == name and r["axis"] == "utility" and r["t"] == at]
            if here:
                bodies.append(
                    text(f"At t = {at}, pairs {name} by MPCF: {_interval(here[0])} flip ({here[0]['count']} pairs).")
                )
    else:
        bodies.append(text("Not measured: run `dvc repro studies/dvc.yaml:flips`.", "missing"))
    asked = (
        ("Does visual feature enhancement help alignment at the cost of looks?", "vfe_7.5"),
        ("Is the candidate scored at t or at its own timestep?", "current_timestep"),
    )
    for title, arm in asked:
        bodies.append(heading(title))
        found = rows[(rows["arm"] == arm) & (rows["equal"] == "prompts")]
        if found.empty:
            bodies.append(text(f"Not measured: the study had no arm {arm}.", "missing"))
        for _, row in found.iterrows():
            less = f"{_difference(row)} points of its win rate, p {_p(row, 'difference')}"
            _, gain, p = _gain(row)
            bodies.append(text(f"{row['axis']}: {arm} less the reference {less}; {gain} of its mean gain, p {p}."))
    return bodies


def _interval(row: Mapping[str, Any] | pd.Series) -> str:
    return f"{percent(row['value'])} ({percent(row['low'])} to {percent(row['high'])})"


def _short(row: Mapping[str, Any] | pd.Series) -> str:
    return f"{100 * row['value']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _difference(row: Mapping[str, Any] | pd.Series) -> str:
    if row["arm"] == REFERENCE:
        return "reference"
    return f"{_points(row['difference_value'])} ({_points(row['difference_low'])} to {_points(row['difference_high'])})"


def _p(row: Mapping[str, Any] | pd.Series, kind: str) -> str:
    return "" if row["arm"] == REFERENCE else f"{row[f'{kind}_p_holm']:.3f}"


def _gained(row: Mapping[str, Any] | pd.Series) -> str:
    return f"{_units(row['gain_value'])} ({_units(row['gain_low'])} to {_units(row['gain_high'])})"


def _gain(row: Mapping[str, Any] | pd.Series) -> list[str]:
    """Three cells: the gain, less the reference's, p."""
    if row["arm"] == REFERENCE:
        return [_gained(row), "reference", ""]
    low, value, high = (_units(row[f"gain_difference_{name}"]) for name in ("low", "value", "high"))
    return [_gained(row), f"{value} ({low} to {high})", _p(row, "gain_difference")]


def _units(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")
