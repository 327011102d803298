"""From rewards to advantages: relative to a group, and whitened over the tokens of a batch."""

from typing import Protocol

import torch
from torch import Tensor

from tokencredit.losses.ops import check_shapes, zero_padding

_EPSILON = 1e-8


class Reduce(Protocol):
    """Combines a tensor over all processes, which hold parts of one batch; every process calls it and gets the same."""

    def __call__(self, x: Tensor, op: str = "sum") -> Tensor:
        """`op` is `sum`, `min` or `max`."""


def alone(x: Tensor, op: str = "sum") -> Tensor:
    """The `Reduce` of a single process."""
    return x


def group_advantages(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Each reward against the mean of its group.

    Â_i = R_i − mean { R_j : j in the group of i, R_j known }

    Not divided by a standard deviation, as in REINFORCE++-baseline and SPAE (arXiv 2601.03823 [N]).

    Args:
        rewards: R, `[B]`; NaN where no reward is known.
        group_ids: The group of each row, any integers, `[B]`.

    Returns:
        Â, float32 `[B]`; 0 where no reward is known: such a row takes no part.

    Raises:
        ValueError: If the shapes disagree.
    """
    _check_rows(rewards, group_ids)
    values, counts, groups = _known_sums(rewards, group_ids)
    means = values / counts.clamp(min=1)
    return torch.where(rewards.isnan(), 0.0, rewards.float() - means[groups])


def live_rows(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """The rows that say something: of groups in which not all known rewards are equal.

    Args:
        rewards: R, `[B]`; NaN where no reward is known.
        group_ids: The group of each row, any integers, `[B]`.

    Returns:
        bool `[B]`; False where no reward is known.

    Raises:
        ValueError: If the shapes disagree.
    """
    _check_rows(rewards, group_ids)
    known = ~rewards.isnan()
    found, groups = torch.unique(group_ids, return_inverse=True)
    low, high = (torch.full((len(found),), fill, device=rewards.device) for fill in (torch.inf, -torch.inf))
    low = low.scatter_reduce(0, groups[known], rewards[known].float(), "amin")
    high = high.scatter_reduce(0, groups[known], rewards[known].float(), "amax")
    return known & (low < high)[groups]


def whiten(x: Tensor, mask: Tensor, *, reduce: Reduce | None = None) -> Tensor:
    """Mean 0 and variance 1 over all tokens of a batch, whichever process holds them.

    x̃_t = (x_t − μ) / √(σ² + 10⁻⁸),   μ, σ² over all t with m_t = 1 (σ² divided by their number)

    Args:
        x: `[B, T]`.
        mask: 1 where a value counts, else 0, `[B, T]`.
        reduce: Combines processes; None for one.

    Returns:
        float32 `[B, T]`; 0 where the mask is 0.

    Raises:
        ValueError: If the shapes disagree.
    """
    check_shapes(x=x, mask=mask)
    reduce = reduce or alone
    values = zero_padding(x, mask)
    total, count = reduce(torch.stack([values.sum(), mask.bool().sum().float()]))
    centred = zero_padding(values - total / count.clamp(min=1), mask)
    # Of the differences: the difference of two large sums would lose digits.
    variance = reduce((centred**2).sum()) / count.clamp(min=1)
    return centred * torch.rsqrt(variance + _EPSILON)


def _known_sums(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum and number of the known rewards of each group, and the place of each row's group among them."""
    found, groups = torch.unique(group_ids, return_inverse=True)
    known = (~rewards.isnan()).float()
    sums = torch.zeros(len(found), device=rewards.device)
    values = sums.scatter_add(0, groups, torch.where(rewards.isnan(), 0.0, rewards.float()))
    return values, sums.scatter_add(0, groups, known), groups


def _check_rows(rewards: Tensor, group_ids: Tensor) -> None:
    if rewards.dim() != 1 or rewards.shape != group_ids.shape:
        raise ValueError(
            f"rewards have shape {list(rewards.shape)} and group_ids {list(group_ids.shape)}; both must be [B]"
        )
