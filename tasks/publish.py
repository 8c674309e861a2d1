"""What people see of a run: a summary with figures and stages, the pictures, the report; and who is told."""

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

from tasks.dispatch import Outcome
from tasks.workspace import ROOT, STATE

AXES = {"overall": "overall", "alignment": "what the prompt asks for", "aesthetics": "looks"}
REPORTS = STATE / "reports"
KEPT_REPORTS = 20
NOTIFY = "lpo_notify"  # the Prefect variable that names the block which is told


def publish(outcomes: Mapping[str, Outcome], folder: Path, decision: Mapping[str, Any] | None = None) -> None:
    """Write the artifacts of a run: summary, picture grid, link to the report."""
    create_markdown_artifact(summary(outcomes, folder, decision), key="summary", description="figures and stages")
    pictures = folder / "data/report/before_after.png"
    if pictures.exists():
        data = base64.b64encode(pictures.read_bytes()).decode()
        create_image_artifact(
            f"data:image/png;base64,{data}", key="before-after", description="the base above, the tuned model below"
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
    """The run in Markdown: win rates with 95 % intervals, a row a stage, the gate's decision, where the report is."""
    lines = []
    metrics = folder / "metrics/evaluate.json"
    if metrics.exists():
        rates = json.loads(metrics.read_text(encoding="utf-8"))["win_rate"]
        lines += ["| tuned model wins over its base | win rate | 95 % interval |", "| --- | --- | --- |"]
        lines += [
            f"| {words} | {rates[name]['value']:.1%} | {rates[name]['low']:.1%} to {rates[name]['high']:.1%} |"
            for name, words in AXES.items()
            if name in rates
        ]
    lines += ["", "| stage | | minutes |", "| --- | --- | --- |"]
    lines += [f"| {name} | {outcome.how} | {outcome.minutes:.1f} |" for name, outcome in outcomes.items()]
    lines += ["", *(f"**{name} failed.** {o.message}\n" for name, o in outcomes.items() if o.how == "failed")]
    if decision:
        verdict = "promoted" if decision["promoted"] else "not promoted"
        lines += [f"**{decision['name']} was {verdict}:** {decision['reason']}", ""]
    if (folder / "data/report/index.html").exists():
        lines.append(f"Report: `{folder}/data/report/index.html`")
    if folder != ROOT:
        lines.append(f"This run has overrides. Its files are in `{folder}`; the clone's own are as they were.")
    return "\n".join(lines)


def notify(subject: str, body: str) -> None:
    """Tell the block that the Prefect variable `lpo_notify` names, such as slack-webhook/lpo or webhook/lpo.

    Without the variable nobody is told. Nothing that happens here fails a run.
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
        get_logger("notify").warning("nobody could be told: %s: %s", type(error).__name__, error)
