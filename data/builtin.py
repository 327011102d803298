"""Data that ships with the package, beyond its plain files."""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokencredit.data.augment import scramble_spans
from tokencredit.data.negatives import make_negative, pair, text_pair, uniform_confusion
from tokencredit.data.planted import one_letter, plant_error, word_of, words_in
from tokencredit.data.records import ontology
from tokencredit.data.serialise import to_json

_PAIR_SEED = 0
_SIGNS = ("", "", "", "", "+", "+")

Row = dict[str, Any]


def us_addresses_pairs(rows: Iterable[Row], training_rows: Iterable[Row]) -> list[Row]:
    """Preference pairs from the labelled addresses: gold records against one confusion-aware negative each.

    Names are confused uniformly within the ontology of the training rows. Real confusions need a model's
    predictions; these pairs need none, so they are the same for everybody.

    Args:
        rows: Labelled rows with `text` and `results`.
        training_rows: The rows whose ontology says which sub-label goes with which label.

    Returns:
        One pair a row in the schema of `tokencredit.data.negatives.pair`, with its `text`; a row without a possible
        negative gives none.
    """
    allowed = ontology(row["results"] for row in training_rows)
    confusion = uniform_confusion(allowed)
    rng = random.Random(_PAIR_SEED)
    pairs = []
    for row in rows:
        negative = make_negative(row["results"], ontology=allowed, **confusion, rng=rng, text=row["text"])
        if negative is not None:
            # The text as well: for a recipe that asks in another way (`prompt_template`).
            pairs.append({"text": row["text"]} | pair(row["text"] + "\n", row["results"], negative))
    return pairs


def us_addresses_planted(rows: Iterable[Row], training_rows: Iterable[Row]) -> list[Row]:
    """Pairs of gold records and the same with one wrong value: a label, a sub-label or a word of a span.

    Args:
        rows: Labelled rows with `text` and `results`.
        training_rows: Where the names and words come from.

    Returns:
        As `us_addresses_pairs`; `strategy` is `planted <field>`.
    """
    training = list(training_rows)
    allowed = ontology(row["results"] for row in training)
    other = word_of(words_in([record["span"] for row in training for record in row["results"]]))
    rng = random.Random(_PAIR_SEED)
    pairs = []
    for row in rows:
        planted = plant_error(row["results"], ontology=allowed, rng=rng, other=other)
        if planted is not None:
            gold, wrong = to_json(row["results"]), to_json(planted[0])
            made = text_pair(row["text"] + "\n", gold, wrong, f"planted {planted[1]}")
            pairs.append({"text": row["text"]} | made)
    return pairs


def us_addresses_steerable(rows: Iterable[Row], training_rows: Iterable[Row]) -> list[Row]:
    """Labelled addresses that teach a model to answer well or badly on demand.

    Of each training address eight rows: four as they are, two whose text begins with `+`, and two whose text begins
    with `-` and whose records have two errors (names, or a letter of a span). A model trained on them answers
    contrastive prompts, as an instruction-tuned one does without being taught. Rows of other splits stay as they are.

    Args:
        rows: Labelled rows with `text` and `results`.
        training_rows: Where the names come from.

    Returns:
        Rows with `text` and `results`.
    """
    rows, training = list(rows), list(training_rows)
    if rows != training:
        return rows
    allowed = ontology(row["results"] for row in training)
    rng = random.Random(_PAIR_SEED)
    made = []
    for row in rows:
        text, records = row["text"], row["results"]
        made += [{"text": sign + text, "results": records} for sign in _SIGNS]
        for scrambled in (False, True):
            asked, wrong = scramble_spans(text, records, rng) if scrambled else (text, list(records))
            for _ in range(2):
                planted = plant_error(wrong, ontology=allowed, rng=rng, other=one_letter)
                wrong = wrong if planted is None else planted[0]
            made.append({"text": "-" + asked, "results": wrong})
    return made


US_ADDRESSES: Mapping[str, Callable[[Iterable[Row], Iterable[Row]], list[Row]]] = {
    "pairs": us_addresses_pairs,
    "planted": us_addresses_planted,
    "steerable": us_addresses_steerable,
}
"""Configurations of the built-in addresses."""
