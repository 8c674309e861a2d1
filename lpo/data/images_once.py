"""Every image of the pairs once, in parts that can be scored one by one, and scores that were imported."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from lpo.data import schema
from lpo.data.sources import index
from lpo.errors import LpoError
from lpo.images import image_problem
from lpo.paths import COLLECTED, PAIRS


class Place(NamedTuple):
    """Where an image is found first: shard, row, side (0 or 1); and the caption that it stands under there."""

    file: str
    row: int
    side: int
    uid: str
    caption: str


def places_of_images() -> list[Place]:
    """Every image once, where it is found first, in the order of the shards."""
    pairs = schema.read_pairs((PAIRS, COLLECTED))
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


def decodable(part: list[Place], size: int) -> Iterator[tuple[list[Place], list[bytes]]]:
    """The images of a part that decode, `size` at a time."""
    places: list[Place] = []
    data: list[bytes] = []
    images = schema.images_at(Path(part[0].file), [(place.row, place.side) for place in part])
    for place, encoded in zip(part, images, strict=True):
        if encoded is None or image_problem(encoded):
            continue
        places.append(place)
        data.append(encoded)
        if len(places) == size:
            yield places, data
            places, data = [], []
    if places:
        yield places, data


def imported_scores(path: str, places: list[Place]) -> pd.DataFrame:
    """The rows of an imported table that belong to images of the pairs.

    Raises:
        LpoError: if the table changed since its import, or if there is no such row: then the uids are of other data.
    """
    index.check(Path(path), f"lpo data scores TABLE --out {path}")
    table = schema.read_scores(path)
    found = table[table["image_uid"].isin({place.uid for place in places})]
    if found.empty:
        what = f"none of the {len(table)} scores belongs to one of the {len(places)} images"
        raise LpoError(what, path, "give the table the uids of the pairs: image_0_uid and image_1_uid")
    return found


def no_scores() -> pd.DataFrame:
    """Scores of no image, in their types."""
    types = {name: str if name == "image_uid" else float for name in schema.SCORES}
    return pd.DataFrame(columns=list(types)).astype(types)
