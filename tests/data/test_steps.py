"""Steps in the ids of a response."""

import pytest
from transformers import PreTrainedTokenizerFast

from tokencredit.data.steps import StepFinder
from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.errors import InputError


def tokenizer(*pieces: str) -> PreTrainedTokenizerFast:
    core = build_tokenizer(
        ["abc 123+-=.\n</think>\\boxed{}"], kind="characters", pieces=pieces, special=["<eos>", "<pad>"]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return tokenizer(".\n\n", "c.\n\n", "</think>")


@pytest.mark.parametrize(
    ("text", "ends", "step_ids"),
    [
        ("a.\n\nbc.\n\n</think>1", [2, 4], [0, 0, 1, 1, -1, -1]),
        ("a.\n\nb</think>1.\n\n", [2], [0, 0, 1, -1, -1, -1]),
        ("a.\n\nb", [2], [0, 0, 1]),  # cut while thinking
        ("a</think>b", [], [0, -1, -1]),
        ("</think>a.\n\n", [], [-1, -1, -1]),
        ("a.\n\n</think>b.\n\n</think>", [2], [0, 0, -1, -1, -1, -1]),
        (".\n\n.\n\n", [1, 2], [0, 1]),
        ("", [], []),
    ],
)
def test_steps(words: PreTrainedTokenizerFast, text: str, ends: list[int], step_ids: list[int]) -> None:
    ids = words(text)["input_ids"]
    found = StepFinder(words).find(ids)
    assert found.ends == ends
    assert found.step_ids(len(ids)) == step_ids


def test_an_end_of_thinking_of_many_tokens() -> None:
    letters = tokenizer(".\n\n")
    ids = letters("a.\n\n</think>b")["input_ids"]
    assert StepFinder(letters).find(ids).step_ids(len(ids)) == [0, 0, *[-1] * 9]


def test_a_token_outside_the_vocabulary_ends_nothing(words: PreTrainedTokenizerFast) -> None:
    assert StepFinder(words).find([10_000, *words("a.\n\n")["input_ids"]]).ends == [3]


def test_a_delimiter_that_no_token_ends_in_is_refused() -> None:
    with pytest.raises(InputError, match=r"step_delimiter: no token of this tokenizer ends in '\.\\n\\n'"):
        StepFinder(tokenizer())
    assert StepFinder(tokenizer(), "\n").find(tokenizer()("a\nb")["input_ids"]).ends == [2]
