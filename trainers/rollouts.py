"""Finished rollouts: what a credit function sees of one generation batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tokencredit.data.pieces import offsets_within, sampled_offsets, span_values
from tokencredit.errors import InputError
from tokencredit.losses.advantages import Reduce, alone, group_advantages, live_rows
from tokencredit.rewards import Reward
from tokencredit.rewards.contract import Completion, text_of


@dataclass(frozen=True)
class Scalars:
    """The rewards of a generation batch over all processes, `N` rows in the order of the processes.

    Args:
        per_function: `[N, F]`; NaN where there is no signal.
        weights: `[F]`, one factor per function.
        has_tokens: bool `[N]`, whether a function gave the tokens of this row values of their own.
        group_size: Rows per prompt; members of a group follow each other.
        apart: Whether each function is compared within the group by itself, before the sum.
    """

    per_function: Tensor
    weights: Tensor
    has_tokens: Tensor
    group_size: int
    apart: bool = False

    @property
    def group_ids(self) -> Tensor:
        """`[N]`."""
        return torch.arange(len(self.per_function), device=self.per_function.device) // self.group_size

    @property
    def rewards(self) -> Tensor:
        """R, the weighted sum of what is known, `[N]`; NaN where nothing is."""
        unknown = self.per_function.isnan().all(dim=1)
        return (self.per_function * self.weights).nansum(dim=1).masked_fill(unknown, torch.nan)

    @property
    def live(self) -> Tensor:
        """Rows that say something, bool `[N]`.

        Their reward is known and differs from another one of the group, or a token of the group has a value of its own.
        """
        rewards, groups = self.rewards, self.group_ids
        compared = self.per_function.T if self.apart else rewards[None]
        different = torch.stack([live_rows(row, groups) for row in compared]).any(dim=0)
        marked = torch.zeros_like(self.has_tokens).index_fill(0, groups[self.has_tokens], True)[groups]
        return different | (marked & ~rewards.isnan())

    def live_groups(self) -> Tensor:
        """Groups with such a row, bool `[groups]`."""
        return self.live.view(-1, self.group_size).any(dim=1)


@dataclass
class Rollouts:
    """The `B` rollouts of this process, `T` tokens wide.

    Args:
        prompts: Texts or chat messages `[B]`.
        completions: Texts or chat messages `[B]`.
        columns: The other columns of the data, such as answers, lists `[B]`.
        ids: Sampled ids `[B, T]`, padded on the right.
        mask: 1 on tokens that take part, `[B, T]`: sampled, not of a tool, not of a dead group or a row without signal.
        lengths: How many tokens of each row were sampled `[B]`.
        token_rewards: What the functions gave each token, by itself or by spans, weighted sum `[B, T]`; 0 elsewhere.
        scalars: The rewards, over all processes.
        names: Of the reward functions `[F]`.
        first: The place of this process's first row among all.
        reduce: Combines a tensor over all processes; every process must call it equally often.
        score: Runs the model once: (log-probabilities, entropies), both `[B, T]`. Called when one of them is asked for.
        given_logps: Log-probabilities that exist already, `[B, T]`.
    """

    prompts: list[Any]
    completions: list[Completion]
    columns: dict[str, list[Any]]
    ids: Tensor
    mask: Tensor
    lengths: list[int]
    token_rewards: Tensor
    scalars: Scalars
    names: list[str] = field(default_factory=list)
    first: int = 0
    reduce: Reduce = alone
    score: Callable[[], tuple[Tensor, Tensor]] | None = None
    given_logps: Tensor | None = None

    def mine(self, values: Tensor) -> Tensor:
        """This process's rows of what is over all processes."""
        return values[self.first : self.first + len(self.ids)]

    @property
    def rewards(self) -> Tensor:
        """One column per function, `[B, F]`; NaN where there is no signal."""
        return self.mine(self.scalars.per_function)

    @property
    def group_ids(self) -> Tensor:
        """The group of each row, over all processes, `[B]`."""
        return self.mine(self.scalars.group_ids)

    def relative_rewards(self) -> Tensor:
        """R − mean_group(R), `[B]`, also where a group is spread over processes; 0 where R is not known."""
        return self.mine(group_advantages(self.scalars.rewards, self.scalars.group_ids))

    @cached_property
    def _scored(self) -> tuple[Tensor, Tensor]:
        if self.score is None:
            raise InputError("credit", "these rollouts came without a model to score them", "give `score`")
        return self.score()

    @property
    def old_logps(self) -> Tensor:
        """log π_old of the sampled tokens at the sampling temperature, `[B, T]`."""
        return self._scored[0] if self.given_logps is None else self.given_logps

    @property
    def entropies(self) -> Tensor:
        """Entropies of the distributions that the tokens were sampled from, nats, `[B, T]`."""
        return self._scored[1]


def token_values(
    rewards: Sequence[Reward | None],
    weights: Sequence[float],
    completion: Completion,
    ids: Sequence[int],
    tokenizer: Any,
) -> list[float]:
    """What the reward functions gave each sampled token.

    Args:
        rewards: Of one completion, `[F]`.
        weights: One factor per function.
        completion: The completion that spans refer to.
        ids: Its sampled ids `[T]`.
        tokenizer: Of the model.

    Returns:
        Weighted sums `[T]`.

    Raises:
        InputError: The text of the completion does not stand in what was sampled, or no token wrote a span.
    """
    values = [0.0] * len(ids)
    offsets = None
    for reward, weight in zip(rewards, weights, strict=True):
        if reward is None:
            continue
        found = reward.tokens
        if reward.spans:
            if offsets is None:
                text, places = sampled_offsets(tokenizer, ids)
                offsets = offsets_within(text, places, text_of(completion))
            if offsets is None:
                problem = "the text of a completion does not stand in what was sampled exactly once"
                raise InputError("reward spans", problem, "give values per token, or score the plain text")
            found = span_values(offsets, reward.spans)
        for place, value in enumerate(found or ()):
            values[place] += weight * value
    return values
