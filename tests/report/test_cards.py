"""The cards: front matter, figures, and Python code that runs as it stands."""

from __future__ import annotations

import re
import runpy
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file
from support.made_up_run import HOSTILE, people

from lpo.config import SamplerSettings, Tune, load_params
from lpo.families import load_family
from lpo.report.cards import METHODS, model_card, reward_card
from lpo.report.snippets import prompt
from lpo.rewards.lrm import LatentRewardModel
from lpo.sampling.generate import generate

RATE = {"value": 0.7, "low": 0.65, "high": 0.75, "ties": 0.1, "prompts": 400}
AXES = ("overall", "alignment", "aesthetics")


@pytest.fixture
def params(project: Path) -> dict[str, Any]:
    return asdict(load_params())


def metrics() -> dict[str, Any]:
    change = {"base": 0.5, "tuned": 0.55, "difference": 0.05, "low": -0.01, "high": 0.11}
    return {
        "filter": {"by_split": {"train": {"input": 1000, "kept": 400, "dropped": 595, "quarantined": 5}}},
        "reward": {"accuracy": {"mean": 0.71, "by_timestep": [RATE | {"t_low": 0, "t_high": 100, "pairs": 9}]},
                   "steps": 1200, "test_pairs": 1447},
        "tune": {"prompts": 2000, "pairs": 9000, "updates": 140},
        "evaluate": {"win_rate": dict.fromkeys(AXES, RATE), "all_correct": change,
                     "win_rate_default_cfg": dict.fromkeys(AXES, RATE | {"value": 0.61})},
    }  # fmt: skip


def changed(params: dict[str, Any], section: str, **values: Any) -> dict[str, Any]:
    return params | {section: params[section] | values}


def python(card: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.DOTALL | re.MULTILINE)
    return code


def run(card: str) -> dict[str, Any]:
    """Execute the card's code as a file of its own, in the working directory."""
    Path("code.py").write_text(python(card))
    return runpy.run_path("code.py")


def front_matter(card: str) -> dict[str, Any]:
    _, block, body = card.split("---\n", 2)
    assert body.strip().startswith("# ")
    return yaml.safe_load(block)


# The code runs


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3"])
def test_the_code_of_the_model_card_draws_with_the_adapter(
    params: dict[str, Any], family: str, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(request.getfixturevalue(f"tiny_{family}_base"), "data/base")
    setting = {"num_inference_steps": 2, "guidance_scale": 3.0, "eta": 1.0}
    params = changed(changed(params, "model", family=family), "evaluate", **setting)
    save_adapter(family)
    card = model_card(params, metrics())
    found = run(card)
    assert Image.open("image.png").size == found["image"].size
    layers = [module for module in denoiser(found["pipe"]).modules() if hasattr(module, "lora_B")]
    assert layers and all(module.lora_B["default_0"].weight.abs().sum() > 0 for module in layers)
    assert "guidance_scale=3.0" in card and "Guidance scale 3, 2 steps and eta 1 are the settings" in card
    assert ("without noise" in card) == (family == "sd3")
    assert found["pipe"].scheduler.__class__.__name__.startswith("Flow" if family == "sd3" else "DDIM")


@pytest.mark.parametrize(("family", "on"), [("sd", None), ("sdxl", None), ("sd", (300, 700))])
def test_the_code_draws_the_image_of_the_evaluation(
    params: dict[str, Any], family: str, on: tuple[int, int] | None, request: pytest.FixtureRequest
) -> None:
    shutil.copytree(request.getfixturevalue(f"tiny_{family}_base"), "data/base")
    save_adapter(family)
    setting = {"num_inference_steps": 4, "guidance_scale": 1.5, "eta": 1.0, "adapter_timesteps": on}
    params = changed(changed(params, "model", family=family), "evaluate", **setting)
    drawn = np.asarray(run(model_card(params, metrics()))["image"]).astype(int)
    model = load_family(replace(load_params().model, family=family))
    base = generate(model, [prompt(params)], [0], SamplerSettings(4, 1.5, 1.0, 1), "")[0]
    model.load_lora(Path("data/tuned"))
    tuned = generate(model, [prompt(params)], [0], SamplerSettings(4, 1.5, 1.0, 1, on), "")[0]
    assert abs(drawn - tuned).max() <= 1 < abs(drawn - base).max()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_the_code_runs_where_the_text_encoder_is_stored_in_half_precision(
    params: dict[str, Any], tiny_base: Path, stored: torch.dtype
) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_base)
    pipe.text_encoder.to(stored)
    pipe.save_pretrained("data/base")
    save_adapter("sd")
    found = run(model_card(changed(params, "evaluate", num_inference_steps=2), {}))
    assert {part.dtype for part in (found["pipe"].text_encoder, found["pipe"].unet)} == {torch.float32}


def test_the_code_takes_another_vae_and_denoiser_where_the_parameters_name_them(
    params: dict[str, Any], tiny_sd_base: Path
) -> None:
    shutil.copytree(tiny_sd_base, "data/base")
    for part in ("vae", "unet"):
        shutil.copytree(tiny_sd_base / part, f"other/{part}")
        file = f"other/{part}/diffusion_pytorch_model.safetensors"
        save_file({name: torch.zeros_like(weight) for name, weight in load_file(file).items()}, file)
    save_adapter("sd")
    params = changed(params, "model", vae="other/vae", denoiser="other/unet")
    found = run(model_card(changed(params, "evaluate", num_inference_steps=2), {}))["pipe"]
    assert not any(weight.any() for weight in found.vae.state_dict().values())
    assert not any(weight.any() for name, weight in found.unet.state_dict().items() if "lora" not in name)


def test_a_hub_id_with_a_folder_inside_becomes_a_subfolder(params: dict[str, Any]) -> None:
    code = python(model_card(changed(params, "model", denoiser="owner/name/unet"), {}))
    assert "unet = UNet2DConditionModel.from_pretrained('owner/name', subfolder='unet', torch_dtype=dtype)" in code


@pytest.mark.parametrize("trainable", ["full", "adapter"])
def test_the_code_of_the_reward_card_scores_an_image(
    params: dict[str, Any], tiny_base: Path, trainable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_base, "data/base")
    torch.manual_seed(0)
    family = load_family(load_params().model)
    rank = 2 if trainable == "adapter" else None
    backbone = family if rank else load_family(load_params().model, reward=True)
    reward = LatentRewardModel(backbone, 8, 7.5, "multi_scale", latent_space=family.codec.space(), adapter_rank=rank)
    Path("data/reward").mkdir()
    reward.save(Path("data/reward"))
    Image.linear_gradient("L").convert("RGB").save("image.png")
    found = run(reward_card(changed(params, "reward", trainable=trainable), metrics()["reward"]))
    printed = float(re.search(r"tensor\(\[(.+?)[\],]", capsys.readouterr().out).group(1))
    latents = family.scale(family.encode_images(found["image"]).chunk(2, dim=1)[0])
    text, null = reward.encode_prompts([prompt(asdict(load_params()))]), reward.encode_prompts([""])
    with torch.no_grad():
        assert printed == pytest.approx(float(reward.score(latents, torch.tensor([1]), text, null)), abs=1e-3)


def denoiser(pipe: Any) -> Any:
    return getattr(pipe, "unet", None) or pipe.transformer


def save_adapter(family: str) -> None:
    """Write data/tuned, an adapter that changes something."""
    model = load_family(replace(load_params().model, family=family))
    model.add_lora(2, seed=0)
    torch.manual_seed(1)
    state = {name: torch.randn_like(weight) / 4 for name, weight in model.lora_state().items()}
    Path("data/tuned").mkdir(parents=True)
    model.save_lora(Path("data/tuned"), state)


# What the cards say


def test_the_model_card_has_the_figures(params: dict[str, Any]) -> None:
    card = model_card(changed(params, "evaluate", guidance_scale=1.5, base_guidance_scale=2.0), metrics())
    front = front_matter(card)
    assert (front["base_model"], front["library_name"]) == ("data/base", "diffusers")
    figures = front["model-index"][0]["results"][0]["metrics"]
    assert [row["value"] for row in figures if row["type"] == "win_rate_overall"] == [0.7]
    assert "| overall | 1.5 | 70.0% | 65.0% to 75.0% | 10.0% | 400 |" in card
    assert "| alignment | 2 | 61.0% |" in card  # against the base at its own guidance scale
    assert f"| `tune.beta` | {params['tune']['beta']:g} |" in card
    assert "of 1,000 training pairs, 400 were kept, 595 dropped, and 5 quarantined" in card


def test_the_model_card_says_what_people_said(params: dict[str, Any]) -> None:
    assert "What people said" not in model_card(params, metrics())
    card = model_card(params, metrics() | {"people": people()})
    assert "## What people said" in card and HOSTILE.replace("|", "\\|") in card
    assert "| `base@12` | 64.0% | 55.0% to 72.0% | 53.0% to 75.0% | 10.0% | 210 | 5 | 150 | better |" in card


def test_one_comparison_where_both_guidance_scales_are_the_same(params: dict[str, Any]) -> None:
    card = model_card(changed(params, "evaluate", guidance_scale=2.0, base_guidance_scale=2.0), metrics())
    assert card.count("| alignment |") == 1


def test_the_card_of_the_stage_tune_reads_only_the_sampler_of_the_evaluation(params: dict[str, Any]) -> None:
    names = ("num_inference_steps", "guidance_scale", "eta", "adapter_timesteps")
    sampler = {name: params["evaluate"][name] for name in names}
    early = {name: section for name, section in params.items() if name != "report"} | {"evaluate": sampler}
    card = model_card(early, {name: row for name, row in metrics().items() if name == "tune"})
    assert "model-index" not in front_matter(card)
    assert "Not evaluated yet" in card


@pytest.mark.parametrize("method", get_args(get_type_hints(Tune)["method"]))
def test_the_model_card_names_the_method(params: dict[str, Any], method: str) -> None:
    card = model_card(changed(params, "tune", method=method), metrics())
    heading = next(line for line in card.splitlines() if line.startswith("# "))
    assert METHODS[method][0] in heading and METHODS[method][1] in card


def test_no_path_breaks_the_front_matter(params: dict[str, Any]) -> None:
    path = 'x\n---\nevil: "yes" | `'
    card = model_card(changed(params, "model", path=path), metrics())
    front = yaml.safe_load(card.removeprefix("---\n").split("\n---\n\n# ")[0])
    assert front["base_model"] == path and "evil" not in front
    compile(python(card), "code.py", "exec")


def test_the_reward_card_says_what_was_trained_and_measured(params: dict[str, Any]) -> None:
    card = reward_card(params, metrics()["reward"])
    assert front_matter(card)["base_model"] == "data/base"
    assert "71.0% of 1,447 held-out pairs" in card and "Trained for 1,200 steps." in card
    assert "| 0 to 100 | 70.0% | 65.0% to 75.0% | 9 |" in card
    assert "not trained here" in reward_card(changed(params, "reward", pretrained="owner/name"), metrics()["reward"])
