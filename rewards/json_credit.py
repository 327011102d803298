"""JSON records against gold records: one score, and on which tokens it was lost. Values and matching are ours [O]."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokencredit.data.json_values import JsonValue, json_values
from tokencredit.errors import InputError
from tokencredit.rewards.contract import Completion, ValueSpan, text_of

Record = Mapping[str, Any]


def json_records(
    completions: list[Completion],
    records: list[str | Sequence[Record]],
    *,
    validity: float = 0.2,
    penalty: float = 1.0,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Score JSON records by their fields, with a span for every field that is wrong or missing.

    The score is 0 for what is not strict JSON with a list of objects (or an object whose single field is one), else
    `validity` + (1 − `validity`) · F1 over the fields. Records are matched one-to-one, in any order: those with most
    equal fields first, at least one; nearer places first among equals. A field counts if its key and value are equal;
    `{}` counts as a record with one field, itself.

    What was lost has spans whose values add up to at most `penalty` below zero, each −`penalty` / n where n is the
    number of gold and written fields, matched ones counted once:

    - a wrong or superfluous field: on the value that was written;
    - a field that is missing in a matched record: on the `}` that closes it;
    - the fields of a record that is missing whole: on the bracket that closes the list;
    - an answer that is no such JSON: −`penalty` on the character at which it stops being that.

    Args:
        completions: The answers.
        records: The gold records, as lists or as JSON text; a column of another name is given as `columns: {records:
            <column>}`. In lists a field that is None is not asked for: datasets fill in what a row lacks.
        validity: What valid JSON without any right field is worth.
        penalty: What the spans of an answer with nothing right add up to.
        **columns: Are not used.

    Returns:
        `{"score", "spans"}` per answer.
    """
    return [
        _score(text_of(completion), _gold(gold), validity, penalty)
        for completion, gold in zip(completions, records, strict=True)
    ]


def check(where: str, arguments: dict[str, Any]) -> None:
    """Refuse settings that cannot work.

    Raises:
        InputError: Naming them.
    """
    for name, value in arguments.items():
        if name in ("validity", "penalty") and not (isinstance(value, (int, float)) and 0 <= value <= 1):
            raise InputError(f"{where}.arguments.{name}", f"{value!r} is not between 0 and 1", "give a share")


_ITSELF = ""
"""Key under which a record without fields stands for itself, so that it is neither right nor wrong for free."""


@dataclass(frozen=True)
class _Written:
    """A record of the answer: where it stands, and its fields."""

    whole: JsonValue
    fields: dict[str, JsonValue]

    def equal(self, gold: Record) -> int:
        return sum(key in self.fields and _same(self.fields[key].value, value) for key, value in gold.items())


def _score(text: str, gold: Sequence[Record], validity: float, penalty: float) -> dict[str, Any]:
    try:
        values = json_values(text)
    except ValueError as error:
        return {"score": 0.0, "spans": _stopped(text, getattr(error, "pos", len(text)), penalty)}
    listed = _record_list(values)
    if listed is None:
        return {"score": 0.0, "spans": _stopped(text, values[0].start, penalty)}
    written = _records(values, listed)
    pairs = _matched(written, gold)
    right = sum(written[i].equal(gold[j]) for i, j in pairs.items())
    given, wanted = sum(len(record.fields) for record in written), sum(map(len, gold))
    f1 = 2 * right / (given + wanted) if given + wanted else 1.0
    places = _lost(written, gold, pairs, listed)
    # A wrong value is a gold field and a written one at once; it has one span.
    share = penalty / max(1, right + len(places))
    spans = [{"start": start, "end": end, "value": -share, "label": label} for start, end, label in places]
    return {"score": validity + (1 - validity) * f1, "spans": spans}


def _lost(
    written: Sequence[_Written], gold: Sequence[Record], pairs: Mapping[int, int], listed: JsonValue
) -> list[tuple[int, int, str]]:
    """Where each field that is wrong or missing was lost: start, end and key."""
    found = []
    for i, record in enumerate(written):
        partner = gold[pairs[i]] if i in pairs else {}
        for key, value in record.fields.items():
            if key not in partner or not _same(value.value, partner[key]):
                found.append((*_characters(value), key))
        found += [(record.whole.end - 1, record.whole.end, key) for key in partner if key not in record.fields]
    taken = set(pairs.values())
    missing = [key for j, record in enumerate(gold) if j not in taken for key in record]
    return found + [(listed.end - 1, listed.end, key) for key in missing]


def _matched(written: Sequence[_Written], gold: Sequence[Record]) -> dict[int, int]:
    """Place of a written record → place of its gold record."""
    ranked = sorted(
        (-equal, abs(i - j), i, j)
        for i, record in enumerate(written)
        for j, partner in enumerate(gold)
        if (equal := record.equal(partner))
    )
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for _, _, i, j in ranked:
        if i not in pairs and j not in taken:
            pairs[i] = j
            taken.add(j)
    return pairs


def _record_list(values: Sequence[JsonValue]) -> JsonValue | None:
    """The list of records in a document, if it is one."""
    top = values[0]
    if isinstance(top.value, dict) and len(top.value) == 1:
        top = values[1]
    is_list = isinstance(top.value, list) and all(isinstance(item, dict) for item in top.value)
    return top if is_list else None


def _records(values: Sequence[JsonValue], listed: JsonValue) -> list[_Written]:
    depth = len(listed.path)
    inside = [value for value in values if value.path[:depth] == listed.path]
    records = [_Written(value, {}) for value in inside if len(value.path) == depth + 1]
    for value in inside:
        if len(value.path) == depth + 2:
            records[int(value.path[depth])].fields[str(value.path[-1])] = value
    for record in records:
        if not record.fields:
            record.fields[_ITSELF] = record.whole
    return records


def _characters(value: JsonValue) -> tuple[int, int]:
    """The characters of a value; of an empty string its quotes."""
    return (value.start, value.end) if value.start < value.end else (value.start - 1, value.end + 1)


def _stopped(text: str, at: int, penalty: float) -> list[ValueSpan]:
    if not text:
        return []
    at = min(at, len(text) - 1)
    return [{"start": at, "end": at + 1, "value": -penalty, "label": "invalid"}]


def _same(a: Any, b: Any) -> bool:
    """Equality of JSON values, in which true is not 1, however deep."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(value, b[key]) for key, value in a.items())
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _gold(records: str | Sequence[Record]) -> Sequence[Record]:
    written = isinstance(records, str)
    found = json.loads(records) if isinstance(records, str) else records
    if isinstance(found, Mapping) and len(found) == 1:
        (found,) = found.values()
    if not isinstance(found, list) or not all(isinstance(record, Mapping) for record in found):
        raise InputError("records", f"{str(found)[:80]!r} is no list of gold records", "name another column")
    # Datasets fill the keys that a row does not have with None; in text a null was written.
    asked = [{key: value for key, value in record.items() if written or value is not None} for record in found]
    return [record or {_ITSELF: {}} for record in asked]
