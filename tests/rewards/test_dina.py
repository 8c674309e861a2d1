"""DiNa-LRM's published layout, read onto a tiny SD3.5, against a plain computation of the paper's formulas."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from support.published_judges import photo

from lpo import Reward, random
from lpo.config import load_params
from lpo.errors import LpoError
from lpo.evaluate.reward_judge import load_reward_judge, reward_of
from lpo.families.dit import sd3
from lpo.families.dit.sd3 import SD3
from lpo.preflight.models import policy_reward
from lpo.rewards import dina
from lpo.rewards.ensemble import ensemble_score
from lpo.rewards.load import load_reward
from lpo.train.policy.methods import METHODS
from lpo.train.policy.rollout import rollout

PROMPTS = ["a cat", "two dogs at night"]
WIDTH, QUERIES, HEADS, RANK, ALPHA = 16, 4, 2, 2, 4.0
LAYERS = [1, 2]  # of 3
LINEAR = {
    f"{stream}.{i}.{part}": shape
    for stream in ("layer_adapters_visual", "layer_adapters_text")
    for i in range(len(LAYERS))
    for part, shape in (("cond_mlp.0", (32, 16)), ("cond_mlp.2", (32, 32)), ("proj", (4, 16)))
} | {
    "agg_visual": (16, 8), "agg_text": (16, 8), "ff.0": (64, 16), "ff.2": (16, 64), "head": (1, 16),
    **{f"attn1.{part}": (16, 16) for part in ("to_q", "to_k_vis", "to_v_vis", "to_k_text", "to_v_text", "to_out.0")},
    **{f"attn1.gate_{stream}.{i}": (16 if i == 0 else 1, 16) for stream in ("vis", "text") for i in (0, 2)},
    **{f"attn2.{part}": (16, 16) for part in ("to_q", "to_k_vis", "to_v_vis", "to_out.0")},
}  # fmt: skip
NORMS = ["attn1.norm_q", "attn1.norm_v", "attn1.norm_t", "attn2.norm_q", "attn2.norm_v", "norm_ff"]


def write(folder: Path, **model: Any) -> Path:
    """A checkpoint as HKUST-C4G/diffusion-rm writes it, with random weights."""
    draw = torch.Generator().manual_seed(5)
    normal = lambda *shape: torch.randn(shape, generator=draw) / 3  # noqa: E731
    (folder / "checkpoint/backbone_lora").mkdir(parents=True)
    config = {
        "backbone_model_id": "nowhere", "num_transformer_layers": 2, "freeze_backbone": False, "use_lora": True,
        "use_logistic": False, "visual_head_idx": LAYERS, "text_head_idx": LAYERS, "use_t_embed": True,
        "reward_head": {"use_proj_in": False, "width": -1, "out_dim": 1, "num_queries": QUERIES,
                        "num_attn_heads": HEADS, "dropout": 0.0},
    } | model  # fmt: skip
    (folder / "config.json").write_text(json.dumps({"model": config, "training": {"add_noise": True}}))
    head = {"query_tokens": normal(1, QUERIES, WIDTH)}
    for name, shape in LINEAR.items():
        head |= {f"{name}.weight": normal(*shape), f"{name}.bias": normal(shape[0])}
    head |= {f"{name}.weight": 1 + normal(WIDTH) for name in NORMS}
    for stream in ("visual", "text"):
        head |= {f"layer_adapters_{stream}.{i}.layer_embed": normal(1, 1, WIDTH) for i in range(len(LAYERS))}
    torch.save(head, folder / "checkpoint/rm_head.pt")
    lora = {}
    for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
        for name in ("attn", "attn2") if layer.startswith("to_") and layer != "to_add_out" else ("attn",):
            for i in range(2):
                key = f"base_model.model.transformer_blocks.{i}.{name}.{layer}"
                lora |= {f"{key}.lora_A.weight": normal(RANK, WIDTH), f"{key}.lora_B.weight": normal(WIDTH, RANK)}
    save_file(lora, folder / "checkpoint/backbone_lora/adapter_model.safetensors")
    (folder / "checkpoint/backbone_lora/adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["to_q"], "bias": "none"})
    )
    return folder


@pytest.fixture
def base(tiny_transformer) -> Path:
    return tiny_transformer("sd35-medium")


@pytest.fixture
def family(base: Path) -> SD3:
    return sd3.load(str(base), torch.device("cpu"), torch.float32)


def plain(base: Path, folder: Path, noisy: list[torch.Tensor], times: list[int], text: Any) -> torch.Tensor:
    """The paper's formulas, one image and one head of attention at a time, on a transformer with the LoRA merged."""
    net, w = SD3Transformer2DModel.from_pretrained(base / "transformer"), torch.load(folder / dina.HEAD)
    for key, down in load_file(folder / "checkpoint/backbone_lora/adapter_model.safetensors").items():
        if "lora_A" in key:
            up = load_file(folder / "checkpoint/backbone_lora/adapter_model.safetensors")[key.replace("_A.", "_B.")]
            layer = net.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            layer.weight.data += ALPHA / RANK * up @ down

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * w[f"{name}.weight"]

    def attention(q, tokens, name, stream):
        k, v = linear(tokens, f"{name}.to_k_{stream}"), linear(tokens, f"{name}.to_v_{stream}")
        if f"{name}.gate_{stream}.0.weight" in w:
            v = v * torch.sigmoid(linear(F.silu(linear(tokens, f"{name}.gate_{stream}.0")), f"{name}.gate_{stream}.2"))
        size = WIDTH // HEADS
        parts = [slice(h * size, (h + 1) * size) for h in range(HEADS)]
        return torch.cat([(q[:, p] @ k[:, p].T / size**0.5).softmax(-1) @ v[:, p] for p in parts], dim=1)

    scores = []
    for row in range(len(noisy[0])):
        tokens: dict[str, list[torch.Tensor]] = {"visual": [], "text": []}
        for x, t in zip(noisy, times, strict=True):
            words, pooled = (text.tensors[name][row : row + 1] for name in ("prompt_embeds", "pooled"))
            hidden, embedding = net.pos_embed(x[row : row + 1]), net.time_text_embed(torch.tensor([t]), pooled)
            words, adapted = net.context_embedder(words), {"visual": [], "text": []}
            for i, block in enumerate(net.transformer_blocks[:2]):
                words, hidden = block(hidden_states=hidden, encoder_hidden_states=words, temb=embedding)
                for stream, h in (("visual", hidden[0]), ("text", words[0])):
                    name = f"layer_adapters_{stream}.{i}"
                    style = linear(F.silu(linear(embedding[0], f"{name}.cond_mlp.0")), f"{name}.cond_mlp.2")
                    h = h * (1 + style[:WIDTH]) + style[WIDTH:] + w[f"{name}.layer_embed"][0]
                    adapted[stream].append(linear(h, f"{name}.proj"))
            for stream, parts in adapted.items():
                tokens[stream].append(linear(torch.cat(parts, dim=1), f"agg_{stream}"))
        visual, said = torch.cat(tokens["visual"]), torch.cat(tokens["text"])
        queries = w["query_tokens"][0]
        q = linear(norm(queries, "attn1.norm_q"), "attn1.to_q")
        seen = attention(q, norm(visual, "attn1.norm_v"), "attn1", "vis")
        seen = seen + attention(q, norm(said, "attn1.norm_t"), "attn1", "text")
        queries = queries + linear(seen, "attn1.to_out.0")
        q = linear(norm(queries, "attn2.norm_q"), "attn2.to_q")
        queries = queries + linear(attention(q, norm(visual, "attn2.norm_v"), "attn2", "vis"), "attn2.to_out.0")
        queries = queries + linear(F.gelu(linear(norm(queries, "norm_ff"), "ff.0")), "ff.2")
        scores.append(linear(queries, "head").mean())
    return torch.stack(scores)


@torch.no_grad()
def test_a_score_is_that_of_the_papers_formulas_and_disturbs_nobody(base, family, tmp_path):
    """At one timestep, and of two noisy copies together; the policy's adapter changes neither, nor it the policy."""
    folder = write(tmp_path / "dina")
    x = torch.randn(2, 2, *family.latent_shape, generator=torch.Generator().manual_seed(1))
    text, t = family.encode_prompts(PROMPTS), torch.tensor([300, 300])
    before = family.predict(x[0], t, text)
    reward = load_reward(folder, family)
    one, both = plain(base, folder, [x[0]], [300], text), plain(base, folder, [x[0], x[1]], [300, 600], text)
    assert one.std() > 1e-3 and not torch.allclose(one, both, atol=1e-3)
    for tuned in (False, True):
        torch.testing.assert_close(family.predict(x[0], t, text), before, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(reward.score(x[0], t, text, text[:1]), one, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(reward.together(list(x), [t, 2 * t], text), both, rtol=1e-4, atol=1e-4)
        if not tuned:
            weights = family.add_lora(2, seed=0)
            assert all(w.requires_grad for w in weights) and not any(w.requires_grad for w in reward.parameters())
            for weight in weights:
                weight.data.normal_(generator=torch.Generator().manual_seed(2))
            before = family.predict(x[0], t, text)
    with pytest.raises(LpoError, match="already"):
        dina.load(str(folder), family)


def test_tune_climbs_it_and_judges_and_library_read_it(base, family, tmp_path, repository):
    folder, params = write(tmp_path / "dina"), load_params(repository / "params.yaml")
    reward = load_reward(folder, family)
    config = replace(
        params.tune, num_inference_steps=3, guidance_scale=1.0, num_candidates=3, reward_timestep="next",
        timestep_range=(0, 1000), threshold=replace(params.tune.threshold, schedule="constant", low=0.0, high=0.0),
    )  # fmt: skip
    family.add_lora(2, seed=0)
    steps, _, _ = rollout(family, reward, METHODS["lpo"].select, PROMPTS, config, random.generator(0, "test"))
    text, null = family.encode_prompts(PROMPTS)[steps.prompt], family.null()
    with torch.no_grad():
        best, worst = (reward.score(x, steps.s, text, null) for x in (steps.best, steps.worst))
    assert len(steps) > 0 and bool((best > worst).all())
    saved = tmp_path / "saved"
    saved.mkdir()
    reward.save(saved)  # as the stage reward does where reward.pretrained names one
    model = replace(params.model, family="sd3", path=str(base), device="cpu", resolution=32)
    pictures, prompts = [photo(seed, 32, 32) for seed in range(2)], PROMPTS
    assert reward_of(saved, model) == saved and reward_of(saved, replace(model, family="flux")) is None
    whole = replace(params, model=model, tune=replace(params.tune, rewards={str(saved): 1.0}))
    assert list(policy_reward(whole, ["tune"])) == []
    library = Reward.load(saved, base=base, device="cpu")
    found = load_reward_judge(saved, model).score(pictures, prompts)
    with torch.no_grad():
        latents, noise = library.encode(pictures), torch.Generator().manual_seed(0)
        text, transition = family.encode_prompts(prompts), family.transition(1.0)
        expected = ensemble_score(library.model, transition, latents, (200, 500, 700), 1, text, null, noise)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert library.score(pictures, prompts).std() > 1e-4
    assert found.std() > 1e-4


class Harm:
    def __reduce__(self):
        return (print, ("code was run",))


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        ("head has more", "another.weight"), ("head lacks", "attn1.to_q.bias"), ("lora has more", "attn9"),
        ("pickle", "no code of it was run"), ("logistic", "model.use_logistic"), ("no head", "rm_head.pt"),
    ],
)  # fmt: skip
def test_what_is_not_used_or_missing_is_named(family, tmp_path, harm, named):
    folder = write(tmp_path / "dina", use_logistic=harm == "logistic")
    file, lora = folder / dina.HEAD, folder / dina.LORA[1]
    head = torch.load(file)
    if harm == "head has more":
        torch.save(head | {"another.weight": torch.ones(1)}, file)
    elif harm == "head lacks":
        torch.save({k: v for k, v in head.items() if k != named}, file)
    elif harm == "lora has more":
        key = "base_model.model.transformer_blocks.0.attn9.to_q.lora_A.weight"
        save_file(load_file(lora) | {key: torch.ones(2, 16)}, lora)
    elif harm == "pickle":
        file.write_bytes(pickle.dumps(Harm()))
    elif harm == "no head":
        file.unlink()
    with pytest.raises(LpoError, match=named.replace(".", r"\.")):
        load_reward(folder, family)


def test_another_model_is_refused(tiny, tmp_path):
    with pytest.raises(LpoError, match="the model is sd"):
        load_reward(write(tmp_path / "dina"), tiny)
