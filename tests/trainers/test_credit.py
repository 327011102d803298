"""Credit functions on their own: by hand, over processes, and in any order of rows."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor

from tokencredit.data.json_values import json_values
from tokencredit.losses.advantages import Reduce, alone
from tokencredit.rewards.contract import read_item
from tokencredit.rewards.json_credit import json_records
from tokencredit.trainers.credit import CREDIT, outcome
from tokencredit.trainers.rollouts import Rollouts, Scalars, token_values

GROUP, GROUPS, TOKENS = 4, 6, 9


def rollouts(reduce: Reduce = alone, rows: slice = slice(None), order: Tensor | None = None) -> Rollouts:
    """24 rows of random numbers: abstentions, a dead group, lengths that differ; `order` permutes all of them."""
    generator = torch.Generator().manual_seed(0)
    shape = GROUPS * GROUP, TOKENS
    per_function = torch.rand(shape[0], 2, generator=generator)
    per_function[5] = torch.nan
    per_function[7, 0] = torch.nan
    per_function[8:12] = 0.5
    entropies, logps, values = (torch.rand(shape, generator=generator) for _ in range(3))
    lengths = torch.randint(2, TOKENS + 1, (shape[0],), generator=generator)
    order = torch.arange(shape[0]) if order is None else order
    inside = torch.arange(TOKENS) < lengths[:, None]
    values = values * (values > 0.7) * (torch.arange(shape[0]) < 8)[:, None]
    has_tokens = ((values * inside) > 0).any(1)
    scalars = Scalars(per_function[order], torch.tensor([1.0, 0.5]), has_tokens[order], GROUP)
    mask = inside[order] * scalars.live[:, None]
    first = rows.start or 0
    return Rollouts(
        prompts=[""] * shape[0],
        completions=[""] * shape[0],
        columns={},
        ids=torch.zeros(shape, dtype=torch.long)[rows],
        mask=mask[rows].long(),
        lengths=lengths[order][rows].tolist(),
        token_rewards=values[order][rows],
        scalars=scalars,
        first=first,
        reduce=reduce,
        score=lambda: (-logps[order][rows], entropies[order][rows]),
    )


def plain(of: Rollouts) -> Tensor:
    return outcome(of, torch.zeros(of.ids.shape)) * of.mask


class Between:
    """A `Reduce` over threads that stand for processes."""

    def __init__(self, count: int) -> None:
        self.barrier, self.parts = Barrier(count), dict[int, Tensor]()

    def of(self, rank: int) -> Callable[..., Tensor]:
        def reduce(x: Tensor, op: str = "sum") -> Tensor:
            self.parts[rank] = x
            self.barrier.wait(20)
            stacked = torch.stack([self.parts[key] for key in sorted(self.parts)])
            self.barrier.wait(20)
            return {"sum": stacked.sum(0), "min": stacked.amin(0), "max": stacked.amax(0)}[op]

        return reduce


@pytest.mark.parametrize("name", CREDIT)
def test_sharded_equals_whole(name: str) -> None:
    """Cut within a group, so that a group lies on both sides."""
    credit = CREDIT[name]
    whole = credit(rollouts(), plain(rollouts()))
    between, cut = Between(2), 10
    parts = [rollouts(between.of(0), slice(0, cut)), rollouts(between.of(1), slice(cut, GROUPS * GROUP))]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda part: credit(part, plain(part)), parts))
    torch.testing.assert_close(torch.cat(found), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CREDIT)
def test_order_of_groups_and_of_rows_in_them_changes_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    groups = torch.randperm(GROUPS, generator=generator)
    order = torch.cat([g * GROUP + torch.randperm(GROUP, generator=generator) for g in groups])
    credit = CREDIT[name]
    expected = credit(rollouts(), plain(rollouts()))[order]
    permuted = rollouts(order=order)
    torch.testing.assert_close(credit(permuted, plain(permuted)), expected, rtol=0, atol=1e-6)


def test_high_entropy_mask_of_all_keeps_an_entropy_that_was_rounded_below_zero() -> None:
    given = rollouts()
    given.entropies[0, 0] = -1e-7
    kept = CREDIT["high_entropy_mask"](given, torch.ones(given.ids.shape), share=1.0)
    assert kept[given.mask.bool()].eq(1).all()


def test_high_entropy_mask_keeps_a_fifth() -> None:
    given = rollouts()
    kept = CREDIT["high_entropy_mask"](given, torch.ones(given.ids.shape))
    inside = given.mask.bool()
    assert kept[inside].sum() == round(0.2 * inside.sum().item())
    assert given.entropies[inside][kept[inside] == 1].min() > given.entropies[inside][kept[inside] == 0].max()


def test_entropy_advantage_by_hand() -> None:
    given = rollouts()
    given = replace(given, score=lambda: (given.ids, torch.full(given.ids.shape, 2.0)))
    given.mask = torch.ones_like(given.ids)
    advantages = torch.full(given.ids.shape, -1.0)
    # min(0.4 · 2, 1 / 2) = 0.5; min(0.1 · 2, 1 / 2) = 0.2
    found = CREDIT["entropy_advantage"](given, advantages)
    torch.testing.assert_close(found, torch.full_like(advantages, -0.5))
    found = CREDIT["entropy_advantage"](given, advantages, alpha=0.1)
    torch.testing.assert_close(found, torch.full_like(advantages, -0.8))


class Letters:
    """A tokenizer whose tokens are single characters."""

    all_special_ids: tuple[int, ...] = ()

    def decode(self, ids: Any, **_: Any) -> str:
        return "".join(map(chr, ids))


def test_span_credit_touches_only_the_tokens_of_the_wrong_field() -> None:
    """Every answer has one wrong field, so scores are equal and the outcome says nothing; the spans do."""
    gold = [{"code": "Street", "span": "Main"}]
    texts = ['[{"code":"Street","span":"Mair"}]', '[{"code":"Number","span":"Main"}]']
    items = json_records(texts, [gold, gold])
    rewards = [read_item(item, text, len(text)) for item, text in zip(items, texts, strict=True)]
    assert rewards[0] is not None
    assert rewards[1] is not None
    assert rewards[0].value == rewards[1].value
    width = max(map(len, texts))
    ids = torch.zeros(2, width, dtype=torch.long)
    values = torch.zeros(2, width)
    for row, (text, reward) in enumerate(zip(texts, rewards, strict=True)):
        ids[row, : len(text)] = torch.tensor(list(map(ord, text)))
        values[row, : len(text)] = torch.tensor(token_values([reward], [1.0], text, list(map(ord, text)), Letters()))
    scalars = Scalars(torch.tensor([[r.value] for r in rewards if r]), torch.ones(1), torch.tensor([True, True]), 2)
    given = Rollouts(
        ["", ""], texts, {}, ids, (ids > 0) * scalars.live[:, None], list(map(len, texts)), values, scalars
    )
    logps = torch.zeros(2, width, requires_grad=True)
    advantages = CREDIT["reward_spans"](given, outcome(given, torch.zeros(2, width)))
    (-(logps * advantages).sum()).backward()
    assert logps.grad is not None
    for text, gradient, wrong in zip(texts, logps.grad, ("Mair", "Number"), strict=True):
        (place,) = (value for value in json_values(text) if value.value == wrong)
        touched = [i for i, number in enumerate(gradient.tolist()) if number != 0]
        assert touched == list(range(place.start, place.end))
        assert (gradient[touched] > 0).all()  # descent lowers their log-probabilities


def test_groups_that_functions_tell_apart_are_live_where_each_is_compared_by_itself() -> None:
    """Two functions that disagree: their sum is equal, what each is worth against its group is not."""
    per_function = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    given = Scalars(per_function, torch.ones(2), torch.zeros(4, dtype=torch.bool), 2)
    assert given.live.tolist() == [False] * 4
    assert replace(given, apart=True).live.tolist() == [True, True, False, False]
