"""What improved, what did not, and what got worse: every comparison of metrics/evaluate.json by its interval.

The latent reward model's own score is no comparison: training optimized it.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any, NamedTuple

from lpo.format import percent, percents, plain, points, title

Json = Mapping[str, Any]
BETTER, UNCLEAR, WORSE = "better", "no clear change", "worse"
AXES = {"overall": "overall", "alignment": "alignment with the prompt", "aesthetics": "aesthetics"}


class Finding(NamedTuple):
    """A comparison in words, its verdict, its figures, and whether it is against the base at the same guidance scale
    by the headline's judge."""

    name: str
    verdict: str
    figures: str
    main: bool = False


def findings(evaluate: Json) -> list[Finding]:
    """All comparisons, the headline first."""
    found = []
    usual = evaluate.get("win_rate_default_cfg", {})
    for axis, words in AXES.items():
        if row := evaluate["win_rate"].get(axis):
            found.append(_rate(words, row, main=True))
    if right := evaluate.get("all_correct"):
        figures = f"{points(right['difference'])} points, {points(right['low'])} to {points(right['high'])}"
        found.append(Finding("all-correct rate", _verdict(right, 0), figures, main=True))
    if usual != evaluate["win_rate"]:
        found += [
            _rate(f"{words}, against the base at its usual guidance scale", usual[axis])
            for axis, words in AXES.items()
            if axis in usual
        ]
    found += [_rate(f"{name} scorer", row["win_rate"]) for name, row in evaluate.get("scorers", {}).items()]
    found += [
        _rate(title(name), row["win_rate"])
        for name, row in evaluate.get("judges", {}).items()
        if name != evaluate.get("judge")
    ]
    promoted = evaluate.get("promoted", {})
    if "win_rate" in promoted:
        found.append(_rate(f"overall, against the promoted model {promoted['name']}", promoted["win_rate"]["overall"]))
    return found


def headline(evaluate: Json | None) -> str:
    """What the overall win rate shows, and at once what did not improve."""
    if evaluate is None or "overall" not in evaluate.get("win_rate", {}):
        return "There is no result yet: metrics/evaluate.json has no overall win rate."
    row = evaluate["win_rate"]["overall"]
    prompts = f"{plain(row['prompts'])} held-out prompts"
    judge = f" by {title(evaluate['judge'])}" if "judge" in evaluate else ""
    figures = f"{percent(row['value'])} of {prompts}{judge} (95% interval {percents(row)})"
    said = {
        BETTER: f"The tuned model beats its base on {figures}.",
        WORSE: f"The tuned model is worse than its base: it wins on {figures}.",
        UNCLEAR: f"No difference is shown between the tuned model and its base: it wins on {figures}.",
    }[_verdict(row, 0.5)]
    others = [item for item in findings(evaluate) if item.name != "overall"]
    flat = [item.name for item in others if item.main and item.verdict == UNCLEAR]
    worse = [item.name for item in others if item.verdict == WORSE]
    if flat:
        said += f" No clear change in {_listed(flat)}."
    if worse:
        said += f" Worse: {'; '.join(worse)}."
    return said


def shown(evaluate: Json | None) -> str:
    """The comparisons as a list of three rows: better, no clear change, worse; each row says "none" where it is empty.
    """
    if evaluate is None or "overall" not in evaluate.get("win_rate", {}):
        return ""
    every, rows = findings(evaluate), []
    for verdict, kind in ((BETTER, "good"), (UNCLEAR, ""), (WORSE, "bad")):
        words = "; ".join(f"{item.name} ({item.figures})" for item in every if item.verdict == verdict) or "none"
        rows.append(f'<li><b class="{kind}">{verdict.capitalize()}</b> {escape(words)}</li>')
    return f'<ul class="findings">{"".join(rows)}</ul>'


def _rate(name: str, row: Json, main: bool = False) -> Finding:
    return Finding(name, _verdict(row, 0.5), f"win rate {percent(row['value'])}, {percents(row)}", main)


def _verdict(row: Json, chance: float) -> str:
    """By the side of `chance` that the whole interval lies on; an interval that touches it shows nothing."""
    if row["low"] > chance:
        return BETTER
    return WORSE if row["high"] < chance else UNCLEAR


def _listed(names: list[str]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
