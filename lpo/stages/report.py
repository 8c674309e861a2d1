"""report: metrics, histories, images, hashes -> data/report/ (page, model card, two pictures), metrics.json.

Same inputs, same bytes. No clock is read: dates and minutes come from a file that `lpo STAGE` writes (lpo/timings).
Of git, only the last commit that changed code or parameters is shown, so a commit of anything else, such as these
results, changes nothing. The hashes are those of the stages before this one in dvc.lock.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lpo import paths, timings
from lpo.config import Params
from lpo.data.examples import drawn, with_images
from lpo.files import atomic_folder, write_bytes, write_json, write_text
from lpo.report.cards import model_card
from lpo.report.figures import headline
from lpo.report.page import Artifact, ReportContext, render_report
from lpo.report.pictures import choose, contact_sheet

STAGES = ("base", "dataset", "score", "filter", "encode", "reward", "tune", "evaluate")  # before this one, in order
CODE = ("lpo", "params.yaml")
SHEET = 6  # prompts on a picture: what is still readable at the width of a page
PAIRS = 4  # examples of kept, of dropped and of quarantined pairs


def run(params: Params) -> None:
    """Write data/report. The page names what is missing; only images that do not pair up are an error."""
    sections = dataclasses.asdict(params)
    for name in ("vote", "ingest", "promote", "publish", "tracking"):  # no part of what a run made
        del sections[name]
    metrics = {stage: found for stage in (*STAGES, "people") if (found := _json(paths.metrics(stage))) is not None}
    outs, code = locked(Path("dvc.lock"))
    context = ReportContext(
        params=sections,
        metrics=metrics,
        results=pd.read_parquet(paths.RESULTS) if paths.RESULTS.exists() else None,
        reward_history=_json(paths.REWARD / "history.json"),
        tune_history=_json(paths.TUNED / "history.json"),
        contract=_json(paths.FILTERED / "summary.json"),
        examples=examples(params.seed),
        timings=timings.current(STAGES),
        artifacts=outs,
        code=code,
        revision=revision(Path(".")),
    )
    with atomic_folder(paths.REPORT) as folder:
        write_text(folder / "index.html", render_report(context))
        write_text(folder / "MODEL_CARD.md", model_card(sections, metrics))
        if context.results is not None:
            chosen = choose(context.results, SHEET, params.seed)
            for name, file in (("random", "before_after.png"), ("changed", "changed.png")):
                if name in chosen:
                    write_bytes(folder / file, contact_sheet(context.results, chosen[name]))
    write_json("metrics.json", headline(metrics))


def examples(seed: int) -> dict[str, list[dict[str, Any]]] | None:
    """A few training pairs that were kept and dropped, with their images, and a few that were quarantined."""
    tables = {name: paths.FILTERED / f"{name}.parquet" for name in ("kept", "dropped", "quarantine")}
    if not all(path.exists() for path in [*tables.values(), paths.PAIRS]):
        return None
    rows = {name: pd.read_parquet(path) for name, path in tables.items()}
    folders = (paths.PAIRS, paths.COLLECTED)
    chosen = {
        name: with_images(drawn(rows[name].query("split == 'train'"), PAIRS, seed), folders)
        for name in ("kept", "dropped")
    }
    return chosen | {"quarantined": drawn(rows["quarantine"], PAIRS, seed).to_dict("records")}


def locked(path: Path) -> tuple[list[Artifact], list[Artifact]]:
    """(what the stages made, the code they ran) as dvc.lock records them."""
    stages = yaml.safe_load(path.read_text())["stages"] if path.exists() else {}

    def artifacts(key: str) -> list[Artifact]:
        return [
            Artifact(stage, item["path"], item.get("md5", ""), item.get("size", 0))
            for stage in STAGES
            for item in stages.get(stage, {}).get(key, [])
        ]

    return artifacts("outs"), [item for item in artifacts("deps") if item.path.split("/")[0] in CODE]


def revision(root: Path) -> str:
    """The last commit that touched code or parameters, and whether they were changed after it."""
    try:
        commit = _git(root, "log", "-1", "--format=%H", "--", *CODE)
        changed = _git(root, "status", "--porcelain", "--", *CODE)
    except (subprocess.CalledProcessError, FileNotFoundError):
        return "no git repository"
    if not commit:
        return "not committed yet"
    return f"{commit}, with changes that are not committed" if changed else commit


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


def _json(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None
