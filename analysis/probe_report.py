"""A probe for people and for files: tables, the page with plot and tokens, JSON with everything."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokencredit.analysis.curves import Chart, ChartGroup, Line
from tokencredit.analysis.page import Page, Table, write
from tokencredit.analysis.probe import FIGURES, REFLECTION, ArmFigures, ProbedResponse, agreements, compare, counts
from tokencredit.analysis.probe_models import Probed, device, spans
from tokencredit.analysis.score_tables import Grid
from tokencredit.analysis.statistics import CONFIDENCE
from tokencredit.analysis.token_view import Column, Response, TokenView
from tokencredit.data.responses import prompt_text
from tokencredit.trainers.callbacks import write_whole

FORMAT = 1
SHOWN = 60
"""Responses of each model on a page."""
_MAIN = ("accuracy", "tokens", "solving", "checking", "right_to_wrong", "reflection")
_EXITS = ("exit_accuracy", "exit_tokens", "conf_exit_accuracy", "conf_exit_tokens")

COLUMNS = (
    Column("delta_phi", "ΔΦ of the token's step: what the step brought", diverging=True),
    Column("phi", "Φ after the token's step", diverging=True),
    Column("saturated", "1 after the first step with Φ above the saturation"),
    Column("acc", "probability of the right answer after the step"),
    Column("conf", "confidence in an answer after the step"),
    Column("step", "number of the step", coloured=False),
)


def by_arm(probed: Sequence[Probed]) -> dict[str, list[Probed]]:
    """The models by label, in the order in which labels appear."""
    arms: dict[str, list[Probed]] = {}
    for item in probed:
        arms.setdefault(item.label, []).append(item)
    return arms


def figures(
    probed: Sequence[Probed], reflection: str = REFLECTION, against: Sequence[str] = ()
) -> dict[str, ArmFigures]:
    """The figures of each arm; see `tokencredit.analysis.probe.compare`.

    Args:
        probed: The models.
        reflection: Pattern of a step that looks back.
        against: Labels of the arms that the others are compared with; none is the first.
    """
    settings, arms = probed[0].settings, by_arm(probed)
    counted = {label: [_counts(run, reflection) for run in runs] for label, runs in arms.items()}
    return compare(
        counted,
        against or [next(iter(arms))],
        resamples=settings.resamples,
        seed=settings.seed,
        confidence=CONFIDENCE,
    )


def _counts(run: Probed, reflection: str) -> NDArray[np.float64]:
    return np.stack([counts(response, run.settings.saturation, reflection) for response in run.responses])


def tables(probed: Sequence[Probed], found: dict[str, ArmFigures]) -> list[Grid]:
    """The figures of the arms, their differences from the first, exits, Φ along responses, and agreement of modes."""
    grids = [
        _values("Responses", _MAIN, found),
        *_differences(_MAIN, found),
        _values("Cut where the answer is there", ("accuracy", "tokens", *_EXITS), found),
        _along(probed),
    ]
    rows = [
        [label, item.answers, str(item.steps), _number(item.potential), _number(item.conf)]
        for label, runs in by_arm(probed).items()
        for item in agreements([response for run in runs for response in run.responses])
        if item.steps
    ]
    if rows:
        head = ["model", "answers of", "steps", "ρ of Φ", "ρ of Conf"]
        grids.append(Grid("Rank agreement of forced and sampled", head, rows))
    return grids


def _values(title: str, names: Sequence[str], found: dict[str, ArmFigures]) -> Grid:
    rows = []
    for label, arm in found.items():
        cells = []
        for name in names:
            low, high = arm.intervals[name]
            spread = "" if arm.spread is None else f" ±{_number(arm.spread[name])}"
            cells.append(f"{_number(arm.values[name])}{spread} [{_number(low)}, {_number(high)}]")
        rows.append([label, *cells])
    return Grid(title, ["model", *names], rows)


def _differences(names: Sequence[str], found: dict[str, ArmFigures]) -> list[Grid]:
    grids = []
    for other in dict.fromkeys(other for arm in found.values() for other in arm.differences):
        rows = []
        for label, arm in found.items():
            if other in arm.differences:
                parts = [arm.differences[other][name] for name in names]
                rows.append([label, *(f"{value:+.3f} [{low:+.3f}, {high:+.3f}]" for value, low, high in parts)])
        grids.append(Grid(f"Difference from {other}, paired over problems and runs", ["model", *names], rows))
    return grids


def _along(probed: Sequence[Probed]) -> Grid:
    """Φ, Acc and Conf by the number of the step."""
    rows = []
    for label, runs in by_arm(probed).items():
        for step, values in _by_step([response for run in runs for response in run.responses]).items():
            if step < 10:
                means = [sum(part) / len(part) for part in zip(*values, strict=True)]
                rows.append([f"{label}, step {step + 1}", str(len(values)), *map(_number, means)])
    return Grid("Along the responses", ["model", "responses", "Φ", "Acc", "Conf"], rows)


def _by_step(responses: Sequence[ProbedResponse]) -> dict[int, list[tuple[float, float, float]]]:
    found: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for response in responses:
        conf = response.conf if response.sampled_conf is None else response.sampled_conf
        for step, values in enumerate(zip(response.phi, response.acc, conf, strict=True)):
            found[step].append(values)
    return dict(sorted(found.items()))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def page(probed: Sequence[Probed], found: dict[str, ArmFigures]) -> Page:
    """The page: figures, Φ along the responses as curves, and responses token by token, coloured by ΔΦ."""
    shown = view(probed, SHOWN)
    left_out = max(0, len(probed[0].responses) - SHOWN)
    grids = tables(probed, found)
    return Page(
        title="Probe",
        summary=f"Φ after each step; saturation {probed[0].settings.saturation:g}, mode {probed[0].settings.mode}.",
        notes=[f"the last {left_out} problems are left out of the tokens"] if left_out else [],
        charts=[_chart(probed)],
        view=shown,
        tables=[Table(grid.title, grid.header, grid.rows) for grid in grids],
        column=shown.start(),
    )


def _chart(probed: Sequence[Probed]) -> ChartGroup:
    charts = []
    for place, (title, meaning) in enumerate(
        (("Φ", "potential, by step"), ("Acc", "of the right answer, by step"), ("Conf", "in an answer, by step"))
    ):
        lines = []
        for colour, (label, runs) in enumerate(by_arm(probed).items()):
            by_step = _by_step([response for run in runs for response in run.responses])
            steps = [step + 1 for step in by_step]
            means = [sum(values[place] for values in found) / len(found) for found in by_step.values()]
            lines.append(Line(label, "", steps, means, colour=colour))
        charts.append(Chart(title, meaning, lines))
    return ChartGroup("Along the responses", charts)


def view(probed: Sequence[Probed], count: int) -> TokenView:
    """The first responses of each model, tokens coloured by what their step brought."""
    several = len(probed) > 1
    return TokenView([found for run in probed for found in _views(run, count, several=several)], COLUMNS)


def _views(run: Probed, count: int, *, several: bool) -> list[Response]:
    found = []
    for number, response in enumerate(run.responses[:count]):
        columns: dict[str, list[float | None]] = {column.name: [None] * len(response.tokens) for column in COLUMNS}
        first = response.saturated_step(run.settings.saturation)
        conf = response.conf if response.sampled_conf is None else response.sampled_conf
        for step, (begin, end) in enumerate(spans(response)):
            before = response.phi[step - 1] if step else response.phi[0]
            values = {
                "delta_phi": response.phi[step] - before,
                "phi": response.phi[step],
                "saturated": float(first is not None and step >= first),
                "acc": response.acc[step],
                "conf": conf[step],
                "step": float(step + 1),
            }
            for name, value in values.items():
                columns[name][begin:end] = [value] * (end - begin)
        found.append(
            Response(
                title=f"problem {number}, answer {response.answers[0]}",
                tokens=response.tokens,
                columns=columns,
                side="right" if response.right else "wrong",
                group=f"problem {number}" if several else "",
                run=run.label if several else "",
                prompt=prompt_text(response.prompt),
            )
        )
    return found


def as_json(probed: Sequence[Probed], found: dict[str, ArmFigures], versions: dict[str, str]) -> dict[str, Any]:
    """Everything that the tables and the page are made of."""
    return {
        "format": FORMAT,
        "versions": versions | {"device": device()},
        "figures": FIGURES,
        "arms": {label: asdict(arm) for label, arm in found.items()},
        "models": [
            {
                "label": run.label,
                "model": run.model,
                "settings": asdict(run.settings),
                "responses": [asdict(response) | {"phi": response.phi} for response in run.responses],
            }
            for run in probed
        ],
    }


def write_files(
    probed: Sequence[Probed],
    found: dict[str, ArmFigures],
    versions: dict[str, str],
    *,
    output: Path | None,
    html: Path | None,
) -> list[str]:
    """Write what was asked for, each file in one step, and say so."""
    said = []
    if output is not None:
        write_whole(output, json.dumps(as_json(probed, found, versions), ensure_ascii=False) + "\n")
        said.append(f"saved {output}")
    if html is not None:
        write(page(probed, found), html)
        said.append(f"written to {html}")
    return said
