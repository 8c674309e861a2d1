"""Numbers and names as text for pages, cards and the terminal. A minus sign is U+2212."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMES = {
    "pickscore": "PickScore", "imagereward": "ImageReward", "hps_v2": "HPSv2", "hps_v2_1": "HPSv2.1", "hpsv3": "HPSv3",
    "vlm": "VLM", "aesthetic": "Aesthetic", "clip": "CLIPScore", "vqa": "VQAScore", "geneval": "GenEval",
    "lrm": "latent reward model",
}  # fmt: skip


def percent(value: float) -> str:
    """A share, as '62.0%'."""
    return f"{100 * value:.1f}%"


def percents(row: Mapping[str, Any]) -> str:
    """The interval {low, high} of a share, as '62.0% to 71.3%'."""
    return f"{percent(row['low'])} to {percent(row['high'])}"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, as '+0.420'."""
    return f"{value:+.{digits}f}".replace("-", "−")


def points(value: float) -> str:
    """A difference of shares in percentage points, as '+4.2'."""
    return signed(100 * value, 1)


def plain(value: Any) -> str:
    """Any value of a JSON or YAML file as short text: yes, 12,345, 0.00035, [1, 2], none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if isinstance(value, float):
        return f"{value:.5g}".replace("-", "−")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(plain(item) for item in value) + "]"
    return "none" if value is None else str(value)


def many(count: int, noun: str) -> str:
    """A count with its noun, as '1 vote' or '1,200 votes'."""
    return f"{plain(count)} {noun}" if count == 1 else f"{plain(count)} {noun}s"


def flat(value: Any, path: str = "") -> list[tuple[str, str]]:
    """(dotted path, text) of every value in nested mappings and lists of mappings."""
    if isinstance(value, Mapping):
        return [row for key, item in value.items() for row in flat(item, f"{path}.{key}".lstrip("."))]
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
        return [row for place, item in enumerate(value) for row in flat(item, f"{path}[{place}]")]
    return [(path, plain(value))]


def title(name: str) -> str:
    """The published name of a judge or a scorer."""
    return NAMES.get(name, name)
