"""The report's images: base and tuned model on random prompts, on the largest gains and on the largest losses.

    gain = value(tuned) - value(base at the same guidance scale), for one prompt and seed

The value is the utility of the emoji oracle, or else the score of the first judge (`value_of`). Random images are drawn
with the seed of the run.
Shapes: results is data/evaluation/results.parquet, one row an image (columns: see lpo/evaluate/metrics.py).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from lpo.evaluate.metrics import paired
from lpo.format import plain
from lpo.format import title as title_of
from lpo.report.html import heading, missing, section, text
from lpo.report.plots import picture_uri

Place = tuple[str, int]  # prompt, seed
SHEET = {"base_matched": "base", "tuned": "tuned"}  # rows of the contact sheet, from above, and their names
SHOWN = 128  # pixels: smaller pictures are enlarged to it by a whole number, larger ones stay
MARKS = {True: ("all right", "#00714f"), False: ("wrong", "#b04500")}  # of an image, by the emoji oracle
GAP, SIDE, LINE, LINES = 12, 48, 15, 4  # pixels between pictures, for the rows' names and for a line; lines a caption


def value_of(results: pd.DataFrame) -> str:
    """The column that gains are measured in: utility, or the first judge's."""
    return "utility" if "utility" in results else str(results.columns[list(results.columns).index("png") + 1])


def choose(results: pd.DataFrame, count: int, seed: int) -> dict[str, list[Place]]:
    """Prompts and seeds of {random, changed, best, worst}, at most `count` each.

    changed: drawn at random from those of which exactly one of the two images is right in everything; it is left out
    where nobody judged that, and where there are none.
    """
    pairs = paired(results, "tuned", "base_matched")
    places = list(zip(pairs["prompt"], pairs["seed"], strict=True))
    value = value_of(results)
    gains = (pairs[f"{value}_tuned"] - pairs[f"{value}_base"]).to_numpy(float)
    best = np.argsort(-gains, kind="stable")
    best = best[np.isfinite(gains[best])]  # the judge vlm may have no score for an image
    drawn = np.sort(np.random.default_rng(seed).permutation(len(pairs))[:count])
    changed = _changed(pairs, count, seed)
    chosen = {"random": drawn, "changed": changed, "best": best[:count], "worst": best[::-1][:count]}
    return {name: [places[i] for i in index] for name, index in chosen.items() if name != "changed" or len(index)}


def _changed(pairs: pd.DataFrame, count: int, seed: int) -> np.ndarray:
    if "all_correct_tuned" not in pairs:
        return np.array([], int)
    found = np.flatnonzero((pairs["all_correct_tuned"] != pairs["all_correct_base"]).to_numpy(bool))
    return np.sort(np.random.default_rng(seed).permutation(found)[:count])


def pictures(results: pd.DataFrame | None, params: Mapping[str, Any]) -> str:
    """The section: random images, largest gains, largest losses, each as base | base at the same guidance | tuned."""
    title = "Before and after"
    if results is None:
        return section("pictures", title, missing("data/evaluation/results.parquet", "evaluate"))
    usual, scale = params["evaluate"]["base_guidance_scale"], params["evaluate"]["guidance_scale"]
    shown = [("base_matched", "base", scale), ("tuned", "tuned", scale)]
    words = "CFG is the guidance scale; the base usually runs at the same one. "
    if usual != scale:
        shown.insert(0, ("base", "base", usual))
        words = "CFG is the guidance scale. The base is shown at its usual one and at that of the tuned model. "
    chosen = choose(results, params["report"]["examples"], params["seed"])
    total = int((results["model"] == "tuned").sum())
    value = "utility" if "utility" in results else title_of(value_of(results))
    notes = {
        "random": f"Drawn at random (seed {params['seed']}) from {plain(total)} images.",
        "changed": f"Drawn at random (seed {params['seed']}) from the prompts on which exactly one of the base at this "
        "guidance scale and the tuned model has everything right.",
        "best": f"The largest gains in {value} of {plain(total)} images. Selected, so not representative.",
        "worst": f"The largest losses in {value} of {plain(total)} images. Selected, so not representative.",
    }
    intro = f"Same prompt, same noise, same sampler. {words}"
    if "utility" in results:
        intro += (
            "The judge checks the details of the prompt and rates aesthetics from 0 to 10. Utility combines both."
        )
    else:
        intro += f"The number is the score of {value}."
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
        shots.append(
            f'<div class="shot"><img src="{picture_uri(row["png"])}" alt="{escape(label)}: {prompt}">'
            f"<b>{escape(label)}</b> CFG {plain(scale)}<br>{_verdict(row)}</div>"
        )
    kind = "row two" if len(shown) == 2 else "row"
    return f'<div class="card"><p>{prompt}</p><div class="{kind}">{"".join(shots)}</div></div>'


def _verdict(row: pd.Series) -> str:
    if "all_correct" not in row:
        return f"{row[value_of(row.to_frame().T)]:.4g}"
    right = bool(row["all_correct"])
    verdict = "✓ all right" if right else f"✗ {100 * row['alignment']:.0f}% right"
    return f'<span class="{"good" if right else "bad"}">{verdict}</span><br>aesthetics {row["aesthetic"]:.1f}'


def contact_sheet(results: pd.DataFrame, places: Sequence[Place]) -> bytes:
    """PNG of some prompts: the base above, the tuned model below, the caption under both.

    The base has the tuned model's guidance scale. An image of 32 pixels is enlarged four times, pixel by pixel. Where
    the emoji oracle judged, a word under each image says whether it is right in everything.
    """
    rows = results.set_index(["model", "prompt", "seed"])
    shots = [[_enlarged(rows.loc[(model, *place), "png"]) for place in places] for model in SHEET]
    width, height = (max(shot.size[k] for row in shots for shot in row) for k in (0, 1))
    font = ImageFont.load_default(12)
    marks = LINE + 3 if "all_correct" in results else 0
    below = 2 * (height + marks + GAP) + GAP // 2
    sheet = Image.new("RGB", (SIDE + len(places) * (width + GAP) + GAP, below + LINES * LINE + GAP // 2), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (model, name) in enumerate(SHEET.items()):
        top = GAP + row * (height + marks + GAP // 2)
        draw.text((GAP, top + height // 2), name, fill="black", font=font, anchor="lm")
        for column, (place, shot) in enumerate(zip(places, shots[row], strict=True)):
            left = SIDE + GAP + column * (width + GAP)
            sheet.paste(shot, (left, top))
            if marks:
                word, ink = MARKS[bool(rows.loc[(model, *place), "all_correct"])]
                draw.text((left, top + height + 2), word, fill=ink, font=font)
    for column, (prompt, _) in enumerate(places):
        caption = Image.new("RGB", (width, LINES * LINE), "white")  # what is too wide is cut at its edge
        for line, words in enumerate(textwrap.wrap(prompt, width // 6, max_lines=LINES, placeholder=" ...")):
            ImageDraw.Draw(caption).text((0, line * LINE), words, fill="black", font=font)
        sheet.paste(caption, (SIDE + GAP + column * (width + GAP), below))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _enlarged(png: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    factor = max(1, SHOWN // picture.width)
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.NEAREST)
