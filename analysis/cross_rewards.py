"""Rewards of the answers of a cross-sampling sweep."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokencredit.analysis.cross_arms import Arm
from tokencredit.analysis.cross_samples import Problem
from tokencredit.rewards import RewardPool

_SCORED_AT_ONCE = 256


@dataclass
class Scorer:
    """Rewards of answers; equal answers to a problem are scored once.

    Args:
        tokenizer: Turns tokens into text.
        problems: Theirs are the columns.
        pool: The rewards; None scores nothing.
        weights: One factor per function; 1 by default.
    """

    tokenizer: Any
    problems: Sequence[Problem]
    pool: RewardPool | None
    weights: Sequence[float] | None = None
    known: dict[tuple[int, tuple[int, ...]], float | None] = field(default_factory=dict)
    failures: int = 0

    @property
    def names(self) -> list[str]:
        """Of the reward functions."""
        return [] if self.pool is None else self.pool.names

    def score(self, arms: Sequence[Arm]) -> None:
        """Give every answer of the arms its reward."""
        if self.pool is None:
            return
        self.look_up(
            [(place, trace.tokens) for arm in arms for place, traces in enumerate(arm.traces) for trace in traces]
        )
        for arm in arms:
            arm.rewards = [
                [self.known[place, tuple(trace.tokens)] for trace in traces] for place, traces in enumerate(arm.traces)
            ]

    def look_up(self, answers: Sequence[tuple[int, Sequence[int]]]) -> list[float | None]:
        """Rewards of answers, each with the number of its problem."""
        keys = [(place, tuple(tokens)) for place, tokens in answers]
        new = [key for key in dict.fromkeys(keys) if key not in self.known]
        for start in range(0, len(new), _SCORED_AT_ONCE):
            part = new[start : start + _SCORED_AT_ONCE]
            self.known |= dict(zip(part, self._values(part), strict=True))
        return [self.known[key] for key in keys]

    def _values(self, keys: Sequence[tuple[int, tuple[int, ...]]]) -> list[float | None]:
        assert self.pool is not None
        texts = self.tokenizer.batch_decode([list(tokens) for _, tokens in keys], skip_special_tokens=True)
        asked = [self.problems[place] for place, _ in keys]
        chat = [not isinstance(problem.prompt, str) for problem in asked]
        completions: list[Any] = [
            [{"role": "assistant", "content": text}] if is_chat else text
            for text, is_chat in zip(texts, chat, strict=True)
        ]
        names = dict.fromkeys(name for problem in self.problems for name in problem.columns)
        columns: dict[str, Any] = {name: [problem.columns.get(name) for problem in asked] for name in names}
        columns |= {"prompts": [problem.prompt for problem in asked]}
        columns |= {"completion_ids": [list(tokens) for _, tokens in keys]}
        batch = self.pool.score(completions, **columns)
        self.failures += len(batch.failures)
        return batch.combined(self.weights)

    def notes(self) -> list[str]:
        """What the reader has to know of the rewards."""
        return [f"{self.failures} calls of rewards failed; their answers count for nothing"] if self.failures else []
