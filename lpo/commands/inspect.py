"""inspect: a picture and a prompt -> the latent reward model's score by timestep, as a small plot."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from lpo.config import Params
from lpo.errors import LpoError
from lpo.families import load_family
from lpo.images import decode_rgb, image_problem, to_tensor
from lpo.outputs import output_file
from lpo.random import generator
from lpo.rewards import lrm

DRAWS = 16  # of the noise at every timestep
POINTS = 20


def run(params: Params, image: Path, prompt: str, out: Path, force: bool = False) -> None:
    """Plot mean and standard deviation of S(prompt, x_t) over noise, t on 20 points.

    Args:
        force: replace a file that this command did not write.

    Raises:
        LpoError: if the picture, the prompt or the reward cannot be read, or something else is at `out`.
    """
    if not prompt.strip():
        raise LpoError("the prompt is empty", "PROMPT", "give the prompt of the picture")
    try:
        encoded = image.read_bytes()
    except OSError as error:
        raise LpoError(f"the picture cannot be read: {error.strerror}", str(image), "name another file") from error
    if problem := image_problem(encoded):
        raise LpoError(f"the picture cannot be read: it {problem}", str(image), "name another file")
    family = load_family(params.model)
    picture = decode_rgb([encoded], family.pixels, pixel_art=params.dataset.source == "simulated")
    reward = lrm.load(Path("data/reward"), family.device, family.dtype, family)
    latents = family.scale(family.encode_images(to_tensor(picture)).chunk(2, dim=1)[0])
    scores = by_timestep(reward, latents, prompt, params.seed)
    figure = Figure(figsize=(5, 2.6), layout="constrained")
    axes = figure.add_subplot()
    t, mean, std = (np.array(column) for column in zip(*scores, strict=True))
    axes.fill_between(t, mean - std, mean + std, alpha=0.25, linewidth=0)
    axes.plot(t, mean, marker="o", markersize=3)
    axes.set(xlabel="timestep t (0 is the clean picture)", ylabel="score")
    axes.set_title(textwrap.fill(prompt, 60, max_lines=4), fontsize=9, parse_math=False)  # a $ is a character
    with output_file(out, "lpo score", force) as partial:
        figure.savefig(partial, format=out.suffix.lower().lstrip(".") or "png", dpi=150)
    for timestep, value, spread in scores:
        print(f"t {timestep:4d}  {value:7.3f} +- {spread:.3f}")


@torch.no_grad()
def by_timestep(
    reward: lrm.LatentRewardModel, latents: torch.Tensor, prompt: str, seed: int
) -> list[tuple[int, float, float]]:
    """(t, mean, standard deviation) of the scores of one picture's latents (1, C, h, w) over DRAWS noises."""
    text, null = reward.encode_prompts([prompt]).repeat(DRAWS), reward.encode_prompts([""])
    transition, rows = reward.backbone.transition(1.0), []
    total = transition.num_train_timesteps
    for t in range(1, total, total // POINTS):
        noise = torch.randn(DRAWS, *latents.shape[1:], generator=generator(seed, "inspect", t)).to(latents)
        steps = torch.full((DRAWS,), t, device=latents.device)
        noisy = transition.add_noise(latents.expand(DRAWS, -1, -1, -1), noise, steps)
        score = reward.score(noisy, steps, text, null)
        rows.append((t, float(score.mean()), float(score.std())))
    return rows
