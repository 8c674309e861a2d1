"""The pictures that `lpo vote` shows: drawn by two models, by one, or read from a folder.

Set i has a prompt of validation with probability vote.held_out_share, else of train, and its pictures are drawn from
seeds of generator(seed, "vote NAME", i). NAME is that of the tuned model, so each night shows other prompts and other
noise. Two models draw from the same noise, as in evaluate. Every `CHECK_EVERY`-th set has an obvious answer: a picture,
and the same one cut into squares that were shuffled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from lpo import paths
from lpo.config import Params
from lpo.errors import LpoError
from lpo.evaluate.judges import content
from lpo.evaluate.sides import Side, check_promoted, painter, tuned_side
from lpo.files import key_of
from lpo.random import numpy_generator
from lpo.registry.ledger import PROMOTED, WEIGHTS, name_of
from lpo.votes.drawing import Drawn
from lpo.votes.folder import folder_sets, read_sets
from lpo.votes.store import Split, Store, to_png

CHECK_EVERY = 7
AT_ONCE = 8  # sets
GRID = 4  # squares along a side
MODELS = ("base", "promoted", "tuned")
SIZES = {"two": 2, "four": 4}
Produce = Callable[[], list[Drawn]]


class Source(NamedTuple):
    """key names what is shown: the same models and settings have the same key, and go on where they were."""

    key: str
    produce: Produce


def source_of(params: Params, store: Store) -> Source:
    """Where the pictures come from. Models are loaded when the first pictures are drawn.

    Raises:
        LpoError: if a model, the prompts or the folder that vote.against names is not there.
    """
    if params.vote.against in MODELS:
        return _models(params, store)
    folder = Path(params.vote.against)
    if not folder.is_dir():
        what = f"vote.against is {params.vote.against!r}: neither {', '.join(MODELS)} nor a folder"
        raise LpoError(what, "params.yaml", "lpo vote --against base, or the path of a folder of pictures")
    sets = folder_sets(folder, SIZES[params.vote.pictures])
    read = read_sets(folder, sets)
    number = iter(range(len(sets)))

    def produce() -> list[Drawn]:
        found = list(islice(read, AT_ONCE))
        checks = [_obvious(params.seed, i, one) for i, one in zip(number, found, strict=False) if i % CHECK_EVERY == 0]
        return found + checks

    return Source(key_of(["folder", str(folder.resolve()), params.vote.pictures]), produce)


def base_name(params: Params) -> str:
    """base@ and the start of a hash of the base model."""
    parts = [content(params.model.path), params.model.vae, params.model.denoiser]
    return f"base@{key_of(parts)[:12]}"


def _models(params: Params, store: Store) -> Source:
    scale, against = params.evaluate.guidance_scale, params.vote.against
    tuned = tuned_side(params.evaluate.tuned, scale, params.model)
    named = [(_name(tuned), tuned)]
    if against == "base":
        named.append((base_name(params), Side("base", scale)))
    elif against == "promoted":
        if not (PROMOTED / WEIGHTS).exists():
            raise LpoError("no model is promoted yet", str(PROMOTED), "lpo vote --against base")
        check_promoted(PROMOTED, params.model)
        named.append((name_of(PROMOTED), Side("promoted", scale, lora=PROMOTED)))
        if named[0][0] == named[1][0]:
            what = "the tuned model is the promoted one, so their pictures are the same"
            raise LpoError(what, str(PROMOTED), "lpo vote --against base, or --against tuned")
    key = key_of([[name for name, _ in named], against, params.vote.pictures, asdict(params.evaluate.sampler)])
    prompts = _prompts(params.seed, named[0][0])
    with store.reading() as db:
        start = db.execute("SELECT count(*) FROM sets WHERE source = ?", (key,)).fetchone()[0]
    return Source(key, _Drawer(params, named, prompts, start))


class _Drawer:
    """Draws the next `AT_ONCE` sets at each call."""

    def __init__(self, params: Params, named: list[tuple[str, Side]], prompts: dict[Split, list[str]], i: int) -> None:
        self.params, self.prompts, self.i, self.tuned = params, prompts, i, named[0][0]
        self.painters = [(name, painter(side, params.evaluate, params.model)) for name, side in named]

    def __call__(self) -> list[Drawn]:
        many = SIZES[self.params.vote.pictures] // len(self.painters)  # pictures of one model in a set
        rows: list[dict[str, Any]] = []
        for i in range(self.i, self.i + AT_ONCE):
            rng = numpy_generator(self.params.seed, f"vote {self.tuned}", i)
            held = rng.random() < self.params.vote.held_out_share
            split: Split = "validation" if held and i % CHECK_EVERY else "train"
            prompt = self.prompts[split][i % len(self.prompts[split])]
            seeds = rng.integers(2**32, size=many).tolist()
            rows += [{"i": i, "split": split, "prompt": prompt, "seed": seed} for seed in seeds]
        table = pd.DataFrame(rows)
        drawn = [(name, draw(table)) for name, draw in self.painters]
        sets = []
        for i, group in table.groupby("i"):
            pictures = [(name, images[row]) for row in group.index for name, images in drawn]
            one = Drawn(
                group["prompt"].iloc[0], [to_png(Image.fromarray(image)) for _, image in pictures],
                [name for name, _ in pictures], group["split"].iloc[0],
            )  # fmt: skip
            sets.append(_obvious(self.params.seed, int(i), one) if i % CHECK_EVERY == 0 else one)
        self.i += AT_ONCE
        return sets


def _obvious(seed: int, i: int, one: Drawn) -> Drawn:
    """The first picture of a set, and the same one in shuffled squares."""
    from lpo.images import decode_picture

    pixels = np.asarray(decode_picture(one.images[0]))
    height, width = (side // GRID * GRID for side in pixels.shape[:2])
    squares = [cut for band in np.split(pixels[:height, :width], GRID) for cut in np.split(band, GRID, axis=1)]
    order = np.roll(numpy_generator(seed, "vote check", i).permutation(GRID * GRID), 1)
    mixed = [squares[j] for j in order]
    rows = [np.concatenate(mixed[row * GRID : (row + 1) * GRID], axis=1) for row in range(GRID)]
    shuffled = to_png(Image.fromarray(np.concatenate(rows)))
    return Drawn(one.prompt, [one.images[0], shuffled], [one.models[0], "shuffled"], one.split, best=0)


def _name(side: Side) -> str:
    """The name of a LoRA as `lpo models` lists it, else tuned@ and the start of the weights' key."""
    if side.lora is not None and (side.lora / WEIGHTS).is_file():
        return name_of(side.lora)
    return f"tuned@{side.key[:12]}"


def _prompts(seed: int, tuned: str) -> dict[Split, list[str]]:
    """The prompts of train and of validation, each in an order drawn by lot: another one for another tuned model."""
    if not paths.PROMPTS.exists():
        raise LpoError("there are no prompts", str(paths.PROMPTS), "run `dvc repro`, or `dvc pull`, first")
    table = pd.read_parquet(paths.PROMPTS)
    found: dict[Split, list[str]] = {}
    for split in ("train", "validation"):
        prompts = table.loc[table["split"] == split, "prompt"].tolist()
        if not prompts:
            raise LpoError(f"there are no prompts of {split}", str(paths.PROMPTS), "run `dvc repro dataset` again")
        rng = numpy_generator(seed, f"vote prompts {split} {tuned}")
        found[split] = [prompts[j] for j in rng.permutation(len(prompts))]
    return found
