"""Labelled documents: lists of records with a label, a sub-label and a span of the text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokencredit.data.json_values import json_values
from tokencredit.data.spans import Span

Record = dict[str, Any]


@dataclass(frozen=True)
class RecordFields:
    """The names under which a record holds its parts.

    Args:
        label: Key of the label.
        sublabel: Key of the sub-label, whose allowed names depend on the label.
        span: Key of the evidence, a literal piece of the document.
    """

    label: str = "code"
    sublabel: str = "subcode"
    span: str = "span"

    @property
    def names(self) -> tuple[str, str, str]:
        """The three keys: label, sub-label, span."""
        return self.label, self.sublabel, self.span

    def triple(self, record: Record) -> tuple[str, str, str]:
        """Give the label, sub-label and span of a record."""
        return record[self.label], record[self.sublabel], record[self.span]


DEFAULT_FIELDS = RecordFields()


def parse_records(text: str, fields: RecordFields = DEFAULT_FIELDS) -> list[Record] | None:
    """Read the records of a JSON answer.

    Args:
        text: A JSON list of records, or an object whose single field is such a list, e.g. `{"results": […]}`.
        fields: The keys that every record must hold as strings; further keys are kept.

    Returns:
        The records, or None if the text is not strict JSON or not of that shape.
    """
    try:
        value = json_values(text)[0].value
    except ValueError:
        return None
    if isinstance(value, dict) and len(value) == 1:
        (value,) = value.values()
    return value if isinstance(value, list) and all(_is_record(item, fields) for item in value) else None


def ontology(documents: Iterable[Sequence[Record]], fields: RecordFields = DEFAULT_FIELDS) -> dict[str, list[str]]:
    """Collect which sub-labels occur under which label.

    Args:
        documents: The records of each document.
        fields: The records' keys.

    Returns:
        Label → sub-labels, both sorted.
    """
    pairs = {fields.triple(record)[:2] for records in documents for record in records}
    allowed: dict[str, list[str]] = {}
    for label, sublabel in sorted(pairs):
        allowed.setdefault(label, []).append(sublabel)
    return allowed


def field_spans(response: str, fields: RecordFields = DEFAULT_FIELDS) -> list[Span]:
    """Say where the parts of every record stand in a JSON answer.

    Args:
        response: The answer, of a shape that `parse_records` reads.
        fields: The records' keys.

    Returns:
        One span per label, sub-label and piece of evidence, labelled with its key, in order of appearance; none if
        the answer has no such shape.
    """
    if parse_records(response, fields) is None:
        return []
    return [
        {"start": value.start, "end": value.end, "label": str(value.path[-1])}
        for value in json_values(response)
        # `[0].code`, or `results[0].code` in an object with one field; what lies deeper inside a record is its own.
        if len(value.path) in (2, 3) and isinstance(value.path[-2], int) and value.path[-1] in fields.names
    ]


def locate(text: str, spans: Iterable[str]) -> list[tuple[int, int]] | None:
    """Find spans that stand in a text one after the other, without overlap.

    Args:
        text: The document.
        spans: Literal pieces of it, in order of appearance.

    Returns:
        `(start, end)` of each, or None if one is not found after the end of the one before it.
    """
    found: list[tuple[int, int]] = []
    end = 0
    for span in spans:
        start = text.find(span, end)
        if start < 0:
            return None
        end = start + len(span)
        found.append((start, end))
    return found


def _is_record(item: Any, fields: RecordFields) -> bool:
    return isinstance(item, dict) and all(isinstance(item.get(name), str) for name in fields.names)
