"""The embedded world as a source: pairs whose own samples the base draws, and prompts of every split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lpo.config import Dataset, Model, SamplerSettings
from lpo.data.simulated import Painter, make_pairs
from lpo.emoji.scenes import sample_prompts
from lpo.families import load_family
from lpo.files import atomic_folder, write_parquet
from lpo.images import to_tensor, to_uint8
from lpo.sampling.generate import generate
from lpo.sampling.parts import Workers

ENCODED_AT_ONCE = 100  # small batches stay in the processor's cache
ETA = 1.0


def painter_of(model: Model, config: Dataset, workers: Workers) -> Painter:
    """The base as a painter, whose batches are shared out over `workers`."""
    settings = SamplerSettings(config.num_inference_steps, config.guidance_scale, ETA, config.batch_size)

    def in_batches(parts: list[tuple[Any, ...]], label: str) -> np.ndarray:
        return np.concatenate(list(workers.map(base_of, (model, settings), parts, label)))

    def sample(captions: list[str], seeds: list[int]) -> np.ndarray:
        starts = range(0, len(captions), config.batch_size)
        parts = [(captions[i : i + config.batch_size], seeds[i : i + config.batch_size]) for i in starts]
        return in_batches(parts, "sample pairs")

    def through_vae(pictures: np.ndarray) -> np.ndarray:
        starts = range(0, len(pictures), ENCODED_AT_ONCE)
        return in_batches([(pictures[i : i + ENCODED_AT_ONCE],) for i in starts], "through the VAE")

    return Painter(sample, through_vae)


def base_of(model: Model, settings: SamplerSettings) -> Callable[[tuple[Any, ...]], np.ndarray]:
    """Pictures of one batch: what the base draws of (captions, seeds), or what its VAE makes of (pictures,)."""
    family = load_family(model)

    def work(part: tuple[Any, ...]) -> np.ndarray:
        if len(part) == 2:
            return generate(family, *part, settings, "")
        moments = family.encode_images(to_tensor(part[0]))
        return to_uint8(family.decode(family.scale(moments.chunk(2, dim=1)[0])))

    return work


def write_pairs(out: Path, config: Dataset, painter: Painter, seed: int) -> dict[str, object]:
    """Write one shard of each split to the folder `out`. Returns the counts of each split: pairs, ties, kinds."""
    held_out = (config.held_out_rendered_pairs, config.held_out_sampled_prompts)
    sizes = {"train": (config.rendered_pairs, config.sampled_prompts), "validation": held_out, "test": held_out}
    counts: dict[str, object] = {}
    with atomic_folder(out) as folder:
        for split, (rendered, sampled) in sizes.items():
            frame = make_pairs(split, rendered, sampled, painter, config, seed)
            write_parquet(folder / f"{split}-00000.parquet", frame)
            kinds = frame["difference"].where(frame["difference"].isin(["sampled", "mixed"]), "rendered")
            ties = int((frame["label_0"] == 0.5).sum())
            counts[split] = {"pairs": len(frame), "ties": ties, **kinds.value_counts().sort_index().to_dict()}
    return counts


def prompts_of_splits(sizes: dict[str, int], seed: int) -> pd.DataFrame:
    """prompt, split, category: different prompts of the grammar, so many of each split."""
    rows = [
        (prompt.caption, split, prompt.category)
        for split, n in sizes.items()
        for prompt in sample_prompts(split, n, np.random.default_rng([seed, n]), unique=True)
    ]
    return pd.DataFrame(rows, columns=["prompt", "split", "category"])
