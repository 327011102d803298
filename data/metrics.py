"""How well predicted records agree with the reference, micro-averaged over documents."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from tokencredit.data.records import DEFAULT_FIELDS, Record, RecordFields, parse_records
from tokencredit.errors import InputError

LEVELS = ("label", "sublabel", "span_exact", "span_relaxed", "record")
NAME_LEVELS = ("label", "sublabel")
JACCARD = 0.6

COUNTS = (
    "valid_json",
    "exact",
    "documents",
    *(f"{level}_{kind}" for level in LEVELS for kind in ("tp", "fp", "fn")),
)
"""What is counted in a document, in the order of the columns of `count_matrix`."""

FIGURES = (
    "valid_json",
    "exact",
    *(f"{level}_{part}" for level in LEVELS for part in ("precision", "recall", "f1")),
)
"""What the counts become, in the order of the last axis of `figures`."""

Counts = dict[str, int]
Name = tuple[str, ...]


def json_records(
    predictions: Sequence[str], references: Sequence[str], *, fields: RecordFields = DEFAULT_FIELDS
) -> dict[str, float]:
    """Score predicted JSON records against reference records.

    Micro precision, recall and F1 at five levels, `<level>_precision`, `<level>_recall` and `<level>_f1`:

    - `label` [C]: the set of labels of each document (multi-hot);
    - `sublabel` [C]: the set of (label, sub-label) pairs of each document. Pairs [O], because a sub-label's name may
      stand under several labels and means something else under each;
    - `span_exact` [O]: the multiset of spans;
    - `span_relaxed`: spans matched greedily one-to-one if one contains the other or their words' Jaccard index is
      at least 0.6 [C]; equal spans first, then in order of the prediction, with case as written [O];
    - `record` [O]: the multiset of whole (label, sub-label, span) triples.

    An empty span never matches at a span level [O]. If there is nothing to find and nothing was predicted,
    precision, recall and F1 are 1; otherwise a ratio without denominator is 0 [O].
    [C] marks what the released code of TAB-PO (arXiv 2603.00025) counts, [O] our own choice.

    Args:
        predictions: Predicted texts, one per document; one that does not parse counts as no records.
        references: Reference texts, one per document.
        fields: The records' keys.

    Returns:
        The fifteen numbers above, `valid_json` (share of predictions that parse to records) and `exact` (share of
        documents whose records equal the reference's, in order), all in [0, 1].

    Raises:
        InputError: There are no predictions, the lengths differ, or a reference does not parse.
    """
    return scores(count_records(predictions, references, fields=fields))


def count_records(
    predictions: Sequence[str], references: Sequence[str], *, fields: RecordFields = DEFAULT_FIELDS
) -> list[Counts]:
    """Parse predictions and references and count each document; `scores` of any selection of these is its metric.

    Args:
        predictions: Predicted texts, one per document.
        references: Reference texts, one per document.
        fields: The records' keys.

    Returns:
        One `Counts` per document.

    Raises:
        InputError: There are no predictions, the lengths differ, or a reference does not parse.
    """
    if not predictions or len(predictions) != len(references):
        problem = f"{len(predictions)} predictions for {len(references)} references"
        raise InputError("predictions", problem, "give one prediction per reference, and at least one")
    return [
        document_counts(parse_records(prediction, fields), gold, fields=fields)
        for prediction, gold in zip(predictions, parse_references(references, fields), strict=True)
    ]


def parse_references(
    references: Sequence[str], fields: RecordFields = DEFAULT_FIELDS, *, where: str = "references"
) -> list[list[Record]]:
    """Read the records of reference texts, which unlike predictions must parse.

    Args:
        references: Reference texts, one per document.
        fields: The records' keys.
        where: What an error message calls the texts.

    Returns:
        The records of each document.

    Raises:
        InputError: A reference does not parse.
    """
    parsed = []
    for index, text in enumerate(references):
        records = parse_records(text, fields)
        if records is None:
            problem = f"{text[:80]!r} is not JSON with records"
            raise InputError(f"{where}[{index}]", problem, f"give a list of objects with {', '.join(fields.names)}")
        parsed.append(records)
    return parsed


def document_counts(
    prediction: Sequence[Record] | None, reference: Sequence[Record], *, fields: RecordFields = DEFAULT_FIELDS
) -> Counts:
    """Count agreement in one document.

    Args:
        prediction: Predicted records, or None if the answer did not parse.
        reference: Reference records.
        fields: The records' keys.

    Returns:
        `<level>_tp`, `<level>_fp` and `<level>_fn` for each level, and `valid_json`, `exact` and `documents` (1):
        numbers that add up over documents.
    """
    predicted = [fields.triple(record) for record in prediction or ()]
    gold = [fields.triple(record) for record in reference]
    spans, gold_spans = [span for *_, span in predicted], [span for *_, span in gold]
    return {
        **_level("label", *_shared(names(prediction, "label", fields), names(reference, "label", fields))),
        **_level("sublabel", *_shared(names(prediction, "sublabel", fields), names(reference, "sublabel", fields))),
        **_level("span_exact", _equal_spans(spans, gold_spans).total(), len(spans), len(gold_spans)),
        **_level("span_relaxed", _relaxed_matches(spans, gold_spans), len(spans), len(gold_spans)),
        **_level("record", *_shared(predicted, gold)),
        "valid_json": int(prediction is not None),
        "exact": int(prediction is not None and list(prediction) == list(reference)),
        "documents": 1,
    }


def record_errors(
    prediction: Sequence[Record] | None, reference: Sequence[Record], *, fields: RecordFields = DEFAULT_FIELDS
) -> Counts:
    """Say of each reference record whether it was found, and if not, what was wrong with it [O].

    Records are paired one-to-one: equal ones first, of the rest those with the same label and sub-label, of the rest
    those with the same span; the order of the records does not count. Where two predicted records have each other's
    names, both have a wrong span.

    Args:
        prediction: Predicted records, or None if the answer did not parse.
        reference: Reference records.
        fields: The records' keys.

    Returns:
        How many are `right`, have a wrong `span`, have wrong `names`, or are `missing`; they add up to the reference's.
    """
    rest: list[Name] = [fields.triple(record) for record in prediction or ()]
    gold: list[Name] = [fields.triple(record) for record in reference]
    counts = {}
    parts = {"right": slice(None), "span": slice(2), "names": slice(2, None)}
    for kind, part in parts.items():
        shared = Counter(triple[part] for triple in rest) & Counter(triple[part] for triple in gold)
        rest, gold = _without(rest, shared, part, gold), _without(gold, shared, part, rest)
        counts[kind] = shared.total()
    return counts | {"missing": len(gold)}


def _without(triples: list[Name], taken: Counter[Name], part: slice, others: list[Name]) -> list[Name]:
    """The triples that are left when for each part in `taken` so many with that part go, whatever their order.

    Those go first whose span none of the `others` has: they could not be paired by their span.
    """
    spans = {triple[2] for triple in others}
    left, kept = taken.copy(), []
    for triple in sorted(triples, key=lambda triple: (triple[2] in spans, triple)):
        if left[triple[part]]:
            left[triple[part]] -= 1
        else:
            kept.append(triple)
    return kept


def scores(counts: Iterable[Counts]) -> dict[str, float]:
    """Turn the counts of at least one document into the numbers that `json_records` describes.

    Args:
        counts: What `document_counts` returned for each document.

    Returns:
        Precision, recall and F1 per level, `valid_json` and `exact`.
    """
    total = figures(count_matrix(list(counts)).sum(axis=0))
    return dict(zip(FIGURES, total.tolist(), strict=True))


def count_matrix(counts: Sequence[Counts]) -> NDArray[np.int64]:
    """Lay out counts so that any weighted sum of documents is one product.

    Args:
        counts: What `document_counts` returned for each of `N` documents.

    Returns:
        `[N, len(COUNTS)]`.
    """
    return np.array([[document[name] for name in COUNTS] for document in counts], dtype=np.int64)


def figures(totals: NDArray[np.generic]) -> NDArray[np.float64]:
    """Turn summed counts into the numbers that `json_records` describes, any number of sums at once.

    Args:
        totals: `[..., len(COUNTS)]`, each the sum of the rows of `count_matrix` of at least one document.

    Returns:
        `[..., len(FIGURES)]`.
    """
    sums = np.asarray(totals, dtype=np.float64)
    rates = sums[..., :2] / sums[..., 2:3]
    by_level = sums[..., 3:].reshape(*sums.shape[:-1], len(LEVELS), 3)
    return np.concatenate([rates, ratios(by_level).reshape(*sums.shape[:-1], -1)], axis=-1)


def ratios(counts: NDArray[np.generic]) -> NDArray[np.float64]:
    """Precision, recall and F1 of true positives, false positives and false negatives.

    Args:
        counts: `[..., 3]`: true positives, false positives, false negatives.

    Returns:
        `[..., 3]`: precision, recall, F1; without denominator 0, and all 1 where there are no counts at all [O].
    """
    tp, fp, fn = np.moveaxis(np.asarray(counts, dtype=np.float64), -1, 0)
    vacuous = np.where(tp + fp + fn == 0, 1.0, 0.0)

    def ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(whole > 0, part / np.where(whole > 0, whole, 1), vacuous)

    return np.stack([ratio(tp, tp + fp), ratio(tp, tp + fn), ratio(2 * tp, 2 * tp + fp + fn)], axis=-1)


def names(records: Iterable[Record] | None, level: str, fields: RecordFields = DEFAULT_FIELDS) -> set[Name]:
    """The different names in one document.

    Args:
        records: Its records; None, an answer that did not parse, has none.
        level: `label` or `sublabel`.
        fields: The records' keys.

    Returns:
        `(label,)` or `(label, sublabel)` of each.
    """
    parts = {"label": 1, "sublabel": 2}[level]
    return {fields.triple(record)[:parts] for record in records or ()}


def name_counts(
    predictions: Sequence[set[Name]], references: Sequence[set[Name]], columns: Sequence[Name]
) -> NDArray[np.int64]:
    """Count agreement per name, multi-hot per document; summed over `columns` these are the counts of the level.

    Args:
        predictions: What `names` found in each of `N` predictions.
        references: The same of the references.
        columns: All names that occur in either, `L` of them.

    Returns:
        `[N, L, 3]`: true positives, false positives, false negatives, each 0 or 1.
    """
    shape = len(references), len(columns)
    predicted, gold = (
        np.array([name in found for found in side for name in columns], dtype=bool).reshape(shape)
        for side in (predictions, references)
    )
    return np.stack([predicted & gold, predicted & ~gold, ~predicted & gold], axis=-1).astype(np.int64)


def spans_agree(a: str, b: str) -> bool:
    """Say whether two spans match by the relaxed rule: containment, or Jaccard index of their words ≥ 0.6.

    Args:
        a: One span.
        b: The other span.

    Returns:
        True if they match; never for an empty span.
    """
    if not a or not b:
        return False
    a_words, b_words = set(a.split()), set(b.split())
    return a in b or b in a or len(a_words & b_words) >= JACCARD * max(1, len(a_words | b_words))


def _level(level: str, tp: int, predicted: int, gold: int) -> Counts:
    return {f"{level}_tp": tp, f"{level}_fp": predicted - tp, f"{level}_fn": gold - tp}


def _shared(predicted: Iterable[object], gold: Iterable[object]) -> tuple[int, int, int]:
    """Sizes of the intersection and of both sides, as multisets."""
    a, b = Counter(predicted), Counter(gold)
    return (a & b).total(), a.total(), b.total()


def _equal_spans(predicted: Sequence[str], gold: Sequence[str]) -> Counter[str]:
    return Counter(filter(None, predicted)) & Counter(filter(None, gold))


def _relaxed_matches(predicted: Sequence[str], gold: Sequence[str]) -> int:
    equal = _equal_spans(predicted, gold)
    free = list((Counter(gold) - equal).elements())
    matches = equal.total()
    for span in (Counter(predicted) - equal).elements():
        partner = next((candidate for candidate in free if spans_agree(span, candidate)), None)
        if partner is not None:
            free.remove(partner)
            matches += 1
    return matches
