"""The parts of docs/results.md that a study writes: its table, between two comments that name it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pandas as pd

from lpo.errors import LpoError
from lpo.format import percent, percents, points, signed
from lpo.study.compare import BASE, CHANCE, REFERENCE, gains, interval, wins

WON = ("utility", "alignment", "aesthetic")  # axes whose win rates are shown


def put(text: str, name: str, part: str) -> str:
    """`text` with `part` between the comments of the study `name`.

    Raises:
        LpoError: if the text has no such comments.
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if begin not in text:
        return text
    if text.count(begin) != 1 or text.count(end) != 1:
        raise LpoError(f"the comments {begin} and {end} must be there once", "docs/results.md", "restore them")
    return re.sub(f"{re.escape(begin)}.*{re.escape(end)}", lambda _: f"{begin}\n{part}\n{end}", text, flags=re.DOTALL)


def methods(table: pd.DataFrame) -> str:
    """One row an arm at equal time: win rates, gains, prompts, seconds of its reward."""
    found = table[table["equal"] == "seconds"]
    lines = [
        "| arm | overall win rate | alignment win rate | all-correct, points | gain of utility | gain, less LPO's "
        "| over the best base | prompts | reward, s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    seen = set()
    for (_, arm), rows in found.groupby(["question", "arm"], sort=False):
        by_axis = {row["axis"]: row for row in rows.to_dict("records")}
        overall, alignment, right = by_axis["utility"], by_axis["alignment"], by_axis.get("all_correct")
        if arm in seen:
            continue
        seen.add(arm)
        lines.append(
            f"| {str(arm).replace('_', ' ')} | {_share(overall)} | {_share(alignment)} | {_points(right)} | "
            f"{_gain(overall, 'gain')} | {_less(overall)} | {_share(overall, 'best_base_')} | "
            f"{overall['prompts']:.0f} | {overall['reward_seconds']:.0f} |"
        )
    return "\n".join([*lines, "", _about(found)])


def trials(frame: pd.DataFrame) -> str:
    """One row a trial: the validation that chooses, and what the judge, which does not, says of its last snapshot."""
    lines = ["| trial | validation | all-correct, points | gain of utility | prompts |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for arm, cell in frame.groupby("arm"):
        last = int(cell["snapshot"].max())
        found, right = cell[cell["snapshot"] == last], gains(cell, last, "all_correct").mean()
        lines.append(
            f"| {str(arm).replace('_', ' ')} | {signed(found['validation'].iloc[0])} | {points(right)} | "
            f"{signed(gains(cell, last, 'utility').mean())} | {found['prompts'].iloc[0]} |"
        )
    return "\n".join(lines)


def snapshots(frame: pd.DataFrame, revisions: Sequence[str]) -> str:
    """One row an arm and snapshot over all seeds, and of the last snapshot one a seed: the judge's verdict on it."""
    lines = [
        "| arm | seeds | prompts | validation | overall win rate | alignment win rate | aesthetics win rate "
        "| all-correct, points | gain of utility |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, of_arm in frame.groupby("arm"):
        runs, most = sorted(of_arm["run"].unique()), of_arm["prompts"].max()
        for prompts in sorted(of_arm.loc[of_arm["snapshot"] >= 0, "prompts"].unique()):
            lines.append(_snapshot(of_arm, str(arm), runs, prompts))
        if len(runs) > 1:
            lines += [_snapshot(of_arm, str(arm), [run], most) for run in runs]
    images = frame[frame["snapshot"] == BASE].groupby(["arm", "run"]).size().max()
    return "\n".join([*lines, "", f"{images} images a seed. Made with revision {', '.join(revisions)}."])


def _snapshot(of_arm: pd.DataFrame, arm: str, runs: Sequence[int], prompts: int) -> str:
    """The row of the adapters of some seeds after so many prompts."""
    found = of_arm[(of_arm["prompts"] == prompts) & of_arm["run"].isin(list(runs))]
    last, cells = int(found["snapshot"].iloc[0]), [of_arm[of_arm["run"] == run] for run in runs]
    gained = {axis: [gains(cell, last, axis) for cell in cells] for axis in (*WON, "all_correct")}
    won = (_share(interval([wins(of_run) for of_run in gained[axis]], CHANCE)) for axis in WON)
    right, utility = (
        {f"gain_{k}": v for k, v in interval(gained[axis], 0.0).items()} for axis in ("all_correct", "utility")
    )
    return (
        f"| {arm.replace('_', ' ')} | {', '.join(map(str, runs))} | {prompts} | "
        f"{signed(found.groupby('run')['validation'].first().mean())} | {' | '.join(won)} | {_points(right)} | "
        f"{_gain(utility, 'gain')} |"
    )


def ablations(table: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """One table a question at equal prompts: the gain of every arm, less the reference's, with Holm's p."""
    found = table[(table["equal"] == "prompts") & (table["axis"] == "utility")]
    reference = found[found["arm"] == REFERENCE].iloc[0]
    lines = [f"Mean gain of the reference: {_gain(reference.to_dict(), 'gain')}.", ""]
    for question, rows in found.groupby("question", sort=False):
        lines += [f"**{titles.get(str(question), str(question))}**", ""]
        lines += ["| arm | gain, less the reference's | p (Holm) |", "| --- | --- | --- |"]
        for row in rows.to_dict("records"):
            if row["arm"] != REFERENCE:
                name = str(row["arm"]).replace("_", " ")
                lines.append(f"| {name} | {_less(row)} | {row['gain_difference_p_holm']:.3f} |")
        lines.append("")
    return "\n".join([*lines, _about(found)])


def _about(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    images = int(rows["pictures"].max())
    return f"{int(rows['runs'].max())} seeds, {images} images an arm. Made with revision {first['revision']}."


def _share(row: Mapping[str, float], prefix: str = "") -> str:
    if pd.isna(row.get(f"{prefix}value")):
        return ""
    found = {name: row[f"{prefix}{name}"] for name in ("value", "low", "high")}
    return f"{percent(found['value'])} ({percents(found)})"


def _points(row: Mapping[str, float] | None) -> str:
    """The gain of a rate in percentage points."""
    if row is None:
        return ""
    value, low, high = (points(row[f"gain_{name}"]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _gain(row: Mapping[str, float], kind: str) -> str:
    value, low, high = (signed(row[f"{kind}_{name}"]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _less(row: Mapping[str, float]) -> str:
    return "" if row["arm"] == REFERENCE else _gain(row, "gain_difference")
