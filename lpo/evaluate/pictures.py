"""The report's pictures: what base and tuned model made of random prompts, of the best and of the worst.

    gain = utility(tuned) - utility(base at the same guidance scale), for one prompt and seed

Best and worst are the ends of the list sorted by gain; random ones are drawn with the run's seed, and say so.
Shapes: results is data/evaluation/results.parquet, one row a picture (columns: see lpo.evaluate.metrics).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from lpo.evaluate.markup import heading, missing, plain, section, text
from lpo.evaluate.metrics import paired
from lpo.evaluate.plots import picture_uri

Place = tuple[str, int]  # prompt, seed


def choose(results: pd.DataFrame, count: int, seed: int) -> dict[str, list[Place]]:
    """Prompts and seeds of {random, best, worst}, at most `count` each."""
    pairs = paired(results, "tuned", "base_matched")
    places = list(zip(pairs["prompt"], pairs["seed"], strict=True))
    best = np.argsort(-(pairs["utility_tuned"] - pairs["utility_base"]).to_numpy(float), kind="stable")
    drawn = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count])
    chosen = {"random": drawn, "best": best[:count], "worst": best[::-1][:count]}
    return {name: [places[i] for i in index] for name, index in chosen.items()}


def pictures(results: pd.DataFrame | None, params: Mapping[str, Any]) -> str:
    """The section: three grids of cards, each base | base with the tuned model's guidance | tuned."""
    title = "Before and after"
    if results is None:
        return section("pictures", title, missing("data/evaluation/results.parquet", "evaluate"))
    usual, scale = params["evaluate"]["base_guidance_scale"], params["evaluate"]["guidance_scale"]
    shown = [("base_matched", "base", scale), ("tuned", "tuned", scale)]
    words = "The base usually runs at this guidance scale (CFG) too, so one picture of it is shown. "
    if usual != scale:
        shown.insert(0, ("base", "base", usual))
        words = "CFG is the guidance scale; the base is shown at its usual one and at the tuned model's. "
    chosen = choose(results, params["report"]["examples"], params["seed"])
    total = int((results["model"] == "tuned").sum())
    notes = {
        "random": f"Drawn with seed {params['seed']} from {plain(total)} pictures. Nobody chose them.",
        "best": f"The largest gains in utility among {plain(total)} pictures: picked because they look good.",
        "worst": f"The largest losses in utility among {plain(total)} pictures: picked because they look bad.",
    }
    intro = (
        f"Same prompt, same noise, same sampler. {words}The judge counts how much of the prompt is right and rates "
        "looks from 0 to 10; utility weighs both."
    )
    rows = results.set_index(["model", "prompt", "seed"])
    bodies = [text(intro)]
    for name, places in chosen.items():
        cards = "\n".join(_card(rows, place, shown) for place in places)
        bodies += [heading(name.capitalize()), text(notes[name], "soft"), f'<div class="cards">\n{cards}\n</div>']
    return section("pictures", title, *bodies)


def _card(rows: pd.DataFrame, place: Place, shown: Sequence[tuple[str, str, float]]) -> str:
    prompt = escape(place[0])
    shots = []
    for model, label, scale in shown:
        row = rows.loc[(model, *place)]
        right = bool(row["all_correct"])
        verdict = "✓ all right" if right else f"✗ {100 * row['alignment']:.0f} % right"
        colour = "good" if right else "bad"
        shots.append(
            f'<div class="shot"><img src="{picture_uri(row["png"])}" alt="{escape(label)}: {prompt}">'
            f'<b>{escape(label)}</b> CFG {plain(scale)}<br><span class="{colour}">{verdict}</span><br>'
            f"looks {row['aesthetic']:.1f}</div>"
        )
    kind = "row two" if len(shown) == 2 else "row"
    return f'<div class="card"><p>{prompt}</p><div class="{kind}">{"".join(shots)}</div></div>'
