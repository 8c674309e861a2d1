"""Small figures for the report, each an SVG data URI.

The same figures give the same bytes: no date, a fixed salt for ids, glyphs as paths. Colours are of Okabe and Ito
(readable with any colour vision); every series also differs in marker or place. The background is transparent, and a
style inside the SVG swaps ink, grid and blue for lighter ones where the reader prefers dark pages.

Shapes: rows are lists of plain dicts, as the stages' JSON files hold them.
Source of the colours: Okabe and Ito 2008, https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpo.format import percent, plain

Row = Mapping[str, Any]

INK, GRID = "#24292f", "#d8dee4"
BLUE, ORANGE, GREEN, RED = "#0072b2", "#e69f00", "#009e73", "#d55e00"
DARK = {INK: "#d7dde4", GRID: "#353c45", BLUE: "#56b4e9"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "path",
    "svg.hashsalt": "lpo",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.09,
    "figure.constrained_layout.w_pad": 0.09,
}
BY_TIMESTEP = {  # key of history's by_timestep -> (title, colour)
    "kept": ("Share of candidate groups kept", BLUE),
    "gap": ("Score gap, best against worst", GREEN),
    "clipped": ("Share of ratios clipped", RED),
    "implicit_accuracy": ("Pairs that the policy ranks as the reward does", ORANGE),
}
CHANCE = (0, (4, 3))  # dashes of a line at chance
HALF_IS_CHANCE = ("implicit_accuracy", "accuracy")
NO_SHARE = ("gap", "loss", "validation")


def accuracy_by_timestep(rows: Sequence[Row]) -> str:
    """Accuracy of the reward model with its interval, one bin a row {t_low, t_high, value, low, high}, and chance."""
    with rc_context(STYLE):
        figure, (axes,) = _figure(1, 3.0)
        middle = [(row["t_low"] + row["t_high"]) / 2 for row in rows]
        low, high = [row["low"] for row in rows], [row["high"] for row in rows]
        axes.fill_between(middle, low, high, color=BLUE, alpha=0.22, linewidth=0)
        axes.plot(middle, [row["value"] for row in rows], color=BLUE, marker="o")
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=CHANCE)
        axes.text(0.995, 0.505, "chance", transform=axes.get_yaxis_transform(), ha="right", va="bottom")
        axes.set(xlabel="timestep t (0 is a clean picture)", ylabel="pairs ranked right")
        axes.set_ylim(min(0.45, *low), max(0.75, *high) + 0.02)
        axes.yaxis.set_major_formatter(_percent)
        return _uri(figure)


def by_timestep(rows: Sequence[Row]) -> str:
    """Small panels over t of what the rows {t, kept, gap, clipped, implicit_accuracy} have; kept is a share."""
    names = [name for name in BY_TIMESTEP if any(name in row for row in rows)]
    with rc_context(STYLE):
        figure, panels = _figure(len(names), 2.2)
        for axes, name in zip(panels, names, strict=True):
            title, colour = BY_TIMESTEP[name]
            _line(axes, rows, "t", name, colour)
            axes.set(title=title, xlabel="timestep t")
            if name in ("kept", "clipped"):
                axes.set_ylim(0, 1.15 * max(row.get(name, 0) for row in rows) or 1)
        return _uri(figure)


def training_curves(rows: Sequence[Row], x: str, titles: Mapping[str, str]) -> str:
    """Small panels over row[x], one for each key of `titles` that any row has; rows without the key are left out."""
    names = [name for name in titles if any(name in row for row in rows)]
    with rc_context(STYLE):
        figure, panels = _figure(len(names), 2.2)
        for axes, name in zip(panels, names, strict=True):
            _line(axes, rows, x, name, BLUE, marker="o" if sum(name in row for row in rows) <= 40 else "")
            axes.set(title=titles[name], xlabel=x)
        return _uri(figure)


def forest(rows: Sequence[tuple[str, Row]], chance: float = 0.5) -> str:
    """A point and its interval for every (label, {value, low, high}), from top to bottom, beside a line at chance.

    Blue lies above chance, vermilion (and a square) below it, hollow where the interval holds chance.
    """
    with rc_context(STYLE):
        figure, (axes,) = _figure(1, 0.6 + 0.3 * len(rows))
        for place, (_, row) in enumerate(rows):
            colour = BLUE if row["value"] >= chance else RED
            sure = row["low"] > chance or row["high"] < chance
            axes.plot([row["low"], row["high"]], [place, place], color=colour)
            face = colour if sure else "none"
            axes.plot(row["value"], place, "o" if row["value"] >= chance else "s", color=colour, mfc=face, ms=6.5)
            note = percent(row["value"])
            axes.text(1.01, place, note, transform=axes.get_yaxis_transform(), va="center", ha="left")
        axes.axvline(chance, color=INK, linewidth=1, linestyle=CHANCE)
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(min(0.4, *(row["low"] for _, row in rows)), max(0.8, *(row["high"] for _, row in rows)) + 0.01)
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.grid(False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _uri(figure)


def mpcf_bars(kept: int, dropped_by: Mapping[str, int]) -> str:
    """Pairs kept, and pairs that each rule of MPCF dropped, as horizontal bars with their counts."""
    bars = [("kept", kept, GREEN)] + [(rule, count, ORANGE) for rule, count in dropped_by.items()]
    with rc_context(STYLE):
        figure, (axes,) = _figure(1, 0.5 + 0.32 * len(bars))
        for place, (_, count, colour) in enumerate(bars):
            axes.barh(place, count, color=colour, height=0.7)
            note = plain(count)
            axes.annotate(note, (count, place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(bars)), [label for label, _, _ in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.set_xlim(0, 1.12 * max(1, *(count for _, count, _ in bars)))
        axes.set_xlabel("pairs")
        axes.yaxis.grid(False)
        axes.tick_params(axis="y", length=0)
        return _uri(figure)


def picture_uri(png: bytes) -> str:
    """The data URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.3g}%"


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """Axes in rows of at most three, full ones where it can be; height of one row in inches."""
    columns = 2 if panels in (2, 4) else min(3, panels)
    lines = -(-panels // columns)
    figure = Figure(figsize=(10, height * lines))
    grid = figure.subplots(lines, columns, squeeze=False)
    every = [axes for line in grid for axes in line]
    for axes in every[panels:]:
        axes.set_visible(False)
    return figure, every[:panels]


def _line(axes: Axes, rows: Sequence[Row], x: str, y: str, colour: str, marker: str = "o") -> None:
    known = [row for row in rows if row.get(y) is not None]
    axes.plot([row[x] for row in known], [row[y] for row in known], color=colour, marker=marker)
    axes.margins(y=0.15)
    if y not in NO_SHARE:
        axes.yaxis.set_major_formatter(_percent)
    if y in HALF_IS_CHANCE:
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=CHANCE)


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    swaps = "".join(
        f'[style*="{what}: {light}"]{{{what}:{dark} !important}}'
        for light, dark in DARK.items()
        for what in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{swaps}}}</style></svg>"
    picture = buffer.getvalue().decode().replace("</svg>", style)
    return "data:image/svg+xml;base64," + base64.b64encode(picture.encode()).decode()
