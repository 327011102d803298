"""How well predicted records agree with the reference, micro-averaged over documents."""

from collections import Counter
from collections.abc import Iterable, Sequence

from tokencredit.data.records import DEFAULT_FIELDS, Record, RecordFields, parse_records
from tokencredit.errors import InputError

LEVELS = ("label", "sublabel", "span_exact", "span_relaxed", "record")
JACCARD = 0.6

Counts = dict[str, int]


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
    counts = []
    for index, (prediction, text) in enumerate(zip(predictions, references, strict=True)):
        reference = parse_records(text, fields)
        if reference is None:
            problem = f"{text[:80]!r} is not JSON with records"
            raise InputError(f"references[{index}]", problem, f"give a list of objects with {', '.join(fields.names)}")
        counts.append(document_counts(parse_records(prediction, fields), reference, fields=fields))
    return counts


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
        **_level("label", *_shared({t[0] for t in predicted}, {t[0] for t in gold})),
        **_level("sublabel", *_shared({t[:2] for t in predicted}, {t[:2] for t in gold})),
        **_level("span_exact", _equal_spans(spans, gold_spans).total(), len(spans), len(gold_spans)),
        **_level("span_relaxed", _relaxed_matches(spans, gold_spans), len(spans), len(gold_spans)),
        **_level("record", *_shared(predicted, gold)),
        "valid_json": int(prediction is not None),
        "exact": int(prediction is not None and list(prediction) == list(reference)),
        "documents": 1,
    }


def scores(counts: Iterable[Counts]) -> dict[str, float]:
    """Turn the counts of at least one document into the numbers that `json_records` describes.

    Args:
        counts: What `document_counts` returned for each document.

    Returns:
        Precision, recall and F1 per level, `valid_json` and `exact`.
    """
    total: Counter[str] = Counter()
    for document in counts:
        total.update(document)
    result = {name: total[name] / total["documents"] for name in ("valid_json", "exact")}
    for level in LEVELS:
        tp, fp, fn = (total[f"{level}_{kind}"] for kind in ("tp", "fp", "fn"))
        vacuous = 1.0 if tp + fp + fn == 0 else 0.0
        result[f"{level}_precision"] = tp / (tp + fp) if tp + fp else vacuous
        result[f"{level}_recall"] = tp / (tp + fn) if tp + fn else vacuous
        result[f"{level}_f1"] = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else vacuous
    return result


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
