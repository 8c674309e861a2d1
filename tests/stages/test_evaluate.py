"""The evaluation of a tiny model: with and without a promoted one, and what is drawn again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lpo.config import Params, load_params
from lpo.emoji.scenes import sample_prompts
from lpo.families.sd import SD
from lpo.registry.ledger import PROMOTED, name_of
from lpo.rewards.lrm import LatentRewardModel
from lpo.stages import evaluate

PROMPTS, LORA = 3, Path("data/tuned")


def write_lora(family: SD, folder: Path, seed: int) -> None:
    """An adapter that changes pictures: its B is not zero."""
    torch.manual_seed(seed)
    state = {name: torch.randn_like(value) for name, value in family.lora_state().items()}
    folder.mkdir(parents=True, exist_ok=True)
    family.save_lora(folder, state)


@pytest.fixture
def lab(project: Path, repository: Path, tiny_base: Path, tiny: SD, tiny_reward: LatentRewardModel) -> SD:
    """All that evaluate reads, with a LoRA in data/tuned. The family can write others."""
    shutil.copytree(tiny_base, "data/base")
    Path("data/scorers").symlink_to(repository / "data/scorers")
    Path("data/reward").mkdir()
    tiny_reward.save(Path("data/reward"))
    drawn = sample_prompts("test", PROMPTS, np.random.default_rng(0), unique=True)
    rows = [(prompt.caption, "test", prompt.category) for prompt in drawn]
    pd.DataFrame(rows, columns=["prompt", "split", "category"]).to_parquet("data/prompts.parquet")
    tiny.add_lora(2, 0)
    write_lora(tiny, LORA, 1)
    return tiny


def params() -> Params:
    loaded = load_params()
    small = dataclasses.replace(
        loaded.evaluate, prompts=PROMPTS, num_inference_steps=2, batch_size=2, bootstrap=20, base_guidance_scale=3.0
    )
    return dataclasses.replace(loaded, evaluate=small, model=dataclasses.replace(loaded.model, device="cpu"))


def run() -> tuple[pd.DataFrame, Any]:
    evaluate.run(params())
    return pd.read_parquet("data/evaluation/results.parquet"), json.loads(Path("metrics/evaluate.json").read_text())


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, fail_at: int = 0) -> Iterator[list[str]]:
    """Inside, the models that are drawn, by name; the drawing of number `fail_at` is cut off."""
    names: list[str] = []
    real = evaluate.generate

    def generate(*args: Any) -> Any:
        names.append(args[-1])
        if len(names) == fail_at:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "generate", generate)
        yield names


def pictures(results: pd.DataFrame, model: str) -> list[bytes]:
    return results.loc[results["model"] == model, "png"].tolist()


def test_without_a_promoted_model_there_is_nothing_of_it(lab: SD) -> None:
    results, metrics = run()
    assert set(results["model"]) == {"base", "base_matched", "tuned"}
    assert "promoted" not in metrics
    assert pictures(results, "tuned") != pictures(results, "base_matched") != pictures(results, "base")


def test_a_promoted_model_is_drawn_as_it_was_when_it_was_the_tuned_one(
    lab: SD, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, figures = run()
    shutil.copytree(LORA, PROMOTED)
    with counted(monkeypatch) as drawn:
        same, named = run()
    assert drawn == []  # the run after a promotion
    assert same.equals(before) and named == figures | {"promoted": {"name": name_of(LORA)}}
    write_lora(lab, LORA, 2)
    with counted(monkeypatch) as drawn:
        results, metrics = run()
    assert drawn == ["tuned"]
    assert pictures(results, "promoted") == pictures(before, "tuned") != pictures(results, "tuned")
    assert metrics["promoted"]["name"] == name_of(PROMOTED)
    utility = {model: rows.set_index("prompt")["utility"] for model, rows in results.groupby("model")}
    tuned, other = utility["tuned"], utility["promoted"]
    wins = ((tuned > other) + 0.5 * (tuned == other)).mean()
    assert metrics["promoted"]["win_rate"]["overall"]["value"] == pytest.approx(wins, abs=1e-5)
    change = metrics["promoted"]["means"]["overall"]
    assert change["promoted"] == pytest.approx(other.mean(), abs=1e-5) and "base" not in change
    assert change["difference"] == pytest.approx((tuned - other).mean(), abs=1e-5)


def test_a_killed_evaluation_goes_on_at_the_model_where_it_stopped(lab: SD, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch, fail_at=3), pytest.raises(KeyboardInterrupt):
        run()
    with counted(monkeypatch) as drawn:
        resumed, metrics = run()
    assert drawn == ["tuned"]
    shutil.rmtree(".checkpoints")
    whole, figures = run()
    assert resumed.equals(whole) and metrics == figures


def test_pictures_of_models_that_are_gone_are_forgotten(lab: SD) -> None:
    run()
    write_lora(lab, LORA, 2)
    run()
    assert len(list(Path(".checkpoints/evaluate").rglob("*.npy"))) == 3
