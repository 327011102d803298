"""Where sampled tokens stand in the text that they decode to, piece by piece; nothing is tokenised again."""

from collections.abc import Sequence
from itertools import takewhile
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
    settled = 0  # tokens whose characters are all complete; they wrote `text`
    reached, idle = 0, 0
    for place in range(len(ids)):
        first = max(0, settled - _CONTEXT)
        before = _decode(tokenizer, ids[first:settled])
        piece = _decode(tokenizer, ids[first : place + 1])[len(before) :]
        finished = len(piece.rstrip(_UNFINISHED))
        idle = idle + 1 if len(text) + finished == reached else 1
        if idle >= _LONGEST or place + 1 == len(ids):
            finished = len(piece)
        unfinished = finished < len(piece)
        offsets.append((reached, len(text) + finished + int(unfinished)))
        reached = len(text) + finished
        if not unfinished:
            text, settled, idle = text + piece, place + 1, 0
    return text, offsets


def _by_prefixes(tokenizer: Any, ids: Sequence[int], whole: str) -> Offsets:
    """Decode every prefix, for decoders in which a token changes what more than the last few wrote."""
    offsets, reached = [], 0
    for place in range(len(ids)):
        prefix = _decode(tokenizer, ids[: place + 1])
        common = max(reached, _shared(prefix, whole))
        offsets.append((reached, min(len(whole), common + int(common < len(prefix)))))
        reached = common
    return offsets


def _shared(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
