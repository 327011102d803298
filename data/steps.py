"""Steps of a chain of thought: where they end in the ids of a response."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokencredit.errors import InputError

DELIMITER = ".\n\n"
THINK_END = "</think>"


@dataclass(frozen=True)
class Steps:
    """The steps of a response of T tokens.

    Args:
        ends: One past the last token of each step `[K]`, ascending.
        thinking: How many tokens stand before the end of the thinking; T if it does not end.
    """

    ends: list[int]
    thinking: int

    def step_ids(self, length: int) -> list[int]:
        """The step of each token: 0 … K − 1, K in the thinking after the last one, −1 from the end of it on.

        Args:
            length: T.
        """
        found, begin = [], 0
        for step, end in enumerate(self.ends):
            found += [step] * (end - begin)
            begin = end
        found += [len(self.ends)] * (self.thinking - begin)
        return found + [-1] * (length - self.thinking)


class StepFinder:
    r"""Finds steps by the text of single tokens, as SPAE (arXiv 2601.03823) has it [C].

    A step ends at a token whose text ends in the delimiter, from the start of the response to the first end of the
    thinking; without one the whole response is thinking.

    Args:
        tokenizer: A Transformers tokenizer.
        delimiter: `.` and two line breaks [C].
        think_end: `</think>` [C]; it may be several tokens.

    Raises:
        InputError: No token of the tokenizer ends in the delimiter, so that no response would have a step.
    """

    def __init__(self, tokenizer: Any, delimiter: str = DELIMITER, think_end: str = THINK_END) -> None:
        if not delimiter or not think_end:
            raise InputError("step_delimiter", "is empty", f"give text such as {DELIMITER!r}")
        self.delimiter, self.think_end = delimiter, think_end
        self._texts = _token_texts(tokenizer)
        if not any(text.endswith(delimiter) for text in self._texts):
            problem = f"no token of this tokenizer ends in {delimiter!r}, so no response would have a step"
            raise InputError("step_delimiter", problem, "give a delimiter that single tokens end in, such as '\\n'")

    def find(self, ids: Sequence[int]) -> Steps:
        """The steps of a response.

        Args:
            ids: Its tokens `[T]`.
        """
        texts = [self._texts[token] if token < len(self._texts) else "" for token in ids]
        thinking = self._thinking(texts)
        ends = [place + 1 for place in range(thinking) if texts[place].endswith(self.delimiter)]
        return Steps(ends, thinking)

    def _thinking(self, texts: Sequence[str]) -> int:
        """The token in which the end of the thinking begins."""
        begin = "".join(texts).find(self.think_end)
        if begin < 0:
            return len(texts)
        reached = 0
        for place, text in enumerate(texts):
            reached += len(text)
            if reached > begin:
                return place
        raise AssertionError("the text is that of the tokens")


def _token_texts(tokenizer: Any) -> list[str]:
    """What each token of the vocabulary writes by itself."""
    ids = [[token] for token in range(len(tokenizer))]
    decoded = tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return [str(text) for text in decoded]
