"""Wrong answers of the kind a model gives: confusion-aware negatives for preference pairs.

TAB-PO (arXiv 2603.00025). A gold answer is rewritten by one of five strategies, with shares [C, P]: label confusion
.25, sub-label confusion .35, both .20, a record missing .08, a record added .12. What replaces a name follows the
row-normalised confusion counts of an earlier model [C]. Our choices [O]: one record is changed per negative; it is
one whose name has measured confusions, and only in a document without any is everything permitted equally likely;
when a label changes, its sub-label stays if it is allowed there; an added record has a random word of the text as
its span and a random label and sub-label; a sixth strategy, `span`, whose share is 0 unless asked for, moves a
span's boundary by one word.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from tokencredit.data.boundaries import other_boundaries
from tokencredit.data.records import DEFAULT_FIELDS, Record, RecordFields, field_spans, locate
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError

STRATEGY_MIX: Mapping[str, float] = {"label": 0.25, "sublabel": 0.35, "both": 0.20, "missing": 0.08, "added": 0.12}
"""Published share of each strategy [C, P]."""

STRATEGIES = (*STRATEGY_MIX, "span")
"""Every strategy that a mix may name."""

Ontology = Mapping[str, Sequence[str]]
Rows = Mapping[str, Mapping[str, float]]
"""Gold name → predicted name → count."""


class Confusion(TypedDict):
    """How often which name was predicted where another was right; `make_negative(…, **confusion)` takes it.

    Sub-labels go by their bare names; only those allowed under the label are ever drawn.
    """

    labels: Rows
    sublabels: Rows


@dataclass(frozen=True)
class Negative:
    """A wrong answer.

    Args:
        records: Its records, valid under the ontology.
        strategy: What was done to the gold records, one of `STRATEGIES`.
    """

    records: list[Record]
    strategy: str


def uniform_confusion(ontology: Ontology) -> Confusion:
    """Let every name be confused with every other one equally often.

    Args:
        ontology: Label → allowed sub-labels.

    Returns:
        Counts of 1 off the diagonal.
    """
    sublabels = sorted({name for names in ontology.values() for name in names})
    return {"labels": _uniform_rows(list(ontology)), "sublabels": _uniform_rows(sublabels)}


def count_confusion(
    predictions: Iterable[Sequence[Record] | None],
    references: Iterable[Sequence[Record]],
    *,
    fields: RecordFields = DEFAULT_FIELDS,
) -> Confusion:
    """Count (missed gold name → wrongly predicted name) over documents [C].

    Within a document every missed name meets every wrong one. At the sub-label level missed and wrong are found on
    (label, sub-label) pairs [O]. Use a validation set, not the training set.

    Args:
        predictions: Predicted records per document, None where the answer did not parse (takes no part).
        references: Gold records per document.
        fields: The records' keys.

    Returns:
        The counts.
    """
    labels: dict[str, dict[str, float]] = {}
    sublabels: dict[str, dict[str, float]] = {}
    for prediction, reference in zip(predictions, references, strict=True):
        if prediction is None:
            continue
        predicted = {fields.triple(record)[:2] for record in prediction}
        gold = {fields.triple(record)[:2] for record in reference}
        predicted_labels, gold_labels = {label for label, _ in predicted}, {label for label, _ in gold}
        _tally(labels, gold_labels - predicted_labels, predicted_labels - gold_labels)
        _tally(sublabels, [name for _, name in gold - predicted], [name for _, name in predicted - gold])
    return {"labels": labels, "sublabels": sublabels}


def make_negative(
    records: Sequence[Record],
    *,
    ontology: Ontology,
    labels: Rows,
    sublabels: Rows,
    rng: random.Random,
    text: str | None = None,
    mix: Mapping[str, float] = STRATEGY_MIX,
    fields: RecordFields = DEFAULT_FIELDS,
) -> Negative | None:
    """Rewrite gold records into a wrong but schema-valid answer that a confused model could give.

    Every strategy changes the multiset of records. One that cannot be carried out on this document is redrawn among
    the others by their shares.

    Args:
        records: Gold records, in order of appearance.
        ontology: Label → allowed sub-labels; nothing outside it is ever written.
        labels: Confusion counts of labels.
        sublabels: Confusion counts of sub-labels.
        rng: Source of all randomness; the same state gives the same negative.
        text: The document, from which an added or changed span is taken; without it an added record reuses the span
            of another one, and no span is changed.
        mix: Share of each strategy, in any unit.
        fields: The records' keys.

    Returns:
        The negative, or None if no strategy is possible.

    Raises:
        InputError: The mix names an unknown strategy or holds a negative share; or no count is of two names in the
            ontology, so that the table would never be used.
    """
    wrong = {name: share for name, share in mix.items() if name not in STRATEGIES or not share >= 0}
    if wrong:
        raise InputError("mix", f"{wrong} cannot be used", f"give shares >= 0 of {', '.join(STRATEGIES)}")
    _check_rows("labels", labels, set(ontology))
    _check_rows("sublabels", sublabels, {name for names in ontology.values() for name in names})
    rewriter = _Rewriter(ontology, labels, sublabels, rng, fields)
    remaining = {name: share for name, share in mix.items() if share > 0}
    while remaining:
        (strategy,) = rng.choices(list(remaining), list(remaining.values()))
        rewritten = rewriter.rewrite(records, strategy, text)
        if rewritten is not None:
            return Negative(rewritten, strategy)
        del remaining[strategy]
    return None


def pair(
    prompt: Any, records: Sequence[Record], negative: Negative, *, fields: RecordFields = DEFAULT_FIELDS
) -> dict[str, Any]:
    """Build one preference pair; both responses are JSON lists written by `to_json`.

    Args:
        prompt: What the model is asked, the document in it: text, or chat messages.
        records: Gold records, the chosen response.
        negative: The rejected response.
        fields: The records' keys.

    Returns:
        What `text_pair` returns.
    """
    return text_pair(prompt, to_json(list(records)), to_json(negative.records), negative.strategy, fields=fields)


def text_pair(
    prompt: Any, chosen: str, rejected: str, strategy: str, *, fields: RecordFields = DEFAULT_FIELDS
) -> dict[str, Any]:
    """Lay out one preference pair.

    Args:
        prompt: Text, or chat messages.
        chosen: The better response.
        rejected: The worse response.
        strategy: How the pair came about.
        fields: The keys of records in the responses.

    Returns:
        `prompt`, `chosen` and `rejected`, the responses as messages where the prompt is; `strategy`; and
        `chosen_spans` and `rejected_spans`: where each label, sub-label and span stands in the response's text,
        labelled with its key, or nothing if the response is no JSON with records.
    """

    def response(text: str) -> Any:
        return [{"role": "assistant", "content": text}] if isinstance(prompt, list) else text

    return {
        "prompt": prompt,
        "chosen": response(chosen),
        "rejected": response(rejected),
        "strategy": strategy,
        "chosen_spans": field_spans(chosen, fields),
        "rejected_spans": field_spans(rejected, fields),
    }


@dataclass(frozen=True)
class _Rewriter:
    ontology: Ontology
    labels: Rows
    sublabels: Rows
    rng: random.Random
    fields: RecordFields

    def rewrite(self, records: Sequence[Record], strategy: str, text: str | None) -> list[Record] | None:
        if strategy == "missing":
            return self._remove(records)
        if strategy == "added":
            return self._add(records, text)
        if strategy == "span":
            return self._change_span(records, text)
        if strategy == "sublabel":
            return self._change_sublabel(records)
        return self._change_label(records, keep_sublabel=strategy == "label")

    def _change_label(self, records: Sequence[Record], *, keep_sublabel: bool) -> list[Record] | None:
        def sublabels_under(label: str, sublabel: str) -> list[str]:
            allowed = self.ontology[label]
            if keep_sublabel and sublabel in allowed:
                return [sublabel]
            return [name for name in allowed if name != sublabel]

        choices = []
        for index, record in enumerate(records):
            label, sublabel, _ = self.fields.triple(record)
            others = [name for name in self.ontology if name != label and sublabels_under(name, sublabel)]
            choices.append((index, label, others))
        drawn = self._draw(choices, self.labels)
        if drawn is None:
            return None
        index, label = drawn
        sublabel = records[index][self.fields.sublabel]
        redrawn = self._draw([(index, sublabel, sublabels_under(label, sublabel))], self.sublabels)
        assert redrawn is not None  # labels without a permitted sub-label were left out above
        return self._replace(records, index, {self.fields.label: label, self.fields.sublabel: redrawn[1]})

    def _change_sublabel(self, records: Sequence[Record]) -> list[Record] | None:
        choices = []
        for index, record in enumerate(records):
            label, sublabel, _ = self.fields.triple(record)
            others = [name for name in self.ontology.get(label, ()) if name != sublabel]
            choices.append((index, sublabel, others))
        drawn = self._draw(choices, self.sublabels)
        if drawn is None:
            return None
        return self._replace(records, drawn[0], {self.fields.sublabel: drawn[1]})

    def _remove(self, records: Sequence[Record]) -> list[Record] | None:
        if not records:
            return None
        index = self.rng.randrange(len(records))
        return [*records[:index], *records[index + 1 :]]

    def _add(self, records: Sequence[Record], text: str | None) -> list[Record] | None:
        known = {self.fields.triple(record) for record in records}
        pairs = [(label, sublabel) for label, names in self.ontology.items() for sublabel in names]
        places = self._places(records, text)
        for index, span in self.rng.sample(places, len(places)):
            free = [names for names in pairs if (*names, span) not in known]
            if free:
                values = zip(self.fields.names, (*self.rng.choice(free), span), strict=True)
                # Over a copy of a gold record, so that key order and further keys do not tell the two apart.
                added = {**(records[0] if records else {}), **dict(values)}
                return [*records[:index], added, *records[index:]]
        return None

    def _change_span(self, records: Sequence[Record], text: str | None) -> list[Record] | None:
        if text is None:
            return None
        spans: list[str] = [record[self.fields.span] for record in records]
        # Spans that do not follow one another are looked for one by one; those that are empty have no boundary.
        places = locate(text, spans) or [(text.find(span), text.find(span) + len(span)) for span in spans]
        known = {self.fields.triple(record) for record in records}
        choices = []
        for index, (start, end) in enumerate(places):
            names = self.fields.triple(records[index])[:2]
            others = other_boundaries(text, start, end) if 0 <= start < end else []
            choices.append((index, [span for span in others if (*names, span) not in known]))
        possible = [choice for choice in choices if choice[1]]
        if not possible:
            return None
        index, others = self.rng.choice(possible)
        return self._replace(records, index, {self.fields.span: self.rng.choice(others)})

    def _places(self, records: Sequence[Record], text: str | None) -> list[tuple[int, str]]:
        """Spans that an added record may have, each with its index in the list of records."""
        spans: list[str] = [record[self.fields.span] for record in records]
        if text is None:
            return [(index + 1, span) for index, span in enumerate(spans) if span]
        located = locate(text, spans)
        # Spans that do not follow one another in the text give no order to respect: the record goes last.
        starts = [start for start, _ in located] if located is not None else [-1] * len(spans)
        return [(bisect_right(starts, word.start()), word[0]) for word in re.finditer(r"\w+", text)]

    def _replace(self, records: Sequence[Record], index: int, values: Record) -> list[Record]:
        return [*records[:index], {**records[index], **values}, *records[index + 1 :]]

    def _draw(self, choices: Sequence[tuple[int, str, list[str]]], rows: Rows) -> tuple[int, str] | None:
        """Draw a record and its new name from (index, gold name, permitted names); None if nothing is permitted."""
        possible = [choice for choice in choices if choice[2]]
        measured = [
            (index, counts)
            for index, gold, permitted in possible
            if (counts := {name: n for name in permitted if (n := rows.get(gold, {}).get(name, 0)) > 0})
        ]
        uniform: list[tuple[int, dict[str, float]]] = [
            (index, dict.fromkeys(permitted, 1.0)) for index, _, permitted in possible
        ]
        if not uniform:
            return None
        index, counts = self.rng.choice(measured or uniform)
        return index, self.rng.choices(list(counts), list(counts.values()))[0]


def _check_rows(where: str, rows: Rows, known: set[str]) -> None:
    """A model may predict names outside the ontology, but a table of nothing else belongs to another one."""
    if any(rows.values()) and not any(gold in known and known & row.keys() for gold, row in rows.items()):
        problem = f"no confusion of {', '.join(list(rows)[:3])} is between two names of the ontology"
        raise InputError(
            f"confusion.{where}", problem, f"write the names as the ontology does: {min(known, default='')!r}"
        )


def _uniform_rows(names: Sequence[str]) -> Rows:
    return {gold: {name: 1.0 for name in names if name != gold} for gold in names}


def _tally(rows: dict[str, dict[str, float]], missed: Iterable[str], wrong: Iterable[str]) -> None:
    predicted = sorted(wrong)
    for gold in sorted(missed):
        for name in predicted:
            if name != gold:
                row = rows.setdefault(gold, {})
                row[name] = row.get(name, 0) + 1
