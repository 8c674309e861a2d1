"""The figures that texts quote, from the metrics of the stages.

    quoted(metrics)    what docs/figures.json holds: the metrics that README.md and docs/ quote
    table(metrics)     the table of README.md, as Markdown
    headline(metrics)  what metrics.json holds: one number a column of `dvc metrics show` and `dvc exp show`

metrics: stage -> the content of metrics/STAGE.json. A stage that has not run is absent, and so are its figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lpo.format import percent, percents, plain, points, title

Json = Mapping[str, Any]
Metrics = Mapping[str, Json]
STAGES = ("filter", "reward", "evaluate")
AXES = {"overall": "overall", "alignment": "alignment with the prompt", "aesthetics": "aesthetics"}


def quoted(metrics: Metrics) -> dict[str, Json]:
    """The stages' metrics without their break-downs by category."""
    return {stage: _without_categories(metrics[stage]) for stage in STAGES if stage in metrics}


def headline(metrics: Metrics) -> dict[str, float]:
    """Win rates over the base, the change of the all-correct rate, and the accuracy of the reward model.

    Where judges score the images, their win rates take the place of alignment, aesthetics and the all-correct rate.
    """
    found: dict[str, float] = {}
    if evaluate := metrics.get("evaluate"):
        rates = evaluate["win_rate"]
        found = {"win_rate": rates["overall"]["value"]}
        found |= {axis: rates[axis]["value"] for axis in AXES if axis in rates and axis != "overall"}
        found |= {name: row["win_rate"]["value"] for name, row in evaluate.get("judges", {}).items()}
        if "all_correct" in evaluate:
            found["all_correct"] = evaluate["all_correct"]["difference"]
    if "reward" in metrics:
        found["reward"] = metrics["reward"]["accuracy"]["mean"]
    return {name: round(value, 4) for name, value in found.items()}


def table(metrics: Metrics) -> str:
    """Win rates and the change of the all-correct rate with their intervals, and a line on what they are."""
    evaluate = metrics["evaluate"]
    by = f", by {title(evaluate['judge'])}" if "judge" in evaluate else ""
    rows = [
        (f"Win rate over the base, {words}{by}", percent(rate["value"]), percents(rate))
        for axis, words in AXES.items()
        if (rate := evaluate["win_rate"].get(axis))
    ]
    rows += [
        (f"Win rate over the base, by {title(name)}", percent(row["win_rate"]["value"]), percents(row["win_rate"]))
        for name, row in evaluate.get("judges", {}).items()
        if name != evaluate.get("judge")
    ]
    if right := evaluate.get("all_correct"):
        change, low, high = (points(right[name]) for name in ("difference", "low", "high"))
        rows.append((f"All-correct rate, change from {percent(right['base'])}", f"{change} points", f"{low} to {high}"))
    lines = ["| figure | value | 95% interval |", "| --- | --- | --- |"]
    lines += [f"| {name} | {value} | {interval} |" for name, value, interval in rows]
    return "\n".join([*lines, "", " ".join(_notes(metrics))]) + "\n"


def _notes(metrics: Metrics) -> Iterator[str]:
    prompts = plain(metrics["evaluate"]["win_rate"]["overall"]["prompts"])
    yield f"{prompts} held-out prompts. Both models start from the same noise and use the same guidance scale."
    yield "A tie counts as half a win. Intervals come from a bootstrap over prompts."
    usual = metrics["evaluate"]["win_rate_default_cfg"]["overall"]
    rate = f"{percent(usual['value'])} ({percents(usual)})"
    yield f"Against the base at its best guidance scale, the tuned model wins {rate}."
    if (right := metrics["evaluate"].get("all_correct")) and "only_base" in right:
        yield (
            f"On {plain(right['only_tuned'])} images the tuned model alone has everything right, on "
            f"{plain(right['only_base'])} the base alone."
        )
    if "reward" in metrics:
        yield (
            f"The reward model ranks {percent(metrics['reward']['accuracy']['mean'])} of held-out pairs correctly, "
            "averaged over timesteps."
        )
    if "filter" in metrics:
        kept, of = (metrics["filter"]["by_split"]["train"][name] for name in ("kept", "input"))
        yield f"The filter keeps {plain(kept)} of {plain(of)} training pairs ({percent(kept / of)})."


def _without_categories(row: Json) -> dict[str, Any]:
    return {
        name: _without_categories(value) if isinstance(value, Mapping) else value
        for name, value in row.items()
        if name not in ("by_category", "by_difference", "by_task")
    }
