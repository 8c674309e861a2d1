"""Models as others store them: half-precision variants, shards, other samplers' schedulers, VAEs that overflow."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel

from lpo.config import SamplerSettings
from lpo.errors import LpoError
from lpo.families import scheduler, sd
from lpo.hub import read_weights
from lpo.sampling.generate import sample

CPU, F32 = torch.device("cpu"), torch.float32


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


@torch.no_grad()
def drawn(folder: Path) -> torch.Tensor:
    family = sd.load(str(folder), CPU, F32)
    return family.decode(family.guided(torch.ones(1, 4, 8, 8), torch.tensor([500]), family.encode_prompts(["a cat"]),
                                       family.null(), 2.0))  # fmt: skip


PARTS: dict[str, Any] = {"unet": UNet2DConditionModel, "text_encoder": CLIPTextModel, "vae": AutoencoderKL}


@pytest.mark.parametrize("options", [{"variant": "fp16"}, {"max_shard_size": "20KB"},
                                     {"variant": "fp16", "max_shard_size": "20KB"}])  # fmt: skip
def test_variants_and_shards_are_the_same_model(folder: Path, options: dict[str, Any]) -> None:
    expected = drawn(folder)
    for name, cls in PARTS.items():
        part = cls.from_pretrained(folder / name)
        for file in (folder / name).glob("*.safetensors"):
            file.unlink()
        part.save_pretrained(folder / name, **options)
    assert len(list(folder.rglob("*.safetensors"))) > 3 or "max_shard_size" not in options
    torch.testing.assert_close(drawn(folder), expected, rtol=0, atol=0)
    assert read_weights(str(folder / "text_encoder"))


def test_a_damaged_file_is_told_and_no_variant_takes_its_place(folder: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    unet.save_pretrained(folder / "unet", variant="fp16")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(LpoError, match="can't load unet"):
        drawn(folder)


def written_by(folder: Path, cls: Any, **settings: Any) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    cls(**(betas | settings)).save_pretrained(folder / "scheduler")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}), ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}), ("UniPCMultistepScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}), ("LMSDiscreteScheduler", {}), ("HeunDiscreteScheduler", {}),
        ("DDPMScheduler", {"clip_sample": True, "timestep_spacing": "trailing"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_of_another_sampler_betas_and_prediction_type_are_read(
    folder: Path, name: str, settings: dict[str, Any], prediction_type: str
) -> None:
    written_by(folder, getattr(diffusers, name), prediction_type=prediction_type, **settings)
    found = scheduler.load(str(folder))
    assert isinstance(found, DDIMScheduler) and found.config.prediction_type == prediction_type
    assert found.config.timestep_spacing == "leading" and not found.config.clip_sample
    expected = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)  # scaled linear
    torch.testing.assert_close(found.alphas_cumprod, expected)


@pytest.mark.parametrize("sampler", ["turbo", "lcm", "tcd"])
def test_the_sampler_of_a_model_of_few_steps_is_a_parameter(folder: Path, sampler: str) -> None:
    """Four steps from t = 999; the last one has no density. Betas and prediction type are the file's."""
    written_by(folder, diffusers.EulerAncestralDiscreteScheduler, prediction_type="v_prediction")
    family = sd.load(str(folder), CPU, F32, sampler=sampler)
    assert family.scheduler.config.prediction_type == "v_prediction"
    t, s = family.steps(4)
    std = family.transition(1.0).sigma(t, s)
    assert t[0] == 999 and s[-1] == -1 and std[-1] == 0 and bool((std[:-1] > 0).all())
    torch.testing.assert_close(family.transition(1.0).alphas_cumprod, scheduler.load(str(folder)).alphas_cumprod)


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


def test_what_a_file_leaves_open_a_parameter_answers(folder: Path) -> None:
    rewrite(folder, beta_schedule=None, beta_start=None, clip_sample=True)
    with pytest.raises(LpoError, match="lacks beta_schedule, beta_start") as caught:
        scheduler.load(str(folder))
    assert "model.scheduler: ddim" in caught.value.remedy
    found = scheduler.load(str(folder), "ddim", "v_prediction")
    assert found.config.beta_schedule == "scaled_linear" and found.config.prediction_type == "v_prediction"
    assert not found.config.clip_sample and found.config.steps_offset == 1


def test_without_a_file_the_parameter_is_enough(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")
    with pytest.raises(LpoError, match="can't load scheduler"):
        scheduler.load(str(folder))
    assert scheduler.load(str(folder), "ddim").config.beta_end == 0.012


def test_a_vae_that_leaves_its_numbers_out_has_those_of_its_class(folder: Path) -> None:
    """config.json of SD 1.5 is older than scaling_factor, 0.18215."""
    path = folder / "vae" / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in values.items() if k not in ("scaling_factor", "latent_channels")}))
    codec = sd.load(str(folder), CPU, F32).codec
    assert codec.scaling_factor == 0.18215 and codec.channels == 4
    path.write_text(json.dumps(values | {"_class_name": "AutoencoderTiny"}))
    with pytest.raises(LpoError, match="AutoencoderTiny, not an AutoencoderKL"):
        sd.load(str(folder), CPU, F32)


def test_a_ddim_file_that_clips_is_refused_unless_the_parameter_says_otherwise(folder: Path) -> None:
    rewrite(folder, clip_sample=True)
    with pytest.raises(LpoError, match="clip_sample") as caught:
        scheduler.load(str(folder))
    assert "model.scheduler" in caught.value.remedy
    assert not scheduler.load(str(folder), "ddim").config.clip_sample


def test_a_scheduler_of_flow_matching_says_what_it_lacks(folder: Path) -> None:
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(LpoError, match="FlowMatchEulerDiscreteScheduler lacks"):
        scheduler.load(str(folder))


def overflowing(folder: Path) -> Path:
    """A VAE whose activations exceed float16's 65504 on the way, and come back: what SDXL's own does."""
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
        conv.weight.data *= 3e5
        conv.bias.data *= 3e5
    vae.register_to_config(force_upcast=False)
    vae.save_pretrained(folder / "vae")
    return folder


@torch.no_grad()
def test_a_half_precision_vae_that_overflows_goes_on_in_float32(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected, half = sd.load(str(overflowing(folder)), CPU, F32), sd.load(str(folder), CPU, torch.float16)
    assert half.codec.vae is not None and half.codec.vae.dtype == torch.float16
    latents, pictures = torch.rand(2, 4, 8, 8), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(half.decode(latents), expected.decode(latents), rtol=1e-2, atol=1e-2)
    assert "computed in float32" in caplog.text and half.codec.vae.dtype == torch.float16
    torch.testing.assert_close(half.encode_images(pictures), expected.encode_images(pictures), rtol=1e-2, atol=1e-2)


def test_a_vae_that_says_it_needs_float32_is_loaded_in_it(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": True}))
    for dtype, expected in ((torch.float16, F32), (torch.bfloat16, torch.bfloat16)):
        vae = sd.load(str(folder), CPU, dtype).codec.vae
        assert vae is not None and vae.dtype == expected


def test_latents_and_pictures_that_are_no_numbers_are_errors_where_they_appear(folder: Path) -> None:
    family = sd.load(str(folder), CPU, F32)
    broken = torch.zeros(3, 4, 8, 8)
    broken[1] = torch.nan
    with pytest.raises(LpoError, match="1 of 3 latents are NaN"):
        family.decode(broken)
    with pytest.raises(LpoError, match="1 of 2 pictures are NaN"):
        family.encode_images(torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), torch.inf)]))
    family.denoiser.conv_out.weight.data[:] = torch.nan
    with pytest.raises(LpoError, match="1 of 1 pictures became NaN"):
        sample(family, ["a cat"], [0], SamplerSettings(2, 1.0, 1.0, 1))


class Refusing(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        for name, value in self.server.said.items():  # type: ignore[attr-defined]
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: Any) -> None:
        pass


LOAD = """
import sys, torch
from lpo.errors import LpoError
from lpo.families import parts, sd
from lpo.scorers import pickscore
for load in (lambda: sd.load("a/b", torch.device("cpu"), torch.float32),
             lambda: pickscore.load("a/b", "a/b", torch.device("cpu"))):
    try:
        load()
    except LpoError as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (401, {}, "the hub says 401"), (404, {"X-Error-Code": "RepoNotFound"}, "the hub says 404"),
        (403, {}, "the hub says 403"), (403, {"X-Error-Code": "GatedRepo"}, "gated"),
    ],
)  # fmt: skip
def test_a_repository_that_the_hub_does_not_give_is_gone_private_or_gated(
    status: int, said: dict[str, str], words: str, repository: Path, tmp_path: Path
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    server.status, server.said = status, said  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        environment = os.environ | {"HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
        out = subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, env=environment,
                             cwd=repository, check=True).stdout  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert out.count(words) == 2, out
    assert out.count("hf auth login") == 2 and out.count("mirror") == 2 and "HF_HUB_OFFLINE" not in out


@pytest.mark.slow
def test_loading_a_model_says_nothing(folder: Path, repository: Path) -> None:
    code = f"import torch\nfrom lpo.families import sd\nsd.load({str(folder)!r}, torch.device('cpu'), torch.float32)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository, check=True)
    assert done.stdout == "" and done.stderr == ""
