"""The stages tune, spm and generate on the tiny model: files in, files out, for every method."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lpo.commands import generate
from lpo.config import load_params
from lpo.data.latents import write_space
from lpo.emoji.oracle import judge
from lpo.emoji.scenes import parse
from lpo.errors import LpoError, NotFinite
from lpo.families import load_family
from lpo.sampling.generate import generate as draw
from lpo.sampling.generate import sample
from lpo.scorers import embedded
from lpo.scorers.published import load_scorers
from lpo.stages import tune as stage
from lpo.study import cell, flips, spm, verifier
from lpo.train.common.loop import check_number
from lpo.train.policy import validation as validations
from lpo.train.policy.trainer import PolicyTrainer
from lpo.train.policy.validation import Validation, validation


@pytest.fixture
def params(trained_inputs, tiny_base, tiny):
    """What the stages read, in the working directory, and parameters for seconds."""
    write_space(Path("data/latents"), tiny.codec.space())
    found = load_params("params.yaml")
    return replace(
        found,
        model=replace(found.model, path=str(tiny_base)),
        tracking=replace(found.tracking, wandb="disabled"),
        evaluate=replace(found.evaluate, num_inference_steps=3, batch_size=5, guidance_scale=1.5),
        spm=replace(found.spm, steps=2, warmup_steps=1, batch_size=4, validate_every=2, checkpoint_every=1),
        tune=replace(
            found.tune, prompts=4, prompts_per_rollout=2, num_inference_steps=3, batch_size=4, learning_rate=1e-2,
            validate_every=1, validation_prompts=3, ema_decay=0.5, beta=10.0, lora_rank=2,
            threshold=replace(found.tune.threshold, schedule="constant", low=0.0, high=0.0),
            guard=replace(found.tune.guard, prompts=2, seeds=2),
        ),
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lpo", "grpo", "diffusion_dpo"])
def test_a_method_writes_an_adapter_and_its_history(params, method):
    stage.run(replace(params, tune=replace(params.tune, method=method)))
    assert Path("data/tuned/pytorch_lora_weights.safetensors").exists()
    history = json.loads(Path("data/tuned/history.json").read_text())
    assert [entry["prompts"] for entry in history] == [2, 2]
    assert all({"loss", "validation", "reward", "diversity"} <= entry.keys() for entry in history)
    metrics = json.loads(Path("metrics/tune.json").read_text())
    assert metrics["prompts"] == 4 and metrics["updates"] > 0 and isinstance(metrics["warnings"], list)
    tracked = Path("dvclive/tune/plots")
    assert len(list(tracked.glob("images/tune/validation/*.png"))) == 2  # a picture of every validation
    kept = {int(file.stem[1:]) for file in tracked.glob("metrics/tune/by_timestep/kept/t*.tsv")}
    assert kept == {row["t"] for entry in history for row in entry["by_timestep"]}
    assert kept or method == "diffusion_dpo"


def test_a_tuning_that_diverges_writes_the_best_adapter_and_fails(params, monkeypatch):
    """The second rollout goes wrong; what the first one's validation chose is written, with the step in the metrics."""
    usual, rollouts = PolicyTrainer.update, []

    def poisoned(trainer, pairs, conditioning, generator):
        rollouts.append(len(pairs))
        if len(rollouts) == 2:
            trainer.mean_gain = math.nan
        return usual(trainer, pairs, conditioning, generator)

    monkeypatch.setattr(PolicyTrainer, "update", poisoned)
    monkeypatch.setattr(Validation, "__call__", lambda _: {"validation": 1.0, "reward": 0.0, "diversity": 1.0})
    monkeypatch.setattr(Validation, "before_after", lambda _: np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(NotFinite, match="its gradient is nan") as caught:
        stage.run(params)
    assert caught.value.where.startswith("tune: rollout 2 of 2, update ")
    state = load_file("data/tuned/pytorch_lora_weights.safetensors")
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert any(bool(value.any()) for key, value in state.items() if "lora_B" in key or "lora.up" in key)
    metrics = json.loads(Path("metrics/tune.json").read_text())
    assert metrics["best_validation"] == 1.0 and metrics["prompts"] == 2
    assert any("diverged" in warning for warning in metrics["warnings"])
    assert len(json.loads(Path("data/tuned/history.json").read_text())) == 1


def test_a_tuning_that_diverges_at_once_writes_the_untouched_adapter(params, monkeypatch):
    monkeypatch.setattr(PolicyTrainer, "update", lambda *_: check_number(math.nan, "loss", "here", "tune"))
    with pytest.raises(NotFinite, match="its loss is nan"):
        stage.run(params)
    state = load_file("data/tuned/pytorch_lora_weights.safetensors")
    assert not any(bool(value.any()) for key, value in state.items() if "lora_B" in key or "lora.up" in key)


@pytest.mark.slow
def test_spo_trains_its_reward_in_a_stage_of_its_own_and_uses_it(params):
    spm.run(params)
    assert len(list(Path("dvclive").glob("*/plots/metrics/reward/by_timestep/accuracy/t*.tsv"))) == 10
    accuracy = json.loads(Path("studies/spm.json").read_text())["accuracy"]
    assert len(accuracy["by_timestep"]) == 10 and 0 <= accuracy["mean"] <= 1
    spo = replace(params, tune=replace(params.tune, method="spo", reward="data/spm"))
    stage.run(spo)
    assert json.loads(Path("metrics/tune.json").read_text())["pairs"] > 0
    with pytest.raises(LpoError, match="lpo scores noisy latents"):
        stage.run(replace(params, tune=replace(params.tune, reward="data/spm")))


def test_validation_of_the_base_itself_is_zero_gain_and_its_own_diversity(params, tiny, tiny_reward, monkeypatch):
    tiny.add_lora(2, 0)
    prompts = pd.read_parquet("data/prompts.parquet").query("split == 'validation'")["prompt"].tolist()
    validate = validation(params, tiny, tiny_reward, prompts)
    assert validate() == {"validation": 0.0, "reward": 0.0, "diversity": 1.0}
    state = {k: 0.3 * torch.randn_like(v) for k, v in tiny.lora_state().items()}
    tiny.load_lora_state(state)
    moved = validate()
    assert moved["validation"] != 0 and moved["reward"] != 0 and moved["diversity"] != 1
    one = replace(params, tune=replace(params.tune, validation_scorers=("clip",), beta=3.0))
    loaded, drawn = [], []
    monkeypatch.setattr(validations, "sample", lambda *given: drawn.append(given) or sample(*given))
    monkeypatch.setattr(validations, "load_scorers", lambda *given: loaded.append(given[2]) or load_scorers(*given))
    again = validation(one, tiny, tiny_reward, prompts)
    assert not drawn, "the base is drawn once, whatever is tuned with whatever settings"
    assert set(again.base) == {"clip", "reward"}
    assert all(np.array_equal(again.base[name], validate.base[name]) for name in again.base)
    assert again()["reward"] == moved["reward"] and again()["validation"] != moved["validation"]
    assert loaded == [["clip"]] * 3 and not any(isinstance(held, embedded.Scorers) for held in vars(again).values())
    drawn.clear()
    validation(replace(one, evaluate=replace(one.evaluate, num_inference_steps=2)), tiny, tiny_reward, prompts)
    assert drawn


def test_beta_per_nat_divides_by_the_dimensions_of_a_mean(params):
    """500 over 4 x 64 x 64 latents is the paper's; a sum has no dimensions to divide by."""
    config = replace(params.tune, beta=500.0, logprob_reduction="mean")
    assert stage.beta_per_nat(config, (4, 64, 64)) == pytest.approx(500 / 16384)
    assert stage.beta_per_nat(replace(config, logprob_reduction="sum"), (4, 64, 64)) == 500.0


@pytest.mark.parametrize("blind", ["clip", "pickscore"])
def test_a_blind_scorer_chooses_nothing_and_is_reported(params, tiny, tiny_reward, blind, monkeypatch):
    """A scorer of the three leaves the mean that chooses; a judge beside them leaves it as it is."""
    tiny.add_lora(2, 0)
    prompts = pd.read_parquet("data/prompts.parquet").query("split == 'validation'")["prompt"].tolist()

    class Judge:
        def score(self, pictures, prompts):
            return torch.tensor([float(np.asarray(picture).mean()) for picture in pictures])

    def made(blind):
        return validation(replace(params, tune=replace(params.tune, blind=blind)), tiny, tiny_reward, prompts)

    monkeypatch.setattr(validations, "blind_judge", lambda *_: Judge())
    plain, found = made(None), made(blind)
    tiny.load_lora_state({k: 0.3 * torch.randn_like(v) for k, v in tiny.lora_state().items()})
    before, now = plain(), found()
    if blind == "clip":
        assert now["validation"] == pytest.approx((3 * before["validation"] - now["blind"]) / 2)
    else:
        assert now["validation"] == before["validation"] and now["blind"] != 0
    assert (now["reward"], now["diversity"]) == (before["reward"], before["diversity"]) and "blind" not in before


def test_a_search_says_what_it_found_and_what_it_cost(params):
    said = generate.run(params, "a cat", None, Path("x.png"), 3, 1.0, None, 2, 2)
    assert "reward" in said and "6 denoiser passes (without search 3) and 18 reward passes" in said
    assert Path("x.png").exists()
    assert generate.run(params, "a cat", None, Path("y.png"), 3, 1.0, None, 1, 1) == ""


@pytest.mark.slow
def test_a_cell_of_a_study_is_judged_as_it_trains_and_the_clock_ends_it(params):
    """Three rollouts fit the prompts; then a clock of no time, which leaves the first snapshot alone.

    Snapshot -1 is the base at the guidance of the tuning, -2 the base at its best guidance.
    """
    study = replace(params.study, seconds=1e6, snapshots=2, prompts=3)
    config = replace(params.tune, prompts=6)
    cell.run(replace(params, tune=config, study=study))
    frame = pd.read_parquet("studies/cell/results.parquet")
    assert frame.groupby("snapshot").size().to_dict() == {-2: 3, -1: 3, 0: 3, 2: 3}
    base, first, last = (frame[frame["snapshot"] == k].reset_index(drop=True) for k in (-1, 0, 2))
    assert base["seed"].equals(last["seed"]) and base["prompt"].equals(last["prompt"])
    assert (base["seconds"] == 0).all() and 0 < first["seconds"][0] < last["seconds"][0]
    assert (first["prompts"][0], last["prompts"][0]) == (2, 6)
    assert (base["validation"] == 0).all() and first["validation"].nunique() == last["validation"].nunique() == 1
    assert first["validation"][0] not in (0, last["validation"][0])
    summary = json.loads(Path("studies/cell/summary.json").read_text())
    assert summary["rollouts"] == 3 and summary["prompts"] == 6 and summary["method"] == "lpo"
    assert summary["reward_step_seconds"] > 0
    cell.run(replace(params, tune=config, study=replace(study, seconds=1e-9)))
    assert json.loads(Path("studies/cell/summary.json").read_text())["rollouts"] == 1
    assert sorted(path.name for path in Path("studies/cell").iterdir()) == ["results.parquet", "summary.json"]


def test_snapshots_are_the_last_and_a_constant_factor_apart():
    assert cell.chosen(16, 5) == [0, 1, 3, 7, 15]
    assert cell.chosen(3, 5) == [0, 1, 2] and cell.chosen(9, 1) == [8] and cell.chosen(1, 4) == [0]


def test_flips_compare_every_t_with_no_noise_on_decided_test_pairs(params):
    flips.run(replace(params, study=replace(params.study, flip_pairs=3)))
    frame = pd.read_parquet("studies/flips.parquet")
    assert set(frame["t"]) == set(flips.TIMESTEPS[1:]) and len(frame) == 3 * 3 * 9
    assert not (frame["flip"] & frame["tie"]).any()
    # gap_vqa of every other pair is below the margin of strategy 2, which is 0
    assert frame.groupby("pair")["consistent"].first().tolist() == [False, True, False]


def test_the_verifier_draws_the_same_prompts_with_every_search_and_counts_its_work(params):
    verifier.run(params)
    frame = pd.read_parquet("studies/verifier.parquet")
    assert frame["search"].unique().tolist() == list(verifier.SEARCHES) and len(frame) == 3 * 4
    plain = frame[frame["search"] == "plain"]
    assert all(found["seed"].tolist() == plain["seed"].tolist() for _, found in frame.groupby("search"))
    prompts = plain["prompt"].tolist()
    settings = replace(params.evaluate.sampler, batch_size=1)
    drawn = draw(load_family(params.model), prompts, plain["seed"].tolist(), settings)
    verdicts = judge(drawn, [parse(prompt) for prompt in prompts])
    assert plain["aesthetic"].tolist() == [v.aesthetic for v in verdicts]
    finished = len(params.reward.ensemble_timesteps) * params.reward.ensemble_draws
    for name, (k, n) in verifier.SEARCHES.items():
        work = frame[frame["search"] == name].iloc[0]
        assert work["denoiser"] == 2 * 3 * n  # guidance counts double
        assert work["reward"] == n * (finished + (3 * k if k > 1 else 0))
