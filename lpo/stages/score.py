"""score: data/pairs, data/collected, data/scorers -> data/scores.parquet, three scores of every picture by uid."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from lpo.config import Params
from lpo.data.schema import caption_of_images, decode_rgb, iter_images
from lpo.evaluate.generation import to_tensor
from lpo.files import write_json, write_parquet
from lpo.rewards import small

PAIRS = (Path("data/pairs"), Path("data/collected"))
SIZE = 32  # pixels that the scorers read


def run(params: Params) -> None:
    """Score every picture that decodes; one that doesn't is left out here, and quarantined by the data contract."""
    scorers = small.load(Path(params.score.scorers))
    captions = caption_of_images(PAIRS)
    frames = []
    for uids, data in iter_images(PAIRS, None, params.score.batch_size, "score"):
        scores = scorers.score(to_tensor(decode_rgb(data, SIZE)), [captions[uid] for uid in uids])
        frames.append(pd.DataFrame({"image_uid": uids} | {k: v.double().numpy() for k, v in scores.items()}))
    table = pd.concat(frames, ignore_index=True).sort_values("image_uid", ignore_index=True)
    write_parquet("data/scores.parquet", table)
    means = {name: round(float(table[name].mean()), 4) for name in ("aesthetic", "clip", "vqa")}
    write_json("metrics/score.json", {"images": len(table), "mean": means})
