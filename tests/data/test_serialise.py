import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def test_compact_in_key_order_and_unescaped():
    value = {"z": [1, 2.5, None, True], "a": 'é "½" 🙂\n'}
    assert to_json(value) == '{"z":[1,2.5,null,true],"a":"é \\"½\\" 🙂\\n"}'


@given(JSON)
def test_reading_back_and_writing_again_changes_nothing(value):
    text = to_json(value)
    assert json.loads(text) == value
    assert to_json(json.loads(text)) == text


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": -float("inf")}, {1, 2}, "\ud800", b"x"])
def test_what_json_cannot_say_is_refused(value):
    with pytest.raises(InputError, match="value to serialise"):
        to_json(value)


def test_circular_and_bottomless_values_are_refused():
    circle: list = []
    circle.append(circle)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (circle, deep):
        with pytest.raises(InputError):
            to_json(value)
    while deep:  # a value this deep cannot be freed in one recursion
        deep = deep.pop()
