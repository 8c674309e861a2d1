"""Memory that every stage needs on a GPU, from configurations on the meta device: `needs(params)`.

A stage is counted at its moments, such as a rollout, an update and a validation; the largest one decides. Small things
that live through a moment (noise, kept steps, prompts) are counted from their shapes, and generously. What a GPU keeps
in host memory for the time (lpo/train/common/offload.py) is left out; where `model.device` is cpu nothing moves. The
allocator's rounding and the CUDA context are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from lpo.config import Params
from lpo.doctor import scorer_memory
from lpo.doctor.memory import META, Need, bytes_of, configured, peak
from lpo.doctor.policy_memory import of_policy
from lpo.doctor.reward_memory import latent_reward, of_reward, of_spm
from lpo.doctor.rows import DVC, SMALL, drawing, encoding, inputs, of_latent, of_text, pictures
from lpo.families import load_family
from lpo.families.family import Family
from lpo.paths import SPM


def needs(params: Params) -> Iterator[Need]:
    """What score, encode, reward or spm, tune and evaluate need. Raises LpoError without configurations."""
    scoring = scorer_memory.loaded(params.score), scorer_memory.forward(params.score)
    yield Need("score", {"scoring": scoring}, 0)
    family = load_family(configured(params.model), device=META)
    assert family.codec.vae is not None
    everything = bytes_of(*family.modules().values(), family.codec.vae)
    disk = DVC * 1000 * 2 * 2 * of_latent(family) // family.dtype.itemsize  # mean and log variance in float16
    yield Need(
        "encode", {"encoding": (bytes_of(family.codec.vae), encoding_of(family, params.encode.batch_size))}, disk
    )
    yield of_spm(params, family) if Path(params.tune.reward) == SPM else of_reward(params)
    yield of_policy(params, load_family(configured(params.model), device=META), everything)
    yield of_evaluation(params, family, everything)


def encoding_of(family: Family, n: int) -> int:
    """The VAE's encoder on n pictures, which come in float32."""
    seen = pictures(family, n)
    return seen.nbytes + peak(lambda: family.codec.encode(seen))


def of_evaluation(params: Params, family: Family, everything: int) -> Need:
    """Drawing, and one judge after the other, the latent reward among them; each comes when the other is gone."""
    config, n = params.evaluate, params.evaluate.judge_batch_size
    adapter = sum(p.numel() for p in family.add_lora(params.tune.lora_rank, seed=0))
    draw = max(drawing(family, config.batch_size, config.guidance_scale), encoding(family, config.batch_size))
    moments = {"drawing": (everything + 4 * adapter, draw), **scorer_memory.judging(params)}
    if Path(params.tune.reward) != SPM:
        moments["lrm"] = _as_judge(params, family, n, everything)
    stored = 3 * config.prompts * config.images_per_prompt * 3 * family.pixels**2  # base twice and tuned, raw
    return Need("evaluate", moments, DVC * stored)


def _as_judge(params: Params, family: Family, n: int, everything: int) -> tuple[int, int]:
    """The reward reads what the VAE of the model makes of the pictures."""
    config = params.reward
    base = configured(replace(params.model, path=config.base or params.model.path, denoiser=None))
    backbone = load_family(base, reward=True, layer=config.layer, device=META)
    shared = config.trainable == "adapter" and config.pretrained is None
    model = latent_reward(backbone, config, config.adapter_rank if shared else None)
    heads = sum(value.nbytes for value in model.heads().values())
    latents, t, text = inputs(backbone, n)
    looks = max(peak(lambda: backbone.features(latents, t, text)[1]), encoding(backbone, n))
    assert family.codec.vae is not None
    own = everything if shared else bytes_of(*backbone.modules().values(), family.codec.vae)
    return own + heads, n * SMALL + max(encoding_of(family, n), looks + n * of_text(backbone) + 2 * latents.nbytes)
