import pytest

from tokencredit.data.records import RecordFields, field_spans, locate, ontology, parse_records

A = {"code": "Street", "subcode": "Name", "span": "Main"}
B = {"code": "Box", "subcode": "Type", "span": "PO Box"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"code":"Street","subcode":"Name","span":"Main"}]', [A]),
        ('{"results":[{"code":"Street","subcode":"Name","span":"Main"}]}', [A]),
        ("[]", []),
        ('{"any":[]}', []),
        (' [{"span":"Main","code":"Street","subcode":"Name","note":null}] ', [{**A, "note": None}]),
        ('{"results":[],"more":1}', None),
        ('{"results":{}}', None),
        ("{}", None),
        ("null", None),
        ('"[]"', None),
        ("[1]", None),
        ("[[]]", None),
        ('[{"code":"Street","subcode":"Name"}]', None),
        ('[{"code":"Street","subcode":"Name","span":1}]', None),
        ('[{"code":"Street","subcode":"Name","span":"Main","note":NaN}]', None),
        ('[{"code":"Street","subcode":"Name","span":"Main"}] done', None),
        ('[{"code":"Street","subcode":"Name","span":"Ma', None),
        ("", None),
        ("[" * 100_000, None),
    ],
)
def test_parse_records(text, expected):
    assert parse_records(text) == expected


def test_field_names_are_parameters():
    fields = RecordFields(label="type", sublabel="kind", span="evidence")
    text = '[{"type":"a","kind":"b","evidence":"c"}]'
    assert parse_records(text) is None
    (record,) = parse_records(text, fields)
    assert fields.triple(record) == ("a", "b", "c")
    assert ontology([[record]], fields) == {"a": ["b"]}


def test_ontology_is_sorted_whatever_the_order():
    c = {"code": "Street", "subcode": "Direction", "span": "N"}
    expected = {"Box": ["Type"], "Street": ["Direction", "Name"]}
    for documents in ([[A, B], [c, A]], [[c], [], [B, A]]):
        result = ontology(documents)
        assert result == expected
        assert list(result) == ["Box", "Street"]


def test_locate_reads_on_from_the_end_of_the_span_before():
    assert locate("Avila Beach Drive, Avila Beach", ["Avila Beach", "Drive", "Avila Beach"]) == [
        (0, 11),
        (12, 17),
        (19, 30),
    ]
    assert locate("aab", ["aa", "ab"]) is None
    assert locate("ab", ["b", "a"]) is None
    assert locate("", []) == []


@pytest.mark.parametrize(
    ("answer", "parts"),
    [
        ('[{"code":"A","subcode":"x","span":"a\\"b","note":"n"}]', ["A", "x", 'a\\"b']),
        ('{"results": [{"span": "s", "code": "A", "subcode": "x"}]}', ["s", "A", "x"]),
        ('[{"code":"A","subcode":"x","span":"s","more":[{"code":"B"}]}]', ["A", "x", "s"]),
        ("[]", []),
        ('[{"code":"A"}]', []),
        ("oops", []),
    ],
)
def test_field_spans_are_those_of_the_records_themselves(answer: str, parts: list[str]) -> None:
    assert [answer[span["start"] : span["end"]] for span in field_spans(answer)] == parts
