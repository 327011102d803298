import pytest

from tokencredit.data.boundaries import other_boundaries

TEXT = "219 South Dearborn, 2nd Fl."


@pytest.mark.parametrize(
    ("span", "others"),
    [
        ("South", ["219 South", "219", "South Dearborn", "Dearborn"]),
        ("219", ["219 South", "South"]),
        ("Fl.", ["2nd Fl.", "2nd"]),
        ("South Dearborn", ["219 South Dearborn", "219", "South Dearborn, 2nd", "2nd", "Dearborn", "South"]),
        ("Dearborn, 2nd", ["South Dearborn, 2nd", "South", "Dearborn, 2nd Fl", "Fl", "2nd", "Dearborn"]),
        (TEXT, ["South Dearborn, 2nd Fl.", "219 South Dearborn, 2nd"]),
    ],
)
def test_one_word_more_less_or_beside(span: str, others: list[str]) -> None:
    start = TEXT.index(span)
    assert other_boundaries(TEXT, start, start + len(span)) == others


def test_nothing_to_move() -> None:
    assert other_boundaries("one", 0, 3) == []
    assert other_boundaries("", 0, 0) == []
    assert other_boundaries("St. -", 0, 3) == [], "punctuation is no word"


def test_words_keep_what_is_inside_them() -> None:
    text = "O'Hare 123-B 東京 Größe"
    assert other_boundaries(text, 0, 6) == ["O'Hare 123-B", "123-B"]
    assert other_boundaries(text, 13, 15) == ["123-B 東京", "123-B", "東京 Größe", "Größe"]
    assert other_boundaries("a a", 0, 1) == ["a a"], "the word beside is the same text"
