"""Answers to figures: scores of every model with intervals, scores by name, and paired differences from the first.

Needs the answers as text and no model, so that a saved evaluation can be scored again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

FORMAT = 1


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
        label: Name of the model in tables.
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
    """A figure on all documents, and the bounds of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class NameScores:
    """One label, or one pair of label and sub-label.

    Args:
        name: `[label]` or `[label, sublabel]`.
        support: Documents whose reference has it.
        precision: Of the documents in which it was predicted, the share that has it.
        recall: Of the documents that have it, the share in which it was predicted.
        f1: Their harmonic mean.
        f1_difference: From the first model; None for the first.
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
class ModelScores:
    """Everything about one model.

    Args:
        label: Its name in tables.
        model: Its folder or hub name.
        recipe: File or built-in name of the recipe that made the prompts, or None.
        scores: Each of `tokencredit.data.metrics.FIGURES`.
        differences: This model's figure minus the first model's; None for the first.
        names: By level, `label` and `sublabel`: the scores of each name, in alphabetical order.
        documents: Its answers, in the order of the references.
    """

    label: str
    model: str
    recipe: str | None
    scores: dict[str, Estimate]
    differences: dict[str, Estimate] | None
    names: dict[str, list[NameScores]]
    documents: list[Document]


@dataclass(frozen=True)
class Evaluation:
    """Everything that was asked, answered and computed.

    Args:
        settings: What was asked for.
        versions: Of the software, and the kind of device.
        references: Gold answers as text, one per document.
        models: The models, in order; the others are compared with the first.
        format: Of the JSON file; raised when its layout changes.
    """

    settings: Settings
    versions: dict[str, str]
    references: list[str]
    models: list[ModelScores]
    format: int = FORMAT


@dataclass(frozen=True)
class _Figures:
    """Figures `[...]` on all documents and `[R, ...]` in the resamples."""

    value: Array
    resampled: Array

    def __sub__(self, other: "_Figures") -> "_Figures":
        return _Figures(self.value - other.value, self.resampled - other.resampled)

    def estimates(self, confidence: float) -> list[Estimate]:
        """The figures one after the other."""
        low, high = percentile_interval(self.resampled, confidence=confidence)
        columns = (part.ravel().tolist() for part in (self.value, low, high))
        return [Estimate(*figure) for figure in zip(*columns, strict=True)]


@dataclass(frozen=True)
class _Measured:
    """The figures of one model, and those of each name by level."""

    overall: _Figures
    names: dict[str, _Figures]


def score(models: Sequence[Answers], references: Sequence[str], settings: Settings) -> list[ModelScores]:
    """Score the answers of several models to the same documents.

    All models are measured on the same resamples, so their differences are paired.

    Args:
        models: At least one; the others are compared with the first.
        references: Gold answers, JSON records as text, one per document.
        settings: `seed`, `resamples` and `confidence` are used.

    Returns:
        The scores, in the order of the models.

    Raises:
        InputError: There are no documents, a model has another number of answers, or a reference does not parse.
    """
    for model in models:
        if not references or len(model.texts) != len(references):
            problem = f"{len(model.texts)} answers of {model.label!r} for {len(references)} references"
            raise InputError("answers", problem, "give one answer per reference, and at least one")
    gold = parse_references(references)
    predicted = [[parse_records(text) for text in model.texts] for model in models]
    columns = {level: _all_names([gold, *predicted], level) for level in NAME_LEVELS}
    scored: list[ModelScores] = []
    first: _Measured | None = None
    for model, records in zip(models, predicted, strict=True):
        counts = [document_counts(*pair) for pair in zip(records, gold, strict=True)]
        measured = _Measured(
            _measure(count_matrix(counts), figures, settings),
            {
                level: _measure(name_counts(_names(records, level), _names(gold, level), found), ratios, settings)
                for level, found in columns.items()
            },
        )
        by_name = {
            level: _name_scores(found, _names(gold, level), level, measured, first, settings.confidence)
            for level, found in columns.items()
        }
        scored.append(_model_scores(model, counts, measured, first, by_name, settings.confidence))
        first = first or measured
    return scored


def _measure(
    counts: NDArray[np.int64], formula: Callable[[NDArray[np.generic]], Array], settings: Settings
) -> _Figures:
    resampled = resampled_totals(counts, resamples=settings.resamples, seed=settings.seed)
    return _Figures(formula(counts.sum(axis=0)), formula(resampled))


def _names(documents: Sequence[list[Record] | None], level: str) -> list[set[Name]]:
    return [names(records, level) for records in documents]


def _all_names(sides: Sequence[Sequence[list[Record] | None]], level: str) -> list[Name]:
    return sorted({name for side in sides for found in _names(side, level) for name in found})


def _model_scores(
    model: Answers,
    counts: list[Counts],
    measured: _Measured,
    first: _Measured | None,
    by_name: dict[str, list[NameScores]],
    confidence: float,
) -> ModelScores:
    def named(found: _Figures) -> dict[str, Estimate]:
        return dict(zip(FIGURES, found.estimates(confidence), strict=True))

    return ModelScores(
        label=model.label,
        model=model.model,
        recipe=model.recipe,
        scores=named(measured.overall),
        differences=named(measured.overall - first.overall) if first else None,
        names=by_name,
        documents=[Document(*parts) for parts in zip(model.prompts, model.texts, model.ended, counts, strict=True)],
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
