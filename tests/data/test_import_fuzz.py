"""540 generated tables and pictures: every row ends somewhere with its reason; no traceback, no hang, little memory."""

from __future__ import annotations

import random
import re
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from support import hostile_inputs

from lpo.data.contract import COPY, check
from lpo.data.limits import Limits
from lpo.data.schema import SPLITS, inspect_images, read_pairs
from lpo.data.sources import Left, Part, convert
from lpo.data.sources.table import open_pairs, table_parts
from lpo.data.tokens import Tokens
from lpo.errors import LpoError
from lpo.images import decode_rgb, image_problem

pytestmark = pytest.mark.slow

PICTURES, TABLES, SEED = 300, 240, 16
SECONDS, MEGABYTES = 120, 700


@contextmanager
def bounded() -> Iterator[None]:
    """The block ends in time, and the process never grows by more than MEGABYTES."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {SECONDS} s")

    def peak() -> int:
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    before = peak()
    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    assert peak() - before < MEGABYTES


def test_a_picture_is_decoded_or_has_one_reason() -> None:
    rng = random.Random(SEED)
    good = 0
    with bounded():
        for number in range(PICTURES):
            data = hostile_inputs.picture(rng)
            if number % 2:
                data = hostile_inputs.broken(data, rng)
            problem = image_problem(data)
            assert "\n" not in problem and len(problem) < 200
            if problem:
                with pytest.raises(LpoError):
                    decode_rgb([data], 8, pixel_art=False)
            else:
                good += 1
                for pixel_art in (True, False):
                    decoded = decode_rgb([data], 8, pixel_art)
                    assert decoded.shape == (1, 8, 8, 3) and decoded.dtype == np.uint8
    assert PICTURES // 2 <= good < 0.9 * PICTURES


def test_every_row_of_a_table_ends_as_a_pair_or_left_out_with_a_reason(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    names = hostile_inputs.fill_images(tmp_path / "images", rng)
    refused: Counter[str] = Counter()
    parts: list[Part] = []
    rows_in, left_out = 0, []
    with bounded():
        for number in range(TABLES):
            made = hostile_inputs.rows(rng, names, number)
            path = hostile_inputs.table(tmp_path / f"{number}", rng, made)
            split = SPLITS[number % 3]
            try:
                opened = open_pairs(path, tmp_path / "images", {}, split)
                found = [item for part in table_parts([opened], 0.1, must_differ=True) for item in part.rows()]
                length = sum(1 for _ in opened.table.rows([]))
            except LpoError as error:
                assert error.where and error.remedy, error
                refused[error.what.split(":")[0][:40]] += 1
                continue
            numbers = [item.row if isinstance(item, Left) else item.row["source_row"] for item in found]
            assert numbers == list(range(length))  # each row once, in its order
            assert all(item.reason for item in found if isinstance(item, Left))
            rows_in += length
            left_out += [item for item in found if isinstance(item, Left)]
            parts.append(Part(f"{number:05d}", (split,), lambda found=found: found))  # type: ignore[misc]
        counts = convert(parts, tmp_path / "pairs", None)
        pairs, images = read_pairs(tmp_path / "pairs"), inspect_images(tmp_path / "pairs")
        words = Tokens(lambda captions: [len(caption.split()) + 2 for caption in captions], 77, "a model")
        verdict = check(pairs, images, None, Limits(words, cut=True, must_differ=True))
    quarantined, kept = int((verdict.reasons != "").sum()), int((verdict.reasons == "").sum())
    stored_late = sum(counts["left"].values()) - len(left_out)  # values that no column of ours can hold
    assert kept + quarantined + len(left_out) + stored_late == rows_in
    assert verdict.cut.any() and not (verdict.cut & (verdict.reasons != "")).any()
    assert min(kept, quarantined, len(left_out)) > 100 and 20 < sum(refused.values()) < TABLES // 2
    assert len({reason.split(":")[0] for reason in counts["left"]}) >= 8
    assert len(verdict.counts) >= 6 and (verdict.reasons == COPY).any()
