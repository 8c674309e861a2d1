"""The report's section on the data: the contract, the filter, and pairs to look at, kept and dropped."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image

from lpo.format import flat, percent, plain, signed
from lpo.report import plots
from lpo.report.html import figure, folded, heading, missing, section, table, text

Json = Mapping[str, Any]
SIDE = 192  # pixels: larger images are shown smaller
SCORES = ("aesthetic", "clip", "vqa")


def data(counts: Json | None, contract: Json | None, examples: Mapping[str, Sequence[Json]] | None, rules: Json) -> str:
    """Args:
    counts: metrics/filter.json. contract: data/filtered/summary.json. rules: the section filter of params.yaml.
    examples: "kept" and "dropped" -> rows of data/filtered with their images jpg_0 and jpg_1; "quarantined" -> rows
        of data/filtered/quarantine.parquet.
    """
    bodies = [heading("Data contract"), *_contract(counts, contract, rules, (examples or {}).get("quarantined", ()))]
    bodies.append(heading("Multi-preference consistency filter (MPCF)"))
    if counts is not None:
        bodies += _mpcf(counts, rules)
    if examples is None:
        return section("data", "Data", *bodies, missing("pairs in data/pairs and data/filtered", "filter"))
    for kind, words in (("kept", "Kept pairs"), ("dropped", "Dropped pairs")):
        rows = examples.get(kind, ())
        bodies.append(heading(words))
        bodies.append(text(_NOTES[kind] if rows else f"No pair was {kind}.", "soft"))
        if rows:
            bodies.append('<div class="cards">\n' + "\n".join(map(_card, rows)) + "\n</div>")
    return section("data", "Data", *bodies)


_NOTES = {
    "kept": "Drawn at random from the training pairs that the filter kept. A gap is the score of the chosen image "
    "minus that of the rejected one.",
    "dropped": "Drawn at random from the training pairs that the filter dropped, each with its reason.",
}


def _contract(counts: Json | None, contract: Json | None, rules: Json, quarantined: Sequence[Json]) -> list[str]:
    bodies = []
    if counts is None:
        bodies.append(missing("metrics/filter.json", "filter"))
    else:
        share = percent(counts["quarantined"] / counts["input"])
        bodies.append(
            text(
                f"{plain(counts['quarantined'])} of {plain(counts['input'])} pairs violated the contract ({share}; the "
                f"run stops above {percent(rules['max_quarantined'])}). They are in data/filtered/quarantine.parquet, "
                "each with its reason."
            )
        )
        if counts.get("quarantined_by"):
            cells = [[reason, plain(count)] for reason, count in counts["quarantined_by"].items()]
            bodies.append(table(["reason", "pairs"], cells))
    if quarantined:
        cells = [[str(row["file"]), str(row["row"]), str(row["caption"]), str(row["reason"])] for row in quarantined]
        bodies.append(folded("Examples", table(["file", "row", "caption", "reason"], cells, texts=4)))
    where = "data/filtered/data_docs/index.html"
    bodies.append(f'<p>All expectations: <a href="../filtered/data_docs/index.html"><code>{where}</code></a>.</p>')
    if contract is None:
        bodies.append(missing("data/filtered/summary.json", "filter"))
    else:
        bodies.append(folded("Summary of the contract", table(["figure", "value"], flat(contract), texts=2)))
    return bodies


def _mpcf(counts: Json, rules: Json) -> list[str]:
    """Counts of the training split: held-out pairs are not filtered."""
    strategy, train = rules["strategy"], counts["by_split"]["train"]
    margins = rules["strategies"].get(strategy)
    asked = ", ".join(f"{name} at least {plain(value)}" for name, value in margins.items()) if margins else "nothing"
    ties = ", ".join(f"{name} {plain(value)}" for name, value in rules["ties"].items())
    words = (
        f"{plain(train['kept'])} of {plain(train['input'])} training pairs were kept "
        f"({percent(train['kept'] / max(1, train['input']))}). Validation and test pairs are not filtered. Strategy "
        f"{strategy} requires of the gap, chosen minus rejected: {asked}. It keeps a tie if no gap is larger than: "
        f"{ties}. A pair can break several rules."
    )
    rows = [(name, train[name]) for name in ("kept", "dropped", "quarantined")]
    rows += [(f"dropped by {rule}", count) for rule, count in counts.get("dropped_by", {}).items()]
    cells = [[name, plain(count), percent(count / max(1, train["input"]))] for name, count in rows]
    made = [text(words), table(["training pairs", "number", "share"], cells)]
    if counts.get("dropped_by"):
        bars = plots.mpcf_bars(train["kept"], counts["dropped_by"])
        made.insert(1, figure(bars, "Pairs kept and dropped", "Training pairs kept, and dropped by each rule."))
    else:
        made.append(missing("dropped_by in metrics/filter.json", "filter"))
    return made


def _card(row: Json) -> str:
    """Both images, which one was chosen, the gaps of the scores, and the reason where the pair was dropped."""
    caption, tie = escape(str(row["caption"])), row["label_0"] == row["label_1"]
    shots = []
    for side in (0, 1):
        name = "tie" if tie else "chosen" if row[f"label_{side}"] > row[f"label_{1 - side}"] else "rejected"
        kind = {"chosen": "good", "rejected": "bad"}.get(name, "")
        image = plots.picture_uri(thumbnail(row[f"jpg_{side}"]))
        shots.append(
            f'<div class="shot"><img src="{image}" alt="{name}: {caption}"><b class="{kind}">{name}</b></div>'
        )
    gaps = ", ".join(f"{name} {signed(row[f'gap_{name}'])}" for name in SCORES if row.get(f"gap_{name}") is not None)
    reason = f"<br>{escape(str(row['reason']))}" if row.get("reason") else ""
    return (
        f'<div class="card"><p>{caption}</p><div class="row two">{"".join(shots)}</div>'
        f'<p class="soft small">gaps: {escape(gaps)}{reason}</p></div>'
    )


def thumbnail(encoded: bytes) -> bytes:
    """PNG of an image, at most SIDE pixels wide and high; a smaller one keeps its pixels."""
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
