"""Memory that a stage needs on a GPU, computed from configurations on the meta device.

A tensor on the meta device has a shape and no memory, so a step of a training runs there in seconds, whatever the size
of the model. Counted are the bytes of every storage alive at one time. What a real device adds (the allocator's
rounding, work space of kernels, the CUDA context: together some GB) is not counted. Attention is taken to be fused: it
keeps queries, keys, values and output, and never the matrix of all pairs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lpo.config import Model, Params, Score
from lpo.doctor import scorer_memory
from lpo.doctor.autocast import autocast_as
from lpo.families import DTYPES, load_family, lora, sharding
from lpo.families.family import Family
from lpo.families.parts import local
from lpo.rewards.lrm import LatentRewardModel
from lpo.scorers.published import NAMES

META = torch.device("meta")
DVC = 2  # copies of a stage's output: in the workspace and in DVC's cache
ADAM = 4 + 8  # bytes a trained weight: its gradient and two moments, float32


@dataclass(frozen=True)
class Need:
    """Bytes of one stage at its largest moment: weights and what training keeps of them, the most that a step adds to
    them, and what goes to disk, each with DVC's copy in its cache.

    The disk of encode is that of 1000 pictures; elsewhere it is the artifact, and a checkpoint with its successor.
    host: what a training on a GPU keeps in host memory, beside the libraries.
    """

    stage: str
    weights: int
    step: int
    disk: int
    host: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.step


def configured(model: Model) -> Model:
    """The model with configurations in the place of hub ids, where lpo/presets/models has them."""
    names = {"path": model.path, "vae": model.vae, "denoiser": model.denoiser}
    return replace(model, **{key: local(source) for key, source in names.items()})  # type: ignore[arg-type]


class Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations make inside and that are alive; `peak` is the most at one time.

    On any device. A view of what was there before costs nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in given and storage._cdata not in self.seen:
                self.count(storage)
        return out

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *_grad: torch.Tensor) -> Any:
        q, k, v, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return _Fused.apply(query, key, value)


@contextmanager
def attention_as(function: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Inside, `function` is torch's attention. A mode of torch would miss what checkpointing computes again."""
    before, F.scaled_dot_product_attention = F.scaled_dot_product_attention, function
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before


def peak(step: Callable[[], torch.Tensor], backward: bool = False) -> int:
    """Bytes that a step makes, at most at one time; with `backward` through its result."""
    with attention_as(_fused), Alive() as alive, torch.set_grad_enabled(backward):
        result = step()
        if backward:
            result.float().sum().backward()
        return alive.peak


def bytes_of(*modules: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for part in modules for p in part.parameters())


def needs(params: Params) -> Iterator[Need]:
    """What score, encode, lrm, lpo and evaluate need, by params.yaml. Raises LpoError without configurations."""
    beside = scorer_memory.loaded(params.score)
    yield Need("score", beside, of_scorers(params.score), 0)
    family = load_family(configured(params.model), device=META)
    assert family.codec.vae is not None
    everything = bytes_of(*family.modules().values(), family.codec.vae)
    picture = torch.empty(params.encode.batch_size, 3, family.pixels, family.pixels, device=META, dtype=family.dtype)
    channels, height, width = family.latent_shape
    disk = DVC * 1000 * 2 * channels * height * width * 2  # mean and log variance in float16
    yield Need("encode", bytes_of(family.codec.vae), peak(lambda: family.codec.encode(picture)), disk)
    yield of_reward(params)
    yield of_policy(params, family, everything)
    yield of_evaluation(params, family, everything)


def of_evaluation(params: Params, family: Family, everything: int) -> Need:
    """The larger one of drawing, the largest judge, and the reward as a judge; each comes when the other is gone."""
    config = params.evaluate
    base = configured(replace(params.model, path=params.reward.base or params.model.path, denoiser=None))
    backbone = load_family(base, reward=True, layer=params.reward.layer, device=META)
    rows = inputs(backbone, config.judge_batch_size)
    picture = torch.empty(config.judge_batch_size, 3, family.pixels, family.pixels, device=META, dtype=family.dtype)
    looks = max(peak(lambda: backbone.features(*rows)[1]), peak(lambda: family.codec.encode(picture)))
    assert family.codec.vae is not None
    reward = bytes_of(*backbone.modules().values(), family.codec.vae)
    moments = [
        (everything, drawing(family, config.batch_size, config.guidance_scale)),
        (scorer_memory.largest_judge(params), 0), (reward, looks),
    ]  # fmt: skip
    weights, step = max(moments, key=sum)
    pictures = 3 * config.prompts * config.images_per_prompt * 3 * family.pixels**2  # base twice and tuned, raw
    return Need("evaluate", weights, step, DVC * pictures)


def of_scorers(config: Score, names: Collection[str] = NAMES) -> int:
    """The largest forward of a published scorer on a batch."""
    if config.scorers != "published":
        return 0
    dtype, read = DTYPES[config.models.dtype], scorer_memory.sources(config.models, names)
    firsts = [parts[0].to(dtype) for source, parts in scorer_memory.scorers(config.models).items() if source in read]
    sized = [first for first in firsts if isinstance(first, scorer_memory.Sized)]
    return max(peak(lambda one=one: one(config.batch_size, dtype)) for one in sized)  # type: ignore[misc]


def elsewhere(params: Params, *denoisers: nn.Module) -> int:
    """How many weights other GPUs hold: with model.shard all GPUs here, a process each, share out what is frozen."""
    blocks = [block for denoiser in denoisers for block in sharding.blocks(denoiser)]
    shared = sum(p.numel() for block in blocks for p in block.parameters() if not p.requires_grad)
    return shared - shared // max(torch.cuda.device_count(), 1) if params.model.shard else 0


def inputs(family: Family, n: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Latents, timesteps and conditioning of n rows."""
    with torch.no_grad():
        ids = torch.zeros(n, family.token_columns, dtype=torch.long, device=META)
        text = family.encode_tokens(ids)
    latents = torch.empty(n, *family.latent_shape, device=META, dtype=family.dtype)
    return latents, torch.zeros(n, device=META, dtype=torch.long), text


def drawing(family: Family, batch: int, scale: float) -> int:
    """The larger one of a guided forward and decoding."""
    latents, t, text = inputs(family, batch)
    guided = peak(lambda: family.guided(latents, t, text, text[:1], scale))
    return max(guided, peak(lambda: family.decode(latents)))


def of_reward(params: Params) -> Need:
    """Trained weights: float32, gradient, Adam. A training step is the largest moment: validation, test and ensemble
    score as many pairs at a time, and keep nothing for a backward pass. The step makes the copies of weights in the
    dtype of the forward pass. The best so far is in host memory.

    Where only a LoRA trains, the model under it keeps its own dtype.
    """
    config = params.reward
    base = configured(replace(params.model, path=config.base or params.model.path))
    base = replace(base, vae=None, denoiser=None) if config.base else base
    rank = config.adapter_rank if config.trainable == "adapter" else None
    dtype = DTYPES[base.dtype] if rank else torch.float32
    backbone = load_family(base, reward=True, layer=config.layer, dtype=dtype, device=META)
    forward = DTYPES[config.dtype]
    projection = "none" if config.text_projection == "none" else "random"
    model = LatentRewardModel(
        backbone, config.embedding_dim, config.guidance_scale, config.features, projection, adapter_rank=rank
    )
    modules = list(backbone.modules().values())
    trained: list[nn.Module] = {"full": modules, "denoiser": modules[:1], "frozen": []}.get(config.trainable, [])
    if rank:
        lora.activate(backbone.denoiser, lora.REWARD)
        trained = [model.adapter]
    trained += [model.visual_projection, model.text_projection]
    for part in trained:
        part.requires_grad_(True)
    weights = sum(p.numel() for p in model.parameters())
    count = sum(p.numel() for part in trained for p in part.parameters())
    pairs = min(config.batch_size, config.micro_batch_size)
    latents, t, _ = inputs(backbone, 2 * pairs)
    ids = torch.zeros(pairs + 1, backbone.token_columns, dtype=torch.long, device=META)

    def step() -> torch.Tensor:
        text = backbone.encode_tokens(ids)
        rows = torch.arange(2 * pairs, device=META) % pairs
        return model.score(latents, t, text[rows], text[:1])

    with autocast_as(forward):
        activations = peak(step, backward=True) + latents.nbytes * -(-config.batch_size // pairs)
    gradients = bytes_of(*trained)
    checkpoint = count * (4 + 8 + 4)  # weights, moments and best
    stored = DVC * 4 * weights + 2 * checkpoint  # the artifact; a checkpoint is written before the last one goes
    held = 4 * weights
    if rank:  # `weights` are those of the LoRA and the projections
        held = 4 * weights + bytes_of(*modules)
    away = elsewhere(params, backbone.denoiser) * (dtype.itemsize if rank else 4)
    host = 4 * count + checkpoint  # the best, and a checkpoint while it is written
    return Need("reward", held - away + count * ADAM, activations - gradients, stored, host)


def of_policy(params: Params, family: Family, everything: int) -> Need:
    """Policy and reward side by side; the adapter with Adam, average and best."""
    config = params.tune
    base = configured(replace(params.model, path=params.reward.base or params.model.path, denoiser=None))
    backbone = load_family(base, reward=True, layer=params.reward.layer, device=META)
    at_once = config.num_candidates * config.micro_batch_size  # rows of a forward without gradients
    drawn = config.prompts_per_rollout * (config.num_candidates if config.reward_timestep == "look_ahead" else 1)
    latents, t, text = inputs(family, min(drawn, at_once))
    rollout = peak(lambda: family.guided(latents, t, text, text[:1], config.guidance_scale))
    seen, when, words = inputs(backbone, min(config.prompts_per_rollout * config.num_candidates, at_once))
    scored = peak(lambda: backbone.features(seen, when, words)[1])
    adapter = sum(p.numel() for p in family.add_lora(config.lora_rank, seed=0))
    in_a_row = {"diffusion_dpo": 2, "smpo": 2, "dgpo": config.num_candidates}.get(config.method, 1)
    latents, t, text = inputs(family, min(config.batch_size, config.micro_batch_size) * in_a_row)
    update = peak(lambda: family.guided(latents, t, text, text[:1], config.guidance_scale), backward=True)
    shared = params.reward.trainable == "adapter" and params.reward.pretrained is None  # a LoRA of the policy's model
    models = [family] if shared else [family, backbone]
    weights = everything + adapter * (4 + ADAM + 8)
    weights += 0 if shared else bytes_of(*backbone.modules().values())
    weights -= elsewhere(params, *(each.denoiser for each in models)) * family.dtype.itemsize
    encoders = [part for each in models for part in list(each.modules().values())[1:]]
    assert family.codec.vae is not None
    away = bytes_of(*encoders, family.codec.vae)  # in host memory but for prompts and validations
    sampler, names = params.evaluate.sampler, params.tune.validation_scorers
    seen, when, words = inputs(backbone, min(sampler.batch_size, config.validation_prompts))
    validation = max(
        drawing(family, sampler.batch_size, sampler.guidance_scale),
        peak(lambda: backbone.features(seen, when, words)[1]),
        scorer_memory.loaded(params.score, names) + of_scorers(params.score, names),
    )
    pictures = config.validation_prompts + config.guard.prompts * config.guard.seeds
    checkpoint = adapter * (4 + 8 + 4 + 4)  # weights, moments, average and best
    host = max(away, 0) + checkpoint + 2 * pictures * 3 * family.pixels**2 * 4  # in float32, and on their way there
    step = max(validation, max(rollout, scored, update) - away)
    return Need("tune", weights, step, DVC * 4 * adapter + 2 * checkpoint, host)
