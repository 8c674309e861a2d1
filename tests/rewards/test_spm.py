from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

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
    for parameter in model.modulation.parameters():
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
    pictures = tiny.decode((latents() - (1 - alpha).sqrt() * noise) / alpha.sqrt())
    expected = model.clip.logit_scale.exp() * (model.embed(pictures, T) * text.pooled).sum(1)
    torch.testing.assert_close(model.score(latents(), T, text, null), expected, rtol=1e-4, atol=1e-4)


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
    assert not any(p.requires_grad or p.grad is not None for p in tiny.unet.parameters())
    assert not any(name.startswith("backbone") for name, _ in model.named_parameters())


def test_what_is_trained(model):
    names = {id(p): name for name, p in model.named_parameters()}
    assert {names[id(p)] for p in model.trained("full")} == set(names.values())
    roots = {".".join(names[id(p)].split(".")[:2]) for p in model.trained("frozen")}
    assert roots == {
        "time.0", "time.2", "clip.visual_projection", "clip.text_projection", "clip.logit_scale",
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


@torch.no_grad()
def test_a_clip_of_the_hub_layout_starts_it_and_pictures_are_resized_and_normalised(tiny, tmp_path):
    tokenizer = make_tokenizer()
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length, "hidden_size": 16,
            "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
            "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
              "num_attention_heads": 2}  # fmt: skip
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = spm.start(str(tmp_path), tiny, 1.0)
    white = model.normalized(torch.ones(1, 3, 32, 32))
    assert white.shape == (1, 3, 16, 16)
    expected = (1 - torch.tensor(spm.CLIP_MEAN)) / torch.tensor(spm.CLIP_STD)
    torch.testing.assert_close(white[0, :, 3, 3], expected)
    score = model.score(latents(), T, model.encode_prompts(PROMPTS), model.encode_prompts([""]))
    assert score.shape == (2,) and bool(score.isfinite().all())


def test_an_empty_folder_is_refused(tiny, tmp_path):
    with pytest.raises(LpoError, match="no CLIP here"):
        spm.start(str(tmp_path), tiny, 1.0)
    with pytest.raises(LpoError, match="no step-aware preference model"):
        spm.load(tmp_path, tiny)
