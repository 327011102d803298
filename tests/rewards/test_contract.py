"""What a reward function may return, and what becomes of it."""

from typing import Any

import numpy as np
import pytest
import torch

from tokencredit.rewards.contract import Reward, RewardError, read_item, text_of

SPAN = {"start": 0, "end": 2, "value": -0.5}


@pytest.mark.parametrize(
    ("item", "value"),
    [
        (1, 1.0),
        (True, 1.0),
        (0.25, 0.25),
        (np.float32(0.5), 0.5),
        (torch.tensor(2.0), 2.0),
        ([0.5, -1.0, 0.25], -0.25),
        (np.array([0.5, 0.0, 0.25]), 0.75),
        (torch.tensor([1.0, 0.0, 1.0]), 2.0),
        ([SPAN, {"start": 1, "end": 4, "value": 0.25, "label": "x"}], -0.25),
        ([], 0.0),
        ({"score": 0.75, "spans": [SPAN]}, 0.75),
        ({"score": None, "spans": [SPAN]}, -0.5),
        ({"score": 0.0, "tokens": [1, 2, 3]}, 0.0),
        ({"tokens": [1, 2, 3]}, 6.0),
    ],
)
def test_the_scalar_is_the_score_or_else_the_sum(item: Any, value: float) -> None:
    reward = read_item(item, "abcd", 3)
    assert reward is not None
    assert reward.value == value


def test_none_abstains_and_zero_does_not() -> None:
    assert read_item(None, "abcd", 3) is None
    assert read_item(0, "abcd", 3) == Reward(score=0.0)


def test_tokens_and_spans_are_kept() -> None:
    assert read_item([1, 2, 3], "abcd", 3) == Reward(tokens=[1.0, 2.0, 3.0])
    assert read_item([1, 2], "abcd", None) == Reward(tokens=[1.0, 2.0]), "of text alone the tokens are not known"
    spans = [{**SPAN, "label": "code"}]
    assert read_item({"score": 1, "spans": spans}, "abcd", 3) == Reward(score=1.0, spans=spans)
    assert read_item([], "", 0) == Reward(tokens=[])


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (float("nan"), "not finite"),
        (float("inf"), "not finite"),
        ("1.0", "where a number should be"),
        (1j, "where a number should be"),
        ([1.0, 2.0], "2 values for 3 sampled tokens"),
        ([1.0, None, 2.0], "where a number should be"),
        ([1.0, float("nan"), 2.0], "not finite"),
        ([SPAN, 1.0, 2.0], "where a number should be"),
        ([{**SPAN, "end": 5}], "not inside the 4 characters"),
        ([{**SPAN, "start": -1}], "not inside the 4 characters"),
        ([{**SPAN, "start": 2}], "or empty"),
        ([{**SPAN, "start": 0.0}], "not inside"),
        ([{"start": 0, "end": 1}], "no span"),
        ([{**SPAN, "weight": 1}], "no span"),
        ([{**SPAN, "value": float("nan")}], "not finite"),
        ({"scores": 1}, "scores in a reward"),
        ({"score": None}, "return None to abstain"),
        ({"tokens": [1, 2, 3], "spans": [SPAN]}, "give one of them"),
        ({"tokens": 5}, "where a list of numbers should be"),
        ({"tokens": "123"}, "where a list of numbers should be"),
        ({"spans": SPAN}, "where a list of spans should be"),
        (10**400, "too large for a float"),
        ({"tokens": [1e308, 1e308, 0]}, "sum is not finite"),
        (torch.zeros(2, 2), "where a number should be"),
    ],
)
def test_what_is_no_reward_is_refused_in_words(item: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        read_item(item, "abcd", 3)


def test_offsets_of_chat_completions_count_in_the_last_message() -> None:
    chat = [{"role": "assistant", "content": "first"}, {"role": "assistant", "content": "ab"}]
    assert text_of(chat) == "ab"
    assert text_of([{"role": "assistant", "content": [{"type": "text", "text": "abc"}]}]) == "abc"
    assert text_of([]) == text_of([{"role": "assistant", "content": None}]) == ""
    assert read_item([SPAN], chat, None) == Reward(spans=[SPAN])
    with pytest.raises(RewardError, match="not inside the 2 characters"):
        read_item([{**SPAN, "end": 3}], chat, None)
