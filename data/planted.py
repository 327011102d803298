"""Gold records with errors planted in them on purpose, so that it is known which tokens are wrong."""

import random
import re
import string
from collections.abc import Callable, Sequence

from tokencredit.data.negatives import Ontology
from tokencredit.data.records import DEFAULT_FIELDS, Record, RecordFields

_WORD = re.compile(r"\w+")

Other = Callable[[str, random.Random], str | None]
"""Piece of a span → what to write in its place, or None where there is nothing."""


def plant_error(
    records: Sequence[Record],
    *,
    ontology: Ontology,
    rng: random.Random,
    other: Other,
    fields: RecordFields = DEFAULT_FIELDS,
) -> tuple[list[Record], str] | None:
    """Put one wrong value in a list of records: a label, a sub-label, or one word of a span, each equally often.

    The names are of the ontology, but need not go together: an error for measuring, not for training on.

    Args:
        records: Right records.
        ontology: Label → sub-labels.
        rng: Source of all randomness.
        other: What to write in place of a word of a span.
        fields: The records' keys.

    Returns:
        The records with the error and which field it is in (`label`, `sublabel` or `span`); None without records or
        without another value.
    """
    if not records:
        return None
    index = rng.randrange(len(records))
    label, sublabel, span = fields.triple(records[index])
    kind = rng.choice(("label", "sublabel", "span"))
    key, value = dict(zip(("label", "sublabel", "span"), fields.names, strict=True))[kind], None
    if kind == "span":
        words = [match.span() for match in _WORD.finditer(span)]
        start, end = rng.choice(words) if words else (0, 0)
        word = other(span[start:end], rng) if words else None
        value = None if word is None else span[:start] + word + span[end:]
    else:
        names = {"label": list(ontology), "sublabel": sorted({name for names in ontology.values() for name in names})}
        others = [name for name in names[kind] if name != {"label": label, "sublabel": sublabel}[kind]]
        value = rng.choice(others) if others else None
    if value is None:
        return None
    return [*records[:index], {**records[index], key: value}, *records[index + 1 :]], kind


def one_letter(word: str, rng: random.Random) -> str:
    """The word with one character replaced by another of its kind, as by a model that copies badly."""
    place = rng.randrange(len(word))
    kinds = (string.digits, string.ascii_uppercase, string.ascii_lowercase)
    kind = next((kind for kind in kinds if word[place] in kind), string.ascii_lowercase)
    return word[:place] + rng.choice(kind.replace(word[place], "")) + word[place + 1 :]


def word_of(words: Sequence[str]) -> Other:
    """A function that replaces a word by another of the given ones that has as many digits, or as few."""

    def other(word: str, rng: random.Random) -> str | None:
        digits = sum(character.isdigit() for character in word)
        alike = [known for known in words if known != word and sum(map(str.isdigit, known)) == digits]
        return rng.choice(alike) if alike else None

    return other


def words_in(texts: Sequence[str]) -> list[str]:
    """Every word of the texts once, sorted."""
    return sorted({match for text in texts for match in _WORD.findall(text)})
