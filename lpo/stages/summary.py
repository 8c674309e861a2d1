"""summary: metrics/*.json -> the figures a person wants first, and where the report is, on stdout.

Intervals in brackets are of 95 %.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from lpo.errors import LpoError

METRICS = Path("metrics")
REPORT = Path("data/report/index.html")


def run() -> None:
    """Print what is there.

    Raises:
        LpoError: if no stage has written its metrics yet.
    """
    lines = [line for stage in (_evaluate, _lrm, _filter) for line in stage()]
    if not lines:
        raise LpoError("there are no figures yet", f"{METRICS}/", "run the pipeline: make run")
    if REPORT.exists():
        lines += ["", f"Report: {REPORT}"]
    typer.echo("\n".join(lines))


def _evaluate() -> Iterator[str]:
    if not (found := _read("evaluate")):
        return
    rates = found["win_rate"]
    yield f"Win rate of the tuned model over its base, same guidance, {rates['overall']['prompts']} held-out prompts"
    for name in ("overall", "alignment", "aesthetics"):
        yield f"  {name:<11} {_interval(rates[name])}"
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
