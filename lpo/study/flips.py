"""flips: data/latents, data/filtered, data/base -> studies/flips: does the order of two pictures change with noise?

Both pictures of a pair are noised alike to t, the base predicts x_0 from each, and the judge orders the decoded
predictions. A flip is a pair whose order at t is the opposite of its order without noise; ties on either side are no
flips and are counted apart. MPCF keeps pairs whose winner is better in every respect, on the assumption that
otherwise the order at t is another one.

flips.parquet    pair (its row), caption, axis (utility, alignment, aesthetic), t, flip, tie, and consistent: whether
                 strategy "2" of MPCF would keep the pair
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lpo import random
from lpo.config import Params
from lpo.data.latents import Latents, sample_latents
from lpo.emoji.oracle import verdict_frame
from lpo.families import load_family
from lpo.families.family import Family
from lpo.files import write_parquet
from lpo.images import to_uint8
from lpo.paths import KEPT, LATENTS
from lpo.preference.mpcf import SCORES

OUT = Path("studies/flips.parquet")
TIMESTEPS = (0, 100, 200, 300, 400, 500, 600, 700, 800, 900)
BATCH = 100
AXES = ("utility", "alignment", "aesthetic")


def run(params: Params) -> None:
    """Order `study.flip_pairs` test pairs at every t, and compare with t = 0 (no noise, no prediction)."""
    frame = pd.read_parquet(KEPT).query("split == 'test' and label_0 != label_1").head(params.study.flip_pairs)
    family, latents = load_family(params.model), Latents(LATENTS)
    margins = params.filter.strategies["2"]
    consistent = np.logical_and.reduce([frame[f"gap_{name}"] >= getattr(margins, name) for name in SCORES])
    order = {t: preferences(family, latents, frame, t, params) for t in TIMESTEPS}
    rows = [
        pd.DataFrame(
            {
                "pair": np.arange(len(frame)), "caption": frame["caption"].to_numpy(), "axis": axis, "t": t,
                "flip": order[t][axis] * order[0][axis] < 0, "tie": order[t][axis] * order[0][axis] == 0,
                "consistent": consistent,
            }
        )
        for t in TIMESTEPS[1:]
        for axis in AXES
    ]  # fmt: skip
    write_parquet(OUT, pd.concat(rows, ignore_index=True))


@torch.no_grad()
def preferences(family: Family, latents: Latents, frame: pd.DataFrame, t: int, params: Params) -> dict[str, np.ndarray]:
    """Sign of the judge's difference of image 0 and image 1, by axis, (pairs,), as they look from t."""
    transition = family.transition(1.0)
    found: dict[str, list[np.ndarray]] = {axis: [] for axis in AXES}
    places = [latents.places(frame[f"image_{k}_uid"]) for k in (0, 1)]
    for start in range(0, len(frame), BATCH):
        part = slice(start, start + BATCH)
        captions = frame["caption"].tolist()[part]
        moments = torch.cat([latents.moments(p[part]) for p in places])
        x = family.scale(sample_latents(moments, torch.zeros(len(moments), *latents.shape)))
        if t > 0:
            generator = random.generator(params.seed, "flips", start)
            noise = torch.randn(len(captions), *latents.shape, generator=generator).repeat(2, 1, 1, 1)
            times = torch.full((len(x),), t)
            noisy = transition.add_noise(x, noise, times).to(family.device, family.dtype)
            times = times.to(family.device)
            prediction = family.predict(noisy, times, family.encode_prompts(captions * 2))
            x, _ = transition.pred_x0_eps(prediction, noisy, times)
        pictures = to_uint8(family.decode(x.to(family.device, family.dtype)))
        verdicts = verdict_frame(pictures, captions * 2, params.dataset.utility_weights)
        for axis in AXES:
            first, second = np.split(verdicts[axis].to_numpy(), 2)
            found[axis].append(np.sign(first - second))
    return {axis: np.concatenate(parts) for axis, parts in found.items()}
