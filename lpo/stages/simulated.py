"""The stage dataset where its source is simulated: data/base -> data/pairs and data/prompts.parquet."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lpo.config import Params
from lpo.data.simulated import Painter, make_pairs
from lpo.data.sources import left_table
from lpo.emoji.scenes import sample_prompts
from lpo.families import load_family
from lpo.files import atomic_folder, write_json, write_parquet
from lpo.sampling.generate import generate, to_tensor, to_uint8

ENCODED_AT_ONCE = 100  # small batches stay in the processor's cache


def run(params: Params) -> None:
    """Write the prompts of every split, and pairs whose own samples come from the base."""
    config, family = params.dataset, load_family(params.model)

    def sample(captions: list[str], seeds: list[int]) -> np.ndarray:
        return generate(family, captions, seeds, config.sampler, "sample pairs")

    def through_vae(pictures: np.ndarray) -> np.ndarray:
        parts = []
        for start in tqdm(range(0, len(pictures), ENCODED_AT_ONCE), desc="through the VAE", mininterval=2):
            moments = family.encode_images(to_tensor(pictures[start : start + ENCODED_AT_ONCE]))
            parts.append(to_uint8(family.decode(family.scale(moments.chunk(2, dim=1)[0]))))
        return np.concatenate(parts)

    painter = Painter(sample, through_vae)

    sizes = {
        "train": (config.rendered_pairs, config.sampled_prompts),
        "validation": (config.held_out_rendered_pairs, config.held_out_sampled_prompts),
        "test": (config.held_out_rendered_pairs, config.held_out_sampled_prompts),
    }
    metrics: dict[str, object] = {}
    with atomic_folder("data/pairs") as folder:
        for split, (rendered, sampled) in sizes.items():
            frame = make_pairs(split, rendered, sampled, painter, config, params.seed)
            write_parquet(folder / f"{split}-00000.parquet", frame)
            kinds = frame["difference"].where(frame["difference"].isin(["sampled", "mixed"]), "rendered")
            ties = int((frame["label_0"] == 0.5).sum())
            metrics[split] = {"pairs": len(frame), "ties": ties, **kinds.value_counts().sort_index().to_dict()}
    counts = {"train": config.train_prompts, "validation": config.validation_prompts, "test": config.test_prompts}
    rows = [
        (prompt.caption, split, prompt.category)
        for split, n in counts.items()
        for prompt in sample_prompts(split, n, np.random.default_rng([params.seed, n]), unique=True)
    ]
    write_parquet("data/prompts.parquet", pd.DataFrame(rows, columns=["prompt", "split", "category"]))
    write_parquet("data/left_out.parquet", left_table([]))
    write_json("metrics/dataset.json", metrics)
