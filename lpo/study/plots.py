"""Figures of a study's page; style, colours and guarantees are those of plots.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context

from lpo.report.plots import BLUE, CHANCE, GREEN, INK, ORANGE, RED, STYLE, _figure, _percent, _uri

Row = Mapping[str, Any]
COLOURS = (BLUE, RED, GREEN, ORANGE, INK)
MARKERS = ("o", "s", "^", "D", "v")


def win_rates(rows: Sequence[Row], axis: str) -> str:
    """Win rate over the base against seconds and against prompts; a line an arm and run, a colour an arm."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    with rc_context(STYLE):
        figure, panels = _figure(2, 3.2)
        for axes, (x, label) in zip(panels, (("seconds", "seconds of training"), ("prompts", "prompts")), strict=True):
            for place, arm in enumerate(arms):
                mine = [row for row in rows if row["arm"] == arm]
                for i, run in enumerate(sorted({row["run"] for row in mine})):
                    line = [row for row in mine if row["run"] == run]
                    axes.plot(
                        [row[x] for row in line], [row[axis] for row in line], color=COLOURS[place % 5],
                        marker=MARKERS[place % 5], alpha=0.8, label=arm if i == 0 else None,
                    )  # fmt: skip
            axes.axhline(0.5, color=INK, linewidth=1, linestyle=CHANCE)
            axes.set(xlabel=label, title=f"win rate over the base, {axis}")
            axes.yaxis.set_major_formatter(_percent)
        panels[1].set_xscale("log")
        panels[0].legend()
        return _uri(figure)


def lines(rows: Sequence[Row], x: str, series: str, label: str, chance: float) -> str:
    """Value with its interval over row[x], a colour for each row[series]."""
    names = list(dict.fromkeys(row[series] for row in rows))
    with rc_context(STYLE):
        figure, (axes,) = _figure(1, 3.2)
        for place, name in enumerate(names):
            mine = [row for row in rows if row[series] == name]
            at, colour = [row[x] for row in mine], COLOURS[place % 5]
            axes.fill_between(
                at, [row["low"] for row in mine], [row["high"] for row in mine], color=colour, alpha=0.15, linewidth=0
            )
            axes.plot(at, [row["value"] for row in mine], color=colour, marker=MARKERS[place % 5], label=name)
        axes.axhline(chance, color=INK, linewidth=1, linestyle=CHANCE)
        axes.set(xlabel="timestep t (0 is a clean picture)", ylabel=label)
        axes.yaxis.set_major_formatter(_percent)
        axes.legend()
        return _uri(figure)


def choices(rows: Sequence[Row]) -> str:
    """The judge's gain of every snapshot against its validation; a line a training, a ring around what was chosen."""
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    with rc_context(STYLE):
        figure, (axes,) = _figure(1, 4)
        for place, arm in enumerate(arms):
            for i, row in enumerate(row for row in rows if row["arm"] == arm):
                colour, marker = COLOURS[place % 5], MARKERS[place % 5]
                label = arm.replace("_", " ") if i == 0 else None
                axes.plot(row["validation"], row["gain"], color=colour, marker=marker, alpha=0.6, label=label)
                at = row["chosen"]
                axes.plot(
                    row["validation"][at], row["gain"][at], color=INK, marker="o", markersize=12, fillstyle="none"
                )
        axes.axhline(0, color=INK, linewidth=1, linestyle=CHANCE)
        axes.set(xlabel="validation, standard deviations over the base", ylabel="judge's gain of utility")
        axes.legend()
        return _uri(figure)
