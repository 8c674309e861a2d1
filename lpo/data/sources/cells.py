"""What a cell of somebody's table means: labels, flags and whole numbers, as numbers or as words."""

from __future__ import annotations

import math
from typing import Any

from lpo.errors import LpoError

SIDES = {  # who won, in whichever column it is said: 1 for image 0
    **dict.fromkeys(["first", "1st", "a", "left", "image_0", "image 0", "jpg_0"], 1.0),
    **dict.fromkeys(["second", "2nd", "b", "right", "image_1", "image 1", "jpg_1"], 0.0),
    **dict.fromkeys(["tie", "tied", "draw", "equal", "same", "both"], 0.5),
}
ANSWERS = {  # whether the image of this column won
    **dict.fromkeys(["yes", "y", "true", "won", "win", "winner", "chosen", "preferred", "better"], 1.0),
    **dict.fromkeys(["no", "n", "false", "lost", "lose", "loser", "rejected", "worse"], 0.0),
}
FLAGS = {"true": True, "1": True, "1.0": True, "yes": True, "y": True,
         "false": False, "0": False, "0.0": False, "no": False, "n": False}  # fmt: skip
SHOWN = 40  # characters of a value inside a reason


def is_hole(value: Any) -> bool:
    """Whether a cell is empty, as each kind of table writes that."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def label(value: Any, name: str) -> float | None:
    """The label of label_0 or label_1, None for a hole. A number stays as it is: the contract judges that.

    Raises:
        LpoError: if the cell holds neither a number nor a known word.
    """
    if is_hole(value):
        return None
    word = str(value).strip().casefold()
    if not word:
        return None
    if word in SIDES:
        return SIDES[word] if name == "label_0" else 1 - SIDES[word]
    if word in ANSWERS:
        return ANSWERS[word]
    try:
        return float(word) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError) as error:
        words = "neither a number nor a word such as first, second, A, B, left, right, yes, no or tie"
        raise LpoError(f"{name} is {words}: {str(value)[:SHOWN]!r}") from error


def whole(value: Any, name: str) -> int | None:
    """A whole number that 64 bits hold, None for a hole; exact, also above 2**53.

    Raises:
        LpoError: if it is none, or was rounded before it came here.
    """
    if is_hole(value):
        return None
    try:
        number = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    if number is None:
        number = _of_float(value, name)
    if abs(number) >= 2**63:
        raise LpoError(f"{name} does not fit into 64 bits: {str(value)[:SHOWN]!r}")
    return number


def _of_float(value: Any, name: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not number.is_integer() or isinstance(value, bool):
        raise LpoError(f"{name} is not a whole number: {str(value)[:SHOWN]!r}")
    if abs(number) >= 2**53:
        what = f"{name} is a floating-point number above 2**53, which is not exact; store integers"
        raise LpoError(f"{what}: {str(value)[:SHOWN]!r}")
    return int(number)


def truth(value: Any, name: str) -> bool:
    """A flag; a hole is true. Raises LpoError if it is neither true nor false."""
    if is_hole(value):
        return True
    word = str(value).strip().casefold()
    if word not in FLAGS:
        raise LpoError(f"{name} is neither true nor false: {word[:SHOWN]!r}")
    return FLAGS[word]
