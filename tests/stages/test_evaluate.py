"""evaluate in the emoji world: with and without a promoted model, what is drawn again, other judges beside emoji."""

from __future__ import annotations

import dataclasses
import io
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
from PIL import Image
from support.judge_folders import with_tiny_judges

from lpo.config import Params, load_params
from lpo.emoji.oracle import judge
from lpo.emoji.scenes import parse, sample_prompts
from lpo.errors import LpoError
from lpo.evaluate import sides
from lpo.evaluate.reward_judge import load_reward_judge
from lpo.evaluate.sides import Side
from lpo.families.sd import SD
from lpo.images import to_tensor
from lpo.registry.ledger import PROMOTED, name_of
from lpo.rewards.lrm import LatentRewardModel
from lpo.scorers import embedded
from lpo.stages import evaluate, report

PROMPTS, LORA, FIGURES = 3, Path("data/tuned"), Path("metrics/evaluate.json")


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
    """Inside, the models whose parts are drawn, by name; the drawing of number `fail_at` is cut off."""
    names: list[str] = []
    real = evaluate.painter

    def painter(side: Side, *args: Any) -> Any:
        draw = real(side, *args)

        def counting(rows: pd.DataFrame) -> Any:
            names.append(side.name)
            if len(names) == fail_at:
                raise KeyboardInterrupt
            return draw(rows)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "painter", painter)
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
    assert drawn == ["tuned"] * 2  # its two parts
    assert pictures(results, "promoted") == pictures(before, "tuned") != pictures(results, "tuned")
    assert metrics["promoted"]["name"] == name_of(PROMOTED)
    utility = {model: rows.set_index("prompt")["utility"] for model, rows in results.groupby("model")}
    tuned, other = utility["tuned"], utility["promoted"]
    wins = ((tuned > other) + 0.5 * (tuned == other)).mean()
    assert metrics["promoted"]["win_rate"]["overall"]["value"] == pytest.approx(wins, abs=1e-5)
    change = metrics["promoted"]["means"]["overall"]
    assert change["promoted"] == pytest.approx(other.mean(), abs=1e-5) and "base" not in change
    assert change["difference"] == pytest.approx((tuned - other).mean(), abs=1e-5)


def test_a_killed_evaluation_resumes_at_the_part_where_it_stopped(lab: SD, monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch, fail_at=4), pytest.raises(KeyboardInterrupt):
        run()
    with counted(monkeypatch) as drawn:
        resumed, metrics = run()
    assert drawn == ["base", "tuned", "tuned"]
    shutil.rmtree(".checkpoints")
    whole, figures = run()
    assert resumed.equals(whole) and metrics == figures


@pytest.mark.slow
def test_pictures_of_models_that_are_gone_are_forgotten(lab: SD) -> None:
    run()
    before = set(Path(".checkpoints/evaluate").glob("*/*"))
    write_lora(lab, LORA, 2)
    run()
    after = set(Path(".checkpoints/evaluate").glob("*/*"))
    assert len(before) == len(after) == 3 and len(before & after) == 2


def test_one_scale_for_both_sides_is_one_drawing_of_the_base(lab: SD, monkeypatch: pytest.MonkeyPatch) -> None:
    same = params()
    scale = same.evaluate.guidance_scale
    same = dataclasses.replace(same, evaluate=dataclasses.replace(same.evaluate, base_guidance_scale=scale))
    with counted(monkeypatch) as drawn:
        evaluate.run(same)
    assert drawn == ["base_matched"] * 2 + ["tuned"] * 2
    results = pd.read_parquet("data/evaluation/results.parquet")
    assert pictures(results, "base") == pictures(results, "base_matched")


def test_the_columns_are_those_of_the_oracle_the_scorers_and_the_reward(lab: SD) -> None:
    """Against each of them called by hand on all pictures at once."""
    results, _ = run()
    frame = results[results["model"] == "tuned"]
    assert list(results) == [
        "prompt", "category", "seed", "model", "png", "alignment", "aesthetic", "utility", "all_correct", "clip", "vqa",
        "aesthetic_score", "lrm",
    ]  # fmt: skip
    drawn = [Image.open(io.BytesIO(png)).convert("RGB") for png in frame["png"]]
    pixels = np.stack([np.array(picture) for picture in drawn])
    verdicts = judge(pixels, [parse(prompt) for prompt in frame["prompt"]])
    weights = (params().dataset.alignment_weight, params().dataset.aesthetic_weight)
    assert frame["all_correct"].tolist() == [v.all_correct for v in verdicts]
    assert frame["utility"].tolist() == pytest.approx([v.utility(*weights) for v in verdicts])
    scores = embedded.load(Path("data/scorers")).score(to_tensor(pixels), frame["prompt"].tolist())
    for column, name in (("clip", "clip"), ("vqa", "vqa"), ("aesthetic_score", "aesthetic")):
        assert frame[column].tolist() == pytest.approx(scores[name].tolist(), abs=1e-5)
    reward = load_reward_judge(Path("data/reward"), params().model).score(drawn, frame["prompt"].tolist())
    assert frame["lrm"].tolist() == pytest.approx(reward.tolist(), abs=1e-4)


def test_another_judge_can_stand_beside_emoji(lab: SD, project: Path) -> None:
    """The emoji figures do not change, and the report and the summary show both."""
    _, alone = run()
    both = with_tiny_judges(params(), project)
    both = dataclasses.replace(both, evaluate=dataclasses.replace(both.evaluate, judges=("emoji", "pickscore")))
    evaluate.run(both)
    results, metrics = pd.read_parquet("data/evaluation/results.parquet"), json.loads(FIGURES.read_text())
    assert results["pickscore"].std() > 0 and set(metrics["judges"]) == {"pickscore"}
    assert {key: value for key, value in metrics.items() if key != "judges"} == alone
    report.run(both)
    page = Path("data/report/index.html").read_text()
    assert "PickScore" in page and "Other judges" in page and "alignment" in page


def test_another_lora_is_judged_by_emoji_too(lab: SD, project: Path) -> None:
    """`evaluate.tuned` may name a file; the same weights draw the same pictures."""
    results, _ = run()
    shutil.copyfile(LORA / "pytorch_lora_weights.safetensors", "other.safetensors")
    other = params()
    evaluate.run(dataclasses.replace(other, evaluate=dataclasses.replace(other.evaluate, tuned="other.safetensors")))
    pd.testing.assert_frame_equal(pd.read_parquet("data/evaluation/results.parquet"), results)


def test_what_emoji_cannot_judge_is_told_before_anything_is_drawn(lab: SD, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "generate", lambda *_: pytest.fail("nothing may be drawn"))
    table = pd.read_parquet("data/prompts.parquet")
    table.loc[0, "prompt"] = "my hat"
    table.to_parquet("data/prompts.parquet")
    with pytest.raises(LpoError, match="emoji: 1 of 3 prompts describe no emoji scene, such as 'my hat'"):
        run()
    large = dataclasses.replace(params(), model=dataclasses.replace(params().model, resolution=64))
    with pytest.raises(LpoError, match="draws 64 pixels, the emoji world has 32"):
        evaluate.run(large)
    Path("data/scorers").unlink()
    with pytest.raises(LpoError, match=r"emoji: data/scorers: (.|\n)*scorers.safetensors"):
        evaluate.run(large)
