"""Training of the embedded scorers, and of the validators, on rendered scenes and their near-misses.

clip       cross entropy over captions and over pictures, a near-miss of every picture among the negatives,
aesthetic  squared error against the quality that the drawing's own flaws give (the judge is not asked),
vqa        binary cross entropy: yes for the caption drawn, no for its near-miss.

Validators are scorers of the same form from another seed, whose images are also distorted as over-optimised images are:
too sharp, too contrasted, tinted, ghosted, mottled. The scorers of the filter have never seen these flaws and like some
of them. So a validation by the scorers still rose while the judge's verdict fell (docs/experiments.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from lpo import random
from lpo.emoji.render import render
from lpo.emoji.scenes import Scene, flawed, layout, near_miss, sample_prompts
from lpo.images import to_tensor
from lpo.scorers.embedded import Scorers
from lpo.train.common import checkpoint
from lpo.train.common.loop import cosine, optimizer_step


def quality(scene: Scene) -> float:
    """0..10 from a drawing's flaws: blur, fade and clutter each cost up to three points."""
    return 10 - 3 * scene.blur / 0.9 - 3 * (1 - scene.fade) / 0.4 - 3 * scene.clutter / 12


def distort(images: torch.Tensor, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(images in [-1, 1], points lost (N,)): each flaw in a quarter of the images, at up to three points."""
    count, lost = len(images), torch.zeros(len(images))

    def strength() -> torch.Tensor:
        """0 for the images without the flaw, else in (0, 1]; (N, 1, 1, 1)."""
        drawn = torch.from_numpy(rng.uniform(0.1, 1, count) * (rng.random(count) < 0.25)).float()
        lost.add_(3 * drawn)
        return drawn[:, None, None, None]

    sharpened = images - F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = images + 3 * strength() * sharpened
    mean = images.mean((2, 3), keepdim=True)
    images = mean + (images - mean) * (1 + strength())
    images = images + 0.4 * strength() * torch.from_numpy(rng.uniform(-1, 1, (count, 3, 1, 1))).float()
    images = images + 0.4 * strength() * (images.roll(1, 0) - images)
    mottle = torch.from_numpy(rng.normal(size=(count, 3, 8, 8))).float()
    images = images + 0.25 * strength() * F.interpolate(mottle, images.shape[2:], mode="bilinear")
    return images.clamp(-1, 1), lost


def batch(
    n: int, rng: np.random.Generator, distorted: bool = False
) -> tuple[list[str], torch.Tensor, torch.Tensor, torch.Tensor]:
    """(captions, images, images of a near-miss, quality of both in a row), images in [-1, 1]."""
    prompts = sample_prompts("train", n, rng)
    wrong = [near_miss(prompt, rng)[0] for prompt in prompts]
    scenes = [flawed(layout(prompt, rng), rng) for prompt in [*prompts, *wrong]]
    images, beauty = to_tensor(render(scenes, rng)), torch.tensor([quality(s) for s in scenes])
    if distorted:
        images, lost = distort(images, rng)
        beauty = (beauty - lost).clamp(min=0)
    return [p.caption for p in prompts], images[:n], images[n:], beauty


def train_scorers(
    scorers: Scorers, folder: Path, seed: int, steps: int, batch_size: int, learning_rate: float, every: int,
    distorted: bool = False,
) -> None:  # fmt: skip
    """Train the three in place, on distorted images too if asked; resumes from `folder`."""
    optimizer = torch.optim.AdamW(scorers.parameters(), lr=learning_rate, weight_decay=1e-3)
    start = 0
    if found := checkpoint.load_training(folder, optimizer):
        start = found.step
        scorers.load_state_dict(found.state("scorers"))
    scorers.train()
    for step in (bar := tqdm(range(start, steps), initial=start, total=steps, desc=folder.name, mininterval=2)):
        captions, right, wrong, target = batch(batch_size, random.numpy_generator(seed, "scorers", step), distorted)
        ids = scorers.tokenize(captions)
        pictures = torch.cat([right, wrong])
        embedding, text = scorers.embed(pictures), scorers.embed_text(ids)
        logits = scorers.clip.logit_scale.exp().clamp(max=100) * text @ embedding.T
        rows = torch.arange(batch_size)
        contrast = F.cross_entropy(logits, rows) + F.cross_entropy(logits[:, :batch_size].T, rows)
        beauty = F.mse_loss(scorers.predict_aesthetic(embedding), target)
        truth = torch.cat([torch.ones(batch_size), torch.zeros(batch_size)])
        yes = F.binary_cross_entropy_with_logits(scorers.vqa(pictures, ids.repeat(2, 1)), truth)
        optimizer_step(optimizer, contrast + 0.3 * beauty + yes, learning_rate * cosine(step, steps))
        if step % 50 == 0:
            bar.set_postfix(clip=f"{contrast.item():.2f}", aesthetic=f"{beauty.item():.2f}", vqa=f"{yes.item():.3f}")
        if (step + 1) % every == 0 or step + 1 == steps:
            checkpoint.save_training(folder, step + 1, optimizer, {"scorers": scorers.state_dict()})
    scorers.eval()
