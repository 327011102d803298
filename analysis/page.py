"""One self-contained HTML page of facts, charts and tokens: nothing is loaded, and only its own scripts run."""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, StrictUndefined

from tokencredit.analysis import curves
from tokencredit.analysis.whole_files import write_text

SCRIPTS = ("text.js", "tabs.js", "tables.js", "charts.js", "tokens.js", "keys.js")
SHIFT_SCRIPTS = ("packed.js", "shift.js")


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading; without a `head` they are pairs of a name and a value.

    A `sortable` one is sorted by a column when its heading is pressed.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    sortable: bool = False


@dataclass(frozen=True)
class Heat:
    """Counts by two figures.

    Args:
        title: What they are.
        axes: Names of the horizontal and the vertical figure.
        ends: Smallest and largest value of each.
        cells: Place and share of colour of each cell that is not empty, in a grid of `size` by `size`.
        size: Cells along an axis.
    """

    title: str
    axes: tuple[str, str]
    ends: tuple[tuple[str, str], tuple[str, str]]
    cells: Sequence[tuple[int, int, float]]
    size: int


class View(Protocol):
    """Responses to be shown: a `TokenView`, or the packed one of a comparison."""

    def payload(self) -> dict[str, Any]:
        """Everything as JSON."""


@dataclass(frozen=True)
class Page:
    """What stands on a page, from top to bottom.

    Args:
        title: Of the page.
        summary: A line below it.
        facts: Name and value of what the reader wants to know first.
        notes: What is missing or left out.
        charts: Curves.
        heats: Counts by two figures, after the curves.
        view: The responses.
        tables: Settings and the like, last.
        column: The column that colours the tokens at the start; None is none, and the first in the list.
    """

    title: str
    summary: str = ""
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    charts: Sequence[curves.ChartGroup] = ()
    heats: Sequence[Heat] = ()
    view: View | None = None
    tables: Sequence[Table] = field(default_factory=list)
    column: str | None = None


@cache
def _template(name: str) -> str:
    return (files("tokencredit.analysis") / "templates" / name).read_text(encoding="utf-8")


def embedded(data: Any) -> str:
    """JSON that can stand in a `<script>` element: pure ASCII, and no text in it can end the element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def render(page: Page) -> str:
    """The page as HTML. The same page gives the same text."""
    style = _template("page.css")
    token_data = page.view.payload() if page.view else {"columns": [], "responses": [], "texts": []}
    shift = "packed" in token_data
    # What starts them stands at the end of the last.
    names = (*SCRIPTS[:-1], *SHIFT_SCRIPTS, SCRIPTS[-1]) if shift else SCRIPTS
    scripts = [_template(name) for name in names]
    policy = "; ".join(
        [
            "default-src 'none'",
            "script-src " + " ".join(_hash(script) for script in scripts),
            "style-src " + _hash(style),
            "img-src data:",  # the empty icon, without which browsers ask the server for one
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_template("page.html.j2")).render(
        page=page,
        shift=shift,
        panels=_panels(page),
        policy=policy,
        style=style,
        scripts=scripts,
        chart_data=embedded(curves.payload(page.charts)),
        token_data=embedded(token_data),
    )


def _panels(page: Page) -> list[dict[str, Any]]:
    """The charts and tables that share one place, of which the reader opens one; charts with their numbers."""
    numbered = enumerate(chart for group in page.charts for chart in group.charts)
    panels: list[dict[str, Any]] = [
        {
            "title": group.title,
            "size": len(group.charts),
            "charts": list(islice(numbered, len(group.charts))),
            "heats": (),
            "table": None,
        }
        for group in page.charts
    ]
    if panels and page.heats:
        panels[0] |= {"heats": page.heats, "size": panels[0]["size"] + len(page.heats)}
    return panels + [
        {"title": table.title, "size": len(table.rows), "charts": (), "heats": (), "table": table}
        for table in page.tables
    ]


def write(page: Page, path: Path) -> None:
    """Write the page in one step: a browser that reloads sees the old page or the new, never half of it."""
    write_text(render(page), path)
