"""Every real preset from the download of its pairs to the promotion of its LoRA, on tiny models of published layouts.

The pairs come from a hub on this machine. Models are folders in the hub's layout, and the preset decides the rest:
family, source, scorers, strategy, features and layer of the reward, method, judges and gate.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.dvc_lock import write_lock
from support.flan_t5 import flan_t5_folders
from support.judge_folders import with_tiny_judges
from support.loopback_hub import serve
from support.tiny_models import lcm_unet
from support.tiny_transformers import MODELS

from lpo.commands import promote
from lpo.config import Params
from lpo.config.presets import with_preset
from lpo.data.sources.choose import REPOSITORIES
from lpo.registry import ledger
from lpo.rehearsal.pairs import write_pairs
from lpo.stages import encode, evaluate, filter, report, reward, score, tune
from lpo.study import spm
from lpo.train.policy import trainer

pytestmark = pytest.mark.slow

REAL = ["sd15", "sd21", "sdxl", "sd3", "spo-sd15", "spo-sdxl", "lcm-sdxl", "sdxl-turbo", "flux-schnell"]
DOWNLOAD = """
import pickle
from lpo.preflight import require
from lpo.stages import dataset
params = pickle.load(open("params.pickle", "rb"))
require(params, "dataset")
dataset.run(params)
"""


def shrunk(params: Params, base: Path, project: Path) -> Params:
    """The preset with tiny models, few steps and few prompts. Every pair passes the filter, every result the gate."""
    flan_t5_folders(project / "t5", project / "vision")
    params = with_tiny_judges(params, project)
    transformer = params.model.family not in ("sd", "sdxl")
    denoiser = str(lcm_unet(base, project / "lcm")) if params.model.denoiser else None
    free = {name: replace(m, aesthetic=-99.0, clip=-99.0, vqa=-99.0) for name, m in params.filter.strategies.items()}
    few = {
        "steps": 2, "warmup_steps": 1, "batch_size": 4, "micro_batch_size": 4, "validate_every": 2,
        "checkpoint_every": 2,
    }  # fmt: skip
    return replace(
        params,
        model=replace(
            params.model, path=str(base), vae=None, denoiser=denoiser, device="cpu", dtype="fp32",
            resolution=32 if transformer else None, shard=False,
        ),
        score=replace(
            params.score, batch_size=4,
            models=replace(params.score.models, vqa="t5", vqa_vision="vision", vqa_tokenizer="t5"),
        ),
        filter=replace(params.filter, strategies=free),
        encode=replace(params.encode, batch_size=4),
        reward=replace(
            params.reward, **few, base=None, layer=2 if transformer else None,
            embedding_dim=24 if params.model.family == "sdxl" else 8,
            text_projection="clip" if "/" in params.reward.text_projection else params.reward.text_projection,
        ),
        spm=replace(params.spm, **few, clip="clip", tokenizer="clip"),
        tune=replace(
            params.tune, prompts=2, prompts_per_rollout=2, num_inference_steps=4, batch_size=4, micro_batch_size=4,
            lora_rank=2, validate_every=1, validation_prompts=2, checkpoint_every=1, learning_rate=1e-2,
            threshold=replace(params.tune.threshold, low=0.0, high=0.0),
        ),
        evaluate=replace(
            params.evaluate, prompts=3, num_inference_steps=2, bootstrap=50, batch_size=4, judge_batch_size=4,
        ),
        promote=replace(
            params.promote, win_rate_low=-1.0, margins=dict.fromkeys(params.promote.margins, 99.0),
        ),
    )  # fmt: skip


def decide(params: Params, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    promote.run(params)
    decision: dict[str, Any] = json.loads(capsys.readouterr().out)
    return decision


@pytest.mark.parametrize("name", REAL)
def test_from_download_to_promotion(
    project: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(trainer, "BASE_VALUE", -math.inf)  # two updates are kept even if the base is better
    preset = with_preset(name, Path("params.yaml"))
    if name in MODELS:
        base = request.getfixturevalue("tiny_transformer")(name)
    else:
        base = request.getfixturevalue(f"tiny_{preset.model.family}_base")
    params = shrunk(preset, base, project)
    write_pairs(project / "remote", {"train": 6, "validation": 3, "test": 3}, prompts=3, side=40)
    (project / "params.pickle").write_bytes(pickle.dumps(params))
    with serve(REPOSITORIES[params.dataset.source], project / "remote") as hub:
        environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(project / "home")}
        done = subprocess.run([sys.executable, "-c", DOWNLOAD], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    score.run(params)
    filter.run(params)
    encode.run(params)
    (spm if params.tune.reward == "data/spm" else reward).run(params)
    tune.run(params)
    assert pd.read_json("data/tuned/history.json")["pairs"].sum() > 0
    ledger.PROMOTED.mkdir(parents=True)
    (ledger.PROMOTED / ".gitignore").write_text("*\n")
    evaluate.run(params)
    judged = json.loads(promote.FIGURES.read_text())
    assert set(judged["judges"]) == set(params.evaluate.judges)
    report.run(params)
    assert Path("data/report/index.html").stat().st_size > 10_000
    write_lock()
    strict = replace(params, promote=replace(params.promote, win_rate_low=1.0))
    assert not decide(strict, capsys)["promoted"]
    decision = decide(params, capsys)
    assert decision["promoted"], decision
    assert ledger.name_of(ledger.PROMOTED) == decision["name"]
