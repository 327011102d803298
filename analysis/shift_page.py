"""The report of a comparison: a headline in numbers, plots, tables, and every token with what both models expected."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from tokencredit.analysis import page, shift_figures
from tokencredit.analysis.curves import Chart, ChartGroup, Line
from tokencredit.analysis.shift_pack import PackedView
from tokencredit.analysis.shift_summary import LABELS, Summary, measures_of
from tokencredit.analysis.shift_table import column, parts
from tokencredit.analysis.token_view import Column, short
from tokencredit.errors import InputError

if TYPE_CHECKING:
    from tokencredit.analysis.shift import ShiftResult

LN2 = math.log(2)
MAX_TOKENS = 600_000
"""Tokens on one page: about 15 MB."""
TABLE_ROWS = 200
LEAST_MOVED = 0.01
"""Probability, summed over all positions, below which a token that was not written is left out of the table."""

COLUMNS = (
    Column("js", "Jensen-Shannon divergence, nats: 0 where both expect the same, ln 2 at most", False, limit=LN2),
    Column("js_lower", "JS is at least this much", False, limit=LN2),
    Column("js_upper", "JS is at most this much", False, limit=LN2),
    Column("delta_logp", "log p tuned − log p base of the token: blue more likely, orange less", True),
    Column("kl_tuned_base", "KL(tuned ‖ base), nats", False),
    Column("base_entropy", "entropy of the base, nats", False),
    Column("tuned_entropy", "entropy of the tuned model, nats", False),
)


def write_page(found: "ShiftResult", path: Path) -> Path:
    """Write the report as one page.

    Raises:
        InputError: It cannot be written there.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(str(path), "cannot be written", "name a file in a folder that exists")
    page.write(build(found), path)
    return path


def build(found: "ShiftResult") -> page.Page:
    """The page of a comparison."""
    summary = found.summary()
    heads = [summary.headline(*key) for key in summary.figures]
    shown, left_out = _within(found.table)
    measure = measures_of(found.table)[0]
    view = PackedView(shown, COLUMNS, found.prompts, found.texts, measure) if len(shown) else None
    notes = [f"{left_out} responses are left out of the tokens below, to keep the page small"] if left_out else []
    return page.Page(
        title=f"{found.about.get('tuned', 'tuned')} against {found.about.get('base', 'its base')}",
        summary=f"{heads[0]}." if heads else "There is no position to compare.",
        facts=[("positions", f"{len(found.table):,}"), *found.about.items()],
        notes=[*notes, *(f"{head}." for head in heads[1:])],
        charts=charts(found.table),
        heats=[heat] if (heat := _heat(found.table)) else [],
        view=view,
        tables=tables(found, summary),
        column=view.start() if view else None,
    )


def charts(table: pa.Table) -> list[ChartGroup]:
    """The plots: the distribution of JS, and its course along the response, a colour for each model."""
    if not len(table):
        return []
    measure = measures_of(table)[0]
    found = parts(table)
    several = len({led for _, led in found}) > 1
    named = {f"{model} · {led}" if several else model: part for (model, led), part in found.items()}
    percentiles = list(range(101))
    label = LABELS[measure]
    shares = [
        Line(name, "", percentiles, np.percentile(column(part, measure), percentiles).tolist(), number)
        for number, (name, part) in enumerate(named.items())
    ]
    drawn = [Chart(f"{label} by percentile of the positions", "nats", shares)]
    profiles = {name: shift_figures.position_profiles(part, measure) for name, part in named.items()}
    for kind, meaning in (
        ("relative", "% of the response"),
        ("from start", "tokens from its start"),
        ("from end", "tokens from its end"),
    ):
        lines = []
        for number, (name, profile) in enumerate(profiles.items()):
            steps = [round(100 * edge) if kind == "relative" else int(edge) for edge, _ in profile[kind]]
            bands = [band for _, band in profile[kind]]
            lines.append(Line(name, "mean", steps, [band.value for band in bands], number))
            if len(named) == 1:
                lines.append(Line(name, "95 %", steps, [band.low for band in bands], number, 2))
                lines.append(Line(name, "95 %", steps, [band.high for band in bands], number, 2))
        drawn.append(Chart(f"{label}, {kind}", meaning, lines))
    return [ChartGroup("Plots", drawn)]


def _heat(table: pa.Table) -> page.Heat | None:
    """Entropy of the base against JS."""
    if not len(table) or "js" not in table.column_names:
        return None
    counts, across, up = shift_figures.histogram(table)
    # The root of the logarithm: most positions lie in one cell.
    shares = np.sqrt(np.log1p(counts) / np.log1p(counts.max()))
    cells = [(int(x), int(y), round(float(shares[x, y]), 3)) for x, y in zip(*np.nonzero(counts), strict=True)]
    ends = tuple((str(short(edges[0])), str(short(edges[-1]))) for edges in (across, up))
    return page.Heat("Entropy and JS", ("entropy of the base", "JS"), (ends[0], ends[1]), cells, len(counts))


def tables(found: "ShiftResult", summary: Summary) -> list[page.Table]:
    """The tables: tokens of the vocabulary, reallocation, entropies, models, and the summary in full."""
    made = []
    for key, part in parts(found.table).items():
        name = f" · {key[0]} {key[1]}" if len(summary.figures) > 1 else ""
        made.append(_tokens(found, part, f"Tokens{name}"))
        if "base_entropy" in part.column_names:
            made.append(_entropies(part, f"Entropy by JS{name}"))
        rows = [line.split(" : ", 1) for line in str(Summary({key: summary.figures[key]}, [])).split("\n")]
        pairs = [[cells[0].strip(" ="), cells[-1].strip() if len(cells) > 1 else ""] for cells in rows if cells[0]]
        made.append(page.Table(f"Figures{name}", [], pairs))
    if summary.evolution:
        made.insert(0, _models(summary.evolution))
    return made


def _tokens(found: "ShiftResult", part: pa.Table, title: str) -> page.Table:
    lines = shift_figures.token_table(part, measure=measures_of(part)[0], minimum=5)
    # Those that probability was moved to or from, and those that stand where it was.
    by_rate = sorted((line for line in lines if line["count"] >= 5), key=lambda line: -line["low"])
    moved = [line for line in lines if abs(line["moved"]) >= LEAST_MOVED or line["count"] >= 5]
    chosen = {line["token_id"]: line for line in [*moved[:TABLE_ROWS], *by_rate[: TABLE_ROWS // 4]]}
    head = ("token", "mass moved", "written", "share above 0.1", "95 %", "mean JS", "mean Δ log p")
    rows = []
    for line in chosen.values():
        text = _visible(found.texts.get(line["token_id"], ""))
        numbers = [_signed(line["moved"]), str(line["count"])]
        if line["count"]:
            numbers += [f"{line['above']:.3f}", f"{line['low']:.2f} to {line['high']:.2f}"]
            numbers += [f"{line['js']:.4f}", _signed(line["delta_logp"])]
        rows.append([text, *numbers, *["–"] * (len(head) - 1 - len(numbers))])
    return page.Table(title, head, rows, sortable=True)


def _entropies(part: pa.Table, title: str) -> page.Table:
    rows = [
        [
            f"{line['from']:g} to {line['to']:g}",
            f"{line['count']:,}",
            _number(line["base_entropy"]),
            _number(line["tuned_entropy"]),
        ]
        for line in shift_figures.entropy_by_js(part)
    ]
    return page.Table(title, ("JS", "positions", "entropy, base", "entropy, tuned"), rows)


def _models(lines: Sequence[dict[str, Any]]) -> page.Table:
    head = (
        "model",
        "responses",
        "mean JS",
        "share above 0.1",
        "mean Δ log p",
        "overlap with the one before",
        "with the last",
    )
    rows = [
        [
            line["model"],
            line["led"],
            *(str(line[name]) for name in ("mean", "above", "delta_logp")),
            _number(line["jaccard_before"]),
            _number(line["jaccard_last"]),
        ]
        for line in lines
    ]
    return page.Table("Models", head, rows)


def markdown(found: "ShiftResult") -> str:
    """The report without its tokens, as Markdown."""
    built = build(found)
    blocks = [f"# {_cell(built.title)}", _cell(built.summary), *(f"- {_cell(note)}" for note in built.notes)]
    blocks.append("\n".join(f"- {_cell(name)}: {_cell(value)}" for name, value in built.facts))
    blocks.append(_fenced(str(found.summary())))
    for table in built.tables:
        if table.head:
            lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in [table.head, *table.rows[:40]]]
            lines.insert(1, "|" + " --- |" * len(table.head))
            blocks.append(f"## {_cell(table.title)}\n\n" + "\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _fenced(text: str) -> str:
    """A block of text that ends where the text does: its fence is longer than any that stands in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _cell(text: str) -> str:
    """Text that stays in its cell, and markup that stays text."""
    flat = " ".join(text.splitlines()).replace("\\", "\\\\")
    return "".join(f"\\{character}" if character in "|`*_<>[]&#" else character for character in flat)


def _visible(text: str) -> str:
    signs = {" ": "·", "\n": "⏎", "\t": "→"}
    return "".join(signs.get(c, c if c.isprintable() else f"U+{ord(c):04X}") for c in text) or "∅"


def _signed(value: float) -> str:
    return f"{value:+.4g}".replace("-", "−")


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _within(table: pa.Table) -> tuple[pa.Table, int]:
    """The first responses of each model that fit on a page, and how many do not."""
    if len(table) <= MAX_TOKENS:
        return table, 0
    room = MAX_TOKENS // len(parts(table))
    kept, left_out = [], 0
    for part in parts(table).values():
        numbers, sizes = np.unique(column(part, "response"), return_counts=True)
        fits = numbers[: max(1, int((np.cumsum(sizes) <= room).sum()))]
        kept.append(part.filter(pa.array(np.isin(column(part, "response"), fits))))
        left_out += len(numbers) - len(fits)
    return pa.concat_tables(kept), left_out
