import math

import pytest
import torch
import torch.nn.functional as F

from lpo.errors import LpoError
from lpo.families import sd
from lpo.rewards import lrm
from lpo.rewards.lrm import LatentRewardModel

PROMPTS = ["a cat", "two dogs at night"]
T = torch.tensor([1, 700])


def latents() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_the_score_is_the_papers_formula(tiny_reward):
    backbone = tiny_reward.backbone
    text, null = tiny_reward.encode_prompts(PROMPTS), tiny_reward.encode_prompts([""])
    down, mid = backbone.features(latents(), T, text)
    _, mid_null = backbone.features(latents(), T, null.expand(2))
    enhanced = mid_null + 7.5 * (mid - mid_null)
    visual = torch.cat([*down, enhanced], dim=1) @ tiny_reward.visual_projection.weight.T
    words = text.pooled @ tiny_reward.text_projection.weight.T
    expected = torch.exp(torch.tensor(2.6592)) * F.cosine_similarity(visual, words)
    torch.testing.assert_close(tiny_reward.score(latents(), T, text, null), expected)


@torch.no_grad()
def test_a_score_depends_on_its_own_row_only(tiny_reward):
    text, null = tiny_reward.encode_prompts(PROMPTS), tiny_reward.encode_prompts([""])
    together = tiny_reward.score(latents(), T, text, null)
    for i in range(2):
        alone = tiny_reward.score(latents()[i : i + 1], T[i : i + 1], text[i : i + 1], null)
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-5, atol=1e-5)


def test_heads_and_scale_are_float32_on_a_half_precision_backbone(tiny_base):
    """Near 25 bfloat16 knows steps of 0.125 only; scores of slightly different latents differ by less."""
    torch.manual_seed(1)
    backbone = sd.load(str(tiny_base), torch.device("cpu"), torch.bfloat16, reward=True)
    reward = LatentRewardModel(backbone, embedding_dim=8, guidance_scale=1.0, features="multi_scale")
    noisy = torch.randn(64, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reward.logit_scale.fill_(math.log(100.0))
        text, null = reward.encode_prompts(["a cat"] * 64), reward.encode_prompts([""])
        scores = reward.score(noisy, torch.full((64,), 500), text, null)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_widths_are_probed(tiny_base):
    widths = {}
    for features in ("multi_scale", "mid"):
        backbone = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, reward=True)
        widths[features] = LatentRewardModel(backbone, 8, 7.5, features).visual_projection.in_features
    assert widths == {"multi_scale": 16 + 24 + 24, "mid": 24}


@torch.no_grad()
def test_without_enhancement_the_null_prompt_does_not_matter(tiny_base):
    backbone = sd.load(str(tiny_base), torch.device("cpu"), torch.float32, reward=True)
    model = LatentRewardModel(backbone, 8, 1.0, "multi_scale")
    text = model.encode_prompts(PROMPTS)
    scores = [model.score(latents(), T, text, model.encode_prompts([p])) for p in ("", "a taxi")]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)


@torch.no_grad()
def test_saved_and_loaded_it_scores_the_same(tiny_reward, tmp_path):
    text, null = tiny_reward.encode_prompts(PROMPTS), tiny_reward.encode_prompts([""])
    expected = tiny_reward.score(latents(), T, text, null)
    tiny_reward.save(tmp_path)
    again = lrm.load(tmp_path, torch.device("cpu"))
    assert not any(p.requires_grad for p in again.parameters())
    assert again.backbone.codec.config == tiny_reward.backbone.codec.config
    assert again.latent_space == tiny_reward.latent_space
    text, null = again.encode_prompts(PROMPTS), again.encode_prompts([""])
    torch.testing.assert_close(again.score(latents(), T, text, null), expected, rtol=0, atol=0)


def test_the_tokenizer_is_saved_as_it_was_read_whether_or_not_a_hub_may_be_asked(tiny_reward, tiny_base, tmp_path):
    tiny_reward.save(tmp_path)
    read, saved = ({f.name: f.read_text() for f in (p / "tokenizer").iterdir()} for p in (tiny_base, tmp_path))
    assert saved == read


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(LpoError, match="no latent reward model"):
        lrm.load(tmp_path, torch.device("cpu"))
