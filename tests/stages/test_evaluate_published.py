"""evaluate on what others published: a tuned U-Net in the layout of casiatao/LPO, a LoRA in a file, no reward here."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from support.judge_folders import clip_folder

from lpo.config import Params, load_params
from lpo.errors import LpoError
from lpo.evaluate import sides
from lpo.stages import evaluate, report

pytestmark = pytest.mark.slow


@pytest.fixture
def params(project: Path, tiny_base: Path) -> Params:
    """A base, a judge and three prompts; neither data/tuned nor data/reward."""
    clip_folder(project / "clip")
    (project / "prompts.txt").write_text("a cat\ntwo dogs at night\na red heart above a taxi\n")
    found = load_params()
    models = dataclasses.replace(found.evaluate.judge_models, pickscore="clip", clip_h="clip")
    config = dataclasses.replace(
        found.evaluate, judges=("pickscore",), prompts_file="prompts.txt", prompts=3, batch_size=2, eta=0.0,
        num_inference_steps=2, judge_batch_size=2, bootstrap=50, judge_models=models, guidance_scale=3.0,
        base_guidance_scale=3.0,
    )  # fmt: skip
    model = dataclasses.replace(found.model, path=str(tiny_base), device="cpu")
    return dataclasses.replace(found, evaluate=config, model=model)


def tuned(params: Params, source: str) -> pd.DataFrame:
    evaluate.run(dataclasses.replace(params, evaluate=dataclasses.replace(params.evaluate, tuned=source)))
    return pd.read_parquet("data/evaluation/results.parquet")


@pytest.fixture
def unet(tiny_base: Path, project: Path) -> UNet2DConditionModel:
    """Another U-Net than the base's, saved as LPO's, SPO's and Diffusion-DPO's are: a folder of the repository."""
    net: Any = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    net.save_pretrained(project / "LPO/lpo_sd15_merge/unet")
    return net


def picture(png: bytes) -> np.ndarray:
    import io

    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def test_a_published_unet_draws_what_diffusers_draws_with_it(
    params: Params, unet: UNet2DConditionModel, tiny_base: Path
) -> None:
    found = tuned(params, "LPO/lpo_sd15_merge/unet")
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, unet=unet, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for side, net in (("base", UNet2DConditionModel.from_pretrained(tiny_base / "unet")), ("tuned", unet)):
        pipe.unet = net
        row = found[(found["model"] == side) & (found["prompt"] == "a cat")].iloc[0]
        start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(int(row["seed"])))
        theirs = pipe("a cat", latents=start, guidance_scale=3.0, num_inference_steps=2, output_type="np").images[0]
        assert np.abs(picture(row["png"]) - np.round(255 * theirs)).max() <= 1
    metrics = json.loads(Path("metrics/evaluate.json").read_text())
    assert set(metrics["judges"]) == {"pickscore"} and "reward" not in metrics and "lrm" not in found
    report.run(params)
    assert "<h2>Judges</h2>" in Path("data/report/index.html").read_text()


def test_a_lora_in_a_file_and_the_same_one_in_a_folder_draw_the_same(params: Params, tiny: Any) -> None:
    tiny.add_lora(2, seed=0)
    generator = torch.Generator().manual_seed(7)
    Path("data/tuned").mkdir(parents=True)
    state = {name: torch.randn(value.shape, generator=generator) for name, value in tiny.lora_state().items()}
    tiny.save_lora(Path("data/tuned"), state)
    shutil.copyfile("data/tuned/pytorch_lora_weights.safetensors", "spo_lora.safetensors")
    ours, theirs = tuned(params, "data/tuned"), tuned(params, "spo_lora.safetensors")
    pd.testing.assert_frame_equal(ours, theirs)
    sides = {name: rows["png"].tolist() for name, rows in ours.groupby("model")}
    assert sides["tuned"] != sides["base"]


def test_what_is_neither_is_told_before_anything_is_drawn(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "load_family", lambda *_: pytest.fail("nothing may be loaded"))
    with pytest.raises(LpoError, match="can't find unet/config.json"):
        tuned(params, "somebody/model/unet")
    with pytest.raises(LpoError, match=r"can't find lora.safetensors"):
        tuned(params, "somebody/model/lora.safetensors")
    Path("empty").mkdir()
    with pytest.raises(LpoError, match="no LoRA here"):
        tuned(params, "empty")
