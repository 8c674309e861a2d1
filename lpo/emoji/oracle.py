"""The judge: answers the questions of a caption by matching every sprite at every place. It has no learned weights.

With background colour g, the picture is R = I - g and a sprite of premultiplied colours P and alpha A is T = P - A g.
Drawn at a place with opacity f it explains
    gain(f) = 2 f <R, T> - f^2 <T, T>        (squared error, summed over pixels and channels),
largest at f = <R, T> / <T, T>, held to OPACITY. Matching pursuit: take the sprite and place of the largest gain, among
those that explain at least EXPLAINED of what is there (<R^2, A>); pass over places that overlap it; repeat.

It is for evaluation and for labelling as simulated annotators. Rewards and the scores of MPCF are other models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from lpo.emoji.render import BACKGROUND_COLOURS, render
from lpo.emoji.scenes import SPRITE, Prompt, Scene, parse
from lpo.emoji.sprites import COLOURED, NAMES, sprites

ALIGNMENT_UNIT, AESTHETIC_UNIT = 0.2, 1.2  # about one standard deviation among near-misses: what utility counts in
OPACITY = (0.4, 1.1)
EXPLAINED = 0.5  # share of the squared difference from the background under the sprite
LEAST_GAIN = 2.0  # squared error: specks of clutter stay below it
OVERLAP = 12  # pixels: what is found nearer than this to a stronger match, along both axes, is part of it
MOST = 6  # objects looked for


@dataclass(frozen=True)
class Verdict:
    """What the judge saw: questions (kind, right), objects found (name, x, y), and the two axes."""

    questions: tuple[tuple[str, bool], ...]
    found: tuple[tuple[str, int, int], ...]
    background: str
    aesthetic: float  # 0..10

    @property
    def alignment(self) -> float:
        """Share of the caption's questions answered right, 0..1."""
        return sum(right for _, right in self.questions) / len(self.questions)

    def utility(self, alignment_weight: float, aesthetic_weight: float) -> float:
        """w_alignment alignment / ALIGNMENT_UNIT + w_aesthetic aesthetic / AESTHETIC_UNIT."""
        return alignment_weight * self.alignment / ALIGNMENT_UNIT + aesthetic_weight * self.aesthetic / AESTHETIC_UNIT

    @property
    def all_correct(self) -> bool:
        return all(right for _, right in self.questions)


@lru_cache(maxsize=len(BACKGROUND_COLOURS))
def _templates(background: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(T (S, 3, h, w), A (S, 1, h, w), <T, T> (S, 1, 1)) of every sprite on a background."""
    art = torch.from_numpy(sprites(SPRITE).copy()).permute(0, 3, 1, 2)
    template = art[:, :3] - art[:, 3:] * torch.tensor(BACKGROUND_COLOURS[background])[:, None, None]
    return template, art[:, 3:], template.square().sum((1, 2, 3))[:, None, None]


def background_of(images: torch.Tensor) -> list[str]:
    """The background with the most pixels near its colour. images: (N, 3, H, W) in [0, 1]."""
    colours = torch.tensor(list(BACKGROUND_COLOURS.values()))[:, :, None, None]
    distance, nearest = torch.stack([(images - colour).square().sum(1) for colour in colours]).min(0)  # (N, H, W)
    nearest = torch.where(distance < 0.06, nearest, -1)
    pixels = torch.stack([(nearest == k).sum((1, 2)) for k in range(len(colours))], dim=1)
    return [list(BACKGROUND_COLOURS)[i] for i in pixels.argmax(1).tolist()]


def gains(images: torch.Tensor, background: str) -> torch.Tensor:
    """gain of every sprite at every place, 0 where it is no match: (N, S, places, places), images (N, 3, H, W)."""
    template, alpha, energy = _templates(background)
    residual = images - torch.tensor(BACKGROUND_COLOURS[background])[:, None, None]
    correlation = F.conv2d(residual, template)
    opacity = (correlation / energy).clamp(*OPACITY)
    gain = 2 * opacity * correlation - opacity.square() * energy
    there = F.conv2d(residual.square().sum(1, keepdim=True), alpha)
    return gain * ((gain > EXPLAINED * there) & (gain > LEAST_GAIN))


def find_objects(gain: np.ndarray) -> tuple[tuple[str, int, int], ...]:
    """Objects of one picture from its (S, places, places) gains, the strongest first."""
    gain = gain.copy()
    found: list[tuple[str, int, int]] = []
    while len(found) < MOST and gain.max() > 0:
        k, y, x = np.unravel_index(int(gain.argmax()), gain.shape)
        found.append((NAMES[k], int(x), int(y)))
        gain[:, max(y - OVERLAP + 1, 0) : y + OVERLAP, max(x - OVERLAP + 1, 0) : x + OVERLAP] = 0
    return tuple(found)


def holds(relation: str, a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether a stands in the relation to b: the named axis dominates and the gap is at least half a sprite."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    along, across = {"left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
    return along >= SPRITE // 2 and along > abs(across)


def answer(prompt: Prompt, found: tuple[tuple[str, int, int], ...], background: str) -> tuple[tuple[str, bool], ...]:
    """The questions of a caption, (kind, right): object, colour, count, only (nothing else), relation, background."""
    names = [name for name, _, _ in found]
    questions: list[tuple[str, bool]] = []
    for name in prompt.objects:
        if name in COLOURED:
            kind = name.split()[1]
            questions += [("object", any(n.endswith(" " + kind) for n in names)), ("colour", name in names)]
        else:
            questions.append(("object", name in names))
    if prompt.count > 1:
        questions.append(("count", names.count(prompt.objects[0]) == prompt.count))
    else:
        questions.append(("only", len(names) <= len(prompt.objects)))
    if prompt.relation:
        places = [[(x, y) for n, x, y in found if n == name] for name in prompt.objects]
        questions.append(("relation", any(holds(prompt.relation, a, b) for a in places[0] for b in places[1])))
    if prompt.background != "plain":
        questions.append(("background", background == prompt.background))
    return tuple(questions)


def _sharpness(images: torch.Tensor) -> torch.Tensor:
    across = images.diff(dim=3).square().sum((1, 2, 3))
    down = images.diff(dim=2).square().sum((1, 2, 3))
    return (across + down).sqrt()


def judge(images: np.ndarray, prompts: list[Prompt], batch_size: int = 256) -> list[Verdict]:
    """Judge pictures (N, 32, 32, 3) uint8 by the prompts they were made for: one verdict each, in order."""
    verdicts: list[Verdict] = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).float() / 255
        backgrounds = background_of(batch)
        found: list[tuple[tuple[str, int, int], ...]] = [()] * len(batch)
        for background in sorted(set(backgrounds)):
            where = [i for i, b in enumerate(backgrounds) if b == background]
            for i, gain in zip(where, gains(batch[where], background).numpy(), strict=True):
                found[i] = find_objects(gain)
        beauty = aesthetics(batch, found, backgrounds)
        for i, prompt in enumerate(prompts[start : start + batch_size]):
            questions = answer(prompt, found[i], backgrounds[i])
            verdicts.append(Verdict(questions, found[i], backgrounds[i], float(beauty[i])))
    return verdicts


def verdict_frame(images: np.ndarray, captions: Sequence[str], weights: tuple[float, float]) -> pd.DataFrame:
    """The judge's columns of images (N, 32, 32, 3) uint8: alignment, aesthetic, utility, all_correct.

    weights: of alignment and of aesthetics in the utility (`Verdict.utility`).
    """
    verdicts = judge(images, [parse(caption) for caption in captions])
    return pd.DataFrame(
        {
            "alignment": [v.alignment for v in verdicts],
            "aesthetic": [v.aesthetic for v in verdicts],
            "utility": [v.utility(*weights) for v in verdicts],
            "all_correct": [v.all_correct for v in verdicts],
        }
    )


def aesthetics(
    images: torch.Tensor, found: list[tuple[tuple[str, int, int], ...]], backgrounds: list[str]
) -> torch.Tensor:
    """How clean the drawing is, 0..10, against a clean drawing C of what was found in it; no caption is read.

    fidelity    exp(-8 rms(I - C) where C differs from its background), 0 where nothing was found
    cleanliness exp(-8 rms(I - C) elsewhere)
    sharpness   min(1, |grad I| / |grad C|) under the sprites
    aesthetic = 5 fidelity + 2.5 cleanliness + 2.5 sharpness
    """
    scenes = [Scene(f, b) for f, b in zip(found, backgrounds, strict=True)]
    clean = torch.from_numpy(render(scenes, np.random.default_rng(0))).permute(0, 3, 1, 2).float() / 255
    plane = torch.tensor([BACKGROUND_COLOURS[b] for b in backgrounds])[:, :, None, None]
    drawn = ((clean - plane).abs().amax(1, keepdim=True) > 0.01).float()
    squared = (images - clean).square().mean(1, keepdim=True)
    covered, bare = drawn.sum((1, 2, 3)), (1 - drawn).sum((1, 2, 3))
    fidelity = torch.exp(-8 * ((squared * drawn).sum((1, 2, 3)) / covered.clamp_min(1)).sqrt()) * (covered > 0)
    cleanliness = torch.exp(-8 * ((squared * (1 - drawn)).sum((1, 2, 3)) / bare.clamp_min(1)).sqrt())
    sharpness = (_sharpness(images * drawn) / _sharpness(clean * drawn).clamp_min(1e-3)).clamp(max=1) * (covered > 0)
    return 5 * fidelity + 2.5 * cleanliness + 2.5 * sharpness
