"""The sections of the report, each from plain dicts of metrics/*.json and histories.

A function returns one <section>. A section names what is absent (None, or a missing key).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpo.format import flat, percent, percents, plain, points, signed
from lpo.report import plots
from lpo.report.html import figure, folded, heading, missing, rows_table, section, table, text
from lpo.report.judge_section import every_judge, promoted

Json = Mapping[str, Any]
AXES = ("overall", "alignment", "aesthetics")
SCORERS_NOTE = (
    "These scorers do not know the true scene. They gave the tuning no gradient, but the filter used them to choose "
    "pairs, and validation used them to choose the checkpoint. They are not independent evidence."
)
LRM_NOTES = {  # by_category and by_difference are measured over t < 500
    "category": "Category of the prompt; timesteps below 500.",
    "difference": "How the two images of a pair differ; timesteps below 500.",
}
FEW_PROMPTS = 30  # below it an interval by bootstrap is a rough guide
TUNE_CURVES = {
    "loss": "Loss",
    "validation": "Score gain on validation prompts (standard deviations)",
    "kept": "Candidate groups kept",
    "implicit_accuracy": "Pairs that the policy ranks as the reward does",
    "clipped": "Ratios clipped",
}
REWARD_CURVES = {"loss": "Loss", "accuracy": "Accuracy on validation pairs"}
WEIGHTS = {"gap": "seen", "threshold": "seen", "clipped": "kept", "implicit_accuracy": "kept"}


def wins(evaluate: Json | None) -> str:
    title = "Win rates"
    if evaluate is None:
        return section("wins", title, missing("metrics/evaluate.json", "evaluate"))
    against = {"win_rate": "same guidance", "win_rate_default_cfg": "usual guidance"}
    bodies = [
        text(
            "The share of images on which the tuned model beats its base, for the same prompt and noise. A tie counts "
            "as half a win, so 50% means no difference. Intervals are 95% bootstrap intervals over prompts."
        )
    ]
    bodies += [missing(f"{name} in metrics/evaluate.json", "evaluate") for name in against if name not in evaluate]
    if evaluate.get("win_rate") == evaluate.get("win_rate_default_cfg"):
        del against["win_rate_default_cfg"]
        bodies.append(text("The base usually runs at the same guidance scale, so there is one comparison.", "soft"))
    rows = [(axis, name, evaluate[name][axis]) for name in against for axis in AXES if axis in evaluate.get(name, {})]
    categories = evaluate.get("by_category", {})
    forest = [(axis if name == "win_rate" else f"{axis}, usual guidance", row) for axis, name, row in rows]
    forest += [(f"{name} prompts", rates["overall"]) for name, rates in categories.items()]
    if forest:
        caption = "Hollow marks: the interval includes 50%. Rows of a category show the overall win rate."
        alt = "Win rates of the tuned model with 95% intervals beside the line at 50%"
        bodies.append(figure(plots.forest(forest), alt, caption))
    cells = [
        [axis, against[name], percent(row["value"]), percents(row), percent(row["ties"]), plain(row["prompts"])]
        for axis, name, row in rows
    ]
    head = ["win rate", "base at", "value", "95% interval", "ties", "prompts"]
    bodies += [table(head, cells, texts=2), heading("By category")]
    if not categories:
        return section("wins", title, *bodies, missing("by_category in metrics/evaluate.json", "evaluate"))
    bodies.append(text("Against the base at the same guidance scale, with 95% intervals.", "soft"))
    cells = [
        [name, plain(rates["overall"]["prompts"]), *(f"{percent(rates[axis]['value'])} ({percents(rates[axis])})"
                                                     for axis in AXES)]
        for name, rates in categories.items()
    ]  # fmt: skip
    bodies.append(table(["category", "prompts", *AXES], cells))
    if any(rates["overall"]["prompts"] < FEW_PROMPTS for rates in categories.values()):
        bodies.append(text(f"Intervals of fewer than {FEW_PROMPTS} prompts are rough.", "soft"))
    if "judges" in evaluate:
        bodies += [heading("Other judges"), *every_judge(evaluate)]
    return section("wins", title, *bodies, *promoted(evaluate))


def changes(evaluate: Json | None) -> str:
    """All-correct rates, and the means of the judge, of the scorers and of the reward."""
    title = "What changed"
    if evaluate is None:
        return section("changes", title, missing("metrics/evaluate.json", "evaluate"))
    head = ["", "base", "tuned", "change", "95% interval", "prompts"]
    bodies = [heading("All-correct rate"), text("The share of images with every detail of the prompt right.")]
    if "all_correct" in evaluate:
        overall = evaluate["all_correct"]
        rows = [("all prompts", overall), *overall.get("by_category", {}).items()]
        cells = [
            [name, percent(row["base"]), percent(row["tuned"]), f"{points(row['difference'])} points",
             f"{points(row['low'])} to {points(row['high'])}", plain(row.get("prompts", ""))]
            for name, row in rows
        ]  # fmt: skip
        bodies.append(table(head, cells))
    else:
        bodies.append(missing("all_correct in metrics/evaluate.json", "evaluate"))
    bodies += [heading("Scorers"), text(SCORERS_NOTE)]
    if "scorers" in evaluate:
        bodies.append(table([*head[:-1], "win rate", "95% interval"], map(_scorer, evaluate["scorers"].items())))
    else:
        bodies.append(missing("scorers in metrics/evaluate.json", "evaluate"))
    if "means" in evaluate:
        cells = [
            _scorer(("utility" if name == "overall" else name, row))[:5] for name, row in evaluate["means"].items()
        ]
        bodies += [heading("Mean scores of the judge"), table(head[:-1], cells)]
    if "reward" in evaluate:
        bodies += [
            heading("The reward model"),
            text("Training optimized this score, so its gain is no evidence of better images."),
            table([*head[:-1], "win rate", "95% interval"], [_scorer(("latent reward model", evaluate["reward"]))]),
        ]
    return section("changes", title, *bodies)


def _scorer(item: tuple[str, Json]) -> list[str]:
    name, row = item
    rate = row.get("win_rate")
    return [
        name, f"{row['base']:.3f}".replace("-", "−"), f"{row['tuned']:.3f}".replace("-", "−"),
        signed(row["difference"]), f"{signed(row['low'])} to {signed(row['high'])}",
        percent(rate["value"]) if rate else "", percents(rate) if rate else "",
    ]  # fmt: skip


def reward_model(lrm: Json | None, history: Sequence[Json] | None) -> str:
    bodies = [
        text(
            "The latent reward model (LRM) scores a noisy latent for a prompt. Accuracy is the share of held-out pairs "
            "in which it scores the chosen image higher than the rejected one."
        )
    ]
    if lrm is None:
        bodies.append(missing("metrics/reward.json", "reward"))
    else:
        accuracy = lrm["accuracy"]
        early = f", below t = 500: {percent(accuracy['below_500'])}" if "below_500" in accuracy else ""
        bodies.append(text(f"Mean over timesteps: {percent(accuracy['mean'])}{early}.", "lead"))
        if accuracy.get("by_timestep"):
            caption = "The band is the 95% interval. A latent at t = 0 is clean; at t = 1000 it is noise."
            uri = plots.accuracy_by_timestep(accuracy["by_timestep"])
            bodies.append(figure(uri, "Accuracy of the reward model by timestep, beside chance", caption))
            cells = [
                [f"{row['t_low']} to {row['t_high']}", percent(row["value"]), percents(row)]
                for row in accuracy["by_timestep"]
            ]
            bodies.append(folded("Table", table(["timesteps", "accuracy", "95% interval"], cells)))
        else:
            bodies.append(missing("accuracy.by_timestep in metrics/reward.json", "reward"))
        if not accuracy.get("by_category"):
            bodies.append(missing("accuracy.by_category in metrics/reward.json", "reward"))
        for name, note in LRM_NOTES.items():
            if not accuracy.get(f"by_{name}"):
                continue  # pairs of real data need not say what tells them apart
            cells = [
                [str(kind), percent(row["value"]), percents(row), plain(row["pairs"])]
                for kind, row in accuracy[f"by_{name}"].items()
            ]
            head = [name, "accuracy", "95% interval", "pairs"]
            bodies += [heading(f"By {name}"), text(note, "soft"), table(head, cells)]
    bodies.append(heading("Training"))
    bodies.append(_curves(history, "step", REWARD_CURVES, "data/reward/history.json", "reward"))
    return section("reward", "Reward model", *bodies)


def tuning(lpo: Json | None, history: Sequence[Json] | None) -> str:
    bodies = [
        text(
            "At every sampling step the model draws several candidates from one latent. The reward model picks the "
            "best and the worst, and the pairs with a large enough gap train the adapter. At t = 0 an image is clean."
        )
    ]
    steps = timesteps(history or [])
    if steps:
        caption = "Over all rollouts. The gap is over all groups; the other curves are over kept pairs."
        bodies.append(figure(plots.by_timestep(steps), "Kept groups, gaps and clipping by timestep", caption))
        bodies.append(folded("Table", rows_table(steps)))
    elif history is not None and not any("by_timestep" in row for row in history):  # empty where nothing is sampled
        bodies.append(missing("by_timestep in data/tuned/history.json", "tune"))
    bodies += [heading("Training"), _curves(history, "rollout", TUNE_CURVES, "data/tuned/history.json", "tune")]
    bodies.append(heading("Validation"))
    if lpo is None:
        bodies.append(missing("metrics/tune.json", "tune"))
    elif lpo.get("validation"):
        note = "On held-out validation prompts. The adapter with the best value was kept."
        bodies += [text(note, "soft"), rows_table([dict(flat(row)) for row in lpo["validation"]])]
    else:
        bodies.append(missing("validation in metrics/tune.json", "tune"))
    if lpo is not None:
        rest = {key: value for key, value in lpo.items() if key not in ("validation", "warnings")}
        bodies += [heading("Totals"), table(["figure", "value"], flat(rest))]
        if lpo.get("warnings"):
            bodies += [heading("Warnings"), *(text(warning) for warning in lpo["warnings"])]
    return section("tuning", "Tuning", *bodies)


def timesteps(history: Sequence[Json]) -> list[dict[str, float]]:
    """One row for each t, over all rollouts: kept / seen, and means weighted by what they are means of.

    history rows hold by_timestep: [{t, seen, kept, gap, threshold, clipped, implicit_accuracy}] with counts seen (of
    candidate groups) and kept (of pairs); the last two are absent where nothing was kept.
    """
    rows = [step for rollout in history for step in rollout.get("by_timestep", [])]
    found = []
    for t in sorted({row["t"] for row in rows}):
        mine = [row for row in rows if row["t"] == t]
        figures = {"t": t, "kept": sum(row["kept"] for row in mine) / sum(row["seen"] for row in mine)}
        for name, weight in WEIGHTS.items():
            known = [row for row in mine if name in row]
            if known:
                figures[name] = float(np.average([row[name] for row in known], weights=[row[weight] for row in known]))
        found.append(figures)
    return found


def _curves(history: Sequence[Json] | None, x: str, titles: Mapping[str, str], path: str, stage: str) -> str:
    if not history or not any(name in row for row in history for name in titles):
        return missing(path if history is None else f"{' or '.join(titles)} in {path}", stage)
    shown = ", ".join(title.lower() for name, title in titles.items() if any(name in row for row in history))
    return figure(plots.training_curves(history, x, titles), f"Training curves: {shown}", f"By {x}: {shown}.")
