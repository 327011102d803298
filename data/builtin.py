"""Data that ships with the package, beyond its plain files."""

import random
from collections.abc import Iterable
from typing import Any

from tokencredit.data.negatives import make_negative, pair, uniform_confusion
from tokencredit.data.records import ontology

_PAIR_SEED = 0


def us_addresses_pairs(rows: Iterable[dict[str, Any]], training_rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
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
