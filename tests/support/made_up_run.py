"""A made-up run for the tests of the report: every figure, an image a prompt and model, and hostile strings."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

import pandas as pd
from PIL import Image
from support.defaults import default_params

from lpo.config import check_params
from lpo.config.reader import parse_yaml
from lpo.evaluate.metrics import evaluate_results
from lpo.report.page import Artifact, ReportContext

HOSTILE = "<script>alert(1)</script> & \"a' cat"
CATEGORIES = ("single", "pair", "count", HOSTILE)
DEFAULTS = asdict(check_params(parse_yaml(default_params(), "params.yaml"), "params.yaml"))
PARAMS = DEFAULTS | {
    "seed": 7,
    "filter": DEFAULTS["filter"] | {"strategy": "2"},
    "evaluate": DEFAULTS["evaluate"] | {"guidance_scale": 3.0, "base_guidance_scale": 1.5},
    "report": {"examples": 3},
}


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 80, 160)).save(buffer, "PNG")
    return buffer.getvalue()


def people(voters: int = 5, simulated: int = 0) -> dict[str, Any]:
    """Made up: what people said of a tuned model, and of a promoted one with a hostile name that nobody voted on."""
    rate = {"value": 0.64, "low": 0.55, "high": 0.72, "ties": 0.1, "votes": 210, "voters": voters, "prompts": 150}
    stopping = {"low": 0.53, "high": 0.75, "error": 0.05, "verdict": "better", "more_votes": 0}
    none = {"low": 0.0, "high": 1.0, "error": 0.05, "verdict": None, "more_votes": None}
    strength = {"strength": 0.29, "low": 0.1, "high": 0.48, "votes": 420, "win_rate": 0.64}
    return {
        "tuned": "lpo-1", "votes": 420, "voters": voters, "prompts": 300, "skipped": 3, "seconds": 2.5,
        "simulated": simulated, "agreement": 0.41, "not_used": {HOSTILE: 12},
        "against": {"base": {"opponent": "base@12", "win_rate": rate, "stopping": stopping},
                    "promoted": {"opponent": HOSTILE, "win_rate": None, "stopping": none}},
        "strengths": {"models": {"lpo-1": strength, "base@12": strength | {"strength": -0.29}}, "left_out": []},
    }  # fmt: skip


def results(prompts: int = 16) -> pd.DataFrame:
    """Made up: the tuned model gains i - 4 in utility on prompt i."""
    rows = []
    for i in range(prompts):
        prompt = HOSTILE if i == 0 else f"prompt {i}"
        for place, model in enumerate(("base", "base_matched", "tuned")):
            gain = i - 4.0 if model == "tuned" else 0.0
            rows.append(
                {"prompt": prompt, "category": CATEGORIES[i % 4], "seed": i, "model": model, "png": png(i * 3 + place),
                 "all_correct": gain > 0, "alignment": 1.0 if gain > 0 else 0.5, "aesthetic": 5 + gain / 8,
                 "utility": gain, "clip": 0.2 + gain / 90, "vqa": 0.6, "aesthetic_score": 5 + gain / 9, "lrm": gain}
            )  # fmt: skip
    return pd.DataFrame(rows)


def metrics() -> dict[str, Any]:
    bins = [{"t_low": t, "t_high": t + 250, "value": 0.8 - t / 4000, "low": 0.7 - t / 4000, "high": 0.85 - t / 4000}
            for t in range(0, 1000, 250)]  # fmt: skip
    train = {"input": 800, "kept": 200, "dropped": 595, "quarantined": 5}
    counts = {"input": 1000, "kept": 400, "dropped": 595, "quarantined": 5, "dropped_by": {"clip": 300, HOSTILE: 450},
              "quarantined_by": {HOSTILE: 5}, "by_split": {"train": train}}  # fmt: skip
    by_category = {HOSTILE: {"value": 0.7, "low": 0.6, "high": 0.8, "pairs": 100}}
    validation = [{"rollout": 10, "reward": 1.5}, {"rollout": 20, "reward": 1.75}]
    return {
        "filter": counts,
        "reward": {
            "accuracy": {"mean": 0.71, "by_timestep": bins, "by_category": by_category, "by_difference": by_category}
        },
        "tune": {"prompts": 2000, "pairs": 9000, "updates": 140, "validation": validation},
        "evaluate": evaluate_results(results(), ["emoji"], resamples=200),
    }


def context(**changes: Any) -> ReportContext:
    steps = [
        {"t": 951, "seen": 8, "kept": 4, "gap": 0.9, "clipped": 0.1, "implicit_accuracy": 0.6},
        {"t": 1, "seen": 8, "kept": 0, "gap": 0.1},
    ]
    history = [{"rollout": i, "loss": 0.7 - i / 100, "kept": 0.3, "by_timestep": steps} for i in range(5)]
    pair = {"caption": HOSTILE, "label_0": 0.0, "label_1": 1.0, "jpg_0": png(7), "jpg_1": png(9), "gap_aesthetic": 0.1,
            "gap_clip": -0.2, "gap_vqa": 0.0}  # fmt: skip
    bad = {"file": HOSTILE, "row": 3, "caption": HOSTILE, "reason": HOSTILE}
    artifact = Artifact("dataset", f"data/{HOSTILE}", "0123abcd.dir", 12345678)
    given = {
        "params": PARAMS,
        "metrics": metrics(),
        "results": results(),
        "reward_history": [{"step": 10 * i, "loss": 0.7 - i / 100} for i in range(5)],
        "tune_history": history,
        "contract": {"success": True, "note": HOSTILE},
        "examples": {"kept": [pair], "dropped": [pair | {"reason": HOSTILE}], "quarantined": [bad]},
        "timings": {"tune": {"seconds": 90.0, "finished": "2026-01-02", "machine": HOSTILE}},
        "artifacts": [artifact],
        "code": [artifact],
        "revision": "deadbeef",
    }
    return ReportContext(**(given | changes))
