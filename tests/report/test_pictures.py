import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lpo.report import pictures
from lpo.report.pictures import choose

SHADES = {"base": 40, "base_matched": 120, "tuned": 200}


def png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def colour(i: int, model: str) -> tuple[int, int, int]:
    return 20 * i + 5, SHADES[model], 90


def results(prompts: list[str], size: int = 32) -> pd.DataFrame:
    """One picture a prompt and model, each in a colour of its own."""
    return pd.DataFrame(
        {"prompt": prompt, "category": "single", "seed": i, "model": model, "utility": 0.0,
         "png": png(np.full((size, size, 3), colour(i, model), np.uint8))}
        for i, prompt in enumerate(prompts) for model in SHADES
    )  # fmt: skip


def contact_sheet(frame: pd.DataFrame, count: int, seed: int = 0) -> bytes:
    """The sheet of prompts drawn at random, as the stage report draws it."""
    return pictures.contact_sheet(frame, choose(frame, count, seed)["random"])


def opened(sheet: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sheet)))


def box(sheet: np.ndarray, of: tuple[int, int, int]) -> tuple[int, int, int, int] | None:
    """left, top, width, height of a colour, which must fill its box."""
    rows, columns = np.nonzero((sheet == of).all(axis=2))
    if len(rows) == 0:
        return None
    found = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
    assert len(rows) == found[2] * found[3]
    return tuple(int(x) for x in found)


PROMPTS = [f"prompt {i}" for i in range(10)]


def test_base_stands_above_tuned_for_the_prompts_that_were_drawn():
    frame = results(PROMPTS)
    sheet = opened(contact_sheet(frame, 4, seed=7))
    drawn = [seed for _, seed in choose(frame, 4, seed=7)["random"]]
    lefts = []
    for i in range(len(PROMPTS)):
        usual, base, tuned = (box(sheet, colour(i, model)) for model in SHADES)
        assert usual is None  # the base at its usual guidance scale is not what the tuned model is compared with
        if i not in drawn:
            assert base is None and tuned is None
            continue
        assert base[0] == tuned[0] and base[1] + base[3] <= tuned[1]
        assert base[2:] == tuned[2:] == (128, 128)
        lefts.append(base[0])
    assert len(lefts) == 4 and np.diff(lefts).min() > 128


def test_pixels_are_enlarged_four_times_and_not_blurred():
    art = np.random.default_rng(0).integers(0, 200, (32, 32, 3), np.uint8)
    frame = results(["a cat"])
    left, top, *_ = box(opened(contact_sheet(frame, 1)), colour(0, "tuned"))
    frame.loc[frame["model"] == "tuned", "png"] = png(art)
    shown = opened(contact_sheet(frame, 1))[top : top + 128, left : left + 128]
    assert np.array_equal(shown, art.repeat(4, axis=0).repeat(4, axis=1))


def test_a_large_picture_keeps_its_size():
    assert box(opened(contact_sheet(results(["a cat"], size=150), 1)), colour(0, "tuned"))[2:] == (150, 150)


def test_the_caption_stands_under_its_column():
    def ink(prompt: str) -> np.ndarray:
        sheet = opened(contact_sheet(results([prompt, prompt + " "]), 2))
        left, top, width, height = box(sheet, colour(0, "tuned"))
        return (sheet[top + height :, left : left + width] < 128).all(axis=2)

    assert ink("a cat").any()
    assert not np.array_equal(ink("a cat"), ink("a dog"))
    assert ink("an orange book right of a blue heart under water").sum() > 2 * ink("a cat").sum()


@pytest.mark.parametrize("prompt", ["a " + "word " * 200, "a" + "W" * 2000, "a <b>line\nbreak</b>", "a 猫 \u202e"])
def test_no_caption_touches_its_neighbour_or_makes_the_sheet_larger(prompt):
    plain, other = (opened(contact_sheet(results([p, "b dog"]), 2)) for p in ("a cat", prompt))
    assert plain.shape == other.shape
    left, top, *_ = box(other, colour(1, "tuned"))
    assert np.array_equal(plain[top:, left:], other[top:, left:])


def test_the_draw_depends_on_the_seed_and_equal_inputs_are_equal_bytes():
    frame = results(PROMPTS)
    assert contact_sheet(frame, 3, seed=1) == contact_sheet(frame.sample(frac=1, random_state=0), 3, seed=1)
    assert len({contact_sheet(frame, 3, seed=seed) for seed in range(5)}) > 1


def test_fewer_prompts_than_asked_for_are_all_shown():
    sheet = opened(contact_sheet(results(["a cat", "a dog"]), 6))
    assert all(box(sheet, colour(i, "tuned")) for i in range(2))


def judged(right: dict[str, list[bool]]) -> pd.DataFrame:
    """`results` with verdicts, by model and prompt; the base at its usual guidance has everything right."""
    frame = results(PROMPTS)
    verdicts = right | {"base": [True] * len(PROMPTS)}
    return frame.assign(
        all_correct=[verdicts[model][seed] for model, seed in zip(frame["model"], frame["seed"], strict=True)]
    )


def test_changed_prompts_are_those_on_which_exactly_one_image_is_right():
    base = [i in (0, 1, 2, 3) for i in range(10)]
    tuned = [i in (2, 3, 4, 5, 6) for i in range(10)]
    frame = judged({"base_matched": base, "tuned": tuned})
    different = {(f"prompt {i}", i) for i in (0, 1, 4, 5, 6)}
    assert set(choose(frame, 9, seed=1)["changed"]) == different
    drawn = [tuple(choose(frame, 2, seed=seed)["changed"]) for seed in range(8)]
    assert all(len(some) == 2 and set(some) <= different for some in drawn) and len(set(drawn)) > 1
    assert "changed" not in choose(judged({"base_matched": base, "tuned": base}), 9, seed=1)
    assert "changed" not in choose(results(PROMPTS), 9, seed=1)


def test_a_word_under_each_image_says_whether_it_is_right():
    places = [("prompt 0", 0), ("prompt 1", 1)]
    inks = {True: (0, 113, 79), False: (176, 69, 0)}

    def words(right: dict[str, list[bool]]) -> list[int]:
        sheet = opened(pictures.contact_sheet(judged(right), places))
        return [int((sheet == ink).all(axis=2).sum()) for ink in inks.values()]

    all_right, all_wrong = ({"base_matched": [v] * 10, "tuned": [v] * 10} for v in (True, False))
    (green, none), (no, red) = words(all_right), words(all_wrong)
    assert green > 0 and none == 0 and no == 0 and red > 0
    mixed = words({"base_matched": [False] * 10, "tuned": [True] * 10})
    assert mixed == [green // 2, red // 2]
