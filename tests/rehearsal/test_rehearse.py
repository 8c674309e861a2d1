"""`lpo rehearse` on a tiny preset: from configurations alone to every stage, measured, with its gradients checked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import tiny_models
from torch import nn
from transformers import CLIPConfig, CLIPVisionConfig
from typer.testing import CliRunner

from lpo.cli import app
from lpo.commands import rehearse
from lpo.config import Params
from lpo.config.presets import PRESETS, with_preset
from lpo.doctor.memory import configured
from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError
from lpo.families import load_family, parts
from lpo.hub import weights_of
from lpo.rehearsal import judges, measure, settings
from lpo.rehearsal.sources import Models, with_models
from lpo.rehearsal.weights import draw, shapes_of
from lpo.scorers import hps, imagereward

CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
STAGES = ["dataset", "score", "filter", "encode", "reward", "tune", "evaluate", "report"]


def configurations(folder: Path) -> dict[str, dict[str, Any]]:
    """Configurations of a tiny SD1.5, its scorers and judges, without weights; and a preset that names them."""
    tiny_models.sd(folder / "sd")
    for file in (folder / "sd").rglob("*.safetensors"):
        file.unlink()
    text = {"vocab_size": len(make_tokenizer()), "max_position_embeddings": 16, **WIDE}
    vision = {"image_size": 28, "patch_size": 14, **WIDE, "hidden_size": 80}  # HPS has heads of 80
    CLIPConfig(text_config=text, vision_config=vision, projection_dim=8).save_pretrained(folder / "clip")
    CLIPVisionConfig(projection_dim=8, **vision).save_pretrained(folder / "aesthetic")
    t5 = {
        "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 2,
        "vocab_size": 1000, "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "model_type": "clip_t5", "mm_vision_select_layer": -2,
    }  # fmt: skip
    blip = {
        "text_config": WIDE | {"encoder_hidden_size": 64, "is_decoder": True, "vocab_size": 500},
        "vision_config": WIDE | {"image_size": 32, "patch_size": 16},
    }
    for name, values in (("t5", t5), ("imagereward", blip)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(values))
    tree = yaml.safe_load((PRESETS / "sd15.yaml").read_text())
    at = {name: str(folder / name) for name in ("sd", "clip", "aesthetic", "t5", "imagereward")}
    tree["model"] |= {"path": at["sd"], "resolution": None}
    tree["reward"] |= {"text_projection": "random", "embedding_dim": 8}
    tree["tune"]["lora_rank"] = 2
    tree["score"]["models"] = {
        "aesthetic": at["aesthetic"], "clip": at["clip"], "vqa": at["t5"], "vqa_vision": at["clip"], "dtype": "fp32",
    }  # fmt: skip
    tree["evaluate"]["judge_models"] = {
        "pickscore": "a/b", "clip_h": at["clip"], "imagereward": at["imagereward"], "hps": "c/d",
    }  # fmt: skip
    return tree


@pytest.fixture
def preset(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (project / "tiny").mkdir()
    (project / "tiny.yaml").write_text(yaml.safe_dump(configurations(project / "tiny")))
    monkeypatch.setattr("lpo.rehearsal.sources.CLIP_OF", {"a/b": str(project / "tiny/clip")})
    return project / "tiny.yaml"


def in_this_process(stage: str, folder: Path) -> tuple[int, dict[str, Any]]:
    """As `rehearse.measured`, without a process for each stage."""
    result = folder / f"measured/{stage}.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = measure.measure(result, stage)
    return code, json.loads(result.read_text())


@pytest.mark.slow
def test_every_stage_runs_from_configurations_alone(preset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearse, "measured", in_this_process)
    done = CliRunner().invoke(app, ["rehearse", str(preset), "--keep", "kept"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(Path("kept/rehearsal.json").read_text())
    assert sorted(found["stages"]) == sorted(STAGES)
    assert found["wrong"] == []
    assert found["stages"]["reward"]["updates"] == 2
    assert found["stages"]["tune"]["updates"] == settings.UPDATES
    adapter = weights_of(Path("kept/data/tuned/pytorch_lora_weights.safetensors"))
    assert found["stages"]["tune"]["trained"] == len(adapter)
    assert found["doctor"]["tune"] > 0
    assert all(0 < stage["host_own"] < stage["host_peak"] for stage in found["stages"].values())
    assert all(stage in done.output for stage in STAGES)
    assert not Path("data").exists()  # nothing is written beside the folder


def test_a_rehearsal_that_does_not_fit_says_all_that_is_missing_and_leaves_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First CLIP-FlanT5 is cut, and then nothing is left to cut."""
    cut = []

    def planned(params: Params, folder: Path, steps: int, resolution: int | None, layers: int | None) -> rehearse.Plan:
        cut.append(layers)
        much, short = settings.size_of(params, steps, False), replace(params, model=replace(params.model, device="cpu"))
        return rehearse.Plan(short, Models(folder), much, {}, memory=1e15, host=1e15, disk=2e15, layers=layers)

    monkeypatch.setattr(rehearse, "planned", planned)
    with pytest.raises(LpoError) as error:
        rehearse.run(with_preset("sd15", Path("params.yaml")), "sd15", 2, None, None)
    assert cut == [None, 1]
    assert "1000000.0 GB of memory are needed" in error.value.what
    assert "2000000.0 GB of disk are needed" in error.value.what
    assert not list(Path().glob(".rehearsal-*"))


def test_the_embedded_world_is_not_rehearsed(project: Path) -> None:
    with pytest.raises(LpoError, match="lpo rehearse sd15"):
        rehearse.run(with_preset("emoji", project / "params.yaml"), "emoji", 2, None, None)


def test_files_of_judges_are_read_as_the_models_that_they_were_planned_for(tmp_path: Path) -> None:
    """The names that are written and the names that the judges read are inverse to each other."""
    text, vision = WIDE | {"vocab_size": 99, "max_position_embeddings": 7}, WIDE | {"image_size": 28, "patch_size": 14}
    with torch.device("meta"):
        shapes = shapes_of(judges.CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)))
    meta = {name: torch.empty(shape, device="meta") for name, shape in judges.open_clip(shapes).items()}
    assert {name: value.shape for name, value in hps.clip_weights(meta).items()} == dict(shapes)

    sizes = {"text_config": WIDE | {"encoder_hidden_size": 64, "vocab_size": 99, "is_decoder": True},
             "vision_config": WIDE | {"image_size": 32, "patch_size": 16}}  # fmt: skip
    meta = {name: torch.empty(shape, device="meta") for name, shape in judges.image_reward(sizes).items()}
    seen, read, _ = imagereward.split_weights(meta)
    config = imagereward.text_config(judges.med_config(sizes["text_config"]))
    with torch.device("meta"):
        imagereward.BlipVisionModel(imagereward.vision_config(seen)).load_state_dict(seen, assign=True)
        imagereward.BlipTextModel(config, add_pooling_layer=False).load_state_dict(read, assign=True)


def test_random_weights_keep_the_size_of_activations() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = draw("conv.weight", torch.Size([64, 32, 3, 3]), generator).float()
    seen = nn.functional.conv2d(torch.randn(4, 32, 16, 16, generator=generator), weight)
    assert float(seen.std()) == pytest.approx(1.0, abs=0.05)
    assert draw("norm.weight", torch.Size([5]), generator).tolist() == [1.0] * 5
    assert draw("logit_scale", torch.Size([]), generator).exp() == pytest.approx(100, rel=1e-2)


def test_gradients_of_every_layer_are_seen_over_all_steps() -> None:
    """One layer learns from its second step on, one never, one is infinite once, and one is not in the loss."""
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("late", "never", "infinite", "unused")})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    gradients = measure.Gradients()
    hook = optimizer.register_step_pre_hook(gradients.look)
    for step in (0.0, 1.0, 1.0):
        values = {"late": step, "never": 0.0, "infinite": float("inf") if step else 1.0}
        for name, value in values.items():
            for weight in net[name].parameters():
                weight.grad = torch.full_like(weight, value)
        optimizer.step()
    hook.remove()
    found = gradients.summary()
    assert found == {"updates": 3, "trained": 4, "zero": ["never"], "not_finite": ["infinite"], "unused": ["unused"]}
    assert list(rehearse.mistakes("tune", found)) == [
        "gradients of 1 of 4 layers are NaN or infinite: infinite",
        "gradients of 1 of 4 layers are zero at every step: never",
    ]
    assert list(rehearse.mistakes("reward", found | {"updates": 0}))[0] == "no step of the optimizer was made"


@pytest.mark.parametrize("name", ["qwen-image", "z-image-turbo", "flux2-klein"])
def test_a_rehearsal_of_a_qwen_family_reads_chats(repository: Path, tmp_path: Path, name: str) -> None:
    """The family's own class loads the tokenizer; captions differ in their own places, and short ones are padded."""
    model = with_preset(name, repository / "params.yaml").model
    folder = Path(Models(tmp_path).family(model.path))
    family = load_family(configured(model), device=torch.device("meta"))
    family.words = {"tokenizer": parts.tokenizer(family.encoders[""].tokenizer, str(folder), "tokenizer", CPU)}
    one, two = ids = family.tokenize(["a red cat", "a red cow"])
    assert ids.shape == (2, family.token_columns)
    assert int((one != two).sum()) == 2  # one token a byte
    assert int(one[0]) == family.tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert 0 < int((one == family.tokenizer.pad_token_id).sum()) < family.token_columns - len("a red cat")
    assert int(ids.max()) < next(iter(family.text_encoders.values())).get_input_embeddings().num_embeddings


@pytest.mark.parametrize("name", ["spo-sd15", "sdxl", "sd3"])
def test_a_preset_can_be_planned(repository: Path, tmp_path: Path, name: str) -> None:
    """With SPO's CLIP, another VAE, T5: every source becomes a folder with the published number of weights."""
    params = with_preset(name, repository / "params.yaml")
    models = Models(tmp_path / "models")
    short = settings.shortened(with_models(params, models, 1), settings.size_of(params, 2, False), False, None)
    assert Path(short.model.path).is_dir()
    denoiser = "transformer" if name == "sd3" else "unet"
    weights = models.missing[Path(short.model.path) / denoiser / "diffusion_pytorch_model.safetensors"].bytes / 2
    published = {"spo-sd15": 859.5e6, "sdxl": 2567.5e6, "sd3": 2028e6}[name]
    assert weights == pytest.approx(published, rel=3e-2 if name == "sd3" else 1e-4)
    assert short.tune.beta == params.tune.beta
    assert short.model.dtype == "fp32"
