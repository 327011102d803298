"""Where sampled tokens stand in the text that they decode to, piece by piece; nothing is tokenised again."""

from collections.abc import Sequence
from itertools import takewhile
from math import isqrt
from typing import Any, Protocol

from tokencredit.data.spans import Offsets, tokens_of
from tokencredit.errors import InputError

_UNFINISHED = "\ufffd"
_LONGEST = 4
"""Bytes of the longest UTF-8 character: after so many tokens an unfinished one is a replacement character for good."""
_CONTEXT = 4
"""Tokens decoded before a piece, so that it is not taken for the beginning of the text."""


class Valued(Protocol):
    """What is needed of a span: `start`, `end` and `value`."""

    def __getitem__(self, key: str, /) -> Any: ...


def sampled_offsets(tokenizer: Any, ids: Sequence[int]) -> tuple[str, Offsets]:
    """Decode sampled ids and say which characters of the text each of them wrote.

    The tokens that share the bytes of one character all cover it. Special tokens are not part of the text and have
    width zero.

    Args:
        tokenizer: A Transformers tokenizer of any kind.
        ids: Sampled ids `[T]`.

    Returns:
        The text, which is `tokenizer.decode(ids, skip_special_tokens=True)`, and offsets `[T]`.
    """
    whole = _decode(tokenizer, ids)
    text, offsets = _by_pieces(tokenizer, ids)
    return (whole, offsets) if text == whole else (whole, _by_prefixes(tokenizer, ids, whole))


def offsets_within(text: str, offsets: Offsets, part: str) -> Offsets | None:
    """The offsets in a part of the text, such as the answer without the white space around it.

    Args:
        text: What `sampled_offsets` decoded.
        offsets: Of its tokens `[T]`.
        part: The part.

    Returns:
        Offsets `[T]`, of width zero outside the part; None if the part does not stand in the text exactly once.
    """
    begin = text.find(part)
    if begin < 0 or (part and text.find(part, begin + 1) >= 0):
        return None
    last = len(part)
    return [(min(max(start - begin, 0), last), min(max(end - begin, 0), last)) for start, end in offsets]


def span_values(offsets: Offsets, spans: Sequence[Valued]) -> list[float]:
    """Turn spans with values into one value per token; what the spans add up to, the tokens do.

    The value of a span is shared out evenly among its tokens; where spans overlap, values add up.

    Args:
        offsets: Token offsets `[T]`.
        spans: Mappings with `start`, `end` and `value`, in characters.

    Returns:
        Values `[T]`, 0 where no span is.

    Raises:
        InputError: A span reaches outside the text that the tokens cover, or no token wrote it.
    """
    values = [0.0] * len(offsets)
    places = tokens_of(offsets, [(span["start"], span["end"]) for span in spans])
    for span, covered in zip(spans, places, strict=True):
        if not covered:
            problem = f"no token wrote the characters [{span['start']}, {span['end']})"
            raise InputError("span", problem, "give spans of the text that was sampled")
        for token in covered:
            values[token] += span["value"] / len(covered)
    return values


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _by_pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, Offsets]:
    """Decode each token after the few before it: as many steps as tokens."""
    text, offsets = "", []
    settled = [0]  # places where the characters of all tokens before are complete; those before the last wrote `text`
    reached, idle = 0, 0
    for place in range(len(ids)):
        first = next((at for at in reversed(settled) if settled[-1] - at >= _CONTEXT), 0)
        before = _decode(tokenizer, ids[first : settled[-1]])
        piece = _decode(tokenizer, ids[first : place + 1])[len(before) :]
        finished = len(piece.rstrip(_UNFINISHED))
        idle = idle + 1 if len(text) + finished == reached else 1
        if idle >= _LONGEST or place + 1 == len(ids):
            finished = len(piece)
        unfinished = finished < len(piece)
        offsets.append((reached, len(text) + finished + int(unfinished)))
        reached = len(text) + finished
        if not unfinished:
            text, idle = text + piece, 0
            settled.append(place + 1)
    return text, offsets


def _by_prefixes(tokenizer: Any, ids: Sequence[int], whole: str) -> Offsets:
    """For decoders in which a token changes what more than the last few wrote, from the text of whole prefixes.

    Decoding every prefix takes a time that grows with the square of T. So it is about every √T-th one, where no
    character is cut, and in between the tokens since then.
    """
    step = isqrt(len(ids)) + 1
    offsets: list[tuple[int, int]] = []
    context = first = reached = ahead = 0  # ahead: characters of the prefix that do not stay as they are
    while first < len(ids):
        last = _clean_cut(tokenizer, ids, first + step, first + 4 * step)
        prefix = _decode(tokenizer, ids[:last])
        exact = max(reached, _shared(prefix, whole))
        base, known = reached, max(0, len(_decode(tokenizer, ids[context:first])) - ahead)
        for place in range(first, last):
            text = prefix[base:] if place + 1 == last else _decode(tokenizer, ids[context : place + 1])[known:]
            common = base + _shared(text, whole[base : base + len(text)])
            common = exact if place + 1 == last else min(exact, max(reached, common))
            offsets.append((reached, min(len(whole), common + int(common < base + len(text)))))
            reached = common
        context, first, ahead = first, last, len(prefix) - reached
    return offsets


def _clean_cut(tokenizer: Any, ids: Sequence[int], wanted: int, latest: int) -> int:
    """The first place from one on between tokens that are characters by themselves, or the latest."""
    for place in range(wanted, min(latest, len(ids))):
        if all(_UNFINISHED not in _decode(tokenizer, [token]) for token in ids[place - 1 : place + 1]):
            return place
    return min(latest, len(ids))


def _shared(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
