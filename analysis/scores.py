"""Answers to figures: scores of every arm with intervals, scores by name, and paired differences from the first.

An arm is one model, or several runs of one training that differ in its seed. Needs the answers as text and no model,
so that a saved evaluation can be scored again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokencredit.analysis.statistics import CONFIDENCE, RESAMPLES, Array, percentile_interval, resampled_totals
from tokencredit.data.metrics import (
    FIGURES,
    NAME_LEVELS,
    Counts,
    Name,
    count_matrix,
    document_counts,
    figures,
    name_counts,
    names,
    parse_references,
    ratios,
)
from tokencredit.data.records import Record, parse_records
from tokencredit.errors import InputError

FORMAT = 2


@dataclass(frozen=True)
class Settings:
    """What an evaluation was asked for.

    Args:
        data: Name of the data.
        split: Its split, or None for `test` (`train` of a single file).
        config: Configuration of the data.
        limit: Take the first so many documents only.
        max_new_tokens: Where an answer without end is cut.
        batch_size: Prompts per call of the model.
        seed: Of the resampling; greedy answers have none.
        resamples: How many times the documents are resampled for the intervals.
        confidence: Share of the resamples inside an interval.

    Raises:
        InputError: A number is out of range.
    """

    data: str
    split: str | None = None
    config: str | None = None
    limit: int | None = None
    max_new_tokens: int = 256
    batch_size: int = 32
    seed: int = 0
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name, least in {"limit": 1, "max_new_tokens": 1, "batch_size": 1, "resamples": 1, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(name, f"{value} is too small", f"give {least} or more")
        if not 0 < self.confidence < 1:
            raise InputError("confidence", f"{self.confidence} is no share", "give a number between 0 and 1")


@dataclass(frozen=True)
class Answers:
    """What one model wrote.

    Args:
        label: Name of the arm in tables; models of one label are its runs.
        model: Its folder or hub name.
        recipe: File or built-in name of the recipe that made the prompts, or None.
        prompts: Text or chat messages, one per document.
        texts: The answers, one per document.
        ended: Whether the model ended each of them itself instead of being cut.
    """

    label: str
    model: str
    recipe: str | None
    prompts: Sequence[Any]
    texts: Sequence[str]
    ended: Sequence[bool]


@dataclass(frozen=True)
class Estimate:
    """A figure of an arm, or a difference of two.

    Args:
        value: On all documents, the mean over the arm's runs.
        low: Lower bound of its interval: the same mean if other documents had been drawn.
        high: Upper bound of it.
        spread: Sample standard deviation over the runs, with S − 1 below; None for a single run and for the difference
            of arms that have not equally many.
    """

    value: float
    low: float
    high: float
    spread: float | None = None


@dataclass(frozen=True)
class NameScores:
    """One label, or one pair of label and sub-label.

    Args:
        name: `[label]` or `[label, sublabel]`.
        support: Documents whose reference has it.
        precision: Of the documents in which it was predicted, the share that has it.
        recall: Of the documents that have it, the share in which it was predicted.
        f1: Their harmonic mean.
        f1_difference: From the first arm; None for the first.
    """

    name: list[str]
    support: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    f1_difference: Estimate | None


@dataclass(frozen=True)
class Document:
    """One answer and what was counted in it (`tokencredit.data.metrics.COUNTS`)."""

    prompt: Any
    answer: str
    ended: bool
    counts: Counts


@dataclass(frozen=True)
class RunScores:
    """One model and its answers.

    Args:
        model: Its folder or hub name.
        recipe: File or built-in name of the recipe that made the prompts, or None.
        scores: Each of `tokencredit.data.metrics.FIGURES` on all documents.
        documents: Its answers, in the order of the references.
    """

    model: str
    recipe: str | None
    scores: dict[str, float]
    documents: list[Document]


@dataclass(frozen=True)
class ArmScores:
    """Everything about one arm.

    Args:
        label: Its name in tables.
        runs: Its models, in the order given: one, or one for each training seed.
        scores: Each of `tokencredit.data.metrics.FIGURES`.
        differences: This arm's figure minus the first arm's; None for the first.
        names: By level, `label` and `sublabel`: the scores of each name, in alphabetical order.
    """

    label: str
    runs: list[RunScores]
    scores: dict[str, Estimate]
    differences: dict[str, Estimate] | None
    names: dict[str, list[NameScores]]


@dataclass(frozen=True)
class Evaluation:
    """Everything that was asked, answered and computed.

    Args:
        settings: What was asked for.
        versions: Of the software, and the kind of device.
        references: Gold answers as text, one per document.
        models: The arms, in order; the others are compared with the first.
        format: Of the JSON file; raised when its layout changes.
    """

    settings: Settings
    versions: dict[str, str]
    references: list[str]
    models: list[ArmScores]
    format: int = FORMAT


@dataclass(frozen=True)
class _Figures:
    """Figures of each run on all documents, `[S, ...]`, and their mean over the runs in the resamples, `[R, ...]`."""

    runs: Array
    resampled: Array

    def __sub__(self, other: "_Figures") -> "_Figures":
        sides = self.runs, other.runs
        if len(self.runs) != len(other.runs):  # no pairs: the difference of the means is one number without spread
            sides = self.runs.mean(axis=0, keepdims=True), other.runs.mean(axis=0, keepdims=True)
        return _Figures(sides[0] - sides[1], self.resampled - other.resampled)

    def estimates(self, confidence: float) -> list[Estimate]:
        """The figures one after the other."""
        low, high = percentile_interval(self.resampled, confidence=confidence)
        columns = [part.ravel().tolist() for part in (self.runs.mean(axis=0), low, high)]
        several = len(self.runs) > 1
        spread = self.runs.std(axis=0, ddof=1).ravel().tolist() if several else [None] * len(columns[0])
        return [Estimate(*figure) for figure in zip(*columns, spread, strict=True)]


@dataclass(frozen=True)
class _Run:
    """One model's answers, the records in them and what was counted."""

    answers: Answers
    records: list[list[Record] | None]
    counts: list[Counts]


@dataclass(frozen=True)
class _Measured:
    """The figures of one arm, and those of each name by level."""

    overall: _Figures
    names: dict[str, _Figures]


def score(models: Sequence[Answers], references: Sequence[str], settings: Settings) -> list[ArmScores]:
    """Score the answers of several models to the same documents.

    Models of the same label are runs of one arm, whose figures are means over them. All are measured on the same
    resamples, so the differences of arms are paired. Arms of equally many runs are paired run by run, in the order
    given.

    Args:
        models: At least one; the other arms are compared with that of the first.
        references: Gold answers, JSON records as text, one per document.
        settings: `seed`, `resamples` and `confidence` are used.

    Returns:
        The scores of each arm, in the order of its first model.

    Raises:
        InputError: There are no documents, a model has another number of answers, or a reference does not parse.
    """
    for model in models:
        if not references or len(model.texts) != len(references):
            problem = f"{len(model.texts)} answers of {model.label!r} for {len(references)} references"
            raise InputError("answers", problem, "give one answer per reference, and at least one")
    gold = parse_references(references)
    arms: dict[str, list[_Run]] = {}
    for model in models:
        arms.setdefault(model.label, []).append(_run(model, gold))
    sides: list[Sequence[list[Record] | None]] = [gold, *(run.records for runs in arms.values() for run in runs)]
    columns = {level: _all_names(sides, level) for level in NAME_LEVELS}
    scored: list[ArmScores] = []
    first: _Measured | None = None
    for label, runs in arms.items():
        measured = _measure_arm(runs, gold, columns, settings)
        by_name = {
            level: _name_scores(found, _names(gold, level), level, measured, first, settings.confidence)
            for level, found in columns.items()
        }
        scored.append(_arm_scores(label, runs, measured, first, by_name, settings.confidence))
        first = first or measured
    return scored


def _run(answers: Answers, gold: Sequence[list[Record]]) -> _Run:
    records = [parse_records(text) for text in answers.texts]
    return _Run(answers, records, [document_counts(*pair) for pair in zip(records, gold, strict=True)])


def _measure_arm(
    runs: Sequence[_Run], gold: Sequence[list[Record]], columns: dict[str, list[Name]], settings: Settings
) -> _Measured:
    overall = _measure([count_matrix(run.counts) for run in runs], figures, settings)
    by_name = {}
    for level, found in columns.items():
        named = _names(gold, level)
        counts = [name_counts(_names(run.records, level), named, found) for run in runs]
        by_name[level] = _measure(counts, ratios, settings)
    return _Measured(overall, by_name)


def _measure(
    counts: Sequence[NDArray[np.int64]], formula: Callable[[NDArray[np.generic]], Array], settings: Settings
) -> _Figures:
    """Figures from the counts of each run, `[N, ...]`."""
    # One run at a time: resampled figures of many names are large, and only their mean is wanted.
    resampled = (formula(resampled_totals(found, resamples=settings.resamples, seed=settings.seed)) for found in counts)
    return _Figures(np.stack([formula(found.sum(axis=0)) for found in counts]), reduce(np.add, resampled) / len(counts))


def _names(documents: Sequence[list[Record] | None], level: str) -> list[set[Name]]:
    return [names(records, level) for records in documents]


def _all_names(sides: Sequence[Sequence[list[Record] | None]], level: str) -> list[Name]:
    return sorted({name for side in sides for found in _names(side, level) for name in found})


def _arm_scores(
    label: str,
    runs: Sequence[_Run],
    measured: _Measured,
    first: _Measured | None,
    by_name: dict[str, list[NameScores]],
    confidence: float,
) -> ArmScores:
    def named(found: _Figures) -> dict[str, Estimate]:
        return dict(zip(FIGURES, found.estimates(confidence), strict=True))

    return ArmScores(
        label=label,
        runs=[_run_scores(*parts) for parts in zip(runs, measured.overall.runs, strict=True)],
        scores=named(measured.overall),
        differences=named(measured.overall - first.overall) if first else None,
        names=by_name,
    )


def _run_scores(run: _Run, values: Array) -> RunScores:
    model = run.answers
    return RunScores(
        model=model.model,
        recipe=model.recipe,
        scores=dict(zip(FIGURES, values.tolist(), strict=True)),
        documents=[Document(*parts) for parts in zip(model.prompts, model.texts, model.ended, run.counts, strict=True)],
    )


def _name_scores(
    columns: Sequence[Name],
    gold: Sequence[set[Name]],
    level: str,
    measured: _Measured,
    first: _Measured | None,
    confidence: float,
) -> list[NameScores]:
    parts = measured.names[level].estimates(confidence)
    differences = (measured.names[level] - first.names[level]).estimates(confidence) if first else None
    return [
        NameScores(
            # An answer may spell half of a character (`"\ud800"`), which no file can hold.
            name=[part.encode(errors="backslashreplace").decode() for part in name],
            support=sum(name in document for document in gold),
            precision=parts[3 * index],
            recall=parts[3 * index + 1],
            f1=parts[3 * index + 2],
            f1_difference=differences[3 * index + 2] if differences else None,
        )
        for index, name in enumerate(columns)
    ]
