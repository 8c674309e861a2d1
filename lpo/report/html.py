"""Pieces of the report's page: escaped tables, sections, figures, notes, and the style.

Every function escapes what it is given, except where an argument is named `body` or `bodies`: those are pieces made
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from lpo.format import plain
from lpo.report.plots import Plot

LONG = 60  # characters of a cell that is broken into lines
STYLE = """
:root{color-scheme:light dark;--ink:#24292f;--soft:#59636e;--page:#f6f7f8;--card:#fff;--line:#d8dee4;--blue:#0072b2;
--warn:#fff4e0;--warn-line:#e69f00;--good:#00714f;--bad:#b04500}
@media (prefers-color-scheme:dark){:root{--ink:#d7dde4;--soft:#97a1ac;--page:#14171b;--card:#1c2026;--line:#353c45;
--blue:#56b4e9;--warn:#33291a;--warn-line:#e69f00;--good:#3fc79a;--bad:#f0874a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Noto Sans","DejaVu Sans",sans-serif}
main,header,nav{max-width:1124px;margin:0 auto;padding:0 24px}
main{padding-bottom:48px}
header{padding-top:44px}
.over{margin:0 0 6px;color:var(--soft);font-size:14px;overflow-wrap:anywhere}
h1{margin:0 0 14px;font-size:28px;line-height:1.3;font-weight:650;letter-spacing:-.01em;text-wrap:balance}
h2{margin:0 0 4px;font-size:21px;font-weight:650}
h3{margin:28px 0 2px;font-size:16px;font-weight:650}
p{margin:8px 0;max-width:76ch}
.lead{font-size:18px}
.card .small{margin:8px 0 0;font-weight:400;font-size:13px}
.soft,figcaption{color:var(--soft);font-size:14px}
nav{display:flex;flex-wrap:wrap;gap:6px 18px;padding-top:14px;font-size:14px}
a{color:var(--blue)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(155px,1fr));gap:14px;margin:22px 0 6px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:28px;line-height:1.2;font-weight:650;font-variant-numeric:tabular-nums}
.tile span{display:block;color:var(--soft);font-size:13.5px}
section{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:22px 24px;margin:22px 0}
.wide{overflow-x:auto;margin:14px 0}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums;min-width:50%}
th{color:var(--soft);font-weight:550;text-align:right}
th,td{padding:5px 18px 5px 0;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
white-space:nowrap}
th.text,td.text{text-align:left}
td.text{white-space:normal;overflow-wrap:break-word;min-width:6.5em}
td.long{min-width:260px;max-width:460px}
figure{margin:16px 0}
figure img{display:block;max-width:100%;height:auto}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:14px;margin:12px 0}
.card{border:1px solid var(--line);border-radius:10px;padding:11px}
.card p{margin:0 0 8px;font-weight:550;font-size:14.5px;line-height:1.35;overflow-wrap:anywhere}
.row{display:flex;gap:8px}
.two .shot{flex-basis:128px}
.shot{flex:0 1 96px;min-width:0;font-size:12.5px;line-height:1.35;color:var(--soft)}
.shot img{display:block;width:100%;aspect-ratio:1;object-fit:contain;border-radius:6px;margin-bottom:4px;
image-rendering:pixelated}
.shot b{color:var(--ink);font-weight:600}
.good{color:var(--good)}.bad{color:var(--bad)}
.findings{margin:14px 0;padding:0;list-style:none}
.findings li{margin:6px 0;max-width:100ch}
.findings b{display:inline-block;min-width:9.5em}
.missing{background:var(--warn);border-left:4px solid var(--warn-line);border-radius:4px;padding:9px 14px;
max-width:none}
pre{overflow-x:auto;margin:12px 0;padding:12px 14px;border:1px solid var(--line);border-radius:8px}
pre code{overflow-wrap:normal}
code{font:13px/1.5 ui-monospace,"SFMono-Regular",Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
summary{cursor:pointer;font-weight:550;padding:4px 0}
@media (max-width:899px){figure img{width:100%;max-width:480px}}
@media (max-width:560px){h1{font-size:22px}.findings b{display:block}.lead{font-size:16px}section{padding:16px}
main,header,nav{padding-left:14px;padding-right:14px}}
"""


def page(title: str, body: str) -> str:
    """The whole document; the policy forbids every load that is not inside the page."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def section(name: str, title: str, *bodies: str) -> str:
    return f'<section id="{escape(name)}">\n<h2>{escape(title)}</h2>\n' + "\n".join(bodies) + "\n</section>"


def heading(text: str) -> str:
    return f"<h3>{escape(text)}</h3>"


def text(words: str, kind: str = "") -> str:
    return f'<p class="{escape(kind)}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def missing(what: str, stage: str) -> str:
    """A note that a file or a figure is absent, and the command that makes it."""
    return (
        f'<p class="missing">Missing: {escape(what)}. Run <code>{escape(f"dvc repro {stage}".strip())}</code>.</p>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """The first `texts` columns hold words (left), the others numbers (right). A wide table scrolls in its card."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [
            f' class="text{" long" if tag == "td" and len(cell) > LONG else ""}"' if place < texts else ""
            for place, cell in enumerate(cells)
        ]
        made = "".join(f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
        return f"<tr>{made}</tr>"

    body = "\n".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>\n<thead>{line("th", head)}</thead>\n<tbody>\n{body}\n</tbody></table></div>'


def figure(plot: Plot | str, alt: str, caption: str) -> str:
    """An image with its caption; of a plot, the narrow version below 900 pixels, where the wide one is too small."""
    wide, narrow = (plot, None) if isinstance(plot, str) else plot
    source = f'<source media="(max-width:899px)" srcset="{escape(narrow)}">' if narrow else ""
    image = f'<picture>{source}<img src="{escape(wide)}" alt="{escape(alt)}"></picture>'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def code_block(code: str) -> str:
    return f"<pre><code>{escape(code)}</code></pre>"


def folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n{body}\n</details>"


def tile(number: str, label: str, note: str) -> str:
    return f'<div class="tile"><b>{escape(number)}</b><span>{escape(label)}</span><span>{escape(note)}</span></div>'


def rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of JSON rows, one column a key, in the order in which the keys appear."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return table(keys, [[plain(row[key]) if key in row else "" for key in keys] for row in rows], texts=0)
