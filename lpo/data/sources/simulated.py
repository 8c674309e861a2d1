"""The embedded world as a source: pairs whose own samples the base draws, and prompts of every split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lpo.config import Dataset, SamplerSettings
from lpo.data.simulated import Painter, make_pairs
from lpo.emoji.scenes import sample_prompts
from lpo.families.family import Family
from lpo.files import atomic_folder, write_parquet
from lpo.images import to_tensor, to_uint8
from lpo.sampling.generate import generate

ENCODED_AT_ONCE = 100  # small batches stay in the processor's cache
ETA = 1.0


def painter_of(family: Family, config: Dataset) -> Painter:
    settings = SamplerSettings(config.num_inference_steps, config.guidance_scale, ETA, config.batch_size)

    def sample(captions: list[str], seeds: list[int]) -> np.ndarray:
        return generate(family, captions, seeds, settings, "sample pairs")

    def through_vae(pictures: np.ndarray) -> np.ndarray:
        parts = []
        for start in tqdm(range(0, len(pictures), ENCODED_AT_ONCE), desc="through the VAE", mininterval=2):
            moments = family.encode_images(to_tensor(pictures[start : start + ENCODED_AT_ONCE]))
            parts.append(to_uint8(family.decode(family.scale(moments.chunk(2, dim=1)[0]))))
        return np.concatenate(parts)

    return Painter(sample, through_vae)


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
