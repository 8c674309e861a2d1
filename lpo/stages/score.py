"""score: data/pairs, data/collected, scorers -> data/scores.parquet, three scores of every picture, keyed by its uid.

Pictures are scored in parts of `score.shard_size`, one process a GPU; a part is a file in .checkpoints, so a killed run
goes on with the first part that is missing. With `score.table` no model runs: imported scores are joined by image uid.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from lpo import paths, resume
from lpo.config import Params
from lpo.data.images_once import Place, decodable, imported_scores, no_scores, places_of_images, split_parts
from lpo.errors import LpoError
from lpo.families import device_of
from lpo.files import file_hash, folder_hash, write_json, write_parquet
from lpo.images import decode_pictures, decode_rgb, to_tensor
from lpo.paths import COLLECTED, PAIRS, SCORES
from lpo.scorers.embedded import Scorers
from lpo.scorers.published import Published, load_scorers

NAMES = ("aesthetic", "clip", "vqa")


def run(params: Params) -> None:
    """Score every picture that decodes; one that doesn't is left out here, and quarantined by the data contract.

    Where `filter.strategy` is none nothing reads the scores, so none are made.
    """
    config = params.score
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
            "score": {k: v for k, v in asdict(config).items() if k != "processes"},
            "pixel_art": params.dataset.source == "simulated",
            "pairs": [folder_hash(folder) for folder in (PAIRS, COLLECTED)],
            "scorers": folder_hash(config.scorers) if config.scorers != "published" else "",
            "head": file_hash(head) if head is not None and Path(head).is_file() else "",
        }  # fmt: skip
        folder = resume.folder("score", identity)
        parts = split_parts(places, config.shard_size)
        gpus = torch.cuda.device_count() if params.model.device != "cpu" else 0
        processes = min(config.processes or max(gpus, 1), max(len(parts), 1))
        if processes == 1:
            work(0, 1, params, parts, folder)
        else:
            torch.multiprocessing.spawn(work, (processes, params, parts, folder), nprocs=processes)
        table = pd.concat([pd.read_parquet(_file(folder, n)) for n in range(len(parts))], ignore_index=True)
    if table.empty:
        raise LpoError("no picture could be scored", str(PAIRS), "look at the images of the pairs")
    table = table.sort_values("image_uid", ignore_index=True, kind="stable")
    write_parquet(SCORES, table)
    means = {name: round(float(table[name].mean()), 4) for name in NAMES if table[name].notna().any()}
    write_json(paths.metrics("score"), {"images": len(table), "mean": means})


def work(rank: int, processes: int, params: Params, parts: list[list[Place]], folder: Path) -> None:
    """Score the parts rank, rank + processes, ... that are not there yet."""
    missing = [n for n in range(rank, len(parts), processes) if not _file(folder, n).exists()]
    if not missing:
        return
    device = device_of(params.model)
    if device.type == "cuda":
        device = torch.device("cuda", rank % torch.cuda.device_count())
    if processes > 1 and device.type == "cpu":
        torch.set_num_threads(max(torch.get_num_threads() // processes, 1))
    scorers = load_scorers(params.score, device)
    with tqdm(total=sum(len(parts[n]) for n in missing), desc="score", disable=rank > 0, mininterval=2) as bar:
        for number in missing:
            frames = []
            for batch in decodable(parts[number], params.score.batch_size):
                frames.append(score(scorers, *batch, params.dataset.source == "simulated"))
                bar.update(len(batch[0]))
            write_parquet(_file(folder, number), pd.concat(frames, ignore_index=True) if frames else no_scores())


def score(scorers: Published | Scorers, places: list[Place], data: list[bytes], pixel_art: bool) -> pd.DataFrame:
    """image_uid, aesthetic, clip, vqa of encoded images; `pixel_art` says how small scorers resize them."""
    uids, captions = [place.uid for place in places], [place.caption for place in places]
    if isinstance(scorers, Published):
        scores = scorers.score(decode_pictures(data), captions)
    else:
        scores = scorers.score(to_tensor(decode_rgb(data, scorers.size, pixel_art)), captions)
    return pd.DataFrame({"image_uid": uids} | {name: scores[name].double().cpu().numpy() for name in NAMES})


def _file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"
