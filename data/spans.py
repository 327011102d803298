"""From characters to tokens and back.

A token belongs to a span of characters if the two overlap. Offsets are `(start, end)` in characters of the text,
half-open, one per token; a token of no width belongs to nothing.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NotRequired, TypedDict

from tokencredit.errors import InputError

Offsets = Sequence[tuple[int, int]]


class Span(TypedDict):
    """A piece of a response: `[start, end)` in characters, with its weight or the label that a recipe weights."""

    start: int
    end: int
    weight: NotRequired[float]
    label: NotRequired[str]


def token_offsets(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenise a text without special tokens and say which characters each token covers.

    Args:
        tokenizer: A fast Transformers tokenizer.
        text: The text.

    Returns:
        Token ids `[T]` and offsets `[T]`.

    Raises:
        InputError: The tokenizer is a slow one, which knows no offsets.
    """
    require_offsets(tokenizer)
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoding["input_ids"]), [(start, end) for start, end in encoding["offset_mapping"]]


def require_offsets(tokenizer: Any) -> None:
    """Refuse a tokenizer that does not say which characters its tokens cover.

    Raises:
        InputError: The tokenizer is a slow one, which knows no offsets.
    """
    if not tokenizer.is_fast:
        problem = f"{type(tokenizer).__name__} is not a fast tokenizer and gives no character offsets"
        raise InputError("tokenizer", problem, "load one backed by the tokenizers library (AutoTokenizer does)")


def chars_to_tokens(offsets: Offsets, start: int, end: int) -> list[int]:
    """Find the tokens that overlap the characters `[start, end)`.

    Args:
        offsets: Token offsets `[T]`.
        start: First character.
        end: One past the last character; an empty span has no tokens.

    Returns:
        Indices of the tokens, ascending.

    Raises:
        InputError: The span is reversed, or reaches outside the text that the tokens cover.
    """
    (found,) = tokens_of(offsets, [(start, end)])
    return found


def tokens_of(offsets: Offsets, spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """`chars_to_tokens` of many spans in one pass over the tokens."""
    length = max((token_end for _, token_end in offsets), default=0)
    for start, end in spans:
        if not 0 <= start <= end <= length:
            problem = f"[{start}, {end}) is not inside the {length} characters that the tokens cover"
            raise InputError("span", problem, "count start and end in characters of the response, 0 <= start <= end")
    # Starts of tokens with a width; they and their ends ascend, so that a bisection finds the first and the last.
    wide = [(first, last, i) for i, (first, last) in enumerate(offsets) if first < last]
    if any(a[0] > b[0] or a[1] > b[1] for a, b in pairwise(wide)):
        return [[i for first, last, i in wide if max(first, start) < min(last, end)] for start, end in spans]
    firsts, lasts = [first for first, _, _ in wide], [last for _, last, _ in wide]
    found = []
    for start, end in spans:
        inside = wide[bisect_right(lasts, start) : bisect_left(firsts, end)] if start < end else []
        found.append([i for _, _, i in inside])
    return found


def tokens_to_chars(offsets: Offsets, first: int, last_exclusive: int) -> tuple[int, int]:
    """Give the characters that a run of tokens covers.

    Args:
        offsets: Token offsets `[T]`.
        first: Index of the first token.
        last_exclusive: One past the index of the last token.

    Returns:
        `(start, end)`, half-open; `(0, 0)` if no token of the run has a width.

    Raises:
        InputError: The run reaches outside the tokens.
    """
    if not 0 <= first <= last_exclusive <= len(offsets):
        problem = f"[{first}, {last_exclusive}) is not inside the {len(offsets)} tokens"
        raise InputError("token run", problem, "give 0 <= first <= last_exclusive <= number of tokens")
    wide = [(start, end) for start, end in offsets[first:last_exclusive] if start < end]
    return min((start for start, _ in wide), default=0), max((end for _, end in wide), default=0)


def spread(offsets: Offsets, spans: Sequence[tuple[int, int, float]], default: float = 1.0) -> list[float]:
    """Turn weighted spans of characters into one weight per token.

    Where spans overlap the largest of their weights wins, be it above or below the default. Spread over all tokens of
    a response before cutting it to a length: a span outside the tokens is refused.

    Args:
        offsets: Token offsets `[T]`.
        spans: `(start, end, weight)` in characters.
        default: The weight of tokens that no span covers.

    Returns:
        Weights `[T]`.

    Raises:
        InputError: A span is reversed, or reaches outside the text that the tokens cover.
    """
    weights: list[float | None] = [None] * len(offsets)
    tokens = tokens_of(offsets, [(start, end) for start, end, _ in spans])
    for (_, _, weight), covered in zip(spans, tokens, strict=True):
        for i in covered:
            known = weights[i]
            weights[i] = weight if known is None else max(known, weight)
    return [default if weight is None else weight for weight in weights]
