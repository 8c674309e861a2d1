"""HPDv2 (arXiv 2306.09341): train.json and test.json, and their images in train.tar.gz and test.tar.gz or unpacked.

train.json  [{"prompt", "image_path": [a, b], "human_preference": [1, 0]}, ...]       a pair an item
test.json   [{"prompt", "image_path": [a, b, c, ...], "rank": [1, 0, 2, ...]}, ...]   every two; a lower rank wins

The dataset card writes `file_path` for `image_path` of train.json; both are read. There is no split for validation: a
share of the captions of train is held out for it.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from lpo.data.captions import split_of_caption
from lpo.data.download import Store
from lpo.data.sources import Left, Pair, Part, image_file
from lpo.errors import LpoError
from lpo.files import atomic_folder

REPOSITORY = "ymhao/HPDv2"
ITEMS = 20_000  # of a file in one part
CHUNK = 2**20  # characters read at once
ITEM_LIMIT = 2**24  # characters of one item; what is longer is not JSON


def parts(store: Store, held_out_share: float, keep: bool) -> list[Part]:
    """Parts of `ITEMS` items. With `keep` false the archives go once they are unpacked.

    Raises:
        LpoError: if one of the two files is absent or no JSON array.
    """
    found = []
    for name, splits in (("test", ("test",)), ("train", ("train", "validation"))):
        path = store.get(store.names(f"{name}.json")[0])
        counts: Counter[str] = Counter()
        items = 0
        for item in iter_array(path):
            items += 1
            if isinstance(item, dict) and isinstance(item.get("prompt"), str):
                images = len(_paths(item))
                counts[item["prompt"]] += images * (images - 1) // 2
        for start in range(0, items, ITEMS):
            rows = partial(_rows, store, path, name, start, counts, held_out_share, keep)
            found.append(Part(f"{start // ITEMS:05d}", splits, rows))
    return found


def iter_array(path: Path) -> Iterator[Any]:
    """Items of a JSON array, one at a time, so that a file of any size needs little memory.

    Raises:
        LpoError: if the file is not a whole JSON array.
    """
    try:
        yield from _items(path)
    except UnicodeDecodeError as error:
        raise LpoError("the file is not UTF-8", str(path), "download it again") from error


def _items(path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig") as file:
        text, at, end = file.read(CHUNK).lstrip(), 1, False
        if not text.startswith("["):
            raise LpoError("the file is not a JSON array", str(path), "download it again")
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text[at : at + 1] == "]":
                return
            try:
                item, after = decoder.raw_decode(text, at)
                if after == len(text) and not end:  # a number may go on in the next chunk
                    raise ValueError
            except (ValueError, RecursionError) as error:
                more = file.read(CHUNK) if len(text) - at < ITEM_LIMIT else ""
                if end := not more:
                    where = f"{path}, character {file.tell()}"
                    raise LpoError("the JSON array breaks off", where, "damaged: download it again") from error
                text, at = text[at:] + more, 0
                continue
            yield item
            at = after


def _rows(
    store: Store, path: Path, name: str, start: int, counts: Counter[str], share: float, keep: bool
) -> Iterator[Pair | Left]:
    folder = unpacked(store, name, keep)
    for number, item in enumerate(islice(iter_array(path), start, start + ITEMS), start):
        labels = read_labels(item)
        if isinstance(labels, str):
            yield Left(path.name, number, number, labels)
            continue
        images: list[bytes | str] = []
        for image in _paths(item):
            try:
                images.append(_image(folder, name, image))
            except LpoError as error:
                images.append(error.what)
        # A share s of train is held out: what the rule for three splits would give to its test, at the same rate.
        held_out = split_of_caption(item["prompt"], share) == "test"
        split = "test" if name == "test" else "validation" if held_out else "train"
        for (i, j), (label_0, label_1) in labels.items():
            missing = next((data for data in (images[i], images[j]) if isinstance(data, str)), None)
            if missing is not None:
                yield Left(path.name, number, number, missing)
                continue
            names = _paths(item)
            yield Pair(
                split,
                {
                    "ranking_id": number, "caption": item["prompt"], "jpg_0": images[i], "jpg_1": images[j],
                    "image_0_uid": f"{name}/{names[i]}", "image_1_uid": f"{name}/{names[j]}", "label_0": label_0,
                    "label_1": label_1, "has_label": True, "are_different": True,
                    "num_example_per_prompt": counts[item["prompt"]], "source_file": path.name, "source_row": number,
                },
            )  # fmt: skip


def read_labels(item: Any) -> dict[tuple[int, int], tuple[float, float]] | str:
    """Labels by the two images' places in an item, or what is wrong with the item."""
    if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
        return "no prompt"
    paths = _paths(item)
    if not _is_text(item["prompt"]) or not all(map(_is_text, paths)):
        return "the text holds half a character (a lone surrogate)"
    if len(paths) < 2 or not all(isinstance(path, str) for path in paths):
        return "not two image paths or more"
    values = item.get("rank", item.get("human_preference"))
    if not isinstance(values, list) or len(values) != len(paths) or not all(type(v) in (int, float) for v in values):
        return "not one rank or preference an image"
    if max(abs(value) for value in values) > 2**53:
        return "a rank or preference is too large"
    if "rank" not in item:
        return {(0, 1): (float(values[0]), float(values[1]))} if len(paths) == 2 else "not two images"
    return {
        (i, j): (0.5, 0.5) if values[i] == values[j] else (1.0, 0.0) if values[i] < values[j] else (0.0, 1.0)
        for i, j in combinations(range(len(paths)), 2)
    }


def unpacked(store: Store, name: str, keep: bool) -> Path:
    """The folder of a split's images, made from its archive if it is not there.

    Raises:
        LpoError: if there is neither folder nor archive, or the archive is damaged or leaves its folder.
    """
    folder = store.folder / name
    if folder.is_dir():
        return folder
    archive = store.names(f"{name}.tar.gz")[0]
    path = store.get(archive)
    try:
        with atomic_folder(folder) as partial_, tarfile.open(path, "r|gz") as tar:
            for member in tar:
                if member.isfile():  # no links, no devices
                    tar.extract(member, partial_, filter="data")  # refuses names that leave the folder
    except (tarfile.TarError, OSError, EOFError) as error:
        raise LpoError(f"the archive cannot be unpacked: {error}", str(path), "damaged: download it again") from error
    if not keep:
        store.forget(archive)
    return folder


def _image(folder: Path, name: str, image: str) -> bytes:
    """Images stand in the archive as they are named or under the split's name."""
    try:
        return image_file(folder, image)
    except LpoError as error:
        try:
            return image_file(folder, f"{name}/{image}")
        except LpoError:
            raise error from None


def _paths(item: dict[str, Any]) -> list[Any]:
    found = item.get("image_path", item.get("file_path"))
    return found if isinstance(found, list) else []


def _is_text(value: Any) -> bool:
    """Whether a text can be written as UTF-8; JSON may hold half a character."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True
