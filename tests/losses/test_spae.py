"""SPAE: the golden example, what it reduces to, and its edges."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.losses.test_advantages import spread
from tokencredit.losses import group_advantages, spae_advantages, spae_credit, step_potential, whiten
from tokencredit.losses.spae import difference_shaping, saturation_factors

torch.set_num_threads(1)

GARBAGE = math.nan
DEFAULTS: dict[str, Any] = {"alpha": 0.5, "xi": 0.5, "saturation": 0.9, "positive_only": False}
PLAIN: dict[str, Any] = DEFAULTS | {"alpha": 0.0, "xi": 0.0}


def example() -> dict[str, Tensor]:
    """Two responses with two tokens a step: four steps and a tail of two tokens; three steps and a tail of one."""
    return {
        "step_ids": torch.tensor([[0, 0, 1, 1, 2, 2, 3, 3, 4, 4], [0, 0, 1, 1, 2, 2, 3, 7, 7, 7]]),
        "acc": torch.tensor([[0.1, 0.6, 0.99, 0.99], [0.1, 0.99, 0.05, GARBAGE]]),
        "conf": torch.tensor([[0.2, 0.5, 0.99, 0.99], [0.2, 0.99, 0.95, GARBAGE]]),
        "step_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]),
        "mask": torch.tensor([[1] * 10, [1] * 7 + [0] * 3]),
    }


def per_step(found: Tensor) -> list[list[float]]:
    """One of the two equal tokens of each step, and one of the tail."""
    return [found[0, [0, 2, 4, 6, 8]].tolist(), found[1, [0, 2, 4, 6]].tolist()]


def test_potential() -> None:
    made = example()
    phi = step_potential(made["acc"], made["conf"])
    assert phi[0].tolist() == pytest.approx([-0.12, 0.25, 0.9751, 0.9751], abs=5e-5)
    assert phi[1, :3].tolist() == pytest.approx([-0.12, 0.9751, -0.8538], abs=5.1e-5)
    corners = step_potential(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert corners.tolist() == [1.0, -1.0, 0.0, 0.5]


def test_golden_credit() -> None:
    found = spae_credit(torch.tensor([0.5, -0.5]), **example(), **DEFAULTS)
    a, b = per_step(found)
    assert a == pytest.approx([0.4458, 0.5719, 0.7089, 0.2878, 0.2838], abs=5e-5)
    assert b == pytest.approx([-0.5542, -0.1296, -0.8307, -0.3420], abs=5e-5)
    assert found[1, 7:].tolist() == [0, 0, 0]


def test_golden_advantages() -> None:
    a, b = per_step(spae_advantages(torch.tensor([1.0, 0.0]), 2, **example()))
    assert a == pytest.approx([0.7313, 0.9780, 1.2460, 0.4221, 0.4143], abs=5e-5)
    assert b == pytest.approx([-1.2254, -0.3946, -1.7665, -0.8102], abs=5e-5)


def test_without_its_terms_it_is_the_whitened_outcome() -> None:
    made, rewards = example(), torch.tensor([1.0, 0.0])
    outcome = group_advantages(rewards, torch.zeros(2))
    expected = whiten(outcome[:, None].expand(2, 10), made["mask"])
    found = spae_advantages(rewards, 2, **made, alpha=0.0, xi=0.0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_penalty_counts_the_saturated_steps_before() -> None:
    phi = torch.tensor([[0.95, 0.2, 0.95, 0.95], [0.95, 0.0, 0.0, 0.0]])
    found = saturation_factors(phi, torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]), alpha=0.5, saturation=0.9)
    counts = torch.tensor([[0.0, 1, 1, 2, 3], [0, 1, 1, 1, 1]])
    torch.testing.assert_close(found, 1 - 0.5 * (1 - torch.exp(-counts)), atol=1e-6, rtol=0)


def test_penalty_only_where_the_outcome_is_positive() -> None:
    settings = DEFAULTS | {"xi": 0.0, "positive_only": True}
    found = spae_credit(torch.tensor([0.5, -0.5]), **example(), **settings)
    both = spae_credit(torch.tensor([0.5, -0.5]), **example(), **(settings | {"positive_only": False}))
    assert found[0].tolist() == both[0].tolist()
    assert found[1, :7].tolist() == [-0.5] * 7
    assert both[1, 4] > -0.5


def test_shaping_sums_to_zero_over_tokens() -> None:
    made = example()
    phi = step_potential(made["acc"].nan_to_num(), made["conf"].nan_to_num())
    made["mask"][0, 1] = 0  # steps of different length
    names = ("step_ids", "step_mask", "mask")
    g = difference_shaping(phi, *(made[name] for name in names))
    tokens = torch.tensor([[1, 2, 2, 2], [2, 2, 2, 0]])
    assert (g * tokens).sum().item() == pytest.approx(0, abs=1e-6)
    assert g[1, 3] == 0
    # z of the largest and of the smallest difference are 1 and 0.
    assert (g[1, 1] - g[1, 2]).item() == pytest.approx(math.e - 1, abs=1e-5)


def test_equal_differences_shape_nothing() -> None:
    made = example() | {"acc": torch.full((2, 4), 0.3), "conf": torch.full((2, 4), 0.3)}
    found = spae_credit(torch.tensor([0.5, -0.5]), **made, **DEFAULTS)
    assert found.tolist() == spae_credit(torch.tensor([0.5, -0.5]), **made, **PLAIN).tolist()


def test_outside_the_thinking_there_is_the_plain_outcome() -> None:
    made = example()
    made["step_ids"][0, 8:] = -1
    found = spae_credit(torch.tensor([0.5, -0.5]), **made, **DEFAULTS)
    assert found[0, 8:].tolist() == [0.5, 0.5]


def test_response_without_a_step() -> None:
    made = example()
    made["step_mask"][1] = 0
    made["step_ids"][1] = -1
    found = spae_credit(torch.tensor([0.5, -0.5]), **made, **DEFAULTS)
    assert found[1, :7].tolist() == [-0.5] * 7


def test_nothing_but_responses_without_steps() -> None:
    made = example() | {"step_ids": torch.full((2, 10), -1), "step_mask": torch.zeros(2, 4)}
    found = spae_credit(torch.tensor([0.5, -0.5]), **made, **DEFAULTS)
    assert found[0].tolist() == [0.5] * 10


def test_no_place_for_a_step_on_one_process() -> None:
    made, none = example(), torch.zeros(2, 0)
    bare = {"step_ids": torch.full((2, 10), -1), "acc": none, "conf": none, "step_mask": none, "mask": made["mask"]}
    outcome = torch.tensor([0.5, -0.5])
    assert spae_credit(outcome, **bare, **DEFAULTS)[0].tolist() == [0.5] * 10
    parts = [(outcome, *made.values()), (outcome, *bare.values())]
    found = spread(spae_credit, parts, **DEFAULTS)
    torch.testing.assert_close(found[:2], spae_credit(outcome, **made, **DEFAULTS), atol=1e-6, rtol=0)


def test_dead_groups_are_dropped_before_everything_else() -> None:
    made = {name: torch.cat([value, value]) for name, value in example().items()}
    found = spae_advantages(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2, **made)
    torch.testing.assert_close(found[:2], spae_advantages(torch.tensor([1.0, 0.0]), 2, **example()))
    assert found[2:].abs().sum() == 0


def test_spread_over_processes() -> None:
    made = {name: torch.cat([value, value.flip(0)]) for name, value in example().items()}
    made["acc"] = made["acc"] * torch.tensor([[1.0], [0.9], [0.5], [0.7]])
    outcome = torch.tensor([0.5, -0.5, 0.25, -0.25])
    whole = spae_credit(outcome, **made, **DEFAULTS)
    parts = [tuple(value[rows] for value in (outcome, *made.values())) for rows in (slice(0, 1), slice(1, 4))]
    torch.testing.assert_close(spread(spae_credit, parts, **DEFAULTS), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"alpha": 1.5}, r"alpha is 1.5, but must be in \[0, 1\]"),
        ({"step_mask": torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])}, "step_mask has a gap"),
        ({"step_ids": torch.full((2, 10), 4)}, "step_ids of row 1 reach 4, but it has 3 steps"),
        ({"outcome": torch.zeros(3)}, r"outcome has shape \[3\] for 2 responses"),
        ({"conf": torch.zeros(2, 3)}, r"conf has shape \[2, 3\]"),
    ],
)
def test_wrong_input(changes: dict[str, Any], says: str) -> None:
    given = {"outcome": torch.tensor([0.5, -0.5])} | example() | DEFAULTS | changes
    with pytest.raises(ValueError, match=says):
        spae_credit(**given)


def test_batch_that_is_no_whole_number_of_groups() -> None:
    with pytest.raises(ValueError, match="2 rewards are no whole number of groups of 3"):
        spae_advantages(torch.tensor([1.0, 0.0]), 3, **example())
