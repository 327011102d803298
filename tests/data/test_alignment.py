from hypothesis import given
from hypothesis import strategies as st

from tokencredit.data.alignment import differing_tokens

IDS = st.lists(st.integers(0, 5), max_size=30)


def test_alignment_not_position():
    assert differing_tokens([1, 2, 3, 4, 5], [1, 9, 2, 3, 4, 5]) == ([False] * 5, [False, True] + [False] * 4)
    assert differing_tokens([1, 2, 3, 4], [1, 7, 8, 3, 4]) == (
        [False, True, False, False],
        [False, True, True, False, False],
    )


def test_empty_equal_and_disjoint():
    assert differing_tokens([], []) == ([], [])
    assert differing_tokens([], [1, 2]) == ([], [True, True])
    assert differing_tokens([1, 2], []) == ([True, True], [])
    assert differing_tokens([3, 3], [3, 3]) == ([False, False], [False, False])
    assert differing_tokens([1], [2]) == ([True], [True])


@given(IDS, IDS)
def test_what_is_left_on_both_sides_is_the_same_sequence(a, b):
    a_mask, b_mask = differing_tokens(a, b)
    assert (len(a_mask), len(b_mask)) == (len(a), len(b))
    left = [x for x, differs in zip(a, a_mask, strict=True) if not differs]
    assert left == [x for x, differs in zip(b, b_mask, strict=True) if not differs]


def test_frequent_tokens_are_aligned_too():
    a = [7] * 300 + [1] + [7] * 300
    b = [7] * 300 + [2] + [7] * 300
    assert differing_tokens(a, b) == ([x == 1 for x in a], [x == 2 for x in b])


def test_repetitive_text_is_not_aligned_with_a_shifted_copy_of_itself():
    a = [i * 37 % 91 for i in range(1000)]
    b = [*a[:400], 500, *a[410:]]
    assert differing_tokens(a, b) == ([400 <= i < 410 for i in range(1000)], [i == 400 for i in range(len(b))])


def test_two_separate_changes_leave_what_is_between_them():
    a, b = [1, 2, 3, 4, 5, 6, 7], [1, 9, 3, 4, 5, 8, 8, 7]
    assert differing_tokens(a, b) == ([x in (2, 6) for x in a], [x in (9, 8) for x in b])
