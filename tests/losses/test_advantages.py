"""Group advantages and whitening: values by hand, abstentions, and any spread over processes."""

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tokencredit.losses import group_advantages, live_rows, whiten

torch.set_num_threads(1)

NAN = math.nan


class Together:
    """The `Reduce` of several processes, played by threads that wait for each other."""

    def __init__(self, count: int) -> None:
        self.barrier = threading.Barrier(count, timeout=10)
        self.given: list[Tensor] = []

    def __call__(self, x: Tensor, op: str = "sum") -> Tensor:
        self.given.append(x)
        self.barrier.wait()
        stacked = torch.stack(self.given)
        self.barrier.wait()
        self.given.clear()
        self.barrier.wait()
        return {"sum": stacked.sum, "min": stacked.amin, "max": stacked.amax}[op](0)


def spread(function: Callable[..., Tensor], parts: list[tuple[Any, ...]], **keywords: Any) -> Tensor:
    """A function called on each part in a thread of its own; the results one after the other."""
    reduce, found = Together(len(parts)), [torch.empty(0)] * len(parts)

    def run(place: int) -> None:
        try:
            found[place] = function(*parts[place], reduce=reduce, **keywords)
        except BaseException:
            reduce.barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return torch.cat(found)


def test_difference_from_the_mean_of_the_group() -> None:
    rewards = torch.tensor([1.0, 0.0, 5.0, 0.0, 7.0, 1.0])
    groups = torch.tensor([4, 4, 9, 4, 9, 4])
    assert group_advantages(rewards, groups).tolist() == [0.5, -0.5, -1.0, -0.5, 1.0, 0.5]


def test_abstentions_take_no_part() -> None:
    rewards = torch.tensor([1.0, NAN, 0.0, NAN, NAN, 3.0])
    groups = torch.tensor([0, 0, 0, 1, 1, 2])
    assert group_advantages(rewards, groups).tolist() == [0.5, 0.0, -0.5, 0.0, 0.0, 0.0]
    assert live_rows(rewards, groups).tolist() == [True, False, True, False, False, False]


def test_dead_groups() -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.5, 2.0, NAN])
    groups = torch.tensor([0, 0, 1, 1, 2, 2])
    assert live_rows(rewards, groups).tolist() == [False, False, True, True, False, False]


def test_order_of_rows_does_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards, groups = torch.rand(12, generator=generator), torch.arange(12) // 4
    order = torch.randperm(12, generator=generator)
    torch.testing.assert_close(
        group_advantages(rewards, groups)[order], group_advantages(rewards[order], groups[order]), atol=1e-7, rtol=0
    )


def test_whitened_by_hand() -> None:
    # Mean 3, squared differences 4 + 1 + 1 + 4 over 4 tokens: deviation √2.5.
    x = torch.tensor([[1.0, 2.0, NAN], [4.0, 5.0, math.inf]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    expected = [[-2 / 2.5**0.5, -1 / 2.5**0.5, 0.0], [1 / 2.5**0.5, 2 / 2.5**0.5, 0.0]]
    torch.testing.assert_close(whiten(x, mask), torch.tensor(expected), atol=1e-6, rtol=0)


def test_equal_values_whiten_to_zero() -> None:
    assert whiten(torch.full((2, 3), 7.0), torch.ones(2, 3)).tolist() == [[0.0] * 3] * 2
    assert whiten(torch.ones(2, 3), torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2


def test_whitening_is_that_of_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    x, mask = torch.randn(6, 5, generator=generator) + 0.5, torch.rand(6, 5, generator=generator) < 0.6
    parts = [(x[:1], mask[:1]), (x[1:4], mask[1:4]), (x[4:], mask[4:])]
    # Sums in another order, of values of the size of one.
    torch.testing.assert_close(spread(whiten, parts), whiten(x, mask), atol=1e-6, rtol=0)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match=r"rewards have shape \[2\] and group_ids \[3\]; both must be \[B\]"):
        group_advantages(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="mask has shape"):
        whiten(torch.zeros(2, 3), torch.zeros(2, 2))
