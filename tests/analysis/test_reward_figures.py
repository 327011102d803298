"""Sanity figures of token rewards: by hand, against scikit-learn, and what takes no part in them."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tokencredit.analysis.other_rewards import dpo_rewards, shuffled_rewards
from tokencredit.analysis.reward_figures import RewardedPair, auc, reward_figures, reward_view


def pair(
    chosen: list[float], rejected: list[float], strategy: str | None = "planted label", **more: Any
) -> RewardedPair:
    """A pair that begins alike and differs in the last tokens of the rejected answer, end-of-turn after both."""
    ids = {"chosen": [*range(len(chosen)), 99], "rejected": [*range(len(chosen) - 1), *range(50, 51), 99]}
    ids["rejected"] = [*ids["rejected"][:-1], 99]
    sides: dict[str, Any] = {
        "tokens": {side: [f"t{token}" for token in values] for side, values in ids.items()},
        "ids": ids,
        "rewards": {"chosen": [*chosen, 0.0], "rejected": [*rejected, 0.0]},
        "classes": {side: ["a"] * (len(values) - 2) + ["b", "a"] for side, values in ids.items()},
        "inside": {side: [True] * (len(values) - 1) + [False] for side, values in ids.items()},
    }
    return RewardedPair(prompt="p", strategy=strategy, **(sides | more))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [False, True])
def test_auc_is_scikit_learns(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=200).round(1 if ties else 9)
    positive = rng.random(200) < 0.2
    assert auc(values, positive) == pytest.approx(roc_auc_score(positive, values), abs=1e-12)


def test_means_are_over_pairs_and_leave_end_of_turn_out() -> None:
    # Means: chosen .2 and .1, rejected −.1 and .2; a mean over tokens, or with end-of-turn, would be another.
    pairs = [pair([0.1, 0.3], [0.1, -0.3]), pair([0.1] * 4, [0.2] * 4)]
    found = reward_figures(pairs, resamples=200)
    assert (found.chosen.value, found.chosen.count) == (pytest.approx(0.15), 2)
    assert found.rejected.value == pytest.approx(0.05)
    assert found.difference.value == pytest.approx(0.1)
    # Two pairs: a resample holds one of them twice, or both.
    assert (found.difference.low, found.difference.high) == (pytest.approx(-0.1), pytest.approx(0.3))
    assert found.preferred == 0.5


def test_auc_of_planted_tokens_is_within_answers_and_by_strategy() -> None:
    # The differing token is the last before end-of-turn: lowest of three, tied with one of three, highest of three.
    pairs = [
        pair([0.0] * 3, [0.1, 0.2, -0.1]),
        pair([0.0] * 3, [0.1, 0.3, 0.1]),
        pair([0.0] * 3, [0.1, 0.2, 0.3], "planted span"),
        pair([0.0] * 3, [0.1, 0.2, 0.3], "samples"),
        pair([0.0] * 3, [0.1, 0.2, 0.3], None),
    ]
    found = reward_figures(pairs, resamples=100)
    assert {name: (estimate.value, estimate.count) for name, estimate in found.auc.items()} == {
        "": (pytest.approx((1 + 0.75 + 0) / 3), 3),
        "planted label": (pytest.approx(0.875), 2),
        "planted span": (0.0, 1),
    }
    # Wrong −.1, .1, .3 against right .1 .2 .1 .3 .1 .2: 6 + (3 · ½ + 3) + ½ of 18
    assert found.pooled_auc == pytest.approx((6 + 4.5 + 0.5) / 18)
    without = reward_figures(pairs[3:], resamples=100)
    assert (without.auc, without.pooled_auc) == ({}, None)


def test_figures_by_class() -> None:
    found = reward_figures([pair([0.1, 0.3], [0.1, -0.5])], resamples=100).classes
    assert list(found) == ["b", "a"], "the largest first"
    assert (found["b"].size, found["b"].count) == (pytest.approx(0.4), 2)
    assert (found["b"].chosen, found["b"].rejected) == (pytest.approx(0.3), pytest.approx(-0.5))
    assert (found["a"].size, found["a"].count) == (pytest.approx(0.1), 2)


def test_the_view_sets_both_answers_side_by_side() -> None:
    view = reward_view([pair([0.1, 0.3], [0.1, -0.5]), pair([0.1, 0.3], [0.1, -0.5], None)])
    first, second, *others = view.responses
    assert (first.side, second.side, first.group) == ("chosen", "rejected", second.group)
    assert list(second.columns["wrong"]) == [0, 1, 0]
    assert all("wrong" not in response.columns for response in (first, *others))
    assert view.start() == "token_rewards"
    assert view.scales["token_rewards"].kind == "diverging"


def test_shuffled_rewards_are_the_same_ones_in_another_order() -> None:
    row = {"chosen_ids": [*range(20), 99], "rejected_ids": [5, 99], "rejected_rewards": [0.5, 0.0]}
    row["chosen_rewards"] = [place / 40 for place in range(20)] + [0.0]
    once, again, other = (shuffled_rewards([row], special=[99], seed=seed) for seed in (0, 0, 1))
    assert once == again != other
    (found,) = once["chosen_rewards"]
    assert sorted(found[:-1]) == row["chosen_rewards"][:-1] != found[:-1]
    assert found[-1] == 0
    assert once["rejected_rewards"] == [[0.5, 0.0]]


def test_rewards_of_a_tuned_model(tiny_model: Any) -> None:
    """By hand from full logits: 1e-5, as against the chunked head. The same model implies nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    reference, tuned = (AutoModelForCausalLM.from_pretrained(tiny_model).eval() for _ in range(2))
    with torch.no_grad():
        tuned.get_input_embeddings().weight.mul_(3)
    rows = [{"prompt_ids": [65, 66], "chosen_ids": [67, 68, 1], "rejected_ids": [69, 1]}] * 2
    found = dpo_rewards(rows, tuned, reference, special=[1], batch_size=1)
    ids = torch.tensor([[65, 66, 67, 68, 1]])
    with torch.no_grad():
        logps = [
            model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[1:, 0]
            for model in (tuned, reference)
        ]
    expected = (torch.sigmoid(logps[0] - logps[1]) - 0.5).tolist()
    assert abs(expected[0]) > 1e-3
    for values in found["chosen_rewards"]:
        assert values == pytest.approx([*expected[:-1], 0.0], abs=1e-5)
    for values in dpo_rewards(rows, reference, reference, special=[1])["chosen_rewards"]:
        assert values == [0.0] * 3
