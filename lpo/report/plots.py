"""Plots for the report, each as two SVG data URIs: one for wide pages, and one that stays legible on a phone.

The same figures give the same bytes: no date, a fixed salt for ids, glyphs as paths. Colours are of Okabe and Ito
(readable with any colour vision); every series also differs in marker or place. The background is transparent, and a
style inside the SVG swaps ink, grid and blue for lighter ones where the reader prefers dark pages.

Shapes: rows are lists of plain dicts, as the stages' JSON files hold them.
Source of the colours: Okabe and Ito 2008, https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import base64
import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, NamedTuple, ParamSpec

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lpo.format import percent, plain

Row = Mapping[str, Any]
P = ParamSpec("P")


class Layout(NamedTuple):
    """Width in inches (72 points, 96 pixels of a page), panels in a row, size of the text in points."""

    width: float
    columns: int
    text: float


class Plot(NamedTuple):
    """The two data URIs."""

    wide: str
    narrow: str


WIDE, NARROW = Layout(10, 3, 10), Layout(3.4, 1, 9)  # 3.4 inches: what a phone of 390 pixels leaves


def in_both(draw: Callable[Concatenate[Layout, P], Figure]) -> Callable[P, Plot]:
    """Draw with both layouts."""

    @functools.wraps(draw)
    def plot(*args: P.args, **kwargs: P.kwargs) -> Plot:
        return Plot(*(_drawn(layout, draw, *args, **kwargs) for layout in (WIDE, NARROW)))

    return plot


def _drawn(layout: Layout, draw: Callable[..., Figure], *args: Any, **kwargs: Any) -> str:
    with rc_context(STYLE | {"font.size": layout.text, "axes.titlesize": layout.text}):
        return _uri(draw(layout, *args, **kwargs))


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
    "kept": ("Candidate groups kept", BLUE),
    "gap": ("Score gap, best minus worst", GREEN),
    "clipped": ("Ratios clipped", RED),
    "implicit_accuracy": ("Pairs that the policy ranks as the reward does", ORANGE),
}
CHANCE = (0, (4, 3))  # dashes of a line at chance
HALF_IS_CHANCE = ("implicit_accuracy", "accuracy")
NO_SHARE = ("gap", "loss", "validation")


@in_both
def accuracy_by_timestep(layout: Layout, rows: Sequence[Row]) -> Figure:
    """Accuracy of the reward model with its interval, one bin a row {t_low, t_high, value, low, high}, and chance."""
    figure, (axes,) = _figure(1, 3.0, layout)
    middle = [(row["t_low"] + row["t_high"]) / 2 for row in rows]
    low, high = [row["low"] for row in rows], [row["high"] for row in rows]
    axes.fill_between(middle, low, high, color=BLUE, alpha=0.22, linewidth=0)
    axes.plot(middle, [row["value"] for row in rows], color=BLUE, marker="o")
    axes.axhline(0.5, color=INK, linewidth=1, linestyle=CHANCE)
    axes.text(0.995, 0.505, "chance", transform=axes.get_yaxis_transform(), ha="right", va="bottom")
    axes.set(xlabel="timestep t (0 is a clean image)", ylabel="pairs ranked correctly")
    axes.set_ylim(min(0.45, *low), max(0.75, *high) + 0.02)
    axes.yaxis.set_major_formatter(_percent)
    return figure


@in_both
def by_timestep(layout: Layout, rows: Sequence[Row]) -> Figure:
    """Small panels over t of what the rows {t, kept, gap, clipped, implicit_accuracy} have; kept is a share."""
    names = [name for name in BY_TIMESTEP if any(name in row for row in rows)]
    figure, panels = _figure(len(names), 2.2, layout)
    for axes, name in zip(panels, names, strict=True):
        title, colour = BY_TIMESTEP[name]
        _line(axes, rows, "t", name, colour)
        axes.set(title=_wrapped(title, len(names), layout), xlabel="timestep t")
        if name in ("kept", "clipped"):
            axes.set_ylim(0, 1.15 * max(row.get(name, 0) for row in rows) or 1)
    return figure


@in_both
def training_curves(layout: Layout, rows: Sequence[Row], x: str, titles: Mapping[str, str]) -> Figure:
    """Small panels over row[x], one for each key of `titles` that any row has; rows without the key are left out."""
    names = [name for name in titles if any(name in row for row in rows)]
    figure, panels = _figure(len(names), 2.2, layout)
    for axes, name in zip(panels, names, strict=True):
        _line(axes, rows, x, name, BLUE, marker="o" if sum(name in row for row in rows) <= 40 else "")
        axes.set(title=_wrapped(titles[name], len(names), layout), xlabel=x)
    return figure


@in_both
def forest(layout: Layout, rows: Sequence[tuple[str, Row]], chance: float = 0.5) -> Figure:
    """A point and its interval for every (label, {value, low, high}), from top to bottom, beside a line at chance.

    Blue lies above chance, vermilion (and a square) below it, hollow where the interval includes chance.
    """
    labels_above = layout.columns == 1  # beside the plot they would leave no room for it
    figure, (axes,) = _figure(1, 0.6 + (0.5 if labels_above else 0.3) * len(rows), layout)
    for place, (label, row) in enumerate(rows):
        colour = BLUE if row["value"] >= chance else RED
        sure = row["low"] > chance or row["high"] < chance
        axes.plot([row["low"], row["high"]], [place, place], color=colour)
        face = colour if sure else "none"
        axes.plot(row["value"], place, "o" if row["value"] >= chance else "s", color=colour, mfc=face, ms=6.5)
        across = axes.get_yaxis_transform()
        axes.text(1.01, place, percent(row["value"]), transform=across, va="center", ha="left")
        if labels_above:
            axes.text(0, place - 0.22, _label(label), transform=across, va="bottom", ha="left")
    if labels_above:
        rung = range(len(rows))
        axes.vlines([chance] * len(rows), [i - 0.2 for i in rung], [i + 0.25 for i in rung], INK, linewidth=1)
    else:
        axes.axvline(chance, color=INK, linewidth=1, linestyle=CHANCE)
    axes.set_yticks(range(len(rows)), [""] * len(rows) if labels_above else [_label(label) for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.8 if labels_above else -0.5)
    axes.set_xlim(min(0.4, *(row["low"] for _, row in rows)), max(0.8, *(row["high"] for _, row in rows)) + 0.01)
    axes.xaxis.set_major_formatter(_percent)
    axes.yaxis.grid(False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


@in_both
def mpcf_bars(layout: Layout, kept: int, dropped_by: Mapping[str, int]) -> Figure:
    """Pairs that MPCF kept, and pairs that each of its rules dropped, as horizontal bars with their counts."""
    bars = [("kept", kept, GREEN)] + [(rule, count, ORANGE) for rule, count in dropped_by.items()]
    figure, (axes,) = _figure(1, 0.5 + 0.32 * len(bars), layout)
    for place, (_, count, colour) in enumerate(bars):
        axes.barh(place, count, color=colour, height=0.7)
        axes.annotate(plain(count), (count, place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(bars)), [_label(label) for label, _, _ in bars])
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, (1.3 if layout.columns == 1 else 1.12) * max(1, *(count for _, count, _ in bars)))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("pairs")
    axes.yaxis.grid(False)
    axes.tick_params(axis="y", length=0)
    return figure


def picture_uri(png: bytes) -> str:
    """The data URI of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _percent(value: float, _: object) -> str:
    return f"{100 * value:.3g}%"


def _label(name: str) -> str:
    """A name from data: short, and text to matplotlib, which reads a formula between dollar signs."""
    return textwrap.shorten(name, 40).replace("$", r"\$")


def _columns(panels: int, layout: Layout) -> int:
    """At most as many as the layout has, so that rows are full where they can be."""
    return min(layout.columns, 2 if panels in (2, 4) else panels)


def _wrapped(title: str, panels: int, layout: Layout) -> str:
    """A title in lines that stay inside their panel: a character is half as wide as it is high, an axis 50 points."""
    room = 72 * layout.width / _columns(panels, layout) - 50
    return textwrap.fill(title, int(room / (0.5 * layout.text)))


def _figure(panels: int, height: float, layout: Layout = WIDE) -> tuple[Figure, list[Axes]]:
    """Axes in rows of equal length; height of one row in inches."""
    columns = _columns(panels, layout)
    lines = -(-panels // columns)
    figure = Figure(figsize=(layout.width, height * lines))
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
