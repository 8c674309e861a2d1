"""score: data/pairs, data/collected, scorers -> data/scores.parquet, three scores of every picture, keyed by its uid.

Pictures are scored in parts of `score.shard_size`, over all processes (lpo/sampling/parts.py). A part is a file in
.checkpoints, so a killed run scores only the parts that are missing, and machines can share them. With `score.table` no
model runs: imported scores are joined by image uid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from lpo import paths, resume
from lpo.config import Model, Params, Score
from lpo.data.images_once import Place, decodable, imported_scores, no_scores, places_of_images, split_parts
from lpo.errors import LpoError
from lpo.families import device_of
from lpo.files import file_hash, folder_hash, write_json, write_parquet
from lpo.images import decode_pictures, decode_rgb, to_tensor
from lpo.paths import COLLECTED, PAIRS, SCORES
from lpo.resume import Share, announce, in_share
from lpo.sampling.parts import Workers, decoders, processes
from lpo.scorers.embedded import Scorers
from lpo.scorers.published import Published, load_scorers

NAMES = ("aesthetic", "clip", "vqa")


def run(params: Params, share: Share | None = None) -> None:
    """Score every picture that decodes; one that doesn't is left out here, and quarantined by the data contract.

    Where `filter.strategy` is none nothing reads the scores, so none are made.

    Args:
        share: make only the parts of this share, and no output.
    """
    config, pixel_art = params.score, params.dataset.source == "simulated"
    if share is not None and (params.filter.strategy == "none" or config.table is not None):
        return  # there are no parts
    if params.filter.strategy == "none":
        write_parquet(SCORES, no_scores())
        write_json(paths.metrics("score"), {"images": 0, "mean": {}})
        return
    places = places_of_images()
    if config.table is not None:
        table = imported_scores(config.table, places)
    else:
        head = config.models.aesthetic_head
        identity = {
            "score": asdict(config), "pixel_art": pixel_art,
            "pairs": [folder_hash(folder) for folder in (PAIRS, COLLECTED)],
            "scorers": folder_hash(config.scorers) if config.scorers != "published" else "",
            "head": file_hash(head) if head is not None and Path(head).is_file() else "",
        }  # fmt: skip
        folder = resume.folder("score", identity)
        announce(folder, share)
        parts = split_parts(places, config.shard_size)
        missing = [
            (part, path)
            for n, part in enumerate(parts)
            if in_share(share, n) and not (path := _file(folder, n)).exists()
        ]
        models = ("published",) if config.scorers == "published" else (config.scorers,)
        with Workers(processes(device_of(params.model), *models)) as workers:
            for _ in workers.map(scorer, (config, params.model, pixel_art), missing, "score"):
                pass
        if share is not None:
            return
        table = pd.concat([pd.read_parquet(_file(folder, n)) for n in range(len(parts))], ignore_index=True)
    if table.empty:
        raise LpoError("no picture could be scored", str(PAIRS), "look at the images of the pairs")
    table = table.sort_values("image_uid", ignore_index=True, kind="stable")
    write_parquet(SCORES, table)
    means = {name: round(float(table[name].mean()), 4) for name in NAMES if table[name].notna().any()}
    write_json(paths.metrics("score"), {"images": len(table), "mean": means})


def scorer(config: Score, model: Model, pixel_art: bool) -> Callable[[tuple[list[Place], Path]], None]:
    """Scores of a part of the images, written to its file."""
    device = device_of(model)
    scorers, threads = load_scorers(config, device), decoders(device)

    def work(part: tuple[list[Place], Path]) -> None:
        places, path = part
        frames = [score(scorers, *batch, pixel_art, threads) for batch in decodable(places, config.batch_size)]
        write_parquet(path, pd.concat(frames, ignore_index=True) if frames else no_scores())

    return work


def score(
    scorers: Published | Scorers, places: list[Place], data: list[bytes], pixel_art: bool, threads: int = 1
) -> pd.DataFrame:
    """image_uid, aesthetic, clip, vqa of encoded images.

    pixel_art: how small scorers resize them. threads: that decode.
    """
    uids, captions = [place.uid for place in places], [place.caption for place in places]
    if isinstance(scorers, Published):
        scores = scorers.score(decode_pictures(data, threads), captions)
    else:
        scores = scorers.score(to_tensor(decode_rgb(data, scorers.size, pixel_art, threads)), captions)
    return pd.DataFrame({"image_uid": uids} | {name: scores[name].double().cpu().numpy() for name in NAMES})


def _file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"
