"""What `tokencredit report` shows of run folders: their settings, curves and token samples."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from tokencredit.analysis.curves import chart_groups
from tokencredit.analysis.page import Page, Table, write
from tokencredit.analysis.run_folder import Line, RunFolder, read_run
from tokencredit.analysis.terminal import show
from tokencredit.analysis.token_view import Column, Response, TokenView, Values
from tokencredit.errors import InputError

REPORT = "report.html"

MAX_TOKENS = 200_000
"""Tokens on one page: about 12 MB with all columns of TAB-PO."""

COLUMNS = (
    Column("logps_change", "log p − log p of the reference: what training did to the token", diverging=True),
    Column("weights", "raw token weight"),
    Column("token_rewards", "r̂: above 0 where the token is more at home in a better answer", diverging=True),
    Column("implicit_rewards", "the token's share of the policy's own reward", diverging=True),
    Column("gated", "1 where the barrier lifts the token"),
    Column("gradient", "∂L/∂ log p: a step against it raises tokens below 0", diverging=True),
    Column("logps", "log p of the token"),
    Column("ref_logps", "log p of the token under the reference"),
    Column("barrier_gradient", "|∂L/∂ log p| of the barrier"),
    Column("preference_gradient", "|∂L/∂ log p| of the preference, on the gated tokens"),
    Column("advantages", "advantage of the token", diverging=True),
    Column("classes", "what the token belongs to"),
    Column("ids", "token id", coloured=False),
)

Named = Mapping[str, RunFolder]


def read_runs(paths: Sequence[Path]) -> dict[str, RunFolder]:
    """Read run folders, each under a name that no other one has.

    Raises:
        InputError: As `read_run`, and for a folder given twice.
    """
    runs = [read_run(path) for path in paths]
    resolved = [run.path.resolve() for run in runs]
    for path, count in Counter(resolved).items():
        if count > 1:
            raise InputError(str(path), "is given twice", "give each run once")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(runs):
        depth += 1
    return {"/".join(path.parts[-depth:]): run for path, run in zip(resolved, runs, strict=True)}


def notes(runs: Named) -> list[str]:
    """What is missing in the runs, and what of their samples is left out."""
    found = []
    for name, run in runs.items():
        said = run.missing
        left_out = len(run.samples) - len(_within(run.samples, MAX_TOKENS // len(runs)))
        if left_out:
            said.append(f"{left_out} of {len(run.samples)} sampled responses are left out, to keep the page small")
        found += [f"{name}: {text}" if len(runs) > 1 else text for text in said]
    return found


def token_view(runs: Named) -> TokenView | None:
    """The token samples of the runs; None where there are none."""
    responses = [
        response
        for name, run in runs.items()
        for response in _responses(_within(run.samples, MAX_TOKENS // len(runs)), name if len(runs) > 1 else "")
    ]
    return TokenView(responses, COLUMNS) if responses else None


def _responses(lines: Sequence[Line], run: str) -> Iterator[Response]:
    for number, line in enumerate(lines):
        title = f"pair {line['pair']}" if "pair" in line else f"response {number}"
        yield Response(
            title=title,
            tokens=line["tokens"],
            columns=_columns(line),
            side=str(line.get("side", "")),
            group=title if "pair" in line else "",
            step=line["step"],
            run=run,
            prompt=str(line.get("prompt", "")),
        )


def _columns(line: Line) -> dict[str, Values]:
    columns: dict[str, Values] = {name: values for name, values in line.items() if isinstance(values, list)}
    del columns["tokens"]
    if "logps" in columns and "ref_logps" in columns:
        pairs = zip(columns["logps"], columns["ref_logps"], strict=True)
        columns["logps_change"] = [_difference(*pair) for pair in pairs]
    return columns


def _difference(a: Any, b: Any) -> float | None:
    return None if a is None or b is None else float(a - b)


def _within(samples: Sequence[Line], limit: int) -> list[Line]:
    """The samples of as many steps as fit, evenly spaced with the first and the last; if one is too many, its first."""
    sizes: Counter[int] = Counter()
    for line in samples:
        sizes[line["step"]] += len(line["tokens"])
    steps = sorted(sizes)
    for count in range(len(steps), 1, -1):
        kept = {steps[round(n * (len(steps) - 1) / (count - 1))] for n in range(count)}
        if sum(sizes[step] for step in kept) <= limit:
            return [line for line in samples if line["step"] in kept]
    found: list[Line] = []
    last = [line for line in samples if line["step"] == steps[-1]]
    for _, lines in groupby(last, key=lambda line: line.get("pair", id(line))):
        pair = list(lines)
        limit -= sum(len(line["tokens"]) for line in pair)
        if found and limit < 0:
            break
        found += pair
    return found


def build(runs: Named, column: str | None = None) -> Page:
    """The page of one or several runs.

    Args:
        runs: From `read_runs`.
        column: What colours the tokens at first; None is the change of the log-probability, where there is one.

    Raises:
        InputError: If no token has such a column.
    """
    view = token_view(runs)
    return Page(
        title=" and ".join(runs) if len(runs) < 3 else f"{len(runs)} runs",
        summary=_summary(runs),
        facts=_facts(next(iter(runs.values()))) if len(runs) == 1 else (),
        notes=notes(runs),
        charts=chart_groups({name: run.metrics for name, run in runs.items() if run.metrics}),
        view=view,
        tables=_tables(runs),
        column=view.start(column) if view else None,
    )


def write_report(runs: Named, output: Path | None = None, column: str | None = None) -> Path:
    """Write the page of the runs, by default as `report.html` in the first of them.

    Returns:
        Where it is.

    Raises:
        InputError: If it cannot be written there, or as `build`.
    """
    path = output or next(iter(runs.values())).path / REPORT
    if path.is_dir():
        raise InputError("--output", f"{path} is a folder", "name a file, e.g. report.html")
    if not path.parent.is_dir():
        raise InputError("--output", f"there is no folder {path.parent}", "create it, or name another file")
    page = build(runs, column)
    try:
        write(page, path)
    except OSError as error:
        raise InputError("--output", f"{path} cannot be written ({error.strerror})", "name another file") from None
    return path


def show_tokens(runs: Named, console: Console, column: str | None = None) -> None:
    """Print the token samples of the runs' last step; nothing where there are none.

    Raises:
        InputError: If no token has such a column.
    """
    view = token_view(runs)
    if view:
        show(view, console, column)


def _summary(runs: Named) -> str:
    """What several runs differ in."""
    rows = [row for row in _differing(_settings(runs)) if row[0] != "output_dir"]
    parts = [f"{row[0]} ({', '.join(row[1:])})" for row in rows[:4]]
    rest = len(rows) - len(parts)
    parts += [f"{rest} more {'setting' if rest == 1 else 'settings'}"] if rest else []
    return f"They differ in {', '.join(parts)}." if parts else ""


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    recipe, environment = run.recipe or {}, run.environment or {}
    data = [str(recipe[key]) for key in ("dataset_name", "dataset_config") if recipe.get(key)]
    start = recipe.get("model_name_or_path") or _flat(recipe).get("init.model_type")
    versions = _flat(environment)
    facts = {
        "trainer": recipe.get("trainer"),
        "model": start and Path(str(start)).name,
        "data": " ".join(Path(name).name for name in data),
        "steps": max((line["step"] for line in run.metrics), default=None),
        "learning rate": recipe.get("learning_rate"),
        "beta": recipe.get("beta"),
        "parameters": _count(environment.get("parameters")),
        "processes": environment.get("world_size"),
        "device": environment.get("device"),
        "software": ", ".join(
            f"{name} {versions[key]}" for name in ("trl", "torch") if (key := f"versions.{name}") in versions
        ),
    }
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def _count(number: Any) -> str | None:
    if not isinstance(number, int):
        return None
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _tables(runs: Named) -> list[Table]:
    rows = _settings(runs)
    environments = {name: _flat(run.environment or {}) for name, run in runs.items()}
    head = ["", *runs] if len(runs) > 1 else []
    tables = [
        Table("What differs", head, _differing(rows)),
        Table("Settings", head, rows),
        Table("Environment", head, _rows(environments)),
    ]
    return [table for table in tables if table.rows]


def _settings(runs: Named) -> list[list[str]]:
    return _rows({name: _flat(run.recipe or {}) for name, run in runs.items()})


def _differing(rows: list[list[str]]) -> list[list[str]]:
    return [row for row in rows if len(set(row[1:])) > 1]


def _rows(columns: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    names = dict.fromkeys(name for column in columns.values() for name in column)
    return [[name, *(column.get(name, "–") for column in columns.values())] for name in names]


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = (
                value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            )
    return found
