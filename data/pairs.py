"""Preference pairs from labelled documents: gold answers against rewritten ones, or best against worst sample.

Pure text: which model's confusions or samples these are is the caller's business. Every draw for a document depends
on the seed and the document's row alone, so leaving out a document changes no other one's pairs.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokencredit.data.json_values import json_values
from tokencredit.data.metrics import document_counts, scores
from tokencredit.data.negatives import (
    STRATEGY_MIX,
    Confusion,
    Negative,
    Ontology,
    Rows,
    make_negative,
    pair,
    text_pair,
)
from tokencredit.data.records import DEFAULT_FIELDS, Record, RecordFields, parse_records
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError

_DRAWS = 20
"""How often a negative that is of no use is drawn again."""


@dataclass(frozen=True)
class Document:
    """A labelled document.

    Args:
        row: Its place in the data, from which its random draws follow.
        prompt: What a model is asked about it: text, or chat messages.
        gold: The right answer as text.
        records: The records of that answer; empty where the answer need not have any.
        text: The document itself.
    """

    row: int
    prompt: Any
    gold: str
    records: Sequence[Record] = ()
    text: str = ""


@dataclass(frozen=True)
class Sample:
    """An answer that a model gave.

    Args:
        text: The answer.
        score: How good it is; more is better.
        ended: Whether the model ended it, instead of being cut off.
    """

    text: str
    score: float
    ended: bool = True


@dataclass
class Pairs:
    """What was made, and what could not be.

    Args:
        rows: Preference pairs in the schema of `tokencredit.data.negatives.text_pair`.
        dropped: Reason → how many pairs are missing for it.
        measured: How many of the pairs' new names follow measured confusions.
        renamed: How many of the pairs have a new label or sub-label.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    measured: int = 0
    renamed: int = 0


def negative_pairs(
    documents: Iterable[Document],
    *,
    ontology: Ontology,
    confusion: Confusion,
    seed: int,
    mix: Mapping[str, float] = STRATEGY_MIX,
    per_document: int = 1,
    span_perturbation: float = 0.0,
    fields: RecordFields = DEFAULT_FIELDS,
) -> Pairs:
    """Set every gold answer against wrong ones of the kind a model gives.

    Args:
        documents: Documents with their records and text.
        ontology: Label → allowed sub-labels.
        confusion: From `count_confusion` or `uniform_confusion`.
        seed: Seed of all randomness.
        mix: Share of each published strategy, in any unit.
        per_document: Negatives per document, all different.
        span_perturbation: Share of negatives whose only fault is a span that is one word off [O].
        fields: The records' keys.

    Returns:
        At most `per_document` pairs a document. Each negative has been checked: JSON with records, nothing outside
        the ontology, every span a literal piece of the text, and not the gold records.

    Raises:
        InputError: See `make_negative`.
    """
    known = within(confusion, ontology)
    drawn_from = {"ontology": ontology, **known, "mix": with_span_share(mix, span_perturbation), "fields": fields}
    made = Pairs()
    for document in documents:
        rng = random.Random(f"{seed}/{document.row}")
        seen: set[str] = set()
        if any(record[fields.span] not in document.text for record in document.records):
            made.dropped["a gold span is not in the text"] += per_document
            continue
        for _ in range(per_document):
            drawn = _draw(document, seen, rng, drawn_from)
            if isinstance(drawn, str):
                made.dropped[drawn] += 1
                continue
            seen.add(to_json(drawn.records))
            made.rows.append(pair(document.prompt, document.records, drawn, fields=fields))
            _count_names(made, document.records, drawn, known, fields)
    return made


def _draw(document: Document, seen: set[str], rng: random.Random, options: Mapping[str, Any]) -> Negative | str:
    """A negative that passes the checks and is new, or why there is none."""
    reason = "no strategy of the mix is possible"
    for _ in range(_DRAWS):
        negative = make_negative(document.records, rng=rng, text=document.text, **options)
        if negative is None:
            break
        fault = negative_fault(negative.records, document, options["ontology"], options["fields"])
        if fault is None and to_json(negative.records) not in seen:
            return negative
        reason = fault or f"no other negative in {_DRAWS} draws"
    return reason


def negative_fault(
    records: Sequence[Record], document: Document, ontology: Ontology, fields: RecordFields = DEFAULT_FIELDS
) -> str | None:
    """Check a negative against its document.

    Args:
        records: The negative's records.
        document: What it belongs to.
        ontology: Label → allowed sub-labels.
        fields: The records' keys.

    Returns:
        What is wrong with it, or None.
    """
    if parse_records(to_json(list(records)), fields) != list(records):
        return "the negative is no JSON with records"
    for label, sublabel, span in map(fields.triple, records):
        if sublabel not in ontology.get(label, ()):
            return "the negative leaves the ontology"
        if span not in document.text:
            return "a span of the negative is not in the text"
    if Counter(map(to_json, records)) == Counter(map(to_json, document.records)):
        return "the negative is the gold answer"
    return None


def within(confusion: Confusion, ontology: Ontology) -> Confusion:
    """Keep the counts whose both names are in the ontology: a model may predict names that nothing can be made of.

    Args:
        confusion: Counts of labels and sub-labels.
        ontology: Label → allowed sub-labels.

    Returns:
        The counts that negatives can be drawn from; rows without any are left out.
    """

    def kept(rows: Rows, names: set[str]) -> Rows:
        inside = {
            gold: {name: count for name, count in row.items() if name in names and count > 0}
            for gold, row in rows.items()
            if gold in names
        }
        return {gold: row for gold, row in inside.items() if row}

    sublabels = {name for names in ontology.values() for name in names}
    return {"labels": kept(confusion["labels"], set(ontology)), "sublabels": kept(confusion["sublabels"], sublabels)}


def with_span_share(mix: Mapping[str, float], share: float) -> Mapping[str, float]:
    """Give the strategy `span` a share of a mix and scale the others to the rest; the mix itself if the share is 0."""
    if not share:
        return mix
    total = sum(mix.values())
    return {name: part / total * (1 - share) for name, part in mix.items()} | {"span": share}


def _count_names(
    made: Pairs, gold: Sequence[Record], negative: Negative, confusion: Confusion, fields: RecordFields
) -> None:
    """Note whether the name that was written in place of another is one that a model did confuse it with."""
    if negative.strategy not in ("label", "sublabel", "both"):
        return
    before, after = next((a, b) for a, b in zip(gold, negative.records, strict=True) if a != b)
    rows, key = (
        (confusion["sublabels"], fields.sublabel)
        if negative.strategy == "sublabel"
        else (confusion["labels"], fields.label)
    )
    made.renamed += 1
    made.measured += after[key] in rows.get(before[key], {})


def best_against_worst(
    documents: Iterable[Document], samples: Iterable[Sequence[Sample]], *, fields: RecordFields = DEFAULT_FIELDS
) -> Pairs:
    """Set the best sample of every document against its worst.

    A sample that was cut off can be rejected but not chosen [O]: as a chosen response it would be taught to end where
    it was cut. Of equal scores the first sample counts.

    Args:
        documents: The documents.
        samples: The samples of each.
        fields: The keys of records in the answers.

    Returns:
        At most one pair a document.
    """
    made = Pairs()
    for document, answers in zip(documents, samples, strict=True):
        ended = [sample for sample in answers if sample.ended]
        if len({sample.text for sample in answers}) == 1:
            made.dropped["all samples are the same text"] += 1
        elif not ended:
            made.dropped["every sample was cut off at max_new_tokens"] += 1
        else:
            best, worst = max(ended, key=lambda s: s.score), min(answers, key=lambda s: s.score)
            if best.score <= worst.score:
                made.dropped["best and worst sample score the same"] += 1
            elif best.text == worst.text:
                made.dropped["best and worst sample are the same text"] += 1
            else:
                made.rows.append(text_pair(document.prompt, best.text, worst.text, "samples", fields=fields))
    return made


def record_f1(
    predictions: Sequence[str], references: Sequence[str], *, fields: RecordFields = DEFAULT_FIELDS
) -> list[float]:
    """F1 of whole (label, sub-label, span) records in each document.

    Args:
        predictions: Answers as text; one that does not parse scores 0, also where there is nothing to find [O].
        references: Right answers as text.
        fields: The records' keys.

    Returns:
        One number in [0, 1] per document.

    Raises:
        InputError: A reference does not parse.
    """
    values = []
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        records, gold = parse_records(prediction, fields), parse_records(reference, fields)
        if gold is None:
            problem = f"{reference[:80]!r} is not JSON with records"
            raise InputError(f"references[{index}]", problem, f"give a list of objects with {', '.join(fields.names)}")
        figures = scores([document_counts(records, gold, fields=fields)])
        values.append(figures["record_f1"] if records is not None else 0.0)
    return values


def canonical(answer: str) -> str:
    """Write a JSON list or object as `to_json` does, so that two answers differ only where their values do.

    Args:
        answer: Any text.

    Returns:
        The answer; as it was if it is no JSON list or object, or one that `to_json` refuses.
    """
    try:
        value = json_values(answer)[0].value
        return to_json(value) if isinstance(value, list | dict) else answer
    except ValueError:  # InputError is one
        return answer
