"""From the metric lines of runs to charts: which figures share one, what they mean, and how long lines are thinned."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from tokencredit.analysis.token_view import short

Lines = Sequence[Mapping[str, Any]]
Points = tuple[list[int], list[float]]

MAX_POINTS = 400
MAX_PARTS = 8
DASHES = 4
"""Dash patterns that the page can tell apart."""

MEANINGS: Mapping[str, str] = {
    "rewards": "implicit reward of a response",
    "rewards/accuracies": "share of the pairs in the right order",
    "logps": "log p of a response",
    "logps_change": "mean change of chosen tokens from the reference",
    "logps_fell": "chosen tokens that became less likely",
    "gradient_mass": "share of Σ |∂L/∂ log p|",
    "token_share": "share of the tokens",
    "margins": "part of the log-ratio gap, nats per pair",
    "gated_fraction": "chosen tokens that the barrier lifts",
    "barrier_to_preference": "gradient ratio on the gated tokens",
    "pref_loss": "preference part of the loss",
    "barrier_loss": "barrier part of the loss, without λ",
    "entropy": "of the next-token distribution",
    "mean_token_accuracy": "tokens that are the most probable one",
    "grad_norm": "before clipping",
}
"""Chart → a line that fits below its title."""

_OBJECTIVE = ("loss", "reward", "rewards", "rewards/accuracies", "pref_loss", "barrier_loss", "kl")
_TOKENS = (
    "logps",
    "logps_change",
    "logps_fell",
    "margins",
    "gradient_mass",
    "gated_fraction",
    "barrier_to_preference",
    "token_share",
    "mean_token_accuracy",
    "entropy",
)
_BOOKKEEPING = ("learning_rate", "grad_norm", "num_tokens", "logits", "total_flos")
_ONCE = ("train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos")
_SPEED = ("runtime", "_per_second")
_SCORES = ("f1", "precision", "recall")
_NO_CLASS = ("", "chosen", "rejected", "margins", *_SCORES)


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Args:
        label: What its colour stands for.
        style: What its dashes stand for; "" where all lines are solid.
        steps: Where it has points.
        values: One number per step.
        colour: Number of its colour.
        dash: Number of its dash pattern; 0 is solid.
        not_finite: How many logged values were NaN or infinite and are left out.
    """

    label: str
    style: str
    steps: Sequence[float]
    values: Sequence[float]
    colour: int = 0
    dash: int = 0
    not_finite: int = 0


@dataclass(frozen=True)
class Chart:
    """Lines over the training step, or over another number, that share an axis."""

    title: str
    meaning: str = ""
    lines: Sequence[Line] = ()


@dataclass(frozen=True)
class ChartGroup:
    """Charts under one heading."""

    title: str
    charts: list[Chart] = field(default_factory=list)


@dataclass(frozen=True)
class _Series:
    run: str
    part: str
    split: str
    points: Points
    not_finite: int


def chart_groups(runs: Mapping[str, Lines]) -> list[ChartGroup]:
    """Everything that was logged, as charts.

    A chart holds one figure: `eval_<name>` with `<name>`, all token classes `<name>/<class>` with it, and F1 with its
    precision and recall. Colours tell these apart, or else runs; dashes tell training from evaluation, or where both
    vary, in charts of their own, runs. Of more runs than there are dashes each class has a chart of its own.

    Args:
        runs: Name → metric lines, each with `step`.
    """
    groups = {
        name: ChartGroup(name) for name in ("Objective", "Task", "Tokens", "Other figures", "Optimiser and speed")
    }
    families = _families(runs)
    order = {name: place for place, name in enumerate((*_OBJECTIVE, *_TOKENS, *_BOOKKEEPING))}
    for name in sorted(families, key=lambda name: order.get(name, len(order))):
        groups[_heading(name, families[name])].charts.extend(_charts(name, families[name], _short_names(list(runs))))
    return [group for group in groups.values() if group.charts]


def _families(runs: Mapping[str, Lines]) -> dict[str, list[_Series]]:
    """Chart name → what it shows."""
    names = list(dict.fromkeys(name for lines in runs.values() for line in lines for name in line))
    # A figure with an overall value is split into classes; these are as well, though they have none.
    heads = {name.removeprefix("eval_") for name in names} | {"gradient_mass", "token_share", "margins"}
    found: dict[str, list[_Series]] = {}
    for name in names:
        base = name.removeprefix("eval_")
        if name in ("step", "epoch") or name in _ONCE:
            continue
        family, part = _family(base, heads)
        for run, lines in zip(_short_names(list(runs)), runs.values(), strict=True):
            points, not_finite = _points(lines, name)
            if points[0] or not_finite:
                split = "eval" if name != base else "train"
                found.setdefault(family, []).append(_Series(run, part, split, points, not_finite))
    return found


def _short_names(runs: list[str]) -> list[str]:
    """Names of runs without what all of them begin with, or end with as a folder: what is left tells them apart."""
    if len(runs) < 2:
        return runs
    folders = [run.split("/") for run in runs]
    end = _shared([parts[::-1] for parts in folders])
    if all(len(parts) > end for parts in folders):
        runs = ["/".join(parts[: len(parts) - end]) for parts in folders]
    start = max(runs[0][: _shared(runs)].rfind(mark) for mark in "-_/ ") + 1
    return [run[start:] for run in runs] if all(len(run) > start for run in runs) else runs


def _shared(names: Sequence[Sequence[str]]) -> int:
    """How many of the first items all names have in common."""
    return sum(1 for _ in takewhile(lambda items: len(set(items)) == 1, zip(*names, strict=False)))


def _family(name: str, heads: set[str]) -> tuple[str, str]:
    """The chart a figure belongs to, and which of its lines it is."""
    head, _, part = name.partition("/")
    if part and (head in heads or part in ("chosen", "rejected") or name == "rewards/margins"):
        return head, part
    stem, _, score = name.rpartition("_")
    return (stem, score) if stem and score in _SCORES else (name, "")


def _points(lines: Lines, name: str) -> tuple[Points, int]:
    """The finite values by step (the last one of a step), and how many were not finite."""
    by_step: dict[int, float] = {}
    not_finite = 0
    for line in lines:
        value = line.get(name)
        if isinstance(value, (int, float)):
            if math.isfinite(value):
                by_step[line["step"]] = float(value)
            else:
                not_finite += 1
    steps = sorted(by_step)
    return thinned(steps, [by_step[step] for step in steps]), not_finite


def thinned(steps: list[int], values: list[float], limit: int = MAX_POINTS) -> Points:
    """At most about `limit` points of a line, keeping its ends and the extremes of every stretch: spikes stay."""
    if len(steps) <= limit:
        return steps, values
    stretches = limit // 2
    kept = {0, len(steps) - 1}
    for number in range(stretches):
        stretch = range(number * len(steps) // stretches, (number + 1) * len(steps) // stretches)
        kept |= {min(stretch, key=values.__getitem__), max(stretch, key=values.__getitem__)}
    places = sorted(kept)
    return [steps[n] for n in places], [values[n] for n in places]


def _heading(family: str, series: Sequence[_Series]) -> str:
    if family in _BOOKKEEPING or family.endswith(_SPEED):
        return "Optimiser and speed"
    if family in _OBJECTIVE:
        return "Objective"
    if family in _TOKENS or any(item.part not in _NO_CLASS for item in series):
        return "Tokens"
    return "Task" if all(item.split == "eval" for item in series) else "Other figures"


def _charts(family: str, series: list[_Series], runs: list[str]) -> list[Chart]:
    parts = list(dict.fromkeys(item.part for item in series))
    splits = list(dict.fromkeys(item.split for item in series))
    shown = _largest(parts, series)
    meaning = MEANINGS.get(family, "")
    if len(shown) < len(parts):
        meaning = f"{meaning}; the {len(shown)} largest of {len(parts)}".removeprefix("; ")
    series = [item for item in series if item.part in shown]
    if len(runs) > DASHES and len(shown) > 1:
        return [_of_part(family, part, meaning, [s for s in series if s.part == part], runs) for part in shown]
    if len(runs) > 1 and len(shown) > 1 and len(splits) > 1:
        return [
            Chart(_title(family, [split]), meaning, _lines([s for s in series if s.split == split], runs))
            for split in splits
        ]
    return [Chart(_title(family, splits), meaning, _lines(series, runs))]


def _of_part(family: str, part: str, meaning: str, series: list[_Series], runs: list[str]) -> Chart:
    splits = list(dict.fromkeys(item.split for item in series))
    name = f"{family}{'_' if part in _SCORES else '/'}{part}" if part else family
    return Chart(_title(name, splits), meaning, _lines(series, runs))


def _title(family: str, splits: list[str]) -> str:
    return f"{family} · eval" if splits == ["eval"] else family


def _largest(parts: list[str], series: list[_Series]) -> list[str]:
    """The parts that are shown: those with the largest values where there are too many."""

    def size(part: str) -> float:
        return max((abs(value) for item in series if item.part == part for value in item.points[1]), default=0.0)

    kept = set(sorted(parts, key=size, reverse=True)[:MAX_PARTS])
    return [part for part in parts if part in kept]


def _lines(series: Sequence[_Series], runs: list[str]) -> list[Line]:
    parts, splits = (list(dict.fromkeys(getattr(item, name) for item in series)) for name in ("part", "split"))
    axes = {"part": parts, "run": runs, "split": splits}
    # The first that varies has the colours, the next one the dashes.
    varying = [name for name, values in axes.items() if len(values) > 1]
    lines = []
    for item in series:
        places = [axes[name].index(getattr(item, name)) for name in varying]
        words = [getattr(item, name) or "all" for name in varying]
        label, style = (*(words or [item.split]), "")[:2]
        # Evaluation is dashed in a chart of its own too.
        colour, dash = (0, *places) if varying == ["split"] else (*places, 0, 0)[:2]
        lines.append(Line(label, style, *item.points, colour, dash, item.not_finite))
    return lines


def payload(groups: Sequence[ChartGroup]) -> dict[str, Any]:
    """The charts as JSON; steps that several lines share are stored once."""
    axes: dict[tuple[float, ...], int] = {}
    found = [
        {
            "title": chart.title,
            "lines": [
                {
                    "label": line.label,
                    "style": line.style,
                    "steps": axes.setdefault(tuple(line.steps), len(axes)),
                    "values": [short(value) for value in line.values],
                    "colour": line.colour,
                    "dash": line.dash,
                    "broken": line.not_finite,
                }
                for line in chart.lines
            ],
        }
        for group in groups
        for chart in group.charts
    ]
    return {"charts": found, "steps": [list(axis) for axis in axes]}
