"""Training of the embedded base: AutoencoderKL, CLIPTextModel, UNet2DConditionModel from nothing, on rendered scenes.

    VAE    L = |x - x'| + |grad x - grad x'| + 2e-6 KL(q(z|x) || N(0, 1))
    U-Net  L = |v - v_theta(x_t, t, c)|^2,  v = sqrt(a) eps - sqrt(1 - a) x_0  (v-prediction),  t ~ U[0, T)

with the caption dropped in a tenth of the examples for classifier-free guidance. v-prediction because its loss counts
errors of x_0 about equally at every t: where objects stand is decided at high t, which the epsilon loss hardly sees.
Scenes carry flaws that no caption names (blur, fade, clutter), as web pictures do. The U-Net has three phases:

unet      everything
layout    which object stands where, which the first phase leaves near chance. Half of each batch are captions with a
          relation, half of the timesteps lie in [T / 2, T), where places are decided, and the text encoder's f_eos must
          tell a linear head what stands left, right, above and below (cross entropy; the head is thrown away). This
          stands in for what a pretrained CLIP knows.
captions  as layout, but a share of the captions is a near-miss of the image, and the head learns what the caption says.
          Captions of the web are wrong in this way. A model that was trained on them knows more than it shows: it draws
          a mixture of faithful and unfaithful images, and preference tuning moves that mixture. A model whose captions
          were always right errs only where its capacity ends, and no adapter adds capacity (docs/experiments.md).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tqdm.auto import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from lpo import random
from lpo.emoji.render import render
from lpo.emoji.scenes import Prompt, flawed, layout, near_miss, sample_prompts, split_of
from lpo.emoji.sprites import NAMES
from lpo.emoji.vocabulary import make_tokenizer
from lpo.images import to_tensor
from lpo.train.common import checkpoint
from lpo.train.common.loop import cosine, optimizer_step, update_ema

CAPTION_DROPOUT = 0.1
KL_WEIGHT = 2e-6
LAYOUT_WEIGHT = 0.1
NOTHING = len(NAMES)  # stands where no object does
SIDES = {"left of": (0, 1), "right of": (1, 0), "above": (2, 3), "below": (3, 2)}  # of left, right, top, bottom
ENCODED_AT_ONCE = 256
CHUNK = 1000  # scenes that are drawn together

Phase = Literal["unet", "layout", "captions"]
Data = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # `training_set`


def new_pipeline(seed: int) -> StableDiffusionPipeline:
    """The untrained embedded base, 5 M parameters, as the pipeline class that everybody's tools load."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
            num_attention_heads=4, max_position_embeddings=tokenizer.model_max_length, projection_dim=128,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(16, 32, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, norm_num_groups=8,
        sample_size=32,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(48, 80, 112),
        down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=128, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False,
        set_alpha_to_one=False, prediction_type="v_prediction", timestep_spacing="leading",
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def flawed_pictures(prompts: list[Prompt], rng: np.random.Generator) -> torch.Tensor:
    """Rendered scenes with flaws, (N, 3, 32, 32) in [-1, 1]."""
    scenes = [flawed(layout(prompt, rng), rng) for prompt in prompts]
    return to_tensor(render(scenes, rng))


def train_vae(
    vae: AutoencoderKL, folder: Path, seed: int, steps: int, batch_size: int, learning_rate: float, every: int
) -> None:
    """Train the autoencoder in place and set its scaling factor to 1 / std of its latents; resumes from `folder`."""
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, weight_decay=1e-4, betas=(0.9, 0.99))
    start = 0
    if found := checkpoint.load_training(folder, optimizer):
        start = found.step
        vae.load_state_dict(found.state("vae"))
    vae.train()
    for step in (bar := tqdm(range(start, steps), initial=start, total=steps, desc="vae", mininterval=2)):
        rng = random.numpy_generator(seed, "vae", step)
        pictures = flawed_pictures(sample_prompts("train", batch_size, rng), rng)
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=random.generator(seed, "vae noise", step))
        error = vae.decode(posterior.mean + posterior.std * noise).sample - pictures
        loss = error.abs().mean() + error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        loss = loss + KL_WEIGHT * posterior.kl().mean()
        optimizer_step(optimizer, loss, learning_rate * cosine(step, steps))
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % every == 0 or step + 1 == steps:
            checkpoint.save_training(folder, step + 1, optimizer, {"vae": vae.state_dict()})
    vae.eval()
    rng = random.numpy_generator(seed, "vae scale")
    latents = encode_pictures(vae, flawed_pictures(sample_prompts("train", 1000, rng), rng))
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """Posterior means, unscaled: (N, 3, H, W) in [-1, 1] -> (N, C, h, w)."""
    return torch.cat([vae.encode(batch).latent_dist.mean for batch in pictures.split(ENCODED_AT_ONCE)])


def sides(prompt: Prompt) -> list[int]:
    """What a caption with a relation puts left, right, at the top and at the bottom: places in NAMES, or NOTHING."""
    found = [NOTHING] * 4
    if prompt.relation:
        for side, name in zip(SIDES[prompt.relation], prompt.objects, strict=True):
            found[side] = NAMES.index(name)
    return found


def training_set(pipe: StableDiffusionPipeline, seed: int, scenes: int) -> Data:
    """(latents (N, C, h, w) scaled, input_ids (N, L), `sides` (N, 4)) of rendered train scenes."""
    latents, ids, placed = [], [], []
    for i in tqdm(range(0, scenes, CHUNK), desc="render and encode", mininterval=2):
        rng = random.numpy_generator(seed, "scenes", i)
        prompts = sample_prompts("train", min(CHUNK, scenes - i), rng)
        latents.append(encode_pictures(pipe.vae, flawed_pictures(prompts, rng)) * pipe.vae.config.scaling_factor)
        ids.append(tokenize(pipe.tokenizer, [prompt.caption for prompt in prompts]))
        placed.append(torch.tensor([sides(prompt) for prompt in prompts]))
    return torch.cat(latents), torch.cat(ids), torch.cat(placed)


def wrong_captions(
    tokenizer: CLIPTokenizer, seed: int, scenes: int, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids (N, L), `sides` (N, 4)) for the scenes of `training_set`; a share of the captions are near-misses."""
    ids, placed = [], []
    for i in range(0, scenes, CHUNK):
        prompts = sample_prompts("train", min(CHUNK, scenes - i), random.numpy_generator(seed, "scenes", i))
        said = near_misses(prompts, share, random.numpy_generator(seed, "captions", i))
        ids.append(tokenize(tokenizer, [prompt.caption for prompt in said]))
        placed.append(torch.tensor([sides(prompt) for prompt in said]))
    return torch.cat(ids), torch.cat(placed)


def near_misses(prompts: list[Prompt], share: float, rng: np.random.Generator) -> list[Prompt]:
    """Each prompt, or with probability `share` a near-miss of it that is in the train split too."""
    result = []
    for prompt in prompts:
        said = prompt
        if rng.random() < share:
            while said == prompt or split_of(said) != "train":
                said = near_miss(prompt, rng)[0]
        result.append(said)
    return result


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def train_unet(
    pipe: StableDiffusionPipeline, data: Data, folder: Path, seed: int,
    steps: int, batch_size: int, learning_rate: float, ema_decay: float, every: int, phase: Phase,
) -> None:  # fmt: skip
    """One phase of U-Net and text encoder, in place; they end with the EMA of their weights. Resumes from `folder`.

    A phase begins where the one before it ended. `data` is the `training_set`, with `wrong_captions` for the last one.
    """
    layout = phase != "unet"
    modules: dict[str, torch.nn.Module] = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    weights = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
    ema = {name: value.detach().clone() for name, value in weights.items()}
    if layout:
        torch.manual_seed(seed)
        modules["head"] = torch.nn.Linear(pipe.text_encoder.config.hidden_size, 4 * (NOTHING + 1))
    trained = [p for module in modules.values() for p in module.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=1e-3, betas=(0.9, 0.99))
    start = 0
    if found := checkpoint.load_training(folder, optimizer):
        start, ema = found.step, found.state("ema")
        for key, module in modules.items():
            module.load_state_dict(found.state(key))
    latents, ids, placed = data
    related = torch.nonzero((placed != NOTHING).any(1))[:, 0]
    null = tokenize(pipe.tokenizer, [""])[0]
    alphas = pipe.scheduler.alphas_cumprod
    for module in modules.values():
        module.train()
    for step in (bar := tqdm(range(start, steps), initial=start, total=steps, desc=phase, mininterval=2)):
        draw = random.generator(seed, phase, step)
        rows = torch.randint(len(latents), (batch_size,), generator=draw)
        if layout:
            rows[::2] = related[torch.randint(len(related), rows[::2].shape, generator=draw)]
        x0, tokens = latents[rows], ids[rows].clone()
        tokens[torch.rand(batch_size, generator=draw) < CAPTION_DROPOUT] = null
        t = torch.randint(len(alphas), (batch_size,), generator=draw)
        if layout:
            t[: batch_size // 2] = (len(alphas) + t[: batch_size // 2]) // 2
        noise = torch.randn(x0.shape, generator=draw)
        a = alphas[t][:, None, None, None]
        target = a.sqrt() * noise - (1 - a).sqrt() * x0
        text = pipe.text_encoder(tokens)
        loss = F.mse_loss(pipe.unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t, text[0]).sample, target)
        if layout:
            told = (placed[rows] != NOTHING).any(1) & (tokens != null).any(1)
            guess = modules["head"](text.pooler_output[told]).view(-1, NOTHING + 1)
            loss = loss + LAYOUT_WEIGHT * F.cross_entropy(guess, placed[rows][told].flatten())
        optimizer_step(optimizer, loss, learning_rate * cosine(step, steps))
        update_ema(ema, weights, min(ema_decay, (1 + step) / (10 + step)))
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % every == 0 or step + 1 == steps:
            states = {key: module.state_dict() for key, module in modules.items()} | {"ema": ema}
            checkpoint.save_training(folder, step + 1, optimizer, states)
    with torch.no_grad():
        for key, value in weights.items():
            value.copy_(ema[key])
    for module in modules.values():
        module.eval()
