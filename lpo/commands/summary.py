"""summary: metrics/*.json -> the most important figures, and where the report is.

    lpo summary                            prints them; intervals in brackets are 95% intervals
    lpo summary --markdown                 prints the table of README.md
    lpo summary --save docs/figures.json   writes the figures that README.md and docs/ quote

Texts quote docs/figures.json, which changes only by this command. A run rewrites metrics/, and no text with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from lpo.errors import LpoError
from lpo.files import write_json
from lpo.format import percent, percents, plain, points, title
from lpo.outputs import output_file
from lpo.report.figures import AXES, quoted, table

METRICS = Path("metrics")
REPORT = Path("data/report/index.html")
Json = Mapping[str, Any]


def run(markdown: bool = False, save: Path | None = None, force: bool = False) -> None:
    """Print the figures that are there, as text or as the table of README.md; write them to `save`.

    Args:
        force: replace a file `save` that this command did not write.

    Raises:
        LpoError: if no stage has written metrics yet; with `markdown` or `save`, if evaluate has not.
    """
    metrics = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(METRICS.glob("*.json"))}
    lines = [line for stage in _LINES for line in _LINES[stage](metrics.get(stage))]
    if not lines:
        raise LpoError("there are no figures yet", f"{METRICS}/", "make run")
    if (markdown or save) and "evaluate" not in metrics:
        raise LpoError("the model has not been evaluated yet", f"{METRICS}/evaluate.json", "dvc repro evaluate")
    if save:
        with output_file(save, "lpo summary", force) as partial:
            write_json(partial, quoted(metrics))
    if markdown:
        typer.echo(table(metrics), nl=False)
        return
    if REPORT.exists():
        lines += ["", f"Report: {REPORT}"]
    if save:
        lines += ["", f"wrote {save}"]
    typer.echo("\n".join(lines))


def _evaluate(found: Json | None) -> Iterator[str]:
    if not found:
        return
    rates = found["win_rate"]
    prompts = plain(rates["overall"]["prompts"])
    yield f"Win rate of the tuned model over its base: {prompts} held-out prompts, same noise, same guidance scale"
    if "judge" not in found:
        yield from (f"  {name:<11} {_interval(rates[name])}" for name in AXES if name in rates)
    for name, row in found.get("judges", {}).items():
        means = f"mean {row['base']:.3f} before, {row['tuned']:.3f} after"
        yield f"  {title(name):<11} {_interval(row['win_rate'])}  {means}"
    promoted = found.get("promoted", {})
    if "win_rate" in promoted:
        yield f"  {'overall':<11} {_interval(promoted['win_rate']['overall'])}  over the promoted {promoted['name']}"
    if right := found.get("all_correct"):
        yield (
            f"All-correct rate: {percent(right['base'])} before, {percent(right['tuned'])} after, "
            f"{points(right['difference'])} points ({points(right['low'])} to {points(right['high'])})"
        )


def _reward(found: Json | None) -> Iterator[str]:
    if not found:
        return
    accuracy = found["accuracy"]
    yield f"Reward model: {percent(accuracy['mean'])} of held-out pairs ranked correctly, averaged over timesteps"
    yield from (f"  t {part['t_low']:>4}-{part['t_high']:<4} {_interval(part)}" for part in accuracy["by_timestep"])


def _filter(found: Json | None) -> Iterator[str]:
    if found:
        train = found["by_split"]["train"]
        yield (
            f"Training pairs: {plain(train['input'])} read, {plain(train['kept'])} kept, "
            f"{plain(train['dropped'])} dropped, {plain(train['quarantined'])} quarantined"
        )


def _interval(part: Json) -> str:
    return f"{percent(part['value']):>6}  ({percents(part)})"


_LINES = {"evaluate": _evaluate, "reward": _reward, "filter": _filter}
