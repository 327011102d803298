"""Weighters: (example, response text, token offsets) → raw weights, one per token, 1 where nothing is said.

`example` is the data row plus `side` ("chosen", "rejected" or "completion"), `response_ids` (the ids that the offsets
belong to) and, for a pair, `other_ids` (those of the other side). A weighter sees the whole response: cut weights to a
length after they are made, never the offsets before.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any

from tokencredit.data.alignment import differing_tokens
from tokencredit.data.functions import load_function
from tokencredit.data.json_values import json_values as parse_json
from tokencredit.data.json_values import select
from tokencredit.data.spans import Offsets, Span, chars_to_tokens, spread, tokens_of
from tokencredit.errors import InputError

Example = Mapping[str, Any]
Weighter = Callable[[Example, str, Offsets], Sequence[float]]

TAB_PO_WEIGHTS: Mapping[str, Any] = {"json": {"[].code": 1.1, "[].subcode": 1.2, "[].span": 1.1}, "differing": 1.2}
"""Published weights for records with code, sub-code and span (TAB-PO, arXiv 2603.00025) [C]."""


class Alarms:
    """Counts by name what a run can live with but somebody should hear of; each name is logged once.

    Args:
        quiet: Collect for `drain` instead of logging.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.counts: Counter[str] = Counter()
        self.details: dict[str, str] = {}

    def sound(self, name: str, detail: str) -> None:
        """Count an alarm, and log it with its detail if it is the first of its name."""
        self.counts[name] += 1
        self.details.setdefault(name, detail)
        if self.counts[name] == 1 and not self.quiet:
            logging.getLogger("tokencredit").warning("%s: %s (logged once)", name, detail)

    def drain(self) -> dict[str, str]:
        """What sounded since the last call, name → first detail."""
        found, self.details = self.details, {}
        self.counts.clear()
        return found


ALARMS = Alarms()
"""What sounds where nothing else is given."""


def json_values(paths: Mapping[str, float], *, alarms: Alarms = ALARMS) -> Weighter:
    """Weight the tokens that overlap values of a JSON response; where values share a token the larger weight wins.

    Args:
        paths: Pattern of `tokencredit.data.json_values.select`, such as `results[].code` → weight.
        alarms: Hears of a response that is not JSON (its weights are all 1) and of a pattern that matches nothing.

    Raises:
        InputError: A pattern cannot be read, or a weight is not a positive number.
    """
    for pattern, weight in paths.items():
        select([], pattern)
        _positive(weight, f"token_weights.json.{pattern}")

    def weigh(example: Example, text: str, offsets: Offsets) -> list[float]:
        try:
            values = parse_json(text)
        except ValueError as error:
            alarms.sound("response is not JSON", f"{_place(example)}, {error}")
            return [1.0] * len(offsets)
        weighted = []
        for pattern, weight in paths.items():
            matches = select(values, pattern)
            weighted += [(value.start, value.end, weight) for value in matches]
            if not matches:
                alarms.sound(f"path {pattern} matches nothing", _place(example))
        return spread(offsets, weighted)

    return weigh


def differing(weight: float = 1.2) -> Weighter:
    """Weight the tokens of one side of a pair that stand outside its alignment with the other side.

    The weight 1.2 is published (TAB-PO, arXiv 2603.00025) [C].

    Raises:
        InputError: The weight is not a positive number; or, when called, the example has no other side.
    """
    _positive(weight, "token_weights.differing")

    def weigh(example: Example, text: str, offsets: Offsets) -> list[float]:
        ids, other = example["response_ids"], example.get("other_ids")
        if other is None:
            remedy = "use differing on preference pairs only"
            raise InputError("token_weights.differing", f"{_place(example)} has no other side", remedy)
        # Always aligned in the same order: difflib may align (a, b) and (b, a) differently.
        mask = differing_tokens(other, ids)[1] if example["side"] == "rejected" else differing_tokens(ids, other)[0]
        return [weight if differs else 1.0 for differs in mask]

    return weigh


def spans(labels: Mapping[str, float] | None = None, *, column: str | None = None, alarms: Alarms = ALARMS) -> Weighter:
    """Weight the tokens that overlap spans given in the data; where spans share a token the larger weight wins.

    Args:
        labels: Label → weight for spans that carry a label instead of a weight; other labels weigh 1. None requires
            a weight on every span.
        column: Column that holds the spans, `{start, end, weight}` or `{start, end, label}` in characters of the
            response; by default `chosen_spans`, `rejected_spans` or `completion_spans`. Null is no span.
        alarms: Hears of a span that maps to no token, and of a label in `labels` that a response does not have.

    Raises:
        InputError: A weight in `labels` is not a positive number; or, when called, the column is missing, a span is
            outside the text, has neither weight nor label, or its weight is negative or not finite.
    """
    for label, weight in (labels or {}).items():
        _positive(weight, f"token_weights.spans.{label}")

    def weigh(example: Example, text: str, offsets: Offsets) -> list[float]:
        name = column or f"{example['side']}_spans"
        if name not in example:
            raise InputError("token_weights.spans", f"there is no column {name!r}", "add it to the data, or drop spans")
        given = _spans(example, name, text, offsets)
        present = [span.get("label") for span in given]
        for label in labels or ():
            if label not in present:
                alarms.sound(f"span label {label} matches nothing", _place(example))
        weighted = []
        for span in given:
            if not chars_to_tokens(offsets, span["start"], span["end"]):
                alarms.sound("span that maps to no token", f"{name} {span} in {_place(example)}")
            weight = _span_weight(span, name, labels)
            if weight is not None:
                weighted.append((span["start"], span["end"], weight))
        return spread(offsets, weighted)

    return weigh


def function(dotted: str) -> Weighter:
    """A weighter of the user's own.

    Args:
        dotted: `module:function`, called as `fn(example, text, offsets)`, which returns one number per token.

    Raises:
        InputError: There is no such function; or, when called, what it returns is not one finite number ≥ 0 per token.
    """
    where, remedy = f"token_weights.function {dotted}", "return one finite number >= 0 per token"
    user_function = load_function(dotted, "token_weights.function")
    try:
        signature(user_function).bind({}, "", [])
    except (TypeError, ValueError) as error:
        raise InputError(where, f"cannot be called ({error})", "take example, text and offsets") from None

    def weigh(example: Example, text: str, offsets: Offsets) -> list[float]:
        returned = user_function(example, text, offsets)
        try:
            weights = [float(weight) for weight in returned]
        except (TypeError, ValueError) as error:
            raise InputError(where, f"returned {returned!r} for {_place(example)}", remedy) from error
        if len(weights) != len(offsets):
            problem = f"returned {len(weights)} weights for the {len(offsets)} tokens of {_place(example)}"
            raise InputError(where, problem, remedy)
        for token, weight in enumerate(weights):
            if not 0 <= weight < math.inf:
                raise InputError(where, f"returned {weight} for token {token} of {_place(example)}", remedy)
        return weights

    return weigh


def compose(weighters: Sequence[Weighter]) -> Weighter:
    """The product of several weighters; of none, ones."""

    def weigh(example: Example, text: str, offsets: Offsets) -> list[float]:
        product = [1.0] * len(offsets)
        for weighter in weighters:
            product = [a * b for a, b in zip(product, weighter(example, text, offsets), strict=True)]
        return product

    return weigh


def text_only(weighter: Weighter, *, alarms: Alarms = ALARMS) -> Weighter:
    """Give tokens without text (padding, end of turn) weight 1.

    `alarms` hears of another weight on such a token, and of a response in which no token is weighted.
    """

    def weigh(example: Example, text: str, offsets: Offsets) -> list[float]:
        given = weighter(example, text, offsets)
        weights = [w if start < end else 1.0 for w, (start, end) in zip(given, offsets, strict=True)]
        if weights != list(given):
            alarms.sound("weight on padding or end-of-turn", f"{_place(example)}, set to 1")
        if all(weight == 1 for weight in weights):
            alarms.sound("no weighted token in a response", _place(example))
        return weights

    return weigh


def from_recipe(spec: Mapping[str, Any], *, alarms: Alarms = ALARMS) -> Weighter:
    """The weighter of a recipe's `token_weights:`, the product of its entries.

    Args:
        spec: Any of `json: {pattern: weight}`, `differing: weight`, `spans: true` or `{label: weight}`, and
            `function: module:function`.
        alarms: Hears of what each of them, and `text_only`, finds.

    Raises:
        InputError: A key is unknown (naming the nearest), or a value cannot be used (naming its path).
    """
    makers: dict[str, Callable[[Any], Weighter]] = {
        "json": lambda value: json_values(_mapping(value, "json"), alarms=alarms),
        "differing": differing,
        "spans": lambda value: spans(None if value is True else _mapping(value, "spans"), alarms=alarms),
        "function": function,
    }
    if not isinstance(spec, Mapping) or not spec:
        raise InputError("token_weights", f"{spec!r} names no weight", f"write one or more of {', '.join(makers)}")
    for key in spec:
        if key not in makers:
            near = get_close_matches(str(key), makers, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"use {', '.join(makers)}"
            raise InputError(f"token_weights.{key}", "unknown key", remedy)
    return text_only(compose([makers[key](value) for key, value in spec.items()]), alarms=alarms)


def token_classes(example: Example, text: str, offsets: Offsets) -> list[str]:
    """Name what each token belongs to, for diagnostics per class.

    Returns:
        `[T]`: for a token that overlaps a string, number or literal of a JSON response, the last key on the path to
        it; else the label of the span in `<side>_spans` it overlaps; else `"scaffold"`. Of several the first.

    Raises:
        InputError: A span is outside the text.
    """
    try:
        values = parse_json(text)
    except ValueError:
        values = []
    named: list[tuple[int, int, str]] = []
    for value in values:
        keys = [key for key in value.path if isinstance(key, str)]
        if keys and not isinstance(value.value, dict | list):
            named.append((value.start, value.end, keys[-1]))
    labelled = _spans(example, f"{example['side']}_spans", text, offsets)
    named += [(span["start"], span["end"], label) for span in labelled if (label := span.get("label")) is not None]
    classes = ["scaffold"] * len(offsets)
    tokens = tokens_of(offsets, [(start, end) for start, end, _ in named])
    for (_, _, name), covered in reversed([*zip(named, tokens, strict=True)]):
        for token in covered:
            classes[token] = name
    return classes


def _place(example: Example) -> str:
    index = f" of example {example['index']}" if "index" in example else ""
    return f"the {example['side']} response{index}"


def _is_weight(weight: Any) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight < math.inf


def _positive(weight: Any, where: str) -> None:
    if not (_is_weight(weight) and weight > 0):
        raise InputError(where, f"{weight!r} cannot be a weight", "give a finite number > 0")


def _mapping(value: Any, key: str) -> Mapping[str, float]:
    if not (isinstance(value, Mapping) and all(isinstance(name, str) for name in value)):
        raise InputError(f"token_weights.{key}", f"{value!r} is not a mapping", "write name: weight, one a line")
    if not value:
        raise InputError(f"token_weights.{key}", "is empty", "write name: weight, one a line")
    return value


def _spans(example: Example, column: str, text: str, offsets: Offsets) -> list[Span]:
    """The spans in a column, checked against the text and cut to the characters that the tokens cover."""
    # Some tokenizers drop white space at the end of a text.
    covered = max((end for _, end in offsets), default=0)
    given = example.get(column) or ()
    if not (isinstance(given, list | tuple) and all(isinstance(span, Mapping) for span in given)):
        problem = f"{str(given)[:60]!r} in {_place(example)} is no list of spans"
        raise InputError(column, problem, "write [{start: …, end: …, label: …}, …]")
    found: list[Span] = []
    for span in given:
        if not isinstance(span.get("label"), str | None):
            problem = f"{span['label']!r} in {_place(example)} cannot be a label"
            raise InputError(column, problem, "write it as text")
        start, end = span.get("start"), span.get("end")
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= len(text)):
            problem = f"{span} is not inside the {len(text)} characters of {_place(example)}"
            raise InputError(column, problem, "count start and end in characters of the response, 0 <= start <= end")
        found.append({**span, "start": min(start, covered), "end": min(end, covered)})  # type: ignore[typeddict-item]
    return found


def _span_weight(span: Span, column: str, labels: Mapping[str, float] | None) -> float | None:
    """The weight of a span; None if its label has none. A key may be null: Arrow gives all rows the same keys."""
    weight, label = span.get("weight"), span.get("label")
    if weight is None and labels is not None and label is not None:
        return labels.get(label)
    if weight is None:
        raise InputError(column, f"{span} has no weight", "give it one, or map its label in token_weights.spans")
    if not _is_weight(weight):
        raise InputError(column, f"{span} has weight {weight!r}", "give a finite number >= 0")
    return weight
