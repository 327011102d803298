"""Random letters inside spans, so that a model learns to copy a span instead of remembering words."""

import random
import string
from collections.abc import Mapping, Sequence
from typing import Any

from tokencredit.data.records import DEFAULT_FIELDS, Record, RecordFields, locate
from tokencredit.errors import InputError


def scramble_spans(
    text: str, records: Sequence[Record], rng: random.Random, *, fields: RecordFields = DEFAULT_FIELDS
) -> tuple[str, list[Record]]:
    """Replace the letters and digits inside every span, in the text and in its record alike.

    Letters become random ASCII letters of the same case and decimal digits random ASCII digits; anything else,
    letters without case among it, stays. Lengths do not change.

    Args:
        text: The document.
        records: Its records, whose spans stand in the text one after the other.
        rng: Source of all randomness.
        fields: The records' keys.

    Returns:
        The new text and new records; both as given if a span is not found in its turn.
    """
    places = locate(text, (record[fields.span] for record in records))
    if places is None:
        return text, list(records)
    pieces: list[str] = []
    scrambled: list[Record] = []
    done = 0
    for record, (start, end) in zip(records, places, strict=True):
        span = "".join(_scramble(character, rng) for character in text[start:end])
        pieces += [text[done:start], span]
        scrambled.append({**record, fields.span: span})
        done = end
    return "".join(pieces) + text[done:], scrambled


def augment(
    rows: Sequence[Mapping[str, Any]],
    *,
    copies: int,
    share: float,
    seed: int,
    text_column: str = "text",
    records_column: str = "results",
    fields: RecordFields = DEFAULT_FIELDS,
) -> list[dict[str, Any]]:
    """Repeat a labelled data set, with some rows' spans scrambled afresh in each repetition.

    Args:
        rows: Rows with a text and its records; further columns are kept.
        copies: How many passes over the rows, at least 1.
        share: Probability that a row is scrambled, in each pass.
        seed: Seed of all randomness.
        text_column: Column of the text.
        records_column: Column of the records.
        fields: The records' keys.

    Returns:
        `copies * len(rows)` rows, pass after pass, each in the order given.

    Raises:
        InputError: `copies` is below 1, or `share` is not a probability.
    """
    if copies < 1:
        raise InputError("copies", f"{copies} passes over the rows give no data", "give at least 1")
    if not 0 <= share <= 1:
        raise InputError("share", f"{share} is not a probability", "give a number from 0 to 1")
    rng = random.Random(seed)
    result = []
    for _ in range(copies):
        for row in rows:
            text, records = row[text_column], row[records_column]
            if rng.random() < share:
                text, records = scramble_spans(text, records, rng, fields=fields)
            result.append({**row, text_column: text, records_column: records})
    return result


def _scramble(character: str, rng: random.Random) -> str:
    if character.isupper():
        return rng.choice(string.ascii_uppercase)
    if character.islower():
        return rng.choice(string.ascii_lowercase)
    if character.isdecimal():
        return rng.choice(string.digits)
    return character
