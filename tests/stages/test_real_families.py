"""The stages end to end on tiny folders of every family: encode, reward, rollouts and updates, evaluate, export."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from support.judge_folders import with_tiny_judges
from support.tiny_transformers import MODELS

from lpo.commands import export, generate
from lpo.config import Params, load_params
from lpo.data.latents import Latents
from lpo.errors import LpoError
from lpo.families import load_family
from lpo.families.family import Family
from lpo.images import decode_rgb, to_tensor
from lpo.rewards import lrm as rewards
from lpo.stages import encode, evaluate, reward, tune
from lpo.train.policy import trainer
from lpo.train.policy.validation import Validation

pytestmark = pytest.mark.slow

CAPTIONS = ["a cat", "two dogs", "a star on grass"]


def params_of(repository: Path, family: str, base: Path) -> Params:
    loaded = load_params(repository / "params.yaml")
    transformer = family not in ("sd", "sdxl")
    return replace(
        loaded,
        model=replace(loaded.model, family=family, path=str(base), device="cpu", resolution=32),
        score=replace(loaded.score, scorers=str(repository / loaded.score.scorers)),
        encode=replace(loaded.encode, batch_size=4),
        reward=replace(
            loaded.reward, steps=3, warmup_steps=1, batch_size=4, validate_every=3, checkpoint_every=3,
            guidance_scale=3.0,
            embedding_dim=24 if family == "sdxl" else 8, text_projection="none" if family == "sdxl" else "random",
            layer=2 if transformer else None, features="mid" if transformer else "multi_scale", dtype="bf16",
            trainable="denoiser" if transformer else "full", example_weights=True,
        ),
        tune=replace(
            loaded.tune, prompts=4, prompts_per_rollout=2, num_inference_steps=4, num_candidates=3, batch_size=4,
            guidance_scale=3.0, lora_rank=2, validate_every=1, validation_prompts=2, checkpoint_every=1,
            learning_rate=1e-2, threshold=replace(loaded.tune.threshold, schedule="sigma", low=0.0, high=0.0),
            validators=None,
        ),
        evaluate=replace(loaded.evaluate, num_inference_steps=3, batch_size=2, eta=0.0),
    )  # fmt: skip


def adapter_size(family: Family) -> float:
    """Sum of the absolute up weights of the policy's adapter, which are zero before the training."""
    weights = dict(family.denoiser.named_parameters())
    return sum(float(w.detach().abs().sum()) for name, w in weights.items() if "lora_B" in name)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def without(name: str) -> dict[str, Any]:
    """What diffusers must be told of a tiny SD3 that has no T5."""
    return {"text_encoder_3": None, "tokenizer_3": None} if name == "sd3" else {}


def write_pairs(folder: Path) -> None:
    """Twelve pairs of 40 x 40 pictures as the filter leaves them, and prompts."""
    splits = ("train", "train", "validation", "test")
    rows = [
        {
            "ranking_id": i, "caption": CAPTIONS[i % 3], "image_0_uid": f"a{i}", "image_1_uid": f"b{i}",
            "label_0": float(i % 2), "label_1": float(1 - i % 2), "has_label": True, "are_different": True,
            "num_example_per_prompt": 4, "split": splits[i % 4], "jpg_0": png(2 * i), "jpg_1": png(2 * i + 1),
        }
        for i in range(12)
    ]  # fmt: skip
    frame = pd.DataFrame(rows)
    (folder / "data/pairs").mkdir(parents=True)
    (folder / "data/filtered").mkdir()
    frame.drop(columns=["jpg_0", "jpg_1"]).to_parquet(folder / "data/filtered/kept.parquet")
    frame.drop(columns=["split"]).to_parquet(folder / "data/pairs/train-00000.parquet")
    prompts = [(p, s, "single") for p in CAPTIONS for s in ("train", "validation", "test")]
    pd.DataFrame(prompts, columns=["prompt", "split", "category"]).to_parquet(folder / "data/prompts.parquet")


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", *MODELS])
def test_from_pictures_to_a_pipeline_with_its_lora(
    project: Path, repository: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The reward is a LoRA of the model. A tuning that is killed in its second rollout ends with the same bytes."""
    known = name in MODELS
    base = request.getfixturevalue("tiny_transformer")(name) if known else request.getfixturevalue(f"tiny_{name}_base")
    params = with_tiny_judges(params_of(repository, MODELS[name][0] if known else name, base), project)
    params = replace(
        params,
        reward=replace(params.reward, trainable="adapter", adapter_rank=2, dtype="fp32", learning_rate=1e-2),
        evaluate=replace(params.evaluate, judges=("aesthetic",), prompts=2, bootstrap=20, judge_batch_size=4),
    )  # fmt: skip
    if name in ("flux-schnell", "z-image"):  # distilled models
        params = replace(
            params,
            model=replace(params.model, flow_step="renoise"),
            tune=replace(params.tune, reward_timestep="look_ahead", guidance_scale=1.0),
        )
    # What so small a training gains is luck. This validation grows with the adapter, so the last one is written.
    monkeypatch.setattr(Validation, "__call__", lambda self: {"validation": adapter_size(self.family)})
    write_pairs(project)
    encode.run(params)
    reward.run(params)
    tune.run(params)
    straight = Path("data/tuned/pytorch_lora_weights.safetensors").read_bytes()
    shutil.rmtree("data/tuned")
    shutil.rmtree(".checkpoints/tune")
    update, calls = trainer.PolicyTrainer.update, []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return update(*arguments)

    monkeypatch.setattr(trainer.PolicyTrainer, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        tune.run(params)
    tune.run(params)
    assert len(calls) == 3 and Path("data/tuned/pytorch_lora_weights.safetensors").read_bytes() == straight

    evaluate.run(params)
    assert json.loads(Path("metrics/evaluate.json").read_text())["judges"].keys() == {"aesthetic"}
    export.run(params, Path("data/tuned"), Path("merged"))
    merged = load_family(replace(params.model, path="merged"))
    pipe = DiffusionPipeline.from_pretrained(params.model.path, local_files_only=True, **without(name))
    pipe.load_lora_weights("data/tuned")
    x, t, text = torch.zeros(1, *merged.latent_shape), torch.tensor([500]), merged.encode_prompts(["a cat"])
    plain = replace(merged, denoiser=getattr(pipe, merged.part))
    bounds = (1e-3, 1e-4) if name == "sd" else (1e-4, 1e-5)  # its ten times larger outputs differ by 5.6e-5
    torch.testing.assert_close(merged.predict(x, t, text), plain.predict(x, t, text), rtol=bounds[0], atol=bounds[1])
    assert not torch.equal(load_family(params.model).predict(x, t, text), plain.predict(x, t, text))


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_from_pictures_to_a_lora_that_diffusers_loads(
    project: Path, repository: Path, request: pytest.FixtureRequest, family: str
) -> None:
    base = request.getfixturevalue(f"tiny_{family}_base")
    params = params_of(repository, family, base)
    write_pairs(project)
    encode.run(params)
    reward.run(params)
    assert rewards.load(Path("data/reward"), torch.device("cpu")).backbone.name == family
    assert (project / "data/reward/README.md").read_text().startswith("---\nbase_model")
    tune.run(params)
    history = pd.read_json("data/tuned/history.json")
    assert len(history) == 2 and (history["pairs"] > 0).all()
    pipe = DiffusionPipeline.from_pretrained(base, local_files_only=True, **without(family))
    pipe.load_lora_weights("data/tuned")
    tuned = load_family(params.model)
    tuned.load_lora(Path("data/tuned"))
    theirs = replace(tuned, denoiser=getattr(pipe, tuned.part))
    x, t, text = torch.zeros(1, *tuned.latent_shape), torch.tensor([500]), tuned.encode_prompts(["a cat"])
    torch.testing.assert_close(theirs.predict(x, t, text), tuned.predict(x, t, text))
    generate.run(params, "a cat", Path("data/tuned"), Path("cat.png"), 3, None, 3, 1, 1)
    assert Image.open("cat.png").size[0] >= 32


def test_encode_reads_the_weights_of_the_vae_alone(project: Path, repository: Path, tiny_sdxl_base: Path) -> None:
    """It needs no others, so a folder without them will do; and the latents are the family's own."""
    import shutil

    write_pairs(project)
    params = params_of(repository, "sdxl", tiny_sdxl_base)
    bare = Path(shutil.copytree(tiny_sdxl_base, project / "bare"))
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for file in (bare / part).glob("*.safetensors"):
            file.unlink()
    encode.run(replace(params, model=replace(params.model, path=str(bare))))
    stored = Latents(project / "data/latents")
    family = load_family(params.model)
    picture = to_tensor(decode_rgb([png(0)], family.pixels, pixel_art=params.dataset.source == "simulated"))
    expected = family.encode_images(picture).half().float()
    torch.testing.assert_close(stored.moments(stored.places(pd.Series(["a0"]))), expected, rtol=1e-2, atol=1e-3)


def trained_reward(params: Params, project: Path) -> None:
    write_pairs(project)
    encode.run(params)
    reward.run(params)


def test_a_reward_of_one_model_trains_another_with_the_same_latents(
    project: Path, repository: Path, tiny_base: Path, tiny_sd_base: Path
) -> None:
    """Both tiny SD models have the VAE of seed 0 (they differ in everything else): LRM-1.5 -> SD2.1 in small."""
    params = params_of(repository, "sd", tiny_sd_base)
    params = replace(params, reward=replace(params.reward, base=str(tiny_sd_base.parent / "other")))
    from support import tiny_models

    tiny_models.sd(tiny_sd_base.parent / "other", seed=9)  # another U-Net and text encoder
    shutil.copytree(tiny_sd_base / "vae", tiny_sd_base.parent / "other" / "vae", dirs_exist_ok=True)
    trained_reward(params, project)
    tune.run(params)
    assert (project / "data/tuned/pytorch_lora_weights.safetensors").exists()


def test_another_vae_is_refused_before_anything_runs(project: Path, repository: Path, tiny_sd_base: Path) -> None:
    from support import tiny_models

    params = params_of(repository, "sd", tiny_sd_base)
    other = tiny_models.sd(project / "other-vae", seed=5)
    trained_reward(params, project)
    foreign = replace(params, model=replace(params.model, path=str(other)))
    with pytest.raises(LpoError, match="another VAE"):
        tune.run(foreign)
    assert not (project / "data/tuned").exists()
    with pytest.raises(LpoError, match="another VAE"):  # and so is one that would be trained on these latents
        reward.run(replace(params, reward=replace(params.reward, base=str(other))))
    shutil.rmtree("data/latents")
    with pytest.raises(LpoError, match="another VAE"):  # and so, before a picture is encoded, is a base like that
        encode.run(replace(params, reward=replace(params.reward, base=str(other))))
    assert not (project / "data/latents").exists()
    encode.run(foreign)  # and so is a finished one, where the latents are another model's
    with pytest.raises(LpoError, match="another VAE"):
        reward.run(replace(foreign, reward=replace(params.reward, pretrained="data/reward")))
