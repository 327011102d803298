"""What a reward function gets, what it may give back, and the one form that becomes of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NotRequired, TypedDict

Status = Literal["ok", "abstain", "timeout", "error"]

Completion = str | list[dict[str, Any]]


class ValueSpan(TypedDict):
    """A piece of a completion, `[start, end)` in characters of its text, with what it adds to the reward."""

    start: int
    end: int
    value: float
    label: NotRequired[str]


@dataclass(frozen=True)
class Reward:
    """The reward of one completion.

    Args:
        score: What the function gave as the score of the whole, if it did.
        tokens: One value per sampled token, if the function gave those.
        spans: Pieces of the text with values, if the function gave those.
    """

    score: float | None = None
    tokens: list[float] | None = None
    spans: list[ValueSpan] | None = None

    @property
    def value(self) -> float:
        """The row's scalar: the score if there is one, else the sum of the values of the tokens or spans."""
        if self.score is not None:
            return self.score
        if self.tokens is not None:
            return math.fsum(self.tokens)
        return math.fsum(span["value"] for span in self.spans or ())


class RewardError(ValueError):
    """A reward function gave something that is no reward."""


def text_of(completion: Completion) -> str:
    """The text of a completion: itself, or what its last chat message says."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, list):  # content blocks
        return "".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
    return content or ""


def read_item(item: Any, completion: Completion, token_count: int | None) -> Reward | None:
    """Bring one item that a function returned into the one form.

    Args:
        item: A number; None (abstain); a list with one number per sampled token; a list of spans `{start, end, value}`;
            or `{"score": …}` with `"tokens"` or `"spans"` beside it.
        completion: The completion it belongs to.
        token_count: How many tokens were sampled, where that is known.

    Returns:
        The reward, or None for an abstention.

    Raises:
        RewardError: It is none of these, a value or their sum is not finite, a span reaches outside the text, or there
            are not as many values as tokens.
    """
    if item is None:
        return None
    reward = _read(item, completion, token_count)
    try:
        _ = reward.value
    except OverflowError:
        raise RewardError("values whose sum is not finite") from None
    return reward


def _read(item: Any, completion: Completion, token_count: int | None) -> Reward:
    if isinstance(item, Mapping):
        return _read_mapping(item, completion, token_count)
    if isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
        return _read_list(list(item), completion, token_count)
    if getattr(item, "ndim", 0) == 1:  # a tensor or an array with one value per token
        return _read_list(list(item.tolist()), completion, token_count)
    return Reward(score=_number(item))


def _read_mapping(item: Mapping[str, Any], completion: Completion, token_count: int | None) -> Reward:
    unknown = sorted(set(map(str, item)) - {"score", "tokens", "spans"})
    if unknown:
        raise RewardError(f"{', '.join(unknown)} in a reward; its keys are score, tokens and spans")
    if item.get("tokens") is not None and item.get("spans") is not None:
        raise RewardError("tokens and spans in one reward; give one of them")
    score = None if item.get("score") is None else _number(item["score"])
    tokens = None if item.get("tokens") is None else _tokens(item["tokens"], token_count)
    spans = None if item.get("spans") is None else _spans(item["spans"], completion)
    if score is None and tokens is None and spans is None:
        raise RewardError("a reward without score, tokens and spans; return None to abstain")
    return Reward(score, tokens, spans)


def _read_list(items: list[Any], completion: Completion, token_count: int | None) -> Reward:
    # An empty list fits both forms: values of no tokens, or nothing to say about any piece.
    if not items and token_count != 0:
        return Reward(spans=[])
    if items and all(isinstance(item, Mapping) for item in items):
        return Reward(spans=_spans(items, completion))
    return Reward(tokens=_tokens(items, token_count))


def _tokens(given: Any, token_count: int | None) -> list[float]:
    if not (hasattr(given, "tolist") or isinstance(given, Sequence)) or isinstance(given, (str, bytes)):
        raise RewardError(f"{type(given).__name__} {str(given)[:80]!r} where a list of numbers should be")
    values = [_number(value) for value in (given.tolist() if hasattr(given, "tolist") else given)]
    if token_count is not None and len(values) != token_count:
        raise RewardError(f"{len(values)} values for {token_count} sampled tokens")
    return values


def _spans(given: Sequence[Any], completion: Completion) -> list[ValueSpan]:
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        raise RewardError(f"{type(given).__name__} {str(given)[:80]!r} where a list of spans should be")
    length = len(text_of(completion))
    return [_span(span, length) for span in given]


_SPAN_KEYS = {"start", "end", "value"}


def _span(span: Any, length: int) -> ValueSpan:
    if not isinstance(span, Mapping) or not _SPAN_KEYS <= set(span) <= {*_SPAN_KEYS, "label"}:
        raise RewardError(f"{str(span)[:80]!r} is no span; give start, end and value, and a label if you like")
    start, end = span["start"], span["end"]
    if not (isinstance(start, int) and isinstance(end, int) and 0 <= start < end <= length):
        raise RewardError(f"span [{start}, {end}) is not inside the {length} characters of the completion, or empty")
    read: ValueSpan = {"start": int(start), "end": int(end), "value": _number(span["value"])}
    return read if span.get("label") is None else {**read, "label": str(span["label"])}


def _number(value: Any) -> float:
    if getattr(value, "ndim", None) == 0 and not isinstance(value, Real):  # a scalar of NumPy or torch
        value = value.item()
    if not isinstance(value, Real):
        raise RewardError(f"{type(value).__name__} {str(value)[:80]!r} where a number should be")
    try:
        number = float(value)
    except OverflowError:
        raise RewardError(f"a {type(value).__name__} that is too large for a float") from None
    if not math.isfinite(number):
        raise RewardError(f"{number} is not finite; return None to abstain")
    return number
