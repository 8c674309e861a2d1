from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from support.judge_folders import clip_folder
from transformers import CLIPModel

from lpo.emoji.vocabulary import make_tokenizer
from lpo.errors import LpoError
from lpo.rewards import load, spm
from lpo.scorers import embedded

PROMPTS = ["a cat", "two dogs at night"]
T = torch.tensor([1, 700])


@pytest.fixture
def model(tiny, tmp_path):
    """On untrained small scorers, which read pictures of 32 pixels; the tiny model makes such."""
    torch.manual_seed(2)
    embedded.Scorers(make_tokenizer()).save(tmp_path)
    return spm.start(str(tmp_path), tiny, guidance_scale=3.0)


def awake(model):
    """With a modulation that is not zero, as after training."""
    torch.manual_seed(3)
    for parameter in [*model.modulation.parameters(), *model.final.parameters()]:
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def latents() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_untrained_it_is_the_clip_it_starts_from_at_every_t(model):
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = F.normalize(model.clip.get_image_features(pixel_values=pictures).pooler_output, dim=1)
    torch.testing.assert_close(model.embed(pictures, T), expected)
    words = model.tokenizer(PROMPTS, padding=True, return_tensors="pt").input_ids
    text = F.normalize(model.clip.get_text_features(input_ids=words).pooler_output, dim=1)
    torch.testing.assert_close(model.encode_prompts(PROMPTS).pooled, text)


@torch.no_grad()
def test_the_score_is_scale_times_cosine_of_the_decoded_prediction(tiny, model):
    """x_0 = (x_t - sqrt(1 - a) eps) / sqrt(a) with the guided eps, decoded; then CLIP's cosine times its scale."""
    awake(model)
    text, null = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    noise = tiny.guided(latents(), T, tiny.encode_prompts(PROMPTS), tiny.encode_prompts([""]), 3.0)
    alpha = tiny.scheduler.alphas_cumprod[T].view(2, 1, 1, 1)
    x_0 = (latents() - (1 - alpha).sqrt() * noise) / alpha.sqrt()
    pictures = tiny.codec.vae.decode(x_0 / tiny.codec.scaling_factor).sample
    expected = model.clip.logit_scale.exp() * (model.embed(pictures, T) * text.pooled).sum(1)
    torch.testing.assert_close(model.score(latents(), T, text, null), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_finished_latents_are_decoded_as_they_are(tiny, model):
    """At t = 0, as SPO scores the last candidates; the other rows of the batch are predicted."""
    text, null = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    seen = model.pictures(latents(), torch.tensor([0, 700]), text, null)
    plain = tiny.codec.vae.decode(latents() / tiny.codec.scaling_factor).sample
    torch.testing.assert_close(seen[0], plain[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(seen[1], plain[1], atol=1e-2)


@torch.no_grad()
def test_trained_it_sees_the_time_and_each_row_its_own(model):
    awake(model)
    pictures = torch.zeros(2, 3, 32, 32)
    seen = model.embed(pictures, T)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)
    torch.testing.assert_close(model.embed(pictures[:1], T[1:]), seen[1:])


def test_gradients_reach_this_model_and_not_the_backbone(tiny, model):
    for parameter in model.trained("full"):
        parameter.requires_grad_(True)
    text = model.encode_tokens(tiny.tokenize(PROMPTS), PROMPTS)
    null = model.encode_prompts([""])
    model.score(latents(), T, text, null).sum().backward()
    reached = [model.clip.visual_projection, model.clip.text_projection, model.modulation[0]]
    assert all(module.weight.grad is not None and bool(module.weight.grad.any()) for module in reached)
    assert not any(p.requires_grad or p.grad is not None for p in tiny.denoiser.parameters())
    assert not any(name.startswith("backbone") for name, _ in model.named_parameters())


def test_what_is_trained(model):
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in model.trained("full")} == set(names.values())
    roots = {".".join(names[id(p)].split(".")[:2]) for p in model.trained("frozen")}
    assert roots == {
        "time.0", "time.2", "final.weight", "final.bias", "clip.visual_projection", "clip.text_projection",
        "clip.logit_scale",
        *(f"modulation.{i}" for i in range(3)),
    }  # fmt: skip


@torch.no_grad()
def test_saved_and_chosen_by_its_folder_it_scores_the_same(tiny, model, tmp_path):
    awake(model)
    text, null = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    expected = model.score(latents(), T, text, null)
    folder = tmp_path / "spm"
    folder.mkdir()
    model.save(folder)
    again = load.load_reward(folder, tiny)
    assert again.space == "pixel" and not any(p.requires_grad for p in again.parameters())
    torch.testing.assert_close(
        again.score(latents(), T, again.encode_prompts(PROMPTS), again.encode_prompts([""])), expected, rtol=0, atol=0
    )


@torch.no_grad()
def test_a_latent_reward_is_chosen_by_its_folder_too(tiny, tiny_reward, tmp_path):
    tiny_reward.save(tmp_path)
    assert load.load_reward(tmp_path, tiny).space == "latent"


def published_weights(clip: CLIPModel, width: int, layers: int) -> dict[str, torch.Tensor]:
    """A state dict with the names of SPO's release (RockeyCoss/SPO, time_conditioned_clip.py), all of it random."""
    generator = torch.Generator().manual_seed(5)

    def linear(name: str, outputs: int, inputs: int) -> dict[str, torch.Tensor]:
        weight = 0.3 * torch.randn(outputs, inputs, generator=generator)
        return {f"{name}.weight": weight, f"{name}.bias": 0.3 * torch.randn(outputs, generator=generator)}

    state = dict(clip.state_dict()) | linear("t_embedder.mlp.0", width, 256) | linear("t_embedder.mlp.2", width, width)
    for i in range(layers):
        state |= linear(f"vision_model.encoder.layers.{i}.adaLN_modulation.1", 6 * width, width)
    state |= linear("vision_model.adaLN_modulation.1", 2 * width, width)
    state["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    return {f"model.{key}": value for key, value in state.items()}


def published_embedding(
    clip: CLIPModel, state: dict[str, torch.Tensor], pictures: torch.Tensor, t: torch.Tensor
) -> torch.Tensor:
    """SPO's preprocessing and vision tower written out; `pictures` (B, 3, H, W) as the VAE gives them."""

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, state[f"model.{name}.weight"], state[f"model.{name}.bias"])

    size = clip.config.vision_config.image_size
    images = F.interpolate(pictures, (size, size), mode="bicubic", align_corners=False)
    images = (images / 2 + 0.5).clamp(0, 1)
    images = (images - torch.tensor(spm.CLIP_MEAN).view(3, 1, 1)) / torch.tensor(spm.CLIP_STD).view(3, 1, 1)
    frequencies = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = t[:, None].float() * frequencies
    c = linear("t_embedder.mlp.2", F.silu(linear("t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))))
    vision = clip.vision_model
    h = vision.pre_layrnorm(vision.embeddings(images))
    for i, layer in enumerate(vision.encoder.layers):
        six = linear(f"vision_model.encoder.layers.{i}.adaLN_modulation.1", F.silu(c)).unsqueeze(1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = six.chunk(6, dim=2)
        h = h + gate * layer.self_attn(layer.layer_norm1(h) * (1 + scale) + shift, attention_mask=None)[0]
        h = h + gate_mlp * layer.mlp(layer.layer_norm2(h) * (1 + scale_mlp) + shift_mlp)
    shift, scale = linear("vision_model.adaLN_modulation.1", F.silu(c)).chunk(2, dim=1)
    return F.normalize(clip.visual_projection(vision.post_layernorm(h[:, 0]) * (1 + scale) + shift), dim=1)


@pytest.fixture
def clip(tmp_path):
    """A CLIPModel in the hub's layout, its tokenizer beside it as for PickScore."""
    folder = clip_folder(tmp_path / "clip")
    (tmp_path / "words").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(tmp_path / "words" / name)
    return folder, tmp_path / "words"


@torch.no_grad()
@pytest.mark.parametrize("side", [32, 64])
def test_a_released_checkpoint_scores_as_its_authors_code(tiny, clip, tmp_path, side):
    folder, words = clip
    base = CLIPModel.from_pretrained(folder)
    state = published_weights(base, width=16, layers=2)
    torch.save(state, tmp_path / "sd-v1-5_step-aware_preference_model.bin")
    model = spm.published(
        str(tmp_path / "sd-v1-5_step-aware_preference_model.bin"), str(folder), tiny, 5.0, str(words)
    )  # fmt: skip
    pictures = 3 * torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) - 1.5
    expected = published_embedding(base, state, pictures, T)
    torch.testing.assert_close(model.embed(pictures, T), expected, rtol=1e-4, atol=1e-5)
    text, null = model.encode_prompts(PROMPTS), model.encode_prompts([""])
    score = base.logit_scale.exp() * (published_embedding(base, state, model.pictures(latents(), T, text, null), T)
                                      * text.pooled).sum(1)  # fmt: skip
    torch.testing.assert_close(model.score(latents(), T, text, null), score, rtol=1e-4, atol=1e-4)
    (tmp_path / "ours").mkdir()
    model.save(tmp_path / "ours")
    again = load.load_reward(tmp_path / "ours", tiny)
    torch.testing.assert_close(again.score(latents(), T, text, null), score, rtol=1e-4, atol=1e-4)


def test_a_wide_picture_is_read_in_the_middle(tiny, clip):
    model = spm.start(str(clip[0]), tiny, 1.0, str(clip[1]))
    wide = torch.rand(1, 3, 28, 56)
    torch.testing.assert_close(model.normalized(wide), model.normalized(wide[..., 14:42].contiguous()))


def test_a_released_checkpoint_with_other_weights_is_refused(tiny, clip, tmp_path):
    folder, words = clip
    state = published_weights(CLIPModel.from_pretrained(folder), width=16, layers=2)
    state.pop("model.t_embedder.mlp.0.bias")
    torch.save(state, tmp_path / "other.bin")
    with pytest.raises(LpoError, match=r"time\.0\.bias"):
        spm.published(str(tmp_path / "other.bin"), str(folder), tiny, 5.0, str(words))
    with pytest.raises(LpoError, match="no such file"):
        spm.published(str(tmp_path), str(folder), tiny, 5.0, str(words))


def test_a_reward_of_an_earlier_version_is_refused(tiny, model, tmp_path):
    folder = tmp_path / "spm"
    folder.mkdir()
    model.save(folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if not k.startswith("final.")}, folder / "model.safetensors")
    with pytest.raises(LpoError, match="no step-aware preference model") as caught:
        spm.load(folder, tiny)
    assert caught.value.remedy == "run `lpo spm`"


def test_an_empty_folder_is_refused(tiny, tmp_path):
    with pytest.raises(LpoError, match="CLIPModel"):
        spm.start(str(tmp_path), tiny, 1.0)
    with pytest.raises(LpoError, match="no step-aware preference model"):
        spm.load(tmp_path, tiny)
