"""The page of a cross-sampling sweep."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tokencredit.analysis.cross_arms import Arm
from tokencredit.analysis.cross_samples import Problem
from tokencredit.analysis.curves import Chart, ChartGroup, Line
from tokencredit.analysis.page import Page, Table
from tokencredit.analysis.token_texts import token_texts
from tokencredit.analysis.token_view import Column, Response, TokenView, short
from tokencredit.data.responses import prompt_text
from tokencredit.scoring.cross_decode import Trace

MOST_GROUPS = 40
"""Problems whose answers are shown."""

COLUMNS = (
    Column("replaced", "whose token it is, and where the primary's own answer goes another way"),
    Column("score", "of the rule: how far the models are apart here"),
    Column("primary", "what the primary would write here", coloured=False),
    Column("intervention", "what the intervention would write here", coloured=False),
)
_SIDES = {"primary": "primary alone", "rule": "with replacements"}


@dataclass(frozen=True)
class Shown:
    """What a page shows of a result; the fields are those of `CrossResult`."""

    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    arms: list[Arm]
    problems: list[Problem]
    tokenizer: Any
    notes: list[str]
    tables: Sequence[Table]


def page(result: Shown, title: str) -> Page:
    """Facts, curves, answers and tables."""
    return Page(
        title=title,
        summary=_summary(result),
        facts=_facts(result),
        notes=result.notes,
        charts=_charts(result),
        view=_view(result),
        tables=result.tables,
        column="replaced",
    )


def _summary(result: Shown) -> str:
    settings = result.settings
    each = "one answer" if settings["samples"] == 1 else f"{settings['samples']} answers"
    answers = f"{settings['problems']} problems, {each} each"
    return f"{answers}, rule {settings['rule']}, temperature {settings['temperature']:g}, top-p {settings['top_p']:g}"


def _facts(result: Shown) -> list[tuple[str, str]]:
    """Of each direction: the gap, and what the arm that recovers most of it recovers."""
    found = []
    for direction in dict.fromkeys(row["direction"] for row in result.rows):
        rows = [row for row in result.rows if row["direction"] == direction]
        ends = {row["kind"]: row for row in rows}
        if "reward" not in rows[0]:
            continue
        gap = f"{ends['primary']['reward']:.3f} → {ends['intervention']['reward']:.3f}"
        found.append((f"{direction}: reward", gap))
        arms = [row for row in rows if row["kind"] == "rule" and row["gap_recovered"] is not None]
        if arms:
            best = max(arms, key=lambda row: row["gap_recovered"])
            most = f"{best['gap_recovered']:.2f} by {100 * best['used']:.1f} % of the tokens"
            found.append((f"{direction}: most of the gap", most))
    return found


def _charts(result: Shown) -> list[ChartGroup]:
    """Per direction the reward over the share of tokens replaced, and the share of the gap that is recovered."""
    charts = []
    for direction in dict.fromkeys(row["direction"] for row in result.rows):
        rows = [row for row in result.rows if row["direction"] == direction]
        if any(row["kind"] == "rule" and row.get("reward") is not None for row in rows):
            meaning = "over the share of the tokens that is replaced, in %, with 95 % bounds"
            charts.append(Chart(f"{direction}: reward", meaning, _lines(rows, "reward", "reward_interval")))
            if rows[0]["gap_recovered"] is not None:
                lines = _lines(rows, "gap_recovered", "gap_recovered_interval")
                charts.append(Chart(f"{direction}: share of the gap recovered", meaning, lines))
    return [ChartGroup("Reward", charts)] if charts else []


def _lines(rows: Sequence[dict[str, Any]], name: str, interval: str) -> list[Line]:
    lines = []
    for colour, (label, kind) in enumerate(((rows[0]["rule"], "rule"), ("random", "control"))):
        points = sorted((row for row in rows if row["kind"] in (kind, "primary")), key=lambda row: row["used"])
        if len(points) < 2:
            continue
        steps = [100 * row["used"] for row in points]
        bounds = [row[interval] or (row[name], row[name]) for row in points]
        values = {"mean": [row[name] for row in points]}
        values |= {"lower": [low for low, _ in bounds], "upper": [high for _, high in bounds]}
        for dash, (style, line) in enumerate(values.items()):
            lines.append(Line(label, style, steps, line, colour, min(dash, 1)))
    return lines


def _view(result: Shown) -> TokenView:
    """What the primary writes alone and what it writes with the replacements of the middle arm, side by side."""
    responses = []
    text = token_texts(result.tokenizer)
    for direction in dict.fromkeys(arm.direction for arm in result.arms):
        arms = [arm for arm in result.arms if arm.direction == direction]
        ends = {arm.kind: arm for arm in arms}
        rules = [arm for arm in arms if arm.kind == "rule"]
        middle = rules[len(rules) // 2] if rules else None
        for problem, sample in _chosen(ends["primary"], middle):
            sides = [ends["primary"], *([middle] if middle else [])]
            prompt = prompt_text(result.problems[problem].prompt)
            responses += list(_group(sides, direction, problem, sample, prompt, text))
    return TokenView(responses, COLUMNS)


def _chosen(primary: Arm, middle: Arm | None) -> list[tuple[int, int]]:
    """Problems and samples to show: those whose reward changed first, then those whose answer did."""
    places = [(problem, sample) for problem, traces in enumerate(primary.traces) for sample in range(len(traces))]
    if middle is None:
        return places[:MOST_GROUPS]

    def changed(place: tuple[int, int]) -> tuple[float, bool]:
        problem, sample = place
        before, after = (arm.rewards[problem][sample] if arm.rewards else None for arm in (primary, middle))
        answers = primary.traces[problem][sample].tokens, middle.traces[problem][sample].tokens
        return -abs((after or 0.0) - (before or 0.0)), answers[0] == answers[1]

    return sorted(places, key=changed)[:MOST_GROUPS]


def _group(
    arms: Sequence[Arm], direction: str, problem: int, sample: int, prompt: str, text: Callable[[int], str]
) -> Iterator[Response]:
    traces = [arm.traces[problem][sample] for arm in arms]
    for arm, trace in zip(arms, traces, strict=True):
        reward = arm.rewards[problem][sample] if arm.rewards else None
        said = f" · reward {short(reward)}" if reward is not None else ""
        share = f" · {sum(trace.effective)} replaced" if arm.kind == "rule" else ""
        kinds = _kinds(trace) if arm.kind == "rule" else _diverging(trace, traces[-1])
        yield Response(
            title=f"{direction}, problem {problem}, answer {sample}{said}{share}",
            tokens=list(map(text, trace.tokens)),
            columns={
                "replaced": kinds,
                "score": trace.scores,
                "primary": list(map(text, trace.primary)),
                "intervention": list(map(text, trace.intervention)),
            },
            side=_SIDES[arm.kind],
            group=f"{direction} {problem} {sample}",
            prompt=prompt,
        )


def _kinds(trace: Trace) -> list[str]:
    """Whose each token is."""
    kinds = []
    for flagged, used, effective in zip(trace.flagged, trace.used, trace.effective, strict=True):
        taken = ("replaced" if effective else "the same by both") if used else "beyond the budget"
        kinds.append(taken if flagged else "primary's")
    return kinds


def _diverging(trace: Trace, other: Trace) -> list[str]:
    """Where an answer first differs from another."""
    pairs = enumerate(zip(trace.tokens, other.tokens, strict=False))
    place = next((at for at, (own, theirs) in pairs if own != theirs), None)
    return ["goes another way" if at == place else "primary's" for at in range(len(trace.tokens))]
