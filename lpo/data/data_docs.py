"""Great Expectations' Data Docs as one static page: no network, no scripts, no clock; same results, same bytes.

The sections come from its own renderer. Its page around them does not suit artifacts: it loads scripts from six hosts,
carries times and random ids, and puts values of the data into HTML as they are. So the page is ours, and all text that
comes from data is cut and escaped before it reaches a template.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from great_expectations.render import RenderedHeaderContent
from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
from great_expectations.render.view import DefaultJinjaPageView
from jinja2 import ChoiceLoader, DictLoader

SHOWN = 100  # characters of a value
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Data contract</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h5 { font-size: 1.1rem; margin: 1.6rem 0 .4rem }
table { border-collapse: collapse } th { text-align: left; font-weight: 600 }
td, th { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top; overflow-wrap: anywhere }
.fa-check-circle::before { content: "\\2714"; color: #0a7d32 } .fa-times::before { content: "\\2718"; color: #c22 }
.fa-exclamation-triangle::before { content: "\\26A0"; color: #c22 } .badge { font-family: ui-monospace, monospace }
</style></head><body><h1>Data contract</h1>
{% for table in counts %}<h5>{{ table.title }}</h5>
<table><tr><th>{{ table.head }}</th><th>pairs</th></tr>
{% for name, count in table.rows %}<tr><td>{{ name | e }}</td><td>{{ count }}</td></tr>
{% endfor %}</table>
{% endfor %}
{% for section in sections %}{% set section_loop = loop -%}{% include 'section.j2' %}{% endfor %}
</body></html>
"""


class Counts(NamedTuple):
    """A table of the page: pairs by name."""

    title: str
    head: str
    rows: list[tuple[str, int]]


def render(results: list[Any], counts: Sequence[Counts] = ()) -> str:
    """One HTML page: tables of counts, then the validation results of several suites."""
    pages = [_page(result) for result in results]
    page = pages[0]
    page.sections = [section for each in pages for section in each.sections]
    view = DefaultJinjaPageView()
    view.env.loader = ChoiceLoader([DictLoader({"page.j2": PAGE}), view.env.loader])
    view.env.filters["generate_html_element_uuid"] = lambda prefix: f"{prefix}body"
    view.env.globals["counts"] = counts
    text: str = view.render(page)
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip()) + "\n"


def _page(result: Any) -> Any:
    page = ValidationResultsPageRenderer().render(_clean(result))
    overview = page.sections[0].content_blocks  # a header that links to a page of another site, statistics, run info
    overview[:] = [RenderedHeaderContent(header=f"Suite: {result.suite_name}"), overview[1]]
    return page


def _clean(result: Any) -> Any:
    """A copy without what changes from run to run, whose values are safe inside HTML."""
    result = copy.deepcopy(result)
    result.meta = {"great_expectations_version": result.meta["great_expectations_version"]}
    for rule in result.results:
        rule.result = _escaped(rule.result)
    return result


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return html.escape(value if len(value) <= SHOWN else value[:SHOWN] + " ...") if isinstance(value, str) else value
