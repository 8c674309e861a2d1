"""verifier: data/base, the reward of tune.reward, data/prompts.parquet -> studies/verifier.parquet: is choosing enough?

The base draws, the reward chooses among candidates or among finished pictures, and nothing is trained.

verifier.parquet  search (a name of SEARCHES), prompt, seed, category, alignment, aesthetic, utility, all_correct,
                  denoiser, reward (passes), seconds; a row a picture, the same prompts and seeds for every search

`plain` draws as `evaluate` does; every search starts from the same noise. The judge chooses nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from lpo.config import Params
from lpo.emoji.oracle import verdict_frame
from lpo.families import load_family
from lpo.files import write_parquet
from lpo.images import to_uint8
from lpo.paths import PROMPTS
from lpo.rewards.load import load_reward
from lpo.sampling.search import Search, search

OUT = Path("studies/verifier.parquet")
COUNT = 400  # test prompts
SEED = 57_000_000  # of the first picture
# (K candidates of every step, N trajectories); the first is what the others are compared with
SEARCHES = {"plain": (1, 1), "best of 4": (1, 4), "search 4": (4, 1)}


def run(params: Params) -> None:
    """Draw `COUNT` test prompts with every search and judge the pictures."""
    test = pd.read_parquet(PROMPTS).query("split == 'test'").head(COUNT)
    family = load_family(params.model)
    reward = load_reward(Path(params.tune.reward), family)
    most = max(trajectories for _, trajectories in SEARCHES.values())
    pictures: list[np.ndarray] = []
    rows: list[dict[str, Any]] = []
    works = [(name, *row) for name in SEARCHES for row in enumerate(test.itertuples())]
    for name, i, row in tqdm(works, desc="verifier", mininterval=2):
        how = Search(*SEARCHES[name], params.reward.ensemble_timesteps, params.reward.ensemble_draws)
        seed = SEED + i * most  # a trajectory has a seed of its own
        latents, _, cost = search(family, reward, row.prompt, seed, params.evaluate.sampler, how)
        pictures.append(to_uint8(family.decode(latents)))
        rows.append({"search": name, "prompt": row.prompt, "seed": seed, "category": row.category} | asdict(cost))
    frame = pd.DataFrame(rows)
    verdicts = verdict_frame(np.concatenate(pictures), frame["prompt"], params.dataset.utility_weights)
    write_parquet(OUT, frame.join(verdicts))
