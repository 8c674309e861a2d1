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

from lpo.format import flat, percent, percents, plain, points
from lpo.report import snippets
from lpo.report.data_section import data
from lpo.report.findings import AXES, headline, shown
from lpo.report.html import code_block, folded, heading, missing, page, section, table, text, tile
from lpo.report.judge_section import judges
from lpo.report.people_section import people
from lpo.report.pictures import pictures
from lpo.report.sections import changes, reward_model, tuning, wins
from lpo.timings import gpus

Json = Mapping[str, Any]
SHOWN = {  # id of a section -> its name in the line of links
    "pictures": "Images",
    "wins": "Win rates",
    "changes": "What changed",
    "people": "What people said",
    "reward": "Reward model",
    "tuning": "Tuning",
    "data": "Data",
    "use": "Use the model",
    "provenance": "Provenance",
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
    examples: Mapping[str, Sequence[Json]] | None  # pairs to look at, see data_section.py
    timings: Mapping[str, Json]  # stage -> {seconds, finished, machine} of its last run on this machine
    artifacts: Sequence[Artifact]  # made by the stages before the report
    code: Sequence[Artifact]  # that those stages ran
    revision: str  # of the last commit that touched code or parameters


def render_report(context: ReportContext) -> str:
    """The page. Raises LpoError if the pictures of results do not pair up."""
    metrics = context.metrics
    evaluate = metrics.get("evaluate")
    judged = evaluate is not None and "judge" in evaluate  # not by the emoji oracle
    left_out = ({"changes"} if judged else set()) | ({"people"} - metrics.keys())
    names = {name: title for name, title in SHOWN.items() if name not in left_out}
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in names.items())
    base = context.params["model"]["path"]
    top = (
        f'<header>\n<p class="over">Latent preference optimization of {escape(str(base))}</p>\n'
        f"<h1>{escape(headline(evaluate))}</h1>\n{_lead(context.params, metrics)}\n{_tiles(metrics)}\n"
        f"{shown(evaluate)}\n"
        f"{_absent(context)}\n</header>\n<nav>{links}</nav>"
    )
    sections = [
        pictures(context.results, context.params),
        *([judges(evaluate)] if evaluate is not None and judged else [wins(evaluate), changes(evaluate)]),
        people(metrics.get("people")),
        reward_model(metrics.get("reward"), context.reward_history),
        tuning(metrics.get("tune"), context.tune_history),
        data(metrics.get("filter"), context.contract, context.examples, context.params["filter"]),
        _use(context.params),
        _provenance(context),
    ]
    body = f"{top}\n<main>\n" + "\n".join(sections) + "\n</main>"
    return page("Latent preference optimization: report", body)


def _lead(params: Json, metrics: Mapping[str, Json]) -> str:
    setting, evaluate = params["evaluate"], metrics.get("evaluate")
    words = (
        "Both models draw the same prompts from the same noise at the same guidance scale "
        f"({plain(setting['guidance_scale'])}). A tie counts as half a win."
    )
    if evaluate is not None and "all_correct" in evaluate:
        row = evaluate["all_correct"]
        words += (
            f" All-correct rate, the share of images with every detail of the prompt right: {percent(row['base'])} "
            f"before, {percent(row['tuned'])} after."
        )
    if params["dataset"]["source"] == "simulated":
        words += " Preferences are simulated, and the judge is a program that knows the scene."
        words += " What people said is below." if "people" in metrics else " No people were asked."
    return text(words, "lead")


def _tiles(metrics: Mapping[str, Json]) -> str:
    evaluate = metrics.get("evaluate", {})
    rates, made = evaluate.get("win_rate", {}), []
    for axis, words in AXES.items():
        if axis in rates:
            made.append(tile(percent(rates[axis]["value"]), f"win rate, {words}", percents(rates[axis])))
    if "all_correct" in evaluate:
        row = evaluate["all_correct"]
        interval = f"points, {points(row['low'])} to {points(row['high'])}"
        made.append(tile(points(row["difference"]), "all-correct rate, change", interval))
    if "reward" in metrics:
        accuracy = percent(metrics["reward"]["accuracy"]["mean"])
        made.append(tile(accuracy, "accuracy of the reward model", "on held-out pairs"))
    if "filter" in metrics:
        train = metrics["filter"]["by_split"]["train"]
        share = percent(train["kept"] / max(1, train["input"]))
        made.append(tile(share, "training pairs kept", f"of {plain(train['input'])}"))
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


def _use(params: Json) -> str:
    command = f'lpo generate "{snippets.prompt(params)}" --lora data/tuned --out image.png'
    return section(
        "use",
        "Use the model",
        code_block(command),
        text("With diffusers, from the project's folder:"),
        code_block(snippets.draw(params)),
        '<p>More in <a href="MODEL_CARD.md"><code>MODEL_CARD.md</code></a>.</p>',
    )


def _provenance(context: ReportContext) -> str:
    bodies = [heading("Time by stage"), *_times(context.timings, context.params["report"].get("gpu_hour_price"))]
    bodies += [heading("Code"), text(f"Last commit that changed lpo/ or params.yaml: {context.revision}.")]
    if context.code:
        bodies.append(folded("Code of each stage", _hashes(context.code)))
    bodies.append(heading("Data"))
    bodies.append(_hashes(context.artifacts) if context.artifacts else missing("hashes of data in dvc.lock", ""))
    bodies.append(heading("Parameters and figures"))
    bodies.append(folded("params.yaml", table(["parameter", "value"], flat(context.params), texts=2)))
    for stage, figures in context.metrics.items():
        bodies.append(folded(f"metrics/{stage}.json", table(["figure", "value"], flat(figures))))
    return section("provenance", "Provenance", *bodies)


def _times(timings: Mapping[str, Json], price: float | None) -> list[str]:
    if not timings:
        return [text("No stage ran on this machine: the results were fetched.", "soft")]
    uses = {stage: use for stage, row in timings.items() if (use := gpus.read(row.get("gpu"))) is not None}
    rows = [
        [stage, f"{row['seconds'] / 60:.1f}", f"{uses[stage].hours:.2f}" if stage in uses else "",
         row.get("finished", ""), row.get("machine", "")]
        for stage, row in timings.items()
    ]  # fmt: skip
    minutes = sum(row["seconds"] for row in timings.values()) / 60
    note = "The last run of each stage on this machine. Of a resumed stage, the time since it was resumed."
    rows.append(["total", f"{minutes:.1f}", f"{gpus.total(uses.values())[0]:.2f}" if uses else "", "", ""])
    said = [text(f"On GPUs: {gpus.cost(*gpus.total(uses.values()), price)}.")] if uses else []
    return [text(note, "soft"), table(["stage", "minutes", "GPU-hours", "finished", "machine"], rows), *said]


def _hashes(items: Sequence[Artifact]) -> str:
    rows = [[item.stage, item.path, item.hash, plain(item.size)] for item in items]
    return table(["stage", "path", "md5", "bytes"], rows, texts=3)
