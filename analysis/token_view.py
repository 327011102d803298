"""Responses whose tokens carry values: the one structure that every token-level report hands over to be shown."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

from tokencredit.errors import InputError

Values = Sequence[float | None] | Sequence[str | None]

_COLOURED_SHARE = 0.98


@dataclass(frozen=True)
class Column:
    """What a column means and how it is coloured.

    Args:
        name: The key in `Response.columns`.
        meaning: One line, shown beside the legend.
        diverging: Whether 0 divides two directions; None decides it by the signs of the numbers.
        coloured: Whether it can be chosen as the colour; what cannot stands only in the details of a token.
        limit: The value of full colour, where it is known beforehand; None finds one that most values stay below.
    """

    name: str
    meaning: str = ""
    diverging: bool | None = None
    coloured: bool = True
    limit: float | None = None


@dataclass(frozen=True)
class Response:
    """One response, token by token.

    Args:
        title: What it is called, e.g. `"pair 3"`.
        tokens: Text of each token; any text.
        columns: Name → one value per token: numbers or None (NaN and ∞ are shown as such), or texts or None.
        side: `"chosen"`, `"rejected"`, or any other kind of response that can be filtered by.
        group: Neighbouring responses with the same group, step and run are shown side by side; "" stands alone.
        step: Of the training run.
        run: Which run it is from, where there are several.
        prompt: What it answers.

    Raises:
        InputError: If a column does not have one value per token.
    """

    title: str
    tokens: Sequence[str]
    columns: Mapping[str, Values] = field(default_factory=dict)
    side: str = ""
    group: str = ""
    step: int | None = None
    run: str = ""
    prompt: str = ""

    def __post_init__(self) -> None:
        for name, values in self.columns.items():
            if len(values) != len(self.tokens):
                problem = f"{len(values)} values of {name!r} for {len(self.tokens)} tokens"
                raise InputError(self.title, problem, "give one value per token, None where there is none")


@dataclass(frozen=True)
class Scale:
    """From the values of a column to colour.

    Args:
        kind: `diverging` has `limit` and −`limit` at its ends and no colour at 0; `sequential` runs from no colour at
            `neutral` to `limit`, in either direction; `constant` has one value or none, and no colour; `labels` has one
            colour per text.
        neutral: The value without colour.
        limit: The value of full colour. Rare values beyond it get the same colour, so that they do not pale the rest.
        least: The smallest value there is.
        most: The largest value there is.
        labels: The texts, in order of appearance.
    """

    kind: Literal["diverging", "sequential", "constant", "labels"]
    neutral: float | None = None
    limit: float = 0.0
    least: float = 0.0
    most: float = 0.0
    labels: tuple[str, ...] = ()

    def strength(self, value: float | None) -> float:
        """Where a number lies between no colour, 0, and full colour, 1 or −1."""
        if value is None or not math.isfinite(value) or self.neutral is None or self.limit == self.neutral:
            return 0.0
        return max(-1.0, min(1.0, (value - self.neutral) / (self.limit - self.neutral)))


@dataclass(frozen=True)
class TokenView:
    """Responses to be shown, and what is known about their columns.

    Args:
        responses: In the order in which they are shown.
        columns: In the order in which they are offered; the first one is the colour at the start. Columns of the
            responses that are not listed follow.

    Raises:
        InputError: If a column holds numbers in one place and texts in another.
    """

    responses: Sequence[Response]
    columns: Sequence[Column] = ()

    @cached_property
    def used(self) -> dict[str, Column]:
        """Name → column, of those that a response has."""
        names = dict.fromkeys(name for response in self.responses for name in response.columns)
        known = {column.name: column for column in self.columns}
        return {name: known.get(name) or Column(name) for name in [*known, *names] if name in names}

    @cached_property
    def scales(self) -> dict[str, Scale]:
        """Name → scale over all responses, so that a colour means the same everywhere."""
        return {name: self._scale(column) for name, column in self.used.items()}

    def _scale(self, column: Column) -> Scale:
        values = [
            value for response in self.responses for value in response.columns.get(column.name, ()) if value is not None
        ]
        texts = [value for value in values if isinstance(value, str)]
        if texts and len(texts) < len(values):
            raise InputError(column.name, "holds both numbers and texts", "use two columns")
        if texts:
            return Scale("labels", labels=tuple(dict.fromkeys(texts)))
        scale = number_scale((value for value in values if not isinstance(value, str)), column.diverging)
        return scale if column.limit is None or scale.kind == "constant" else replace(scale, limit=column.limit)

    def payload(self) -> dict[str, Any]:
        """Everything as JSON: texts once each in a table, numbers with four significant digits."""
        texts: dict[str, int] = {}

        def place(text: str) -> int:
            return texts.setdefault(text, len(texts))

        labels = {name: {text: n for n, text in enumerate(scale.labels)} for name, scale in self.scales.items()}
        responses = [
            {
                "title": response.title,
                "side": response.side,
                "group": response.group,
                "step": response.step,
                "run": response.run,
                "prompt": place(response.prompt),
                "tokens": [place(token) for token in response.tokens],
                "values": [_encoded(response.columns.get(name), labels[name]) for name in self.used],
            }
            for response in self.responses
        ]
        return {"columns": [self._described(name) for name in self.used], "responses": responses, "texts": list(texts)}

    def start(self, column: str | None = None) -> str | None:
        """The column that colours the tokens at first: the given one, else the first; None where none can.

        Raises:
            InputError: If there is no such column, naming those there are.
        """
        known = [name for name, found in self.used.items() if found.coloured]
        if column is not None and column not in known:
            there_are = f"there are {', '.join(known)}" if known else "the tokens have no values"
            raise InputError("--column", f"no column {column!r}", there_are)
        return column or next(iter(known), None)

    def _described(self, name: str) -> dict[str, Any]:
        column, scale = self.used[name], self.scales[name]
        numbers = {key: short(getattr(scale, key)) for key in ("neutral", "limit", "least", "most")}
        about = {"name": name, "meaning": column.meaning, "coloured": column.coloured, "kind": scale.kind}
        return about | (numbers if scale.kind != "labels" else {"labels": list(scale.labels)})


def number_scale(values: Iterable[float], diverging: bool | None = None) -> Scale:
    """The scale of some numbers; those that are not finite take no part."""
    finite = sorted(float(value) for value in values if math.isfinite(value))
    if not finite:
        return Scale("constant")
    least, most = finite[0], finite[-1]
    if diverging is None:
        diverging = least < 0 < most
    if least == most and not (diverging and least):
        return Scale("constant", neutral=least, limit=least, least=least, most=most)
    neutral = 0.0 if diverging else min(least, most, key=abs)
    distances = sorted(abs(value - neutral) for value in finite if value != neutral)
    # Two digits are enough for an end of a scale, and read better in a legend.
    reach = float(f"{distances[math.ceil(_COLOURED_SHARE * len(distances)) - 1]:.2g}")
    if diverging:
        return Scale("diverging", 0.0, reach, least, most)
    if abs(neutral) < 0.01 * reach:
        neutral = 0.0
    return Scale("sequential", neutral, neutral + (reach if neutral <= least else -reach), least, most)


def short(value: Any) -> float | str | None:
    """Any kind of number with four significant digits, integers whole; as text where JSON has no number for it."""
    if value is None:
        return None
    if isinstance(value, Integral):
        return int(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    rounded = float(f"{value:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e6 else rounded


def _encoded(values: Values | None, labels: Mapping[str, int]) -> list[Any] | None:
    if values is None:
        return None
    return [labels[value] if isinstance(value, str) else short(value) for value in values]
