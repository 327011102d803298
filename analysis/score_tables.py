"""An evaluation for people and for files: tables on the terminal, the same in Markdown, and JSON with everything."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table

from tokencredit.analysis.scores import FORMAT, ArmScores, Estimate, Evaluation, NameScores
from tokencredit.data.metrics import FIGURES, parse_references, record_errors
from tokencredit.data.records import parse_records
from tokencredit.errors import InputError
from tokencredit.trainers.callbacks import write_whole

MAIN = ("record_f1", "exact", "sublabel_f1", "label_f1", "span_exact_f1", "valid_json")
"""The figures that the terminal shows, the first of them with its interval."""
_TITLES = {"label": "labels", "sublabel": "sub-labels"}
_EVALUATION = TypeAdapter(Evaluation)


@dataclass(frozen=True)
class _Stamp:
    """What every evaluation's file holds, whatever the layout of the rest."""

    format: int


_STAMP = TypeAdapter(_Stamp)


@dataclass(frozen=True)
class Grid:
    """A table before it has a look.

    Args:
        title: One line above it.
        header: Names of the columns; the first is the row's name, all others are numbers.
        rows: As many cells each as the header has.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> Table:
        """The table for a terminal."""
        # As wide as its content: a terminal that is too narrow wraps lines, but no number is shortened.
        columns = zip(self.header, *self.rows, strict=True)
        width = sum(max(map(cell_len, column)) + 2 for column in columns)
        table = Table(title=escape(self.title), title_justify="left", box=None, width=width)
        for number, name in enumerate(self.header):
            table.add_column(escape(name), justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """The table in Markdown, with its title as a heading."""
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        cells = ("| " + " | ".join(_markdown_cell(cell) for cell in line) + " |" for line in lines)
        return "\n".join([f"## {self.title}", "", *cells, ""])


def _markdown_cell(text: str) -> str:
    """Names come from data and models: no part of them is a column or markup."""
    for character in "\\|<&":
        text = text.replace(character, "\\" + character)
    return text


def summary(evaluation: Evaluation) -> list[Grid]:
    """The main figures, a line per arm; their differences from the first; where records are lost; labels.

    Args:
        evaluation: What `evaluate` returned or `read_json` read.

    Returns:
        The tables that the command prints.
    """
    return [*_main(evaluation), _losses(evaluation), _labels(evaluation)]


def details(evaluation: Evaluation) -> list[Grid]:
    """Every figure of every arm with its interval, the differences from the first arm, and the scores of each name.

    Args:
        evaluation: What `evaluate` returned or `read_json` read.

    Returns:
        The tables that only the Markdown page has.
    """
    return [*_figures(evaluation), *_names(evaluation, "label"), *_names(evaluation, "sublabel")]


def markdown(evaluation: Evaluation) -> str:
    """The tables of `summary` and `details` as a Markdown page, with what they were made from.

    Args:
        evaluation: What `evaluate` returned or `read_json` read.

    Returns:
        The page.
    """
    settings = evaluation.settings
    about = [f"- {arm.label}: {', '.join(f'`{run.model}`' for run in arm.runs)}" for arm in evaluation.models] + [
        f"- {name}: {value}" for name, value in vars(settings).items() if value is not None
    ]
    grids = [*summary(evaluation), *details(evaluation)]
    parts = ["# Evaluation", "", *about, *[f"- {note}" for note in notes(evaluation)], ""]
    return "\n".join([*parts, *(grid.markdown() for grid in grids)])


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the tables should know beside them: answers that were cut."""
    limit, documents = evaluation.settings.max_new_tokens, len(evaluation.references)
    cut = [
        (arm.label if len(arm.runs) == 1 else f"{arm.label} ({run.model})", [found.ended for found in run.documents])
        for arm in evaluation.models
        for run in arm.runs
    ]
    return [
        f"{name}: {ended.count(False)} of {documents} answers were cut at {limit} tokens"
        for name, ended in cut
        if not all(ended)
    ]


def to_json(evaluation: Evaluation) -> str:
    """The whole evaluation as JSON text, from which `read_json` makes it again."""
    return _EVALUATION.dump_json(evaluation, indent=1).decode() + "\n"


def check_files(*paths: Path | None) -> None:
    """See that the files of a result can be written before it is worked for.

    Args:
        paths: The files that were asked for; None for one that was not.

    Raises:
        InputError: One of them is a folder or lies in none, or two are the same.
    """
    given = [path for path in paths if path is not None]
    for path in given:
        if path.is_dir() or not os.access(path.parent, os.W_OK):
            raise InputError(str(path), "cannot be written", "name a file in a folder that exists")
        if given.count(path) > 1:
            raise InputError(str(path), "is named twice", "give every result its own file")


def write(evaluation: Evaluation, output: Path | None, page: Path | None) -> None:
    """Write an evaluation whole, as JSON and as a Markdown page.

    Args:
        evaluation: What `evaluate` returned.
        output: The JSON file, or None.
        page: The Markdown file, or None.
    """
    if output is not None:
        write_whole(output, to_json(evaluation))
    if page is not None:
        write_whole(page, markdown(evaluation))


def read_json(path: Path) -> Evaluation:
    """Read an evaluation that `tokencredit eval --output` wrote.

    Args:
        path: The JSON file.

    Returns:
        The evaluation, equal to the one that was written.

    Raises:
        InputError: The file cannot be read or holds no evaluation of this format.
    """
    try:
        text = path.read_bytes()
        found = _STAMP.validate_json(text).format
        if found != FORMAT:
            raise InputError(str(path), f"format {found} is not {FORMAT}", "evaluate the models again")
        return _EVALUATION.validate_json(text)
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(str(path), f"no evaluation ({reason})", "give a file that `eval --output` wrote") from None


def _main(evaluation: Evaluation) -> Iterator[Grid]:
    arms, share = evaluation.models, f"{evaluation.settings.confidence:.0%}"
    spread = ", mean ± standard deviation over runs" if any(len(arm.runs) > 1 for arm in arms) else ""
    title = f"{len(evaluation.references)} documents, {share} interval{spread}"
    yield _main_grid(title, {_heading(arm): arm.scores for arm in arms})
    differences = {_heading(arm): arm.differences for arm in arms if arm.differences is not None}
    if differences:
        yield _main_grid(f"difference from {arms[0].label}, {share} paired interval{spread}", differences, "+")


def _main_grid(title: str, arms: dict[str, dict[str, Estimate]], sign: str = "") -> Grid:
    first, *others = MAIN
    rows = [
        [name, _cell(scores[first], sign), *(_short_cell(scores[figure], sign) for figure in others)]
        for name, scores in arms.items()
    ]
    return Grid(title, ["model", *MAIN], rows)


def _losses(evaluation: Evaluation) -> Grid:
    """What became of the gold records, as shares of them over all runs of an arm."""
    gold, rows = parse_references(evaluation.references), []
    for arm in evaluation.models:
        counts: Counter[str] = Counter()
        for run in arm.runs:
            for document, reference in zip(run.documents, gold, strict=True):
                counts.update(record_errors(parse_records(document.answer), reference))
        shares = [counts[kind] / max(1, counts.total()) for kind in ("right", "span", "names", "missing")]
        rows.append([_heading(arm), *(f"{share:.3f}" for share in shares)])
    return Grid("what became of the gold records", ["model", "right", "span wrong", "names wrong", "missing"], rows)


def _labels(evaluation: Evaluation) -> Grid:
    """F1 of each label that the documents have, a column per arm."""
    found = [{tuple(scores.name): scores for scores in arm.names["label"]} for arm in evaluation.models]
    rows = [
        [_printable(name[0]), str(scores.support), *(f"{arm[name].f1.value:.3f}" for arm in found)]
        for name, scores in found[0].items()
        if scores.support
    ]
    return Grid("F1 by label", ["label", "support", *map(_heading, evaluation.models)], rows)


def _figures(evaluation: Evaluation) -> Iterator[Grid]:
    arms, documents = evaluation.models, len(evaluation.references)
    share = f"{evaluation.settings.confidence:.0%}"
    yield _figure_grid(f"{documents} documents, {share} intervals", {_heading(arm): arm.scores for arm in arms})
    differences = {_heading(arm): arm.differences for arm in arms if arm.differences is not None}
    if differences:
        yield _figure_grid(f"difference from {arms[0].label}, {share} paired intervals", differences, "+")


def _heading(arm: ArmScores) -> str:
    return arm.label if len(arm.runs) == 1 else f"{arm.label}, {len(arm.runs)} runs"


def _figure_grid(title: str, columns: dict[str, dict[str, Estimate]], sign: str = "") -> Grid:
    if any(figure.spread is not None for scores in columns.values() for figure in scores.values()):
        title += ", mean ± standard deviation over runs"
    rows = [[name, *(_cell(scores[name], sign) for scores in columns.values())] for name in FIGURES]
    return Grid(title, ["figure", *columns], rows)


def _names(evaluation: Evaluation, level: str) -> Iterator[Grid]:
    return (_name_grid(arm, level) for arm in evaluation.models)


def _name_grid(arm: ArmScores, level: str) -> Grid:
    differs = arm.differences is not None
    header = [_TITLES[level], "support", "precision", "recall", "f1", *(["f1 difference"] if differs else [])]
    rows = [_name_row(scores) for scores in arm.names[level] if scores.support]
    # A name that no document has cannot be found: the precision of a run is 0 if it predicted it and 1 if not.
    invented = sum(not scores.support and scores.precision.value < 1 for scores in arm.names[level])
    if invented:
        rows.append([f"({invented} in no document)", *[""] * (len(header) - 1)])
    return Grid(f"{_TITLES[level]}, {arm.label}", header, rows)


def _name_row(scores: NameScores) -> list[str]:
    shares = (format(figure.value, ".3f") for figure in (scores.precision, scores.recall))
    cells = [" / ".join(map(_printable, scores.name)), str(scores.support), *shares, _cell(scores.f1)]
    return cells if scores.f1_difference is None else [*cells, _cell(scores.f1_difference, "+")]


def _printable(name: str) -> str:
    """Names come from data and models, which may write anything."""
    return name if name.isprintable() else repr(name)


def _cell(figure: Estimate, sign: str = "") -> str:
    low, high = (format(number, f"{sign}z.3f") for number in (figure.low, figure.high))
    return f"{_short_cell(figure, sign)} [{low}, {high}]"


def _short_cell(figure: Estimate, sign: str) -> str:
    return f"{figure.value:{sign}z.3f}" + ("" if figure.spread is None else f" ±{figure.spread:.3f}")
