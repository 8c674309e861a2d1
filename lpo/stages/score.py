"""score: data/pairs, data/collected, scorers -> data/scores.parquet, three scores of every picture, keyed by its uid.

Pictures are scored in parts of `score.shard_size`, one process a GPU; a part is a file in .checkpoints, so a killed run
goes on with the first part that is missing. With `score.table` no model runs: imported scores are joined by image uid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from tqdm.auto import tqdm

from lpo import images as encoded_images
from lpo import resume
from lpo.config import Params
from lpo.data import schema
from lpo.data.sources import index
from lpo.errors import LpoError
from lpo.families import device_of
from lpo.files import file_hash, folder_hash, write_json, write_parquet
from lpo.sampling.generate import to_tensor
from lpo.scorers.embedded import Scorers
from lpo.scorers.published import Published, load_scorers

PAIRS = (Path("data/pairs"), Path("data/collected"))
NAMES = ("aesthetic", "clip", "vqa")


class Place(NamedTuple):
    """Where an image is found first: shard, row, side (0 or 1); and the caption that it stands under there."""

    file: str
    row: int
    side: int
    uid: str
    caption: str


def run(params: Params) -> None:
    """Score every picture that decodes; one that doesn't is left out here, and quarantined by the data contract.

    Where `filter.strategy` is none nothing reads the scores, so none are made.
    """
    config = params.score
    if params.filter.strategy == "none":
        write_parquet("data/scores.parquet", _empty())
        write_json("metrics/score.json", {"images": 0, "mean": {}})
        return
    places = plan()
    if config.table is not None:
        table = imported(config.table, places)
    else:
        head = config.models.aesthetic_head
        identity = {
            "score": {k: v for k, v in asdict(config).items() if k != "processes"},
            "pixel_art": params.dataset.source == "simulated",
            "pairs": [folder_hash(folder) for folder in PAIRS],
            "scorers": folder_hash(config.scorers) if config.scorers != "published" else "",
            "head": file_hash(head) if head is not None and Path(head).is_file() else "",
        }  # fmt: skip
        folder = resume.folder("score", identity)
        parts = split_parts(places, config.shard_size)
        processes = config.processes or max(torch.cuda.device_count() if params.model.device != "cpu" else 0, 1)
        processes = min(processes, max(len(parts), 1))
        if processes == 1:
            work(0, 1, params, parts, folder)
        else:
            torch.multiprocessing.spawn(work, (processes, params, parts, folder), nprocs=processes)
        frames = [pd.read_parquet(_file(folder, number)) for number in range(len(parts))]
        table = pd.concat(frames, ignore_index=True)
    if table.empty:
        raise LpoError("no picture could be scored", str(PAIRS[0]), "look at the images of the pairs")
    table = table.sort_values("image_uid", ignore_index=True, kind="stable")
    write_parquet("data/scores.parquet", table)
    means = {name: round(float(table[name].mean()), 4) for name in NAMES if table[name].notna().any()}
    write_json("metrics/score.json", {"images": len(table), "mean": means})


def plan() -> list[Place]:
    """Every image once, where it is found first, in the order of the shards."""
    pairs = schema.read_pairs(PAIRS)
    seen: set[str] = set()
    places = []
    captions = pairs["caption"].fillna("")
    for file, row, caption, *uids in zip(
        pairs["file"], pairs["row"], captions, *(pairs[u] for u in schema.UIDS), strict=True
    ):
        for side, uid in enumerate(uids):
            if isinstance(uid, str) and uid not in seen:
                seen.add(uid)
                places.append(Place(file, int(row), side, uid, caption))
    return places


def split_parts(places: list[Place], size: int) -> list[list[Place]]:
    """Parts of at most `size` images, each of one shard."""
    of_shards = [list(group) for _, group in groupby(places, key=lambda place: place.file)]
    return [shard[start : start + size] for shard in of_shards for start in range(0, len(shard), size)]


def imported(path: str, places: list[Place]) -> pd.DataFrame:
    """The rows of an imported table that belong to images of the pairs.

    Raises:
        LpoError: if there is none, which means that the uids are of other data.
    """
    table = table_scores(path)
    found = table[table["image_uid"].isin({place.uid for place in places})]
    if found.empty:
        what = f"none of the {len(table)} scores belongs to one of the {len(places)} images"
        raise LpoError(what, path, "give the table the uids of the pairs: image_0_uid and image_1_uid")
    return found


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
            for batch in batches(parts[number], params.score.batch_size):
                frames.append(score(scorers, *batch, params.dataset.source == "simulated"))
                bar.update(len(batch[0]))
            write_parquet(_file(folder, number), pd.concat(frames, ignore_index=True) if frames else _empty())


def _empty() -> pd.DataFrame:
    """Scores of no image, in their types."""
    return pd.DataFrame(columns=list(schema.SCORES)).astype(dict.fromkeys(NAMES, float) | {"image_uid": str})


def batches(part: list[Place], size: int) -> Iterator[tuple[list[Place], list[bytes]]]:
    """The images of a part that decode, `size` at a time."""
    places: list[Place] = []
    data: list[bytes] = []
    images = schema.images_at(Path(part[0].file), [(place.row, place.side) for place in part])
    for place, encoded in zip(part, images, strict=True):
        if encoded is None or encoded_images.image_problem(encoded):
            continue
        places.append(place)
        data.append(encoded)
        if len(places) == size:
            yield places, data
            places, data = [], []
    if places:
        yield places, data


def score(scorers: Published | Scorers, places: list[Place], data: list[bytes], pixel_art: bool) -> pd.DataFrame:
    """image_uid, aesthetic, clip, vqa of encoded images; `pixel_art` says how small scorers resize them."""
    captions = [place.caption for place in places]
    if isinstance(scorers, Published):
        scores = scorers.score(encoded_images.decode_pictures(data), captions)
    else:
        scores = scorers.score(to_tensor(encoded_images.decode_rgb(data, scorers.size, pixel_art)), captions)
    columns = {name: scores[name].double().cpu().numpy() for name in NAMES}
    return pd.DataFrame({"image_uid": [place.uid for place in places]} | columns)


def _file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def table_scores(path: str) -> pd.DataFrame:
    """The imported scores. Raises LpoError if the table changed since."""
    index.check(Path(path), f"lpo data scores TABLE --out {path}")
    return schema.read_scores(path)
