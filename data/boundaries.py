"""Spans that are nearly right: a boundary one word off, or the word beside. Our own choice [O], no paper's."""

import re

_WORD = re.compile(r"\w(?:\S*\w)?")
"""A word without the punctuation around it."""


def other_boundaries(text: str, start: int, end: int) -> list[str]:
    """Pieces of a text that differ from `text[start:end]` by one word.

    Args:
        text: The document.
        start: First character of the span.
        end: One past its last character.

    Returns:
        The span with one word more or less on either side, and the word before and after it, where there are such
        words; each once, none of them empty or equal to the span.
    """
    words = [match.span() for match in _WORD.finditer(text)]
    before = [word for word in words if word[1] <= start]
    inside = [word for word in words if start <= word[0] and word[1] <= end]
    after = [word for word in words if word[0] >= end]
    places = []
    if before:
        places += [(before[-1][0], end), before[-1]]
    if after:
        places += [(start, after[0][1]), after[0]]
    if len(inside) > 1:
        places += [(inside[1][0], end), (start, inside[-2][1])]
    pieces = dict.fromkeys(text[slice(*place)] for place in places)
    return [piece for piece in pieces if piece != text[start:end]]
