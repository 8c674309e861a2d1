"""The sections of the report, each from plain dicts of metrics/*.json and histories.

A function returns one <section>. What is absent (None, or a key that is not there) is named in it, never left out.
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
    "Models that do not know the truth. They gave the tuning no gradient, but they chose the pairs in the filter and "
    "the checkpoint on validation prompts: a second opinion, not a blind one."
)
LRM_NOTES = {  # by_category and by_difference are measured over t < 500
    "category": "What the prompt asks for; over t < 500.",
    "difference": "What tells the two pictures of a pair apart; over t < 500.",
}
FEW_PROMPTS = 30  # below it an interval by bootstrap is a rough guide
LPO_CURVES = {
    "loss": "Loss",
    "validation": "Gain of the scores on validation prompts (standard deviations)",
    "kept": "Share of candidate groups kept",
    "implicit_accuracy": "Pairs ranked as the reward does",
    "clipped": "Share of ratios clipped",
}
LRM_CURVES = {"loss": "Loss", "accuracy": "Accuracy on validation pairs"}
WEIGHTS = {"gap": "seen", "threshold": "seen", "clipped": "kept", "implicit_accuracy": "kept"}


def wins(evaluate: Json | None) -> str:
    title = "Win rates"
    if evaluate is None:
        return section("wins", title, missing("metrics/evaluate.json", "evaluate"))
    against = {"win_rate": "the same guidance scale", "win_rate_default_cfg": "its usual guidance scale"}
    bodies = [
        text(
            "The share of pictures in which the tuned model beats its base on the same prompt with the same noise; a "
            "tie counts half. 50% means no difference. Intervals are 95%, by drawing prompts again."
        )
    ]
    bodies += [missing(f"{name} in metrics/evaluate.json", "evaluate") for name in against if name not in evaluate]
    if evaluate.get("win_rate") == evaluate.get("win_rate_default_cfg"):
        del against["win_rate_default_cfg"]
        bodies.append(text("The base's usual guidance scale is the tuned model's, so there is one comparison.", "soft"))
    rows = [(axis, name, evaluate[name][axis]) for name in against for axis in AXES if axis in evaluate.get(name, {})]
    categories = evaluate.get("by_category", {})
    forest = [(axis if name == "win_rate" else f"{axis}, usual guidance", row) for axis, name, row in rows]
    forest += [(f"{name} prompts", rates["overall"]) for name, rates in categories.items()]
    if forest:
        caption = "Hollow: the interval holds 50%. Rows of single categories are the overall verdict."
        alt = "Win rates of the tuned model with 95% intervals beside the line at 50%"
        bodies.append(figure(plots.forest(forest), alt, caption))
    cells = [
        [axis, against[name], percent(row["value"]), percents(row), percent(row["ties"]), plain(row["prompts"])]
        for axis, name, row in rows
    ]
    head = ["verdict on", "against the base at", "win rate", "95% interval", "ties", "prompts"]
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
        bodies.append(text(f"Rows with fewer than {FEW_PROMPTS} prompts are a rough guide only.", "soft"))
    if "judges" in evaluate:
        bodies += [heading("Other judges"), *every_judge(evaluate)]
    return section("wins", title, *bodies, *promoted(evaluate))


def changes(evaluate: Json | None) -> str:
    """All-correct rates, and the means of the judge, of the scorers and of the reward."""
    title = "What changed"
    if evaluate is None:
        return section("changes", title, missing("metrics/evaluate.json", "evaluate"))
    head = ["", "base", "tuned", "change", "95% interval", "prompts"]
    bodies = [heading("All correct"), text("Pictures in which every question that the prompt asks is answered right.")]
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
        bodies += [heading("Means of the judge"), table(head[:-1], cells)]
    if "reward" in evaluate:
        bodies += [
            heading("The reward itself"),
            text("The latent reward model is what training climbed, so its rise is no evidence of better pictures."),
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
            "The latent reward model (LRM) looks at a noisy latent and says how well it will turn out. Accuracy is the "
            "share of held-out pairs in which it prefers the labelled winner."
        )
    ]
    if lrm is None:
        bodies.append(missing("metrics/reward.json", "reward"))
    else:
        accuracy = lrm["accuracy"]
        early = f", over t < 500: {percent(accuracy['below_500'])}" if "below_500" in accuracy else ""
        bodies.append(text(f"Mean over timesteps: {percent(accuracy['mean'])}{early}.", "lead"))
        if accuracy.get("by_timestep"):
            caption = "The band is the 95% interval. Late steps see a nearly clean picture, early ones nearly noise."
            uri = plots.accuracy_by_timestep(accuracy["by_timestep"])
            bodies.append(figure(uri, "Accuracy of the reward model by timestep, beside chance", caption))
            cells = [
                [f"{row['t_low']} to {row['t_high']}", percent(row["value"]), percents(row)]
                for row in accuracy["by_timestep"]
            ]
            bodies.append(folded("The same as a table", table(["timesteps", "accuracy", "95% interval"], cells)))
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
    bodies.append(_curves(history, "step", LRM_CURVES, "data/reward/history.json", "reward"))
    return section("reward", "Reward model", *bodies)


def tuning(lpo: Json | None, history: Sequence[Json] | None) -> str:
    bodies = [
        text(
            "At every step the model draws several candidates of one latent; the reward model picks the best and the "
            "worst; pairs whose gap is large enough train the model. t counts noise: 0 is a clean picture."
        )
    ]
    steps = timesteps(history or [])
    if steps:
        caption = "Over all rollouts. The gap is that of all groups; the last two are of pairs that were kept."
        bodies.append(figure(plots.by_timestep(steps), "Kept pairs, gaps and clipping by timestep", caption))
        bodies.append(folded("The same as a table", rows_table(steps)))
    elif history is not None and not any("by_timestep" in row for row in history):  # empty where nothing is sampled
        bodies.append(missing("by_timestep in data/tuned/history.json", "tune"))
    bodies += [heading("Training"), _curves(history, "rollout", LPO_CURVES, "data/tuned/history.json", "tune")]
    bodies.append(heading("Validation"))
    if lpo is None:
        bodies.append(missing("metrics/tune.json", "tune"))
    elif lpo.get("validation"):
        note = "Prompts that are neither training nor test prompts; the weights that did best here were kept."
        bodies += [text(note, "soft"), rows_table([dict(flat(row)) for row in lpo["validation"]])]
    else:
        bodies.append(missing("validation in metrics/tune.json", "tune"))
    if lpo is not None:
        rest = {key: value for key, value in lpo.items() if key != "validation"}
        bodies += [heading("In all"), table(["figure", "value"], flat(rest))]
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
