"""summary: metrics/*.json -> the figures a person wants first, and where the report is, on stdout.

Intervals in brackets are of 95 %. With `markdown` the same figures are the table between the markers of README.md, and
a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from lpo.errors import LpoError
from lpo.report.html import percent, percents, plain, points, signed, title

METRICS = Path("metrics")
REPORT = Path("data/report/index.html")
AXES = {"overall": "overall", "alignment": "what the prompt asks for", "aesthetics": "looks"}


def run(markdown: bool = False) -> None:
    """Print what is there, as text or as the table of README.md.

    Raises:
        LpoError: if no stage has written its metrics yet.
    """
    lines = list(_markdown()) if markdown else [line for stage in (_evaluate, _lrm, _filter) for line in stage()]
    if not lines:
        raise LpoError("there are no figures yet", f"{METRICS}/", "run the pipeline: make run")
    if REPORT.exists() and not markdown:
        lines += ["", f"Report: {REPORT}"]
    typer.echo("\n".join(lines))


def _markdown() -> Iterator[str]:
    rows = list(_rows())
    if not rows:
        return
    yield from ("| figure | value | 95 % interval |", "| --- | --- | --- |")
    yield from (f"| {name} | {value} |{interval and ' ' + interval} |" for name, value, interval in rows)
    if found := _read("evaluate"):
        yield ""
        yield (
            f"{plain(found['win_rate']['overall']['prompts'])} held-out prompts. Both models draw them from the same "
            "noise at the same guidance scale; a tie counts half. Intervals come from drawing prompts again."
        )


def _rows() -> Iterator[tuple[str, str, str]]:
    """(figure, value, interval) of every row; an interval that no stage measures is left empty."""
    if found := _read("evaluate"):
        for name, words in AXES.items():
            if rate := found["win_rate"].get(name):
                by = f", by {title(found['judge'])}" if "judge" in found else ""
                yield f"Tuned model wins over its base: {words}{by}", percent(rate["value"]), percents(rate)
        for name, row in found.get("judges", {}).items():
            change, low, high = (signed(row[key]) for key in ("difference", "low", "high"))
            yield f"{title(name)}: mean {row['base']:.3f} before, change", change, f"{low} to {high}"
        if right := found.get("all_correct"):
            low, high = points(right["low"]), points(right["high"])
            yield "Pictures right in everything, before", percent(right["base"]), ""
            yield "Pictures right in everything, after", percent(right["tuned"]), ""
            change = f"{points(right['difference'])} points"
            yield "Pictures right in everything, change", change, f"{low} to {high} points"
    if found := _read("lrm"):
        yield "Reward model right on held-out pairs: mean over timesteps", percent(found["accuracy"]["mean"]), ""
        bins = found["accuracy"]["by_timestep"]
        for part in (bins[0], bins[len(bins) // 2], bins[-1]):  # the clean end, the middle, the noisy end
            name = f"Reward model right on held-out pairs: t from {part['t_low']} to {part['t_high']}"
            yield name, percent(part["value"]), percents(part)
    if found := _read("filter"):
        kept, of = (found["by_split"]["train"][name] for name in ("kept", "input"))
        yield "Training pairs that the filter keeps", f"{plain(kept)} of {plain(of)} ({percent(kept / of)})", ""


def _evaluate() -> Iterator[str]:
    if not (found := _read("evaluate")):
        return
    rates = found["win_rate"]
    yield f"Win rate of the tuned model over its base, same guidance, {rates['overall']['prompts']} held-out prompts"
    for name, row in found.get("judges", {}).items():
        means = f"mean {row['base']:.3f} before, {row['tuned']:.3f} after"
        yield f"  {title(name):<11} {_interval(row['win_rate'])}  {means}"
    if "all_correct" not in found:
        return
    for name in ("overall", "alignment", "aesthetics"):
        yield f"  {name:<11} {_interval(rates[name])}"
    promoted = found.get("promoted", {})
    if "win_rate" in promoted:
        yield f"  {'overall':<11} {_interval(promoted['win_rate']['overall'])}  over the promoted {promoted['name']}"
    right = found["all_correct"]
    yield f"Pictures that are right in everything: {right['base']:.1%} before, {right['tuned']:.1%} after"
    points = {key: f"{100 * right[key]:+.1f}" for key in ("difference", "low", "high")}
    yield f"  difference  {points['difference']} points ({points['low']} to {points['high']})"


def _lrm() -> Iterator[str]:
    if not (found := _read("lrm")):
        return
    yield f"Latent reward model: {found['accuracy']['mean']:.1%} of held-out pairs ranked right, mean over timesteps"
    for part in found["accuracy"]["by_timestep"]:
        yield f"  t {part['t_low']:>4}-{part['t_high']:<4} {_interval(part)}"


def _filter() -> Iterator[str]:
    if found := _read("filter"):
        yield (
            f"Pairs: {found['input']} in, {found['kept']} kept, {found['dropped']} dropped, "
            f"{found['quarantined']} quarantined"
        )


def _interval(part: dict[str, Any]) -> str:
    return f"{part['value']:6.1%}  ({part['low']:.1%} to {part['high']:.1%})"


def _read(stage: str) -> Any:
    path = METRICS / f"{stage}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
