"""What a run publishes: a summary with figures and stages, a picture, a link to the report; and notifications."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact
from prefect.blocks.core import Block
from prefect.logging import get_logger
from prefect.runtime import flow_run
from prefect.variables import Variable

from lpo.config import load_params
from lpo.timings.gpus import cost, total
from tasks.dispatch import Outcome
from tasks.workspace import ROOT, STATE

AXES = {"overall": "overall", "alignment": "alignment with the prompt", "aesthetics": "aesthetics"}
REPORTS = STATE / "reports"
KEPT_REPORTS = 20
NOTIFY = "lpo_notify"  # the Prefect variable that names the block to notify


def publish(outcomes: Mapping[str, Outcome], folder: Path, decision: Mapping[str, Any] | None = None) -> None:
    """Create the artifacts of a run: the summary, the picture grid and the link to the report."""
    create_markdown_artifact(summary(outcomes, folder, decision), key="summary", description="figures and stages")
    pictures = folder / "data/report/before_after.png"
    if pictures.exists():
        data = base64.b64encode(pictures.read_bytes()).decode()
        create_image_artifact(
            f"data:image/png;base64,{data}", key="before-after", description="top: base model; bottom: tuned model"
        )
    page = folder / "data/report/index.html"
    address = os.environ.get("LPO_REPORTS_URL")
    if page.exists() and address:
        copy = REPORTS / str(flow_run.id)
        shutil.copytree(page.parent, copy, dirs_exist_ok=True)
        for old in sorted(REPORTS.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_REPORTS]:
            shutil.rmtree(old)
        create_link_artifact(f"{address}/{copy.name}/index.html", "report", key="report", description="the report")


def summary(outcomes: Mapping[str, Outcome], folder: Path, decision: Mapping[str, Any] | None = None) -> str:
    """The run in Markdown: win rates with 95 % intervals, one row per stage, what GPUs did, the gate's decision, places
    that the model in use has not reached, the report's path."""
    lines = []
    metrics = folder / "metrics/evaluate.json"
    if metrics.exists():
        rates = json.loads(metrics.read_text(encoding="utf-8"))["win_rate"]
        lines += ["| tuned model against its base | win rate | 95 % interval |", "| --- | --- | --- |"]
        lines += [
            f"| {words} | {rates[name]['value']:.1%} | {rates[name]['low']:.1%} to {rates[name]['high']:.1%} |"
            for name, words in AXES.items()
            if name in rates
        ]
    lines += ["", "| stage | result | minutes | GPU-hours |", "| --- | --- | --- | --- |"]
    minutes = {name: "" if outcome.minutes is None else f"{outcome.minutes:.1f}" for name, outcome in outcomes.items()}
    hours = {name: f"{total(outcome.uses)[0]:.2f}" if outcome.uses else "" for name, outcome in outcomes.items()}
    lines += [f"| {name} | {outcome.how} | {minutes[name]} | {hours[name]} |" for name, outcome in outcomes.items()]
    if uses := [use for outcome in outcomes.values() for use in outcome.uses]:
        lines += ["", f"On GPUs: {cost(*total(uses), load_params(folder / 'params.yaml').report.gpu_hour_price)}"]
    lines += ["", *(f"**{name} failed.** {o.message}\n" for name, o in outcomes.items() if o.how == "failed")]
    if decision:
        verdict = "promoted" if decision["promoted"] else "not promoted"
        lines += [f"**{decision['name']} was {verdict}:** {decision['reason']}", ""]
        lines += [f"**Not published yet:** {reason}\n" for reason in decision["pending"]]
        lines += ["The next night and `lpo models publish` try again.", ""] if decision["pending"] else []
    if (folder / "data/report/index.html").exists():
        lines.append(f"Report: `{folder}/data/report/index.html`")
    if folder != ROOT:
        lines.append(f"This run has overrides. Its files are in `{folder}`; those of the clone did not change.")
    return "\n".join(lines)


def notify(subject: str, body: str) -> None:
    """Send a message to the block named by the Prefect variable `lpo_notify`, such as slack-webhook/lpo.

    Without the variable nothing is sent. A message that cannot be sent is a warning, and never fails a run.
    """
    try:
        name = Variable.get(NOTIFY)
        if not name:
            return
        block: Any = Block.load(str(name))
        if hasattr(block, "notify"):
            block.notify(body, subject=subject)
        else:
            block.call({"subject": subject, "text": f"{subject}\n{body}"})
    except Exception as error:
        get_logger("notify").warning("the notification was not sent: %s: %s", type(error).__name__, error)
