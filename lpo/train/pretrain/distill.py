"""Consistency distillation of the embedded base's U-Net: a model of few steps (LCM, arXiv 2310.04378).

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps,  t of LCM's 50 timesteps, s the next lower one
    x_s = a DDIM step (eta 0) of the teacher, guided at scale w
    L   = huber(f(x_t, t) - f_ema(x_s, s)),   f = x0_hat of the student,   huber(d) = mean of sqrt(d^2 + c^2) - c

At the lowest timestep the target is the guided teacher's x0_hat. The student starts as the teacher and needs no
guidance afterwards: w is in it.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from diffusers import LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tqdm.auto import tqdm

from lpo import random
from lpo.config import Distill
from lpo.diffusion.guidance import classifier_free
from lpo.diffusion.schedule import ddim_timesteps, previous_timesteps
from lpo.diffusion.transitions import DDIM
from lpo.train.common import checkpoint
from lpo.train.common.loop import cosine, optimizer_step, update_ema
from lpo.train.pretrain.base import tokenize

GRID = 50  # timesteps between which the student is made consistent
C = 1e-3  # of the Huber loss


def huber(difference: torch.Tensor) -> torch.Tensor:
    """mean of sqrt(d^2 + c^2) - c, ()."""
    return ((difference.square() + C**2).sqrt() - C).mean()


def distill(
    pipe: StableDiffusionPipeline, latents: torch.Tensor, ids: torch.Tensor, config: Distill, folder: Path, seed: int
) -> UNet2DConditionModel:
    """The average of the student's weights after `config.steps`; resumes from `folder`.

    latents: (N, C, h, w), scaled. ids: (N, L), their captions.
    """
    teacher = pipe.unet.requires_grad_(False).eval()
    student, average = copy.deepcopy(teacher).requires_grad_(True), copy.deepcopy(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, weight_decay=0.0)
    start = 0
    if found := checkpoint.load_training(folder, optimizer):
        start = found.step
        student.load_state_dict(found.state("student"))
        average.load_state_dict(found.state("average"))
    step_of = DDIM.from_scheduler(pipe.scheduler, 0.0)
    scheduler = LCMScheduler(num_train_timesteps=step_of.num_train_timesteps, original_inference_steps=GRID)
    starts, ends = ddim_timesteps(scheduler, GRID), previous_timesteps(scheduler, GRID)
    with torch.no_grad():
        null = pipe.text_encoder(tokenize(pipe.tokenizer, [""]))[0]
    for step in (bar := tqdm(range(start, config.steps), initial=start, total=config.steps, desc="distill")):
        draw = random.generator(seed, "distill", step)
        rows = torch.randint(len(latents), (config.batch_size,), generator=draw)
        at = torch.randint(GRID, (config.batch_size,), generator=draw)
        noise = torch.randn(latents[rows].shape, generator=draw)
        t, s = starts[at], ends[at]
        x_t = step_of.add_noise(latents[rows], noise, t)
        with torch.no_grad():
            text = pipe.text_encoder(ids[rows])[0]
            both = torch.cat([null.expand_as(text), text])
            uncond, cond = teacher(torch.cat([x_t] * 2), torch.cat([t] * 2), both).sample.chunk(2)
            guided = classifier_free(uncond, cond, config.guidance_scale)
            finished, _ = step_of.pred_x0_eps(guided, x_t, t)
            x_s, _ = step_of.mean_std(guided, x_t, t, s)
            lower = s.clamp_min(0)
            target, _ = step_of.pred_x0_eps(average(x_s, lower, text).sample, x_s, lower)
            target = torch.where((s < 0).view(-1, 1, 1, 1), finished, target)
        predicted, _ = step_of.pred_x0_eps(student(x_t, t, text).sample, x_t, t)
        loss = huber(predicted - target)
        optimizer_step(optimizer, loss, config.learning_rate * cosine(step, config.steps))
        update_ema(dict(average.named_parameters()), dict(student.named_parameters()), config.ema_decay)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}")
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            states = {"student": student.state_dict(), "average": average.state_dict()}
            checkpoint.save_training(folder, step + 1, optimizer, states)
    return average
