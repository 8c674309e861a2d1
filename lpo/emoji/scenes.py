"""Scene grammar: a prompt is data; its caption, its drawing and its truth all come from it.

Categories follow GenEval: single, colour, count, pair ("a cat and a dog"), colour_pair, relation; each can name a
background. Captions can be parsed back, so that whoever has a caption has the questions it asks.

Splits are held out by a hash of what is combined: for two objects the unordered pair (in every relation and on every
background), otherwise the caption. A test prompt's pair of objects is never seen together by base, rewards or policy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np

from lpo.emoji.sprites import COLOURED, NAMES, OBJECTS

BACKGROUNDS = {"": "plain", " at night": "night", " on grass": "grass", " on sand": "sand", " under water": "sea"}
RELATIONS = ("left of", "right of", "above", "below")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
NUMBERS = {"two": 2, "three": 3, "four": 4}
PLURALS = {"fox": "foxes", "fish": "fish", "octopus": "octopuses", "cactus": "cactuses"}
CATEGORY_SHARES = {"single": 0.10, "colour": 0.08, "count": 0.20, "pair": 0.15, "colour_pair": 0.12, "relation": 0.35}
SPRITE = 14  # pixels
CANVAS = 32  # pixels


@dataclass(frozen=True)
class Prompt:
    """What a caption asks for: one object `count` times, or two objects, perhaps in a relation."""

    objects: tuple[str, ...]
    count: int = 1
    relation: str = ""
    background: str = "plain"

    @property
    def category(self) -> str:
        if len(self.objects) == 2:
            if self.relation:
                return "relation"
            return "colour_pair" if all(o in COLOURED for o in self.objects) else "pair"
        if self.count > 1:
            return "count"
        return "colour" if self.objects[0] in COLOURED else "single"

    @property
    def caption(self) -> str:
        where = next(words for words, name in BACKGROUNDS.items() if name == self.background)
        if self.count > 1:
            number = next(word for word, n in NUMBERS.items() if n == self.count)
            return f"{number} {PLURALS.get(self.objects[0], self.objects[0] + 's')}{where}"
        joint = f" {self.relation or 'and'} "
        return joint.join(f"{'an' if o[0] in 'aou' else 'a'} {o}" for o in self.objects) + where


@dataclass(frozen=True)
class Scene:
    """A drawing: sprites with their top left corners in pixels, a background, and flaws no caption names."""

    objects: tuple[tuple[str, int, int], ...]
    background: str = "plain"
    blur: float = 0.0  # standard deviation in pixels
    fade: float = 1.0  # opacity of the sprites
    clutter: int = 0  # specks


def _all_prompts() -> dict[str, Prompt]:
    prompts: list[Prompt] = []
    for background in BACKGROUNDS.values():
        prompts += [Prompt((name,), background=background) for name in NAMES]
        prompts += [Prompt((name,), n, background=background) for name, n in product(OBJECTS, NUMBERS.values())]
        for a, b in product(NAMES, NAMES):
            if a != b:
                prompts += [Prompt((a, b), relation=r, background=background) for r in ("", *RELATIONS)]
    return {prompt.caption: prompt for prompt in prompts}


_PROMPTS = _all_prompts()


def parse(caption: str) -> Prompt:
    """The prompt behind a caption. Raises KeyError for a caption outside the grammar."""
    return _PROMPTS[caption]


def split_of(prompt: Prompt) -> str:
    """train (70 %), validation (10 %) or test (20 %), by hash of the combination."""
    key = "+".join(sorted(prompt.objects)) if len(prompt.objects) == 2 else prompt.caption
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return "train" if bucket < 70 else "validation" if bucket < 80 else "test"


@lru_cache
def prompts_of(split: str) -> dict[str, list[Prompt]]:
    """Every prompt of a split by category, in a fixed order."""
    result: dict[str, list[Prompt]] = {category: [] for category in CATEGORY_SHARES}
    for prompt in _PROMPTS.values():
        if split_of(prompt) == split:
            result[prompt.category].append(prompt)
    return result


def sample_prompts(split: str, n: int, rng: np.random.Generator, unique: bool = False) -> list[Prompt]:
    """n prompts of a split in the proportions of CATEGORY_SHARES; `unique` repeats none (small categories run dry)."""
    pools = prompts_of(split)
    if unique:
        pools = {c: [pool[i] for i in rng.permutation(len(pool))] for c, pool in pools.items()}
    names, shares = list(CATEGORY_SHARES), np.array(list(CATEGORY_SHARES.values()))
    result: list[Prompt] = []
    while len(result) < n:
        category = str(rng.choice(names, p=shares / shares.sum()))
        pool = pools[category]
        if not pool:
            shares[names.index(category)] = 0.0
        else:
            result.append(pool.pop() if unique else pool[rng.integers(len(pool))])
    return result


def layout(prompt: Prompt, rng: np.random.Generator) -> Scene:
    """Draw a prompt faithfully: places are jittered by a pixel or two, never so far that a relation becomes unclear."""
    far = CANVAS - SPRITE
    mid = far // 2

    def around(place: tuple[int, int], jitter: tuple[int, int]) -> tuple[int, int]:
        x, y = (min(max(p + int(rng.integers(-j, j + 1)), 0), far) for p, j in zip(place, jitter, strict=True))
        return x, y

    if prompt.count > 2:
        corners = [(1, 1), (far - 1, 1), (1, far - 1), (far - 1, far - 1)]
        chosen = rng.permutation(4)[: prompt.count]
        objects = [(prompt.objects[0], *around(corners[i], (1, 1))) for i in chosen]
    elif prompt.count == 1 and len(prompt.objects) == 1:
        objects = [(prompt.objects[0], *around((mid, mid), (3, 3)))]
    else:
        names = prompt.objects if len(prompt.objects) == 2 else prompt.objects * 2
        relation = prompt.relation or str(rng.choice(RELATIONS))
        if relation in ("right of", "below"):
            names = names[::-1]
        if relation in ("left of", "right of"):
            places, jitter = [(1, mid), (far - 1, mid)], (1, 3)
        else:
            places, jitter = [(mid, 1), (mid, far - 1)], (3, 1)
        objects = [(name, *around(place, jitter)) for name, place in zip(names, places, strict=True)]
    return Scene(tuple(objects), prompt.background)


def flawed(scene: Scene, rng: np.random.Generator) -> Scene:
    """The nuisances no caption names: blur, fade and clutter, each in half of the drawings (an eighth has none)."""
    return replace(
        scene,
        blur=float(rng.uniform(0.4, 0.9)) if rng.random() < 0.5 else 0.0,
        fade=float(rng.uniform(0.6, 0.95)) if rng.random() < 0.5 else 1.0,
        clutter=int(rng.integers(4, 13)) if rng.random() < 0.5 else 0,
    )


def near_miss(prompt: Prompt, rng: np.random.Generator) -> tuple[Prompt, str]:
    """A prompt that differs from `prompt` in one thing it asks for, and the name of that thing."""
    kinds = ["object"] + ["background"] * (prompt.background != "plain")
    if len(prompt.objects) == 2:
        kinds += ["relation", "relation"] if prompt.relation else []
        kinds += ["missing", "doubled"]
    if prompt.objects[0] in OBJECTS and len(prompt.objects) == 1:
        kinds += ["count", "count"] if prompt.count > 1 else ["count"]
    if any(o in COLOURED for o in prompt.objects):
        kinds += ["colour"]
    kind = str(rng.choice(kinds))
    which = int(rng.integers(len(prompt.objects)))

    def swap(new: str) -> Prompt:
        return replace(prompt, objects=tuple(new if i == which else o for i, o in enumerate(prompt.objects)))

    if kind == "object":
        return swap(str(rng.choice([n for n in NAMES if n not in prompt.objects]))), kind
    if kind == "background":
        others = [b for b in BACKGROUNDS.values() if b != prompt.background]
        return replace(prompt, background=str(rng.choice(others))), kind
    if kind == "relation":  # two of three are swapped: models know the axis long before they know the order
        swapped = rng.random() < 2 / 3
        others = [r for r in RELATIONS if r != prompt.relation]
        return replace(prompt, relation=OPPOSITE[prompt.relation] if swapped else str(rng.choice(others))), kind
    if kind == "missing":
        return replace(prompt, objects=(prompt.objects[which],), relation=""), kind
    if kind == "doubled":
        return replace(prompt, objects=(prompt.objects[which],), count=2, relation=""), kind
    if kind == "count":
        return replace(prompt, count=int(rng.choice([n for n in (1, 2, 3, 4) if n != prompt.count]))), kind
    which = next(i for i in rng.permutation(len(prompt.objects)) if prompt.objects[i] in COLOURED)
    kept = prompt.objects[which].split()[1]
    colours = [n for n in COLOURED if n.endswith(kept) and n not in prompt.objects]
    return swap(str(rng.choice(colours))), kind
