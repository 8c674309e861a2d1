"""The report's section on judges of real pictures, from the figures of `lpo.evaluate.metrics.judged_results`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lpo.format import percent, percents, plain, points, signed, title
from lpo.report import plots
from lpo.report.html import figure, heading, section, table, text

Json = Mapping[str, Any]


def judges(evaluate: Json) -> str:
    """Win rates and means of every judge, categories by the first one, GenEval by task, and the reward itself."""
    found, usual = evaluate["judges"], evaluate["win_rate_default_cfg"]["overall"]
    first = title(evaluate["judge"])
    forest = [(title(name), row["win_rate"]) for name, row in found.items()]
    bodies = [
        text(
            f"{plain(evaluate['images'])} pictures of {plain(evaluate['prompts'])} prompts, every one judged. The base "
            "draws the same prompts from the same noise at the same guidance scale; a tie counts half. Intervals are "
            "95%, by drawing prompts again."
        )
    ]
    if evaluate.get("prompts_left_out"):
        words = f"{plain(evaluate['prompts_left_out'])} prompts of the file were left out"
        bodies.append(text(f"{words}; data/evaluation/left_out.parquet says why.", "soft"))
    caption = "Hollow: the interval holds 50%."
    bodies.append(figure(plots.forest(forest), "Win rates by judge with 95% intervals beside 50%", caption))
    head = ["judge", "base", "tuned", "change", "95% interval", "win rate", "95% interval"]
    bodies.append(table(head, [_row(title(name), row) for name, row in found.items()]))
    if usual != evaluate["win_rate"]["overall"]:
        share = f"{percent(usual['value'])} ({percents(usual)})"
        bodies.append(text(f"Against the base at its usual guidance scale, {first} gives {share}."))
    if len(evaluate["by_category"]) > 1:
        cells = [
            [name, plain(row["overall"]["prompts"]), percent(row["overall"]["value"]), percents(row["overall"])]
            for name, row in evaluate["by_category"].items()
        ]
        bodies += [heading(f"By category, {first}"), table(["category", "prompts", "win rate", "95% interval"], cells)]
    if "geneval" in evaluate:
        bodies += [
            heading("GenEval"),
            text("Pictures with the right objects, numbers, colours and places; overall is the mean of the tasks."),
            _geneval(evaluate["geneval"]),
        ]
    if "reward" in evaluate:
        bodies += [
            heading("The reward itself"),
            text("The latent reward model is what training climbed, so its rise is no evidence of better pictures."),
            table(head, [_row(title("lrm"), evaluate["reward"])]),
        ]
    return section("wins", "Judges", *bodies)


def _row(name: str, row: Json) -> list[str]:
    rate = row["win_rate"]
    return [
        name, f"{row['base']:.3f}".replace("-", "−"), f"{row['tuned']:.3f}".replace("-", "−"),
        signed(row["difference"]), f"{signed(row['low'])} to {signed(row['high'])}", percent(rate["value"]),
        percents(rate),
    ]  # fmt: skip


def _geneval(found: Json) -> str:
    rows = [("overall", found["overall"]), *found["by_task"].items()]
    cells = [
        [name, percent(row["base"]), percent(row["tuned"]), f"{points(row['difference'])} points",
         f"{points(row['low'])} to {points(row['high'])}", plain(row["prompts"])]
        for name, row in rows
    ]  # fmt: skip
    return table(["task", "base", "tuned", "change", "95% interval", "prompts"], cells)
