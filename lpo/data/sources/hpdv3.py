"""HPDv3 (arXiv 2508.03789): train.json and test.json; images in images.tar.gz.00 to .12, or unpacked in images/.

[{"prompt", "path1": "images/ID.jpg", "path2", "choice_dist": [12, 7] or null, "confidence": 0.99 or null,
  "model1", "model2"}, ...]                                              a pair an item; path1 is the preferred one

The label is the share of the votes, of which path1 has the larger one, as the published loader reads it; equal votes
are a tie. Where no votes are published (test.json, Midjourney, HPDv2) path1 has them all. Pairs below the confidence
that HPSv3 was trained with are left out. There is no split for validation: a share of train's captions is held out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from lpo.data.download import Store
from lpo.data.sources import Left, Pair, Part, image_file
from lpo.data.sources.json_files import ITEMS, is_text, iter_array, json_parts, split_of, unpacked
from lpo.errors import LpoError

REPOSITORY = "MizzenAI/HPDv3"
IMAGES = "images"
CONFIDENCE = 0.95  # of the annotators in a pair: confidence_threshold of HPSv3_7B.yaml


def parts(store: Store, held_out_share: float, keep: bool) -> list[Part]:
    """Parts of the two files. With `keep` false the pieces of the archive go once they are unpacked.

    Raises:
        LpoError: if one of the two files is absent or no JSON array.
    """

    def rows(path: Path, name: str, start: int, counts: Counter[str]) -> Iterator[Pair | Left]:
        folder = store.folder / IMAGES
        if not folder.is_dir():
            unpacked(store, folder, store.names(f"{IMAGES}.tar.gz*"), keep)
        return _rows(store.folder, path, name, start, counts, held_out_share)

    return json_parts(store, lambda _: 1, rows)


def _rows(root: Path, path: Path, name: str, start: int, counts: Counter[str], share: float) -> Iterator[Pair | Left]:
    for number, item in enumerate(islice(iter_array(path), start, start + ITEMS), start):
        label = read_label(item)
        if isinstance(label, str):
            yield Left(path.name, number, number, label)
            continue
        try:
            jpgs = [_image(root, item[key]) for key in ("path1", "path2")]
        except LpoError as error:
            yield Left(path.name, number, number, error.what)
            continue
        yield Pair(
            split_of(name, item["prompt"], share),
            {
                "ranking_id": number, "caption": item["prompt"], "jpg_0": jpgs[0], "jpg_1": jpgs[1],
                "image_0_uid": item["path1"], "image_1_uid": item["path2"], "label_0": label, "label_1": 1 - label,
                "has_label": True, "are_different": True, "num_example_per_prompt": counts[item["prompt"]],
                "source_file": path.name, "source_row": number,
            },
        )  # fmt: skip


def read_label(item: Any) -> float | str:
    """The label of path1, or what is wrong with the item."""
    if not isinstance(item, dict) or not isinstance(item.get("prompt"), str):
        return "no prompt"
    if not all(isinstance(item.get(key), str) for key in ("path1", "path2")):
        return "not two image paths"
    if not all(is_text(item[key]) for key in ("prompt", "path1", "path2")):
        return "the text holds half a character (a lone surrogate)"
    votes, confidence = item.get("choice_dist"), item.get("confidence")
    if confidence is not None and not _is_number(confidence):
        return "the confidence is no number"
    if confidence is not None and confidence < CONFIDENCE:
        return f"low agreement: the confidence is {confidence:.3g}, below {CONFIDENCE}"
    if votes is None:
        return 1.0
    if not isinstance(votes, list) or len(votes) != 2 or not all(_is_number(v) and v >= 0 for v in votes):
        return "the votes are not two numbers from 0 up"
    return max(votes) / sum(votes) if sum(votes) else "nobody voted"


def _is_number(value: Any) -> bool:
    """A finite number that arithmetic on floats holds."""
    return type(value) in (int, float) and abs(value) < 2**53 and not math.isnan(value)


def _image(root: Path, name: str) -> bytes:
    """Names begin with images/, and so may the archive's own; then they lie one folder deeper."""
    try:
        return image_file(root, name)
    except LpoError as error:
        try:
            return image_file(root / IMAGES, name)
        except LpoError:
            raise error from None
