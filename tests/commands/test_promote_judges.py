"""Promotion with the judges of every preset: from pictures of tiny models to the ledger, promoted and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from support.dvc_lock import write_lock
from support.judge_folders import with_tiny_judges

from lpo.commands import promote
from lpo.config import Params, Promote
from lpo.config.presets import with_preset
from lpo.emoji.scenes import sample_prompts
from lpo.errors import LpoError
from lpo.families import load_family
from lpo.registry import ledger
from lpo.registry.gate import figures_of, margins_of, opponents
from lpo.stages import evaluate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROMPTS = 5


def presets() -> list[str]:
    """One preset for each family and list of judges; other presets differ in nothing that promotion reads.

    Families of later transformers have the judges of SD3, and LCM-SDXL those of SDXL.
    """
    found: dict[tuple[str, ...], str] = {}
    for path in sorted((ROOT / "lpo/presets").glob("*.yaml"), reverse=True):
        preset = yaml.safe_load(path.read_text())
        if preset["model"]["family"] in ("sd", "sdxl", "sd3") and preset["model"]["denoiser"] is None:
            found[preset["model"]["family"], *preset["evaluate"]["judges"]] = path.stem
    return sorted(found.values())


def prepare(name: str, request: pytest.FixtureRequest, project: Path, judges: tuple[str, ...] = ()) -> Params:
    """The preset on a tiny model of its family, with its judges in tiny folders, and prompts."""
    params = with_preset(name, Path("params.yaml"))
    base = request.getfixturevalue(f"tiny_{params.model.family}_base")
    model = replace(
        params.model, path=str(base), vae=None, denoiser=None, device="cpu", dtype="fp32", resolution=None, shard=False
    )
    settings = replace(
        params.evaluate, judges=judges or params.evaluate.judges, prompts=PROMPTS, num_inference_steps=2, bootstrap=50,
        batch_size=4, judge_batch_size=4,
    )  # fmt: skip
    drawn = sample_prompts("test", PROMPTS, np.random.default_rng(0), unique=True)
    rows = [(prompt.caption, "test", prompt.category) for prompt in drawn]
    Path("data").mkdir(exist_ok=True)
    pd.DataFrame(rows, columns=["prompt", "split", "category"]).to_parquet("data/prompts.parquet")
    Path("data/scorers").symlink_to(ROOT / "data/scorers")
    Path("data/validators").symlink_to(ROOT / "data/validators")
    ledger.PROMOTED.mkdir(parents=True)
    (ledger.PROMOTED / ".gitignore").write_text("*\n")
    return with_tiny_judges(replace(params, model=model, evaluate=settings), project)


def tune(params: Params, seed: int) -> None:
    """What tune and evaluate leave: a LoRA that changes pictures, figures of it, dvc.lock."""
    family = load_family(params.model)
    family.add_lora(2, 0)
    generator = torch.Generator().manual_seed(seed)
    state = {k: torch.randn(v.shape, generator=generator) for k, v in family.lora_state().items()}
    Path("data/tuned").mkdir(exist_ok=True)
    family.save_lora(Path("data/tuned"), state)
    evaluate.run(params)
    write_lock()


def figures() -> dict[str, Any]:
    return json.loads(promote.FIGURES.read_text())


def lowest(params: Params, name: str) -> float:
    """The lower end of a margin's change, against the opponent against which it is the lowest."""
    return min(figures_of(found, name)["low"] for found in opponents(figures()).values())


def just_passing(params: Params) -> Promote:
    """A gate that these figures pass with nothing to spare."""
    won = min(found["win_rate"]["overall"]["low"] for found in opponents(figures()).values())
    asked = margins_of(params.promote, params.evaluate.judges)
    return replace(params.promote, win_rate_low=won - 1e-6, margins={name: -lowest(params, name) for name in asked})


def decide(params: Params, gate: Promote, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    promote.run(replace(params, promote=gate))
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("name", presets())
def test_a_model_is_promoted_and_the_next_one_refused_by_the_judges_of_the_preset(
    project: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    params = prepare(name, request, project)
    tune(params, 1)
    first = decide(params, just_passing(params), capsys)
    assert first["promoted"] and ledger.name_of(ledger.PROMOTED) == first["name"]

    tune(params, 2)
    assert figures()["promoted"]["name"] == first["name"]
    gate = just_passing(params)
    for margin, value in gate.margins.items():
        strict = replace(gate, margins=gate.margins | {margin: value - 1e-4})
        refused = decide(params, strict, capsys)
        assert not refused["promoted"] and f"{margin} changes by" in refused["reason"]
    assert ledger.name_of(ledger.PROMOTED) == first["name"]
    second = decide(params, gate, capsys)
    assert second["promoted"]
    events = [record["event"] for record in ledger.read_ledger()]
    assert events == ["promoted", *["refused"] * len(gate.margins), "promoted"]


def test_geneval_and_the_scorers_of_mpcf_as_judges(
    project: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    params = prepare("sd15", request, project, ("geneval", "clipscore", "pickscore"))
    tasks = [
        {"tag": "counting", "prompt": f"{count} cats", "include": [{"class": "cat", "count": count}]}
        for count in range(1, PROMPTS + 1)
    ]
    Path("tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    params = replace(params, evaluate=replace(params.evaluate, prompts_file="tasks.jsonl"))
    tune(params, 1)
    gate = just_passing(params)
    strict = replace(gate, margins=gate.margins | {"geneval": gate.margins["geneval"] - 1e-4})
    assert "geneval changes by" in decide(params, strict, capsys)["reason"]
    assert decide(params, gate, capsys)["promoted"]


def test_figures_of_other_judges_are_not_enough(
    project: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """params.yaml names a judge that evaluate did not ask: an error, no decision and no line in the ledger."""
    params = prepare("sd15", request, project, ("pickscore",))
    tune(params, 1)
    asked = replace(params, evaluate=replace(params.evaluate, judges=("pickscore", "imagereward")))
    with pytest.raises(LpoError, match="asks for imagereward, which evaluate has not measured"):
        decide(asked, params.promote, capsys)
    assert ledger.read_ledger() == []


def test_only_the_pipelines_own_model_is_promoted(
    project: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    params = prepare("sd15", request, project, ("pickscore",))
    other = replace(params, evaluate=replace(params.evaluate, tuned="owner/name/unet"))
    with pytest.raises(LpoError, match="evaluate.tuned is owner/name/unet, and only data/tuned can be promoted"):
        decide(other, params.promote, capsys)


def test_a_promoted_model_of_another_base_is_told_before_anything_is_drawn(
    project: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a change of preset the promoted LoRA no longer fits the model."""
    from lpo.evaluate import sides

    params = prepare("sdxl", request, project, ("pickscore",))
    tune(params, 1)
    for file in Path("data/tuned").iterdir():
        (ledger.PROMOTED / file.name).write_bytes(file.read_bytes())
    base = request.getfixturevalue("tiny_sd_base")
    params = replace(params, model=replace(params.model, family="sd", path=str(base)))
    family = load_family(params.model)
    family.add_lora(2, 0)
    family.save_lora(Path("data/tuned"), {k: torch.ones_like(v) for k, v in family.lora_state().items()})
    monkeypatch.setattr(sides, "generate", lambda *_: pytest.fail("nothing may be drawn"))
    with pytest.raises(LpoError, match=r"the promoted model cannot be compared(.|\n)*lpo models rollback base"):
        evaluate.run(params)
