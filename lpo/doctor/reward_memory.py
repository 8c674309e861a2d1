"""Memory of the trainings of step rewards: `lpo reward` (the latent reward model) and `lpo spm` (SPO's)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import nn
from transformers import CLIPConfig, CLIPModel

from lpo.config import Params, RewardModel, Spm
from lpo.doctor.autocast import autocast_as
from lpo.doctor.memory import META, Need, bytes_of, configured, peak
from lpo.doctor.rows import ADAM, DVC, FINITE, elsewhere, ids, inputs
from lpo.doctor.scorer_memory import config_of
from lpo.families import DTYPES, load_family, lora
from lpo.families.conditioning import Conditioning
from lpo.families.family import Family
from lpo.rewards.lrm import LatentRewardModel
from lpo.rewards.spm import CLIP_MEAN, CLIP_STD, StepPreferenceModel

CLIP_OF = {"yuvalkirstain/PickScore_v1": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"}  # whose configuration it has


def of_reward(params: Params) -> Need:
    """The latent reward model. Where only a LoRA trains, the model under it keeps its own dtype."""
    config = params.reward
    base = configured(replace(params.model, path=config.base or params.model.path))
    base = replace(base, vae=None, denoiser=None) if config.base else base
    rank = config.adapter_rank if config.trainable == "adapter" else None
    dtype = DTYPES[base.dtype] if rank else torch.float32
    backbone = load_family(base, reward=True, layer=config.layer, dtype=dtype, device=META)
    model = latent_reward(backbone, config, rank)
    modules = list(backbone.modules().values())
    trained: list[nn.Module] = {"full": modules, "denoiser": modules[:1], "frozen": []}.get(config.trainable, [])
    if rank:
        lora.activate(backbone.denoiser, lora.REWARD)
        trained = [model.adapter]
    trained += [model.visual_projection, model.text_projection]
    for part in trained:
        part.requires_grad_(True)  # what trains is not shared out
    held = bytes_of(model) + (bytes_of(*modules) if rank else 0)  # with a rank the backbone is no part of the model
    held -= elsewhere(params, backbone.denoiser) * (dtype.itemsize if rank else 4)

    def encode(tokens: torch.Tensor) -> Conditioning:
        return backbone.encode_tokens(tokens)

    weights = sum(p.numel() for p in model.parameters())
    return _training("reward", config, model, encode, trained, held, weights, params.model.device)


def latent_reward(backbone: Family, config: RewardModel, rank: int | None) -> LatentRewardModel:
    projection = "none" if config.text_projection == "none" else "random"
    return LatentRewardModel(
        backbone, config.embedding_dim, config.guidance_scale, config.features, projection, adapter_rank=rank
    )


def of_spm(params: Params, family: Family) -> Need:
    """SPO's reward beside the model that predicts and decodes for it."""
    assert family.codec.vae is not None
    model = preference_model(params.spm, family)
    full = params.spm.trainable == "full"
    clip = model.clip
    trained = [model.time, model.modulation, model.final]
    trained += [clip] if full else [clip.visual_projection, clip.text_projection]
    for part in trained:
        part.requires_grad_(True)
    held = bytes_of(model, *family.modules().values(), family.codec.vae)

    def encode(tokens: torch.Tensor) -> Conditioning:
        return read_by(model, tokens)

    weights = sum(p.numel() for p in model.parameters())
    return _training("spm", params.spm, model, encode, trained, held, weights, params.model.device)


def read_by(model: StepPreferenceModel, tokens: torch.Tensor) -> Conditioning:
    """What the denoiser reads, and the CLIP's own embedding of as many captions."""
    clip = model.clip
    own = torch.zeros(len(tokens), clip.config.text_config.max_position_embeddings, dtype=torch.long, device=META)
    text = clip.text_projection(clip.text_model(own).pooler_output)
    return Conditioning(model.backbone.encode_tokens(tokens).tensors, nn.functional.normalize(text, dim=1))


def preference_model(config: Spm, family: Family) -> StepPreferenceModel:
    with META:
        clip = CLIPModel(config_of(CLIPConfig, CLIP_OF.get(config.clip, config.clip)))
    nobody = SimpleNamespace(init_kwargs={})
    model = StepPreferenceModel(family, clip, nobody, CLIP_MEAN, CLIP_STD, config.guidance_scale)
    return model.requires_grad_(False)


def _training(
    stage: str, config: RewardModel | Spm, model: LatentRewardModel | StepPreferenceModel,
    encode: Callable[[torch.Tensor], Conditioning], trained: Sequence[nn.Module], held: int, weights: int, device: str,
) -> Need:  # fmt: skip
    """Trained weights: float32, gradient, Adam. The step makes the copies of weights in the dtype of the forward pass.

    Validation and test score as many pairs at a time as a training step and keep nothing for a backward pass;
    gradients are there until the next step. Saving copies convolutions, whose channels come last on CUDA, into the
    order of a file. The best so far is in host memory, which on a CPU is the one that everything is in.

    Args:
        held: bytes of all weights that are there.
        weights: how many the artifact has.
    """
    backbone: Family = model.backbone
    scale = model.logit_scale if isinstance(model, LatentRewardModel) else model.clip.logit_scale
    tensors = list({id(p): p for p in [scale, *(p for part in trained for p in part.parameters())]}.values())
    scale.requires_grad_(True)
    count = sum(p.numel() for p in tensors)
    pairs = min(config.batch_size, config.micro_batch_size)
    latents, t, _ = inputs(backbone, 2 * pairs)
    tokens = ids(backbone, pairs + 1)

    def step() -> torch.Tensor:
        text = encode(tokens)
        rows = torch.arange(2 * pairs, device=META) % pairs
        return model.score(latents, t, text[rows], text[:1])

    with autocast_as(DTYPES[config.dtype]):
        training = peak(step, backward=True) - 4 * count  # gradients are counted with the weights
        scoring = peak(step)
    sent = latents.nbytes * -(-config.batch_size // pairs)
    convolutions = sum(p.numel() for p in tensors if p.dim() == 4)
    saving = (4 + 8) * convolutions + FINITE * max((p.numel() for p in tensors), default=0)
    best = 4 * count
    beside = held + count * ADAM + (best if device == "cpu" else 0)
    moments: Mapping[str, tuple[int, int]] = {
        "training": (beside, training + sent), "validation": (beside, scoring + sent),
        "test": (beside, scoring + 3 * latents.nbytes), "saving": (beside, saving),
    }  # fmt: skip
    checkpoint = count * (4 + 8 + 4)  # weights, moments and best
    stored = DVC * 4 * weights + 2 * checkpoint  # the artifact; a checkpoint is written before the last one goes
    host = best + checkpoint  # and a checkpoint while it is written
    return Need(stage, moments, stored, 0 if device == "cpu" else host)
