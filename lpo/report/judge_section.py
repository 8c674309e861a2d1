"""The report's text on the published judges, from metrics/evaluate.json (lpo/evaluate/metrics.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lpo.format import percent, percents, plain, points, signed, title
from lpo.report import plots
from lpo.report.html import figure, heading, section, table, text

Json = Mapping[str, Any]


HEAD = ["judge", "base", "tuned", "change", "95% interval", "win rate", "95% interval"]


def judges(evaluate: Json) -> str:
    """The section, where a published judge gives the headline: every judge, categories, GenEval, the promoted model."""
    usual, first = evaluate["win_rate_default_cfg"]["overall"], title(evaluate["judge"])
    bodies = [
        text(
            f"{plain(evaluate['images'])} images of {plain(evaluate['prompts'])} prompts. The base draws the same "
            "prompts from the same noise at the same guidance scale. A tie counts as half a win. Intervals are 95% "
            "bootstrap intervals over prompts."
        )
    ]
    if evaluate.get("prompts_left_out"):
        words = f"{plain(evaluate['prompts_left_out'])} prompts of the file were skipped"
        bodies.append(text(f"{words}; data/evaluation/left_out.parquet has the reasons.", "soft"))
    bodies += every_judge(evaluate)
    if usual != evaluate["win_rate"]["overall"]:
        share = f"{percent(usual['value'])} ({percents(usual)})"
        bodies.append(text(f"Against the base at its usual guidance scale, the win rate by {first} is {share}."))
    if len(evaluate["by_category"]) > 1:
        cells = [
            [name, plain(row["overall"]["prompts"]), percent(row["overall"]["value"]), percents(row["overall"])]
            for name, row in evaluate["by_category"].items()
        ]
        bodies += [heading(f"By category, {first}"), table(["category", "prompts", "win rate", "95% interval"], cells)]
    if "reward" in evaluate:
        bodies += [
            heading("The reward model"),
            text("Training optimized this score, so its gain is no evidence of better images."),
            table(HEAD, [_row(title("lrm"), evaluate["reward"])]),
        ]
    return section("wins", "Judges", *bodies, *promoted(evaluate))


def every_judge(evaluate: Json) -> list[str]:
    """Win rates and means of every published judge, and GenEval by task; empty where only emoji judged."""
    if "judges" not in evaluate:
        return []
    rows = [(title(name), row) for name, row in evaluate["judges"].items()]
    forest = plots.forest([(name, row["win_rate"]) for name, row in rows])
    caption = "Hollow marks: the interval includes 50%."
    bodies = [
        figure(forest, "Win rates by judge with 95% intervals beside 50%", caption),
        table(HEAD, [_row(name, row) for name, row in rows]),
    ]
    if without := evaluate["judges"].get("vlm", {}).get("without_score"):
        words = f"VLM gave no score to an image of {plain(without)} of {plain(evaluate['images'])} pairs."
        bodies.append(text(words, "soft"))
    if "geneval" in evaluate:
        bodies += [
            heading("GenEval"),
            text("Share of images with the right objects, counts, colours and positions. Overall: mean over tasks."),
            _geneval(evaluate["geneval"]),
        ]
    return bodies


def promoted(evaluate: Json) -> list[str]:
    """The tuned model against the promoted one, if there is one, by every judge."""
    if "promoted" not in evaluate:
        return []
    found = evaluate["promoted"]
    top = heading(f"Against the promoted model {found['name']}")
    if "win_rate" not in found:
        return [top, text("The tuned model is the promoted one, so there is nothing to compare.")]
    rates = found["win_rate"] | {title(name): row["win_rate"] for name, row in found.get("judges", {}).items()}
    shares = [
        [name, percent(row["value"]), percents(row), percent(row["ties"]), plain(row["prompts"])]
        for name, row in rates.items()
    ]
    rows = {"all correct": found["all_correct"]} if "all_correct" in found else {}
    rows |= found.get("means", {})
    rows |= {f"scorer {name}": row for name, row in found.get("scorers", {}).items()}
    rows |= {title(name): row for name, row in found.get("judges", {}).items()}
    moved = [
        [name, plain(row["promoted"]), plain(row["tuned"]), signed(row["difference"]),
         f"{signed(row['low'])} to {signed(row['high'])}"]
        for name, row in rows.items()
    ]  # fmt: skip
    return [
        top,
        text("The same prompts, noise and guidance scale.", "soft"),
        table(["win rate", "value", "95% interval", "ties", "prompts"], shares),
        table(["mean of", "promoted", "tuned", "change", "95% interval"], moved),
    ]


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
