import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from lpo.config import load_params
from lpo.errors import LpoError
from lpo.families import load_family, sd


def latents(n: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


PROMPTS = ["a cat", "two dogs at night", "a red heart above a taxi"]
T = torch.tensor([1, 400, 951])


def with_noise_in_lora(family: sd.SD) -> None:
    """An adapter whose B is not zero, so that it does something."""
    family.add_lora(2, seed=0)
    state = {
        k: torch.randn(v.shape, generator=torch.Generator().manual_seed(7)) for k, v in family.lora_state().items()
    }
    family.load_lora_state(state)


def test_prompts_are_encoded_as_the_pipeline_does(tiny, tiny_base):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    expected, _ = pipe.encode_prompt(PROMPTS, "cpu", 1, False)
    torch.testing.assert_close(tiny.encode_prompts(PROMPTS).tensors["prompt_embeds"], expected)


@torch.no_grad()
def test_features_equal_what_the_unet_computes_inside_its_own_forward(tiny):
    conditioning = tiny.encode_prompts(PROMPTS)
    seen: dict[str, torch.Tensor] = {}
    blocks = tiny.denoiser.down_blocks
    for i, block in enumerate(blocks):
        # the last residual at a block's own width and resolution: the output of its last attention or resnet
        last = block.attentions[-1] if getattr(block, "has_cross_attention", False) else block.resnets[-1]
        last.register_forward_hook(
            lambda _m, _i, out, i=i: seen.update({str(i): out[0] if isinstance(out, tuple) else out})
        )
    tiny.denoiser.mid_block.register_forward_hook(lambda _m, _i, out: seen.update(mid=out))
    tiny.predict(latents(), T, conditioning)
    expected = {name: value.mean(dim=(2, 3)) for name, value in seen.items()}
    down, mid = tiny.features(latents(), T, conditioning)
    assert [d.shape[1] for d in down] == [16, 24]
    for i, value in enumerate(down):
        torch.testing.assert_close(value, expected[str(i)], rtol=0, atol=0)
    torch.testing.assert_close(mid, expected["mid"], rtol=0, atol=0)


@torch.no_grad()
def test_a_reward_backbone_has_no_up_blocks_and_the_same_features(tiny, tiny_base):
    backbone = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, reward=True)
    size = [sum(p.numel() for p in f.denoiser.parameters()) for f in (backbone, tiny)]
    assert backbone.codec.vae is None and size[0] < 0.6 * size[1]
    ours, theirs = (f.features(latents(), T, f.encode_prompts(PROMPTS)) for f in (backbone, tiny))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@torch.no_grad()
def test_guidance_is_one_forward_of_both(tiny):
    conditioning, null = tiny.encode_prompts(PROMPTS), tiny.encode_prompts([""])
    cond = tiny.predict(latents(), T, conditioning)
    uncond = tiny.predict(latents(), T, null.expand(3))
    torch.testing.assert_close(tiny.guided(latents(), T, conditioning, null, 5.0), uncond + 5.0 * (cond - uncond))
    torch.testing.assert_close(tiny.guided(latents(), T, conditioning, null, 1.0), cond, rtol=0, atol=0)


@torch.no_grad()
def test_adapter_off_is_a_frozen_copy(tiny):
    conditioning = tiny.encode_prompts(PROMPTS)
    frozen = copy.deepcopy(tiny)
    with_noise_in_lora(tiny)
    before = frozen.predict(latents(), T, conditioning)
    assert not torch.allclose(tiny.predict(latents(), T, conditioning), before, atol=1e-3)
    with tiny.reference():
        torch.testing.assert_close(tiny.predict(latents(), T, conditioning), before, rtol=0, atol=0)
    assert not torch.allclose(tiny.predict(latents(), T, conditioning), before, atol=1e-3)


@torch.no_grad()
def test_a_fresh_adapter_changes_nothing_and_is_seeded(tiny):
    conditioning = tiny.encode_prompts(PROMPTS)
    before = tiny.predict(latents(), T, conditioning)
    other = copy.deepcopy(tiny)
    weights = tiny.add_lora(4, seed=3)
    torch.manual_seed(99)
    other.add_lora(4, seed=3)
    torch.testing.assert_close(tiny.predict(latents(), T, conditioning), before, rtol=0, atol=0)
    torch.testing.assert_close(tiny.lora_state(), other.lora_state(), rtol=0, atol=0)
    assert sum(p.requires_grad for p in tiny.denoiser.parameters()) == len(weights) > 0


@torch.no_grad()
def test_the_saved_lora_is_one_that_diffusers_loads(tiny, tiny_base, tmp_path):
    with_noise_in_lora(tiny)
    conditioning = tiny.encode_prompts(PROMPTS)
    expected = tiny.predict(latents(), T, conditioning)
    tiny.save_lora(tmp_path, tiny.lora_state())
    pipe = StableDiffusionPipeline.from_pretrained(tiny_base, local_files_only=True)
    pipe.load_lora_weights(tmp_path)
    theirs = pipe.unet(latents(), T, conditioning.tensors["prompt_embeds"]).sample
    torch.testing.assert_close(theirs, expected)
    again = sd.load(str(tiny_base), torch.device("cpu"), torch.float32)
    again.load_lora(tmp_path)
    torch.testing.assert_close(again.predict(latents(), T, conditioning), expected)


def test_loading_a_lora_from_a_folder_without_one_says_so(tiny, tmp_path):
    with pytest.raises(LpoError, match="no LoRA here"):
        tiny.load_lora(tmp_path)


def test_a_vae_of_another_latent_shape_is_refused(tiny_base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": 8}))
    with pytest.raises(LpoError, match="8 latent channels, the denoiser reads 4"):
        sd.load(str(folder), torch.device("cpu"), torch.float32, reward=True)


def test_unsupported_scheduler_settings_are_refused(tiny_base, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(tiny_base, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_sample": True}))
    with pytest.raises(LpoError, match="clip_sample"):
        sd.load(str(folder), torch.device("cpu"), torch.float32)


def test_a_missing_folder_says_what_to_do(repository, tmp_path):
    with pytest.raises(LpoError) as error:
        load_family(replace(load_params(repository / "params.yaml").model, path=str(tmp_path / "nothing")))
    assert "lpo base" in str(error.value)


@torch.no_grad()
def test_images_survive_the_round_trip_of_shapes(tiny):
    moments = tiny.encode_images(torch.zeros(2, 3, 32, 32))
    assert moments.shape == (2, 8, 8, 8)
    assert tiny.decode(tiny.scale(moments[:, :4])).shape == (2, 3, 32, 32)
    assert tiny.pixels_per_latent == 4
