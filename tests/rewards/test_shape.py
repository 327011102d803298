"""Format and length."""

import time
from typing import Any

import pytest
from trl.rewards import get_soft_overlong_punishment

from tokencredit.errors import InputError
from tokencredit.rewards import RewardFunction, RewardPool
from tokencredit.rewards.shape import format as form
from tokencredit.rewards.shape import length


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>so</think><answer>4</answer>", 1),
        ("\n<think>\nso\n</think>\n\n<answer></answer> ", 1),
        ("<think>a < b > c</think><answer>4</answer>", 1),
        ("<answer>4</answer><think>so</think>", 0),
        ("<think>so</think>", 0),
        ("so <think>so</think><answer>4</answer>", 0),
        ("<think>so</think> hence <answer>4</answer>", 0),
        ("<think>so<think>so</think></think><answer>4</answer>", 0),
        ("<think>so</think><answer>4</answer><answer>5</answer>", 0),
        ("<think>so</think><answer>4", 0),
        ("", 0),
    ],
)
def test_tags(text: str, score: float) -> None:
    assert form([text]) == [score]
    assert form([[{"role": "assistant", "content": text}]]) == [score]


def test_other_tags_and_a_pattern() -> None:
    assert form(["<a>1</a>", "<think>1</think>"], tags=["a"]) == [1, 0]
    assert form(["x\n1", "x"], pattern=r"x.*\d") == [1, 0]


def test_long_texts_take_no_long_time() -> None:
    start = time.monotonic()
    form(["<think>" + "<" * 200_000, "<think>" * 30_000, " " * 200_000])
    assert time.monotonic() - start < 5


def test_target_length_by_hand() -> None:
    ids = [[0] * count for count in (100, 90, 125, 0, 250)]
    assert length(ids, target=100) == [0.0, -0.1, -0.25, -1.0, -1.0]


def test_overlong_penalty_is_dapos() -> None:
    """As TRL has it."""
    ids = [[0] * count for count in (0, 79, 80, 81, 90, 99, 100, 101, 500)]
    expected = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)(completion_ids=ids)
    assert length(ids, max_length=100, buffer=20) == pytest.approx(expected, abs=1e-12)
    assert expected[4] == -0.5


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("length", {}, "nothing is given; give target, or max_length and buffer"),
        ("length", {"target": 5, "buffer": 2, "max_length": 7}, "give target, or max_length and buffer"),
        ("length", {"target": 0}, "target: 0 is no number of tokens"),
        ("length", {"max_length": 5, "buffer": 6}, "buffer: it is longer than max_length"),
        ("length", {"targte": 5}, "takes no 'targte'; did you mean 'target'?"),
        ("format", {"tags": "think"}, "tags: 'think' is no list of names"),
        ("format", {"pattern": "("}, "pattern: '(' is no regular expression"),
        ("format", {"pattern": "x", "tags": ["a"]}, "tags and pattern; give one of them"),
    ],
)
def test_wrong_settings_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RewardPool([RewardFunction(name, name="mine", arguments=arguments)])
    assert message in str(caught.value)


def test_length_needs_tokens() -> None:
    pool = RewardPool([RewardFunction("length", arguments={"target": 3})])
    assert pool.score(["abc"], completion_ids=[[1, 2, 3]]).values == [[0.0]]
    with pytest.raises(InputError, match="no column 'completion_ids'"):
        pool.score(["abc"])
