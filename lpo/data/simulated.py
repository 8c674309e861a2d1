"""Simulated preference data: pairs of the embedded world, labelled by annotators who look as the judge does.

rendered  a caption's picture beside a near-miss of it (something replaced, moved, missing, doubled, ...) with equal
          flaws that no caption names, or beside another picture of the caption with other flaws
sampled   two pictures that the base made of one caption
mixed     one that the base made beside a rendered one

    u = w_alignment alignment / unit + w_aesthetic aesthetic / unit      (emoji.judge.Verdict.utility)
    tie if |u_0 - u_1| < margin, else 0 preferred with probability sigmoid((u_0 - u_1) / temperature), then flipped
    with probability flip_rate

These are simulated labels, never human ones. The schema is that of Pick-a-Pic.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from PIL import Image

from lpo.config import Dataset
from lpo.emoji.oracle import judge
from lpo.emoji.render import render
from lpo.emoji.scenes import OPPOSITE, Prompt, Scene, flawed, layout, near_miss, prompts_of, sample_prompts

SAME_CAPTION_SHARE = 0.25  # of rendered pairs that are not mirrored: both right, only the flaws differ


@dataclass(frozen=True)
class Painter:
    """The base, as far as pictures go.

    sample: captions, seeds -> (N, H, W, 3) uint8. through_vae: what the VAE makes of pictures, same shape. Rendered
    pictures pass through it, as every picture of a diffusion model's data set did: a preference for what no latent
    holds could not be learnt.
    """

    sample: Callable[[list[str], list[int]], np.ndarray]
    through_vae: Callable[[np.ndarray], np.ndarray]


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def draw(prompts: list[Prompt], rng: np.random.Generator) -> np.ndarray:
    """A flawed drawing of each prompt."""
    return render([flawed(layout(prompt, rng), rng) for prompt in prompts], rng)


def counterpart(prompt: Prompt, rng: np.random.Generator) -> tuple[Prompt, str]:
    """What is drawn beside a prompt's picture, and what differs."""
    return (prompt, "flaws") if rng.random() < SAME_CAPTION_SHARE else near_miss(prompt, rng)


def mirrored(prompts: list[Prompt]) -> list[tuple[Prompt, str]]:
    """The opposite relation of each: order is learnt last, and only where many pairs ask for it."""
    return [(replace(prompt, relation=OPPOSITE[prompt.relation]), "relation") for prompt in prompts]


def rendered_pairs(
    prompts: list[Prompt], others: list[tuple[Prompt, str]], painter: Painter, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(pictures 0, pictures 1) of each prompt and what stands beside it; the faithful one is 0 or 1 at random.

    Two pictures have the same flaws unless nothing else differs: looks would drown what the caption asks for.
    """
    sides: list[list[Scene]] = [[], []]
    for prompt, (other, kind) in zip(prompts, others, strict=True):
        faithful, beside = flawed(layout(prompt, rng), rng), flawed(layout(other, rng), rng)
        if kind != "flaws":
            beside = replace(beside, blur=faithful.blur, fade=faithful.fade, clutter=faithful.clutter)
        turned = rng.random() < 0.5
        sides[turned].append(faithful)
        sides[not turned].append(beside)
    first, second = (painter.through_vae(render(side, rng)) for side in sides)
    return first, second


def label(gap: np.ndarray, config: Dataset, rng: np.random.Generator) -> np.ndarray:
    """label_0 (N,) in {1, 0.5, 0} of pairs whose utilities differ by gap = u_0 - u_1 (N,)."""
    first = rng.random(len(gap)) < 1 / (1 + np.exp(-gap / config.temperature))
    first = first ^ (rng.random(len(gap)) < config.flip_rate)
    return np.where(np.abs(gap) < config.tie_margin, 0.5, first.astype(float))


def sampled_pairs(
    prompts: list[Prompt], images: int, painter: Painter, rng: np.random.Generator
) -> tuple[list[Prompt], np.ndarray, np.ndarray, list[str], np.ndarray]:
    """Pairs of the base's own pictures, `images` of each prompt: every two of them, and each beside a rendered one.

    (prompts, pictures 0, pictures 1, "sampled" or "mixed", which pictures are the base's (N, 2)) of the pairs; of
    mixed pairs either can come first.
    """
    repeated = [prompt for prompt in prompts for _ in range(images)]
    own = painter.sample([p.caption for p in repeated], [int(s) for s in rng.integers(2**31, size=len(repeated))])
    drawn = painter.through_vae(draw(repeated, rng))
    rows = np.arange(len(repeated)).reshape(len(prompts), images)
    two = np.concatenate([rows[:, pair] for pair in combinations(range(images), 2)])
    turned = rng.random(len(repeated)) < 0.5
    turn = turned[:, None, None, None]
    first = np.concatenate([own[two[:, 0]], np.where(turn, drawn, own)])
    second = np.concatenate([own[two[:, 1]], np.where(turn, own, drawn)])
    asked = [repeated[row] for row in two[:, 0]] + repeated
    kinds = ["sampled"] * len(two) + ["mixed"] * len(repeated)
    base = np.concatenate([np.ones((len(two), 2), bool), np.stack([~turned, turned], axis=1)])
    return asked, first, second, kinds, base


def make_pairs(split: str, rendered: int, sampled: int, painter: Painter, config: Dataset, seed: int) -> pd.DataFrame:
    """The pairs of one split in the schema of Pick-a-Pic, in a random order.

    `rendered` pairs are drawn, of which the share `mirrored_share` shows a relation and its opposite; `sampled` prompts
    make what `sampled_pairs` says.
    """
    rng = np.random.default_rng([seed, {"train": 1, "validation": 2, "test": 3}[split]])
    opposite, relations = round(rendered * config.mirrored_share), prompts_of(split)["relation"]
    prompts = sample_prompts(split, rendered - opposite, rng)
    asked = [relations[i] for i in rng.integers(len(relations), size=opposite)]
    others = [counterpart(prompt, rng) for prompt in prompts] + mirrored(asked)
    prompts, differences = prompts + asked, [kind for _, kind in others]
    first, second = rendered_pairs(prompts, others, painter, rng)
    base = np.zeros((rendered, 2), bool)
    if sampled:
        own = sampled_pairs(sample_prompts(split, sampled, rng), config.images_per_prompt, painter, rng)
        prompts, differences, base = prompts + own[0], differences + own[3], np.concatenate([base, own[4]])
        first, second = np.concatenate([first, own[1]]), np.concatenate([second, own[2]])
    captions = [prompt.caption for prompt in prompts]
    encoded = [[png(picture) for picture in pictures] for pictures in (first, second)]
    uids = [[_uid(data, c) for data, c in zip(side, captions, strict=True)] for side in encoded]
    _, once, rows = np.unique(uids, return_index=True, return_inverse=True)  # the base's pictures are in several pairs
    asked = prompts * 2
    verdicts = judge(np.concatenate([first, second])[once], [asked[i] for i in once])
    weights = (config.alignment_weight, config.aesthetic_weight)
    utility = np.array([verdict.utility(*weights) for verdict in verdicts])[rows].reshape(2, -1)
    label_0 = label(utility[0] - utility[1], config, rng)
    counts = pd.Series(captions).value_counts()
    made_by = np.where(base, "base", "render")
    best = [u0 if y == 1 else u1 if y == 0 else "" for y, u0, u1 in zip(label_0, *uids, strict=True)]
    frame = pd.DataFrame(
        {
            "caption": captions, "jpg_0": encoded[0], "jpg_1": encoded[1],
            "image_0_uid": uids[0], "image_1_uid": uids[1], "best_image_uid": best,
            "label_0": label_0, "label_1": 1 - label_0, "has_label": True, "are_different": True,
            "num_example_per_prompt": [int(counts[c]) for c in captions],
            "model_0": made_by[:, 0], "model_1": made_by[:, 1],
            "category": [prompt.category for prompt in prompts], "difference": differences,
        }
    )  # fmt: skip
    frame = frame[frame["image_0_uid"] != frame["image_1_uid"]]
    frame = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
    frame.insert(0, "ranking_id", np.arange(len(frame)))
    return frame


def _uid(data: bytes, caption: str) -> str:
    """A picture's name: its contents and its caption, since scores belong to both."""
    return hashlib.sha256(data + b"\0" + caption.encode()).hexdigest()[:32]
