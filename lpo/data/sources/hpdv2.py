"""HPDv2 (arXiv 2306.09341): train.json and test.json, and their images in train.tar.gz and test.tar.gz or unpacked.

train.json  [{"prompt", "image_path": [a, b], "human_preference": [1, 0]}, ...]       a pair an item
test.json   [{"prompt", "image_path": [a, b, c, ...], "rank": [1, 0, 2, ...]}, ...]   every two; a lower rank wins

The dataset card writes `file_path` for `image_path` of train.json; both are read. There is no split for validation: a
share of the captions of train is held out for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from lpo.data.download import Store
from lpo.data.sources import Left, Pair, Part, image_file
from lpo.data.sources.json_files import ITEMS, is_text, iter_array, json_parts, split_of, unpacked
from lpo.errors import LpoError

REPOSITORY = "ymhao/HPDv2"


def parts(store: Store, held_out_share: float, keep: bool) -> list[Part]:
    """Parts of the two files. With `keep` false the archives go once they are unpacked.

    Raises:
        LpoError: if one of the two files is absent or no JSON array.
    """

    def rows(path: Path, name: str, start: int, counts: Counter[str]) -> Iterator[Pair | Left]:
        folder = store.folder / name
        folder = folder if folder.is_dir() else unpacked(store, folder, store.names(f"{name}.tar.gz")[:1], keep)
        return _rows(folder, path, name, start, counts, held_out_share)

    return json_parts(store, lambda item: len(_paths(item)) * (len(_paths(item)) - 1) // 2, rows)


def _rows(folder: Path, path: Path, name: str, start: int, counts: Counter[str], share: float) -> Iterator[Pair | Left]:
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
        split = split_of(name, item["prompt"], share)
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
    if not is_text(item["prompt"]) or not all(map(is_text, paths)):
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
