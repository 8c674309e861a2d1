"""Merging a preset changes values, and not another byte of the file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lpo.config.presets import apply_preset, merge
from lpo.config.scaling import DIVIDED, TIMES, scaled
from lpo.errors import LpoError

FOLDER = Path(__file__).parents[2] / "lpo/presets"
PRESETS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", PRESETS)
def test_there_and_back_is_the_same_file(project: Path, name: str) -> None:
    before = Path("params.yaml").read_bytes()
    changes = apply_preset(name, Path("params.yaml"))
    assert (name == "emoji") == (changes == []) == (Path("params.yaml").read_bytes() == before)
    apply_preset("emoji", Path("params.yaml"))
    assert Path("params.yaml").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), zip(PRESETS, [*PRESETS[1:], PRESETS[0]], strict=True))
def test_what_stood_before_a_preset_leaves_no_trace_in_the_values(project: Path, first: str, second: str) -> None:
    """The emoji preset sets every key that another one sets, so what a user tried before does not matter.

    Each preset comes first once, which is enough: emoji stands between the two.
    """
    fresh = Path("params.yaml").read_text()
    apply_preset(second, Path("params.yaml"))
    expected = yaml.safe_load(Path("params.yaml").read_text())
    Path("params.yaml").write_text(fresh)
    apply_preset(first, Path("params.yaml"))
    apply_preset("emoji", Path("params.yaml"))
    apply_preset(second, Path("params.yaml"))
    assert yaml.safe_load(Path("params.yaml").read_text()) == expected


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "emoji"])
@pytest.mark.parametrize("gpus", [1, 4, 8, 64])
def test_more_gpus_have_the_work_of_four_each(name: str, gpus: int) -> None:
    """And together they see as many pairs and prompts."""
    preset = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    changes = scaled(preset, gpus)
    if gpus == 4:
        assert changes == {}
        return
    for section in ("reward", "spm", "tune"):
        before, after = preset[section], preset[section] | changes[section]
        assert after["batch_size"] / gpus == before["batch_size"] / 4
        assert after["learning_rate"] == pytest.approx(before["learning_rate"] * (gpus / 4) ** 0.5, rel=0.005)
        assert after["validate_every"] == max(1, round(before["validate_every"] * 4 / gpus))
        if section == "tune":
            size = after["prompts_per_rollout"]
            assert size / gpus == before["prompts_per_rollout"] / 4
            assert after["prompts"] % size == 0 and 0 <= after["prompts"] - before["prompts"] < size
        else:
            seen = [values["steps"] * values["batch_size"] for values in (before, after)]
            assert seen[0] == pytest.approx(seen[1], rel=0.005)
        same = before.keys() - {*DIVIDED, *TIMES, "learning_rate", "prompts"}
        assert {key: after[key] for key in same} == {key: before[key] for key in same}


def test_a_scaled_preset_is_valid_and_leads_back(project: Path) -> None:
    fresh = Path("params.yaml").read_bytes()
    changes = apply_preset("sdxl", Path("params.yaml"), 64)
    assert "tune.prompts_per_rollout: 32 -> 256" in changes
    assert yaml.safe_load(Path("params.yaml").read_text())["tune"]["learning_rate"] == 4e-5
    apply_preset("emoji", Path("params.yaml"))
    assert Path("params.yaml").read_bytes() == fresh


def test_what_cannot_be_scaled_is_refused(project: Path) -> None:
    before = Path("params.yaml").read_bytes()
    with pytest.raises(LpoError, match="the embedded world is for one machine"):
        apply_preset("emoji", Path("params.yaml"), 8)
    Path("mine.yaml").write_text("tune: {batch_size: 6}\n")
    with pytest.raises(LpoError, match="tune.batch_size is 6, which 4 GPUs cannot share evenly"):
        apply_preset("mine.yaml", Path("params.yaml"), 8)
    assert Path("params.yaml").read_bytes() == before


def test_only_the_lines_of_changed_values_change() -> None:
    text = "a:   # first\n  b:  1     # one\n  c: 'x' # near\n\n# alone\nd: [1,  2]\ne: {f: 1, g:  2}   # flow\n"
    merged, changes = merge(text, "a: {b: 2}\ne: {g: 30}\n")
    assert merged == text.replace("b:  1", "b:  2").replace("g:  2}   #", "g:  30}   #")
    assert changes == ["a.b: 1 -> 2", "e.g: 2 -> 30"]


def test_a_comment_keeps_its_column_and_returns_to_it() -> None:
    text = "".join(f"{key}: 1{' ' * 15}# {key}\n" for key in "abcd")
    long, _ = merge(text, f"b: {'x' * 30}\n")
    assert long.splitlines()[1] == f"b: {'x' * 30}   # b"
    assert merge(long, "b: 1")[0] == text
    odd = text.replace("c: 1", "c: 1  ")  # two columns to the right of the others
    assert merge(merge(odd, "c: 12345")[0], "c: 1")[0] == odd


@pytest.mark.parametrize(
    ("text", "preset", "expected"),
    [
        ("a:\n  - 1   # one\n  - 2\nb: 3\n", "a: [4]", "a: [4]\nb: 3\n"),
        ("a: [1]\nb: 3\n", "a:\n- 4\n- 5\n", "a: [4, 5]\nb: 3\n"),
        ("a:\n  b: 1   # one\nc: 2\n", "a: {x: 5}", "a:\n  b: 1   # one\n  x: 5\nc: 2\n"),
        ("a: {b: 1}\n", "a: {x: 5}", "a: {b: 1, x: 5}\n"),
        ("a: 1", "b: 2", "a: 1\nb: 2"),
        ("a: 1\n", "a: {b: 2}", "a: {b: 2}\n"),
        ("a:\n  b: 2\n", "a: 1", "a: 1\n"),
        ("a: '2'\n", "a: \"3\"", "a: \"3\"\n"),
        ("a: 0.0003\n", "a: 3.0e-4", "a: 0.0003\n"),
        ("a: null\n", "a: x#y", "a: x#y\n"),
        ("a:\nb: 1\n", "a: 2", "a: 2\nb: 1\n"),
    ],
)
def test_values_of_every_kind_take_the_place_of_each_other(text: str, preset: str, expected: str) -> None:
    assert merge(text, preset)[0] == expected


def test_a_file_that_cannot_be_edited_as_text_is_refused() -> None:
    with pytest.raises(LpoError, match="cannot be edited"):
        merge("a: &x 1\nb: *x\n", "b: 2")
