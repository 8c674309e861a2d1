"""Captions: when two are alike, and the split of one whose source names no split.

The split follows from a hash of the caption, so that no caption is in two splits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence

from lpo.errors import LpoError


def plain(caption: str) -> str:
    """A caption without what CLIP's tokenizers do not see either: capitals and runs of spaces."""
    return " ".join(caption.casefold().split())


def place_of(caption: str) -> float:
    """A number in [0, 1) that depends on the caption alone, capitals and spaces apart."""
    return int.from_bytes(hashlib.sha256(plain(caption).encode()).digest()[:8], "big") / 2**64


def split_of_caption(caption: str, held_out_share: float) -> str:
    """test below the share, validation below twice the share, else train: see `place_of`."""
    place = place_of(caption)
    return "test" if place < held_out_share else "validation" if place < 2 * held_out_share else "train"


def split_captions(captions: Sequence[str], held_out_share: float, needed: Collection[str]) -> dict[str, str]:
    """Split by plain caption, as `split_of_caption`; but each split of `needed` gets at least one.

    In the order of their places, test comes first, then validation, then train; where the share leaves a needed split
    empty, its border moves by as many captions as it lacks. A larger share moves captions in the same order.

    Raises:
        LpoError: if there are fewer captions than splits that need one.
    """
    if not captions:
        return {}
    if len(captions) < len(needed):
        what = f"{len(captions)} different captions are too few for {', '.join(sorted(needed))}"
        remedy = "bring more captions, or say the split: a column split, or tables named train, validation and test"
        raise LpoError(what, "the imported tables", remedy)
    order = sorted(captions, key=place_of)
    splits = [split_of_caption(caption, held_out_share) for caption in order]
    test, held_out = splits.count("test"), len(order) - splits.count("train")
    test = max(test, "test" in needed)
    held_out = max(held_out, test + ("validation" in needed))
    held_out = min(held_out, len(order) - ("train" in needed))
    test = min(test, held_out - ("validation" in needed))
    names = ["test"] * test + ["validation"] * (held_out - test) + ["train"] * (len(order) - held_out)
    return dict(zip(order, names, strict=True))
