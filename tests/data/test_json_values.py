import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tokencredit.data.json_values import JsonValue, json_values, select
from tokencredit.errors import InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=15,
)


def strict_loads(text):
    def refuse(name):
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def outcome(function, text):
    try:
        return repr(function(text))
    except ValueError:
        return "ValueError"


def at_path(document, path):
    for key in path:
        document = document[key]
    return document


def count(value):
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(count(item) for item in inside)


@given(JSON, st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_every_value_reads_back_from_its_characters(document, indent, ascii_only):
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    values = json_values(text)
    assert values[0].path == ()
    assert values[0].value == json.loads(text)
    assert len({value.path for value in values}) == len(values) == count(document)
    assert [value.start for value in values] == sorted(value.start for value in values)
    for value in values:
        piece = text[value.start : value.end]
        assert json.loads(f'"{piece}"' if isinstance(value.value, str) else piece) == value.value
        assert at_path(document, value.path) == value.value


@given(st.text(alphabet='{}[]",:\\ \n\t01.-+eEtruefalsn\x00\u00a0\ufeffu', max_size=12))
@example('{"a":1,}')
@example("[1,]")
@example("[1 2]")
@example("01")
@example("1.")
@example("-")
@example("1e400")
@example("٣")
@example('"\\ud800"')
@example('"\\u12"')
@example('"a\nb"')
@example("\u00a01")
@example("\ufeff1")
@example('{"a" 1}')
@example("{a:1}")
@example('{"a":1 "b":2}')
@example("NaN")
@example("[-Infinity]")
@example("1 2")
@example("")
def test_accepts_and_refuses_what_json_loads_does(text):
    assert outcome(lambda t: json_values(t)[0].value, text) == outcome(strict_loads, text)


def test_offsets_by_hand():
    text = ' [{"a": "x\\"y", "b" : -1.5e3 } , "\\u00e9", ""]'
    assert [(v.path, v.value, text[v.start : v.end]) for v in json_values(text)] == [
        ((), [{"a": 'x"y', "b": -1500.0}, "é", ""], text[1:]),
        ((0,), {"a": 'x"y', "b": -1500.0}, '{"a": "x\\"y", "b" : -1.5e3 }'),
        ((0, "a"), 'x"y', 'x\\"y'),
        ((0, "b"), -1500.0, "-1.5e3"),
        ((1,), "é", "\\u00e9"),
        ((2,), "", ""),
    ]


def test_of_a_repeated_key_only_the_last_value_is_kept():
    text = '{"a":[1,2],"b":0,"a":"z"}'
    assert json_values(text) == [
        JsonValue((), {"a": "z", "b": 0}, 0, len(text)),
        JsonValue(("b",), 0, 15, 16),
        JsonValue(("a",), "z", 22, 23),
    ]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_deep_nesting_is_a_clear_value_error(opening):
    with pytest.raises(ValueError, match="nested too deeply"):
        json_values(opening * 200_000)


def test_moderate_nesting_is_read():
    text = "[" * 100 + "]" * 100
    assert [(v.start, v.end) for v in json_values(text)] == [(i, 200 - i) for i in range(100)]


DOCUMENT = '{"results":[{"code":"A","span":"x"},{"code":"B","span":"y"}],"a":{"b":1,"0":2},"code":"no"}'


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        (DOCUMENT, "results[].code", ["A", "B"]),
        (DOCUMENT, "results[1].span", ["y"]),
        (DOCUMENT, "results[7].span", []),
        (DOCUMENT, "a.b", [1]),
        (DOCUMENT, "a.0", [2]),
        (DOCUMENT, "a[0]", []),
        (DOCUMENT, "a[]", []),
        (DOCUMENT, "code", ["no"]),
        ('[{"span":"p"},{"span":"q"},3]', "[].span", ["p", "q"]),
        ('[{"span":"p"},3,[4]]', "[]", [{"span": "p"}, 3, [4]]),
        ('[{"span":"p"},3,[4]]', "[2][0]", [4]),
    ],
)
def test_select(text, pattern, expected):
    assert [value.value for value in select(json_values(text), pattern)] == expected


@pytest.mark.parametrize("pattern", ["", ".", "a.", ".a", "a..b", "a.[]", "a[", "a]", "a[x]", "a[-1]", "[]b", "a[ ]"])
def test_malformed_patterns_are_refused(pattern):
    with pytest.raises(InputError, match="path pattern"):
        select([], pattern)


def test_a_label_word_inside_a_span_is_not_the_label():
    text = '[{"code":"Street","span":"Street \\"code\\":\\"Street\\""}]'
    assert [(v.start, v.end) for v in select(json_values(text), "[].code")] == [(10, 16)]
