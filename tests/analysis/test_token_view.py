"""From values to colours, and from responses to the JSON of the page."""

import json
import math
from typing import Any

import numpy as np
import pytest

from tokencredit.analysis.page import embedded
from tokencredit.analysis.token_view import Column, Response, Scale, TokenView, number_scale, short
from tokencredit.errors import InputError

NAN = float("nan")


def view(*columns: Column, **values: list[Any]) -> TokenView:
    size = len(next(iter(values.values())))
    return TokenView([Response("one", ["a"] * size, values)], columns)


@pytest.mark.parametrize(
    ("values", "diverging", "expected"),
    [
        ([-1.0, 0.5, 2.0], None, Scale("diverging", 0.0, 2.0, -1.0, 2.0)),
        ([0.5, 2.0], True, Scale("diverging", 0.0, 2.0, 0.5, 2.0)),
        ([-1.0, 2.0], False, Scale("sequential", -1.0, 2.0, -1.0, 2.0)),
        # The end nearer to 0 has no colour: weights begin at 1, log-probabilities end at 0.
        ([1.0, 1.1, 1.32], None, Scale("sequential", 1.0, 1.32, 1.0, 1.32)),
        ([-4.0, -1.0], None, Scale("sequential", -1.0, -4.0, -4.0, -1.0)),
        ([-4.0, -0.001], None, Scale("sequential", 0.0, -4.0, -4.0, -0.001)),
        ([1.0, 1.0], None, Scale("constant", 1.0, 1.0, 1.0, 1.0)),
        ([0.0, 0.0], True, Scale("constant", 0.0, 0.0, 0.0, 0.0)),
        ([3.0], True, Scale("diverging", 0.0, 3.0, 3.0, 3.0)),
        ([], None, Scale("constant")),
        ([NAN, math.inf, 1.0, 2.0], None, Scale("sequential", 1.0, 2.0, 1.0, 2.0)),
    ],
)
def test_scales(values: list[float], diverging: bool | None, expected: Scale) -> None:
    assert number_scale(values, diverging) == expected


def test_a_rare_large_value_does_not_pale_the_rest() -> None:
    scale = number_scale([0.01 * n for n in range(1, 100)] + [1000.0, -0.5])
    assert scale.limit == 0.98
    assert scale.most == 1000.0
    assert [scale.strength(value) for value in (1000.0, 0.49, 0.0, -0.49, -3.0)] == [1.0, 0.5, 0.0, -0.5, -1.0]
    assert [scale.strength(value) for value in (None, NAN, math.inf)] == [0.0] * 3


def test_values_that_are_all_zero_but_few_are_still_seen() -> None:
    scale = number_scale([0.0] * 1000 + [1.0])
    assert (scale.neutral, scale.limit) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456, 0.1235),
        (-1234567.0, -1235000.0),
        (1.100000023841858, 1.1),
        (2.0, 2),
        (0.0, 0),
        (128009, 128009),
        (np.int64(128009), 128009),
        (np.float32(1.1), 1.1),
        (True, 1),
        (None, None),
        (NAN, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_keep_four_digits_and_whole_ones_all(value: Any, expected: Any) -> None:
    found = short(value)
    assert found == expected
    assert json.loads(json.dumps(found)) == expected


def test_payload_stores_texts_once_and_values_by_column() -> None:
    shared = {"prompt": "p", "group": "g"}
    responses = [
        Response("x", ["a", "b", "a"], {"w": [1.0, None, NAN], "kind": ["u", "v", None]}, side="chosen", **shared),
        Response("y", ["b"], {"w": [2.0]}, step=3, run="r"),
    ]
    found = TokenView(responses, [Column("kind"), Column("missing"), Column("w", "weight")]).payload()
    assert found["texts"] == ["p", "a", "b", ""]
    assert [column["name"] for column in found["columns"]] == ["kind", "w"], "those that a response has, as listed"
    assert found["columns"][0]["labels"] == ["u", "v"]
    assert found["columns"][1] | {"meaning": "weight", "neutral": 1, "limit": 2} == found["columns"][1]
    first, second = found["responses"]
    assert first["tokens"] == [1, 2, 1]
    assert first["values"] == [[0, 1, None], [1, None, "NaN"]]
    assert second["values"] == [None, [2]]
    assert (first["prompt"], second["prompt"], second["step"], second["run"]) == (0, 3, 3, "r")


def test_arrays_are_columns_too() -> None:
    found = view(a=np.array([0.5, -1.0], dtype=np.float32)).payload()  # type: ignore[arg-type]
    assert found["responses"][0]["values"] == [[0.5, -1]]


def test_the_first_column_colours_unless_another_is_asked_for() -> None:
    found = view(Column("ids", coloured=False), Column("b"), ids=[1], a=[1.0], b=[2.0])
    assert list(found.used) == ["ids", "b", "a"]
    assert found.start() == "b"
    assert found.start("a") == "a"
    assert view(Column("ids", coloured=False), ids=[1]).start() is None
    with pytest.raises(InputError, match="--column: no column 'ids'; there are b, a"):
        found.start("ids")


def test_columns_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="pair 3: 2 values of 'w' for 3 tokens; give one value per token"):
        Response("pair 3", ["a", "b", "c"], {"w": [1.0, 2.0]})
    with pytest.raises(InputError, match="w: holds both numbers and texts"):
        _ = view(w=[1.0, "a"]).scales


def test_embedded_json_is_ascii_and_cannot_end_its_element() -> None:
    hostile = ["</script><script>x", "<!--<script>", "\u2028\u2029", "\0", "é😀", "\ud800", "&lt;"]
    found = embedded(hostile)
    assert found.isascii()
    assert not set(found) & set("<>&\0")
    assert json.loads(found) == hostile
