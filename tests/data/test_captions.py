"""Splits of captions: by a hash, and at least one caption each where a split needs one."""

from __future__ import annotations

import pytest

from lpo.data.captions import place_of, plain, split_captions, split_of_caption
from lpo.data.schema import SPLITS
from lpo.errors import LpoError


def captions(n: int, word: str = "caption") -> list[str]:
    return [f"{word} {i}" for i in range(n)]


def test_a_split_depends_on_the_caption_alone_however_it_is_written() -> None:
    assert plain("  A  Cat\u2028") == "a cat"
    assert place_of("A  cat") == place_of("a cat") and 0 <= place_of("a cat") < 1
    shares = [split_of_caption(caption, 0.1) for caption in captions(5000)]
    assert 400 < shares.count("test") < 600 and 400 < shares.count("validation") < 600


@pytest.mark.parametrize("n", [3, 4, 10, 40, 400])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.49])
def test_however_few_the_captions_every_split_gets_one(n: int, share: float) -> None:
    splits = split_captions(captions(n), share, SPLITS)
    assert set(splits.values()) == set(SPLITS) and len(splits) == n
    held = {name: [place_of(c) for c, split in splits.items() if split == name] for name in SPLITS}
    assert max(held["test"]) < min(held["validation"]) <= max(held["validation"]) < min(held["train"])


def test_where_the_share_suffices_the_splits_are_those_of_the_hash() -> None:
    many = captions(2000)
    assert split_captions(many, 0.02, SPLITS) == {caption: split_of_caption(caption, 0.02) for caption in many}


def test_a_split_that_the_tables_name_themselves_is_not_forced() -> None:
    splits = split_captions(captions(5), 1e-9, {"train"})
    assert set(splits.values()) == {"train"}
    assert split_captions([], 0.1, SPLITS) == {}


def test_too_few_captions_are_told_with_what_to_do() -> None:
    with pytest.raises(LpoError, match="2 different captions are too few") as caught:
        split_captions(captions(2), 0.1, SPLITS)
    assert "column split" in caught.value.remedy
