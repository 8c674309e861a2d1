"""The report: one HTML page that holds everything it shows.

    render_report(ReportContext(...)) -> str

No script, no font, no picture from outside; every string that comes from data is escaped; the same input gives the
same bytes, so nothing here reads a clock. A file or a figure that is absent is named as missing, at the top and in its
place.
Shapes: metrics maps a stage to the content of metrics/STAGE.json; histories are lists of rows (see sections.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from lpo.format import flat, percent, percents, plain, points, title
from lpo.report import plots
from lpo.report.html import figure, folded, heading, missing, page, section, table, text, tile
from lpo.report.judge_section import judges
from lpo.report.pictures import pictures
from lpo.report.sections import changes, reward_model, tuning, wins

Json = Mapping[str, Any]
SHOWN = {  # id of a section -> its name in the line of links
    "pictures": "Pictures",
    "wins": "Win rates",
    "changes": "What changed",
    "reward": "Reward model",
    "tuning": "Tuning",
    "data": "Data",
    "provenance": "How it was made",
}


@dataclass(frozen=True)
class Artifact:
    """One file or folder of dvc.lock: the stage that made it, its path, its hash and its size in bytes."""

    stage: str
    path: str
    hash: str
    size: int


@dataclass(frozen=True)
class ReportContext:
    """All that the page shows. None, or an absent stage in metrics, means that the file was not there."""

    params: Json
    metrics: Mapping[str, Json]
    results: pd.DataFrame | None
    reward_history: Sequence[Json] | None
    tune_history: Sequence[Json] | None
    contract: Json | None  # data/filtered/summary.json
    artifacts: Sequence[Artifact]  # made by the stages before the report
    code: Sequence[Artifact]  # that those stages ran
    revision: str  # of the last commit that touched code or parameters


def render_report(context: ReportContext) -> str:
    """The page. Raises LpoError if the pictures of results do not pair up."""
    metrics = context.metrics
    evaluate = metrics.get("evaluate")
    judged = evaluate is not None and "judge" in evaluate  # not by the emoji oracle
    shown = {name: title for name, title in SHOWN.items() if name != "changes"} if judged else SHOWN
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in shown.items())
    base = context.params["model"]["path"]
    top = (
        f'<header>\n<p class="over">Latent preference optimisation of {escape(str(base))}</p>\n'
        f"<h1>{escape(headline(evaluate))}</h1>\n{_lead(context.params, evaluate)}\n{_tiles(metrics)}\n"
        f"{_absent(context)}\n</header>\n<nav>{links}</nav>"
    )
    sections = [
        pictures(context.results, context.params),
        *([judges(evaluate)] if evaluate is not None and judged else [wins(evaluate), changes(evaluate)]),
        reward_model(metrics.get("reward"), context.reward_history),
        tuning(metrics.get("tune"), context.tune_history),
        _data(context),
        _provenance(context),
    ]
    body = f"{top}\n<main>\n" + "\n".join(sections) + "\n</main>"
    return page("Latent preference optimisation: report", body)


def headline(evaluate: Json | None) -> str:
    """The result in one sentence with its interval."""
    if evaluate is None or "overall" not in evaluate.get("win_rate", {}):
        return "There is no result yet: metrics/evaluate.json holds no overall win rate."
    row = evaluate["win_rate"]["overall"]
    if row["low"] > 0.5:
        verdict = "Tuning made the model better"
    elif row["high"] < 0.5:
        verdict = "Tuning made the model worse"
    else:
        verdict = "Tuning made no difference that these prompts can show"
    prompts = f"{plain(row['prompts'])} held-out prompts against its own base"
    judge = f" by {title(evaluate['judge'])}" if "judge" in evaluate else ""
    return f"{verdict}: it wins {percent(row['value'])} of {prompts}{judge} (95% interval {percents(row)})."


def _lead(params: Json, evaluate: Json | None) -> str:
    words = "Both sides draw the same prompts from the same noise at the same guidance scale; a tie counts half."
    if evaluate is not None and "all_correct" in evaluate:
        row = evaluate["all_correct"]
        words += (
            f" Pictures with every detail of the prompt right: {percent(row['base'])} before, {percent(row['tuned'])} "
            f"after, a change of {points(row['difference'])} points ({points(row['low'])} to {points(row['high'])})."
        )
    if params["dataset"]["source"] == "simulated":
        words += " Preferences are simulated and the judge is a program that knows what was asked; nobody was polled."
    return text(words, "lead")


def _tiles(metrics: Mapping[str, Json]) -> str:
    rates = metrics.get("evaluate", {}).get("win_rate", {})
    names = {"overall": "wins overall", "alignment": "wins on the prompt", "aesthetics": "wins on looks"}
    made = [tile(percent(rates[axis]["value"]), name, percents(rates[axis])) for axis, name in names.items()
            if axis in rates]  # fmt: skip
    if "reward" in metrics:
        made.append(tile(percent(metrics["reward"]["accuracy"]["mean"]), "reward model right", "of held-out pairs"))
    if "filter" in metrics:
        counts = metrics["filter"]
        made.append(tile(percent(counts["kept"] / counts["input"]), "pairs kept", f"of {plain(counts['input'])}"))
    return f'<div class="tiles">{"".join(made)}</div>' if made else ""


def _absent(context: ReportContext) -> str:
    wanted: dict[str, tuple[Any, str]] = {f"metrics/{stage}.json": (context.metrics.get(stage), stage)
              for stage in ("filter", "reward", "tune", "evaluate")}  # fmt: skip
    wanted |= {
        "data/evaluation/results.parquet": (context.results, "evaluate"),
        "data/reward/history.json": (context.reward_history, "reward"),
        "data/tuned/history.json": (context.tune_history, "tune"),
        "data/filtered/summary.json": (context.contract, "filter"),
    }
    return "\n".join(missing(path, stage) for path, (found, stage) in wanted.items() if found is None)


def _data(context: ReportContext) -> str:
    bodies = [heading("Data contract")]
    counts = context.metrics.get("filter")
    if counts is None:
        bodies.append(missing("metrics/filter.json", "filter"))
    else:
        limit = context.params["filter"]["max_quarantined"]
        bodies.append(
            text(
                f"{plain(counts['quarantined'])} of {plain(counts['input'])} rows broke the contract "
                f"({percent(counts['quarantined'] / counts['input'])}; the run stops above {percent(limit)}). They are "
                "in data/filtered/quarantine.parquet, each with its reason."
            )
        )
    where = "data/filtered/data_docs/index.html"
    bodies.append(f'<p>Every expectation: <a href="../filtered/data_docs/index.html"><code>{where}</code></a>.</p>')
    if context.contract is None:
        bodies.append(missing("data/filtered/summary.json", "filter"))
    else:
        bodies.append(folded("The contract's summary", table(["figure", "value"], flat(context.contract), texts=2)))
    bodies.append(heading("Multi-preference consistent filtering"))
    if counts is not None:
        bodies += _mpcf(counts, context.params["filter"])
    return section("data", "Data", *bodies)


def _mpcf(counts: Json, rules: Json) -> list[str]:
    strategy = rules["strategy"]
    margins = rules["strategies"].get(strategy)
    asked = ", ".join(f"{name} at least {plain(value)}" for name, value in margins.items()) if margins else "nothing"
    ties = ", ".join(f"{name} {plain(value)}" for name, value in rules["ties"].items())
    words = (
        f"Strategy {strategy} asks of the winner's lead: {asked}. A tie is kept if no gap is larger than: {ties}. "
        "A pair can break several rules, so they need not add up."
    )
    rows = [("kept", counts["kept"]), ("dropped", counts["dropped"]), ("quarantined", counts["quarantined"])]
    rows += [(f"dropped by {rule}", count) for rule, count in counts.get("dropped_by", {}).items()]
    cells = [[name, plain(count), percent(count / counts["input"])] for name, count in rows]
    made = [text(words), table(["pairs", "number", "of all"], cells)]
    if counts.get("dropped_by"):
        bars = plots.mpcf_bars(counts["kept"], counts["dropped_by"])
        made.insert(1, figure(bars, "Pairs kept and dropped", "Pairs kept, and pairs dropped by each rule."))
    else:
        made.append(missing("dropped_by in metrics/filter.json", "filter"))
    return made


def _provenance(context: ReportContext) -> str:
    bodies = [heading("Code"), text(f"Last commit that touched lpo/ or params.yaml: {context.revision}.")]
    if context.code:
        bodies.append(folded("Code that each stage ran", _hashes(context.code)))
    bodies.append(heading("Data"))
    bodies.append(_hashes(context.artifacts) if context.artifacts else missing("hashes of data in dvc.lock", ""))
    bodies.append(heading("Parameters and figures"))
    bodies.append(folded("params.yaml", table(["parameter", "value"], flat(context.params), texts=2)))
    for stage, figures in context.metrics.items():
        bodies.append(folded(f"metrics/{stage}.json", table(["figure", "value"], flat(figures))))
    return section("provenance", "How it was made", *bodies)


def _hashes(items: Sequence[Artifact]) -> str:
    rows = [[item.stage, item.path, item.hash, plain(item.size)] for item in items]
    return table(["stage", "path", "md5", "bytes"], rows, texts=3)
