"""The rules' scores on the shift test vector, the cut, and sampling by a number."""

import math

import pytest
import torch

from tokencredit.errors import InputError
from tokencredit.losses.divergence import js_divergence, nucleus
from tokencredit.scoring.cross_rules import (
    RULES,
    Position,
    check_rule,
    choose,
    score,
    threshold_of,
)

P = torch.tensor([[0.5, 0.3, 0.1, 0.06, 0.04]])
Q = torch.tensor([[0.2, 0.7, 0.05, 0.03, 0.02]])


def at(top_p: float | None = None, token: int = 0, place: int = 3, uniform: float = 0.25) -> Position:
    tensors = (torch.tensor([token]), torch.tensor([place]), torch.tensor([uniform], dtype=torch.float64))
    return Position(P.log(), Q.log(), *tensors, top_p)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("js", 0.0828435),
        ("kl", 0.3425854),  # of the first from the second
        ("tv", 0.4),
        ("entropy", 1.2355836),
        ("delta_logp", math.log(0.5 / 0.2)),
        ("rank", 1.0),  # the second's first choice is the first's second
        ("random", 0.25),
        ("first_k", -3.0),
    ],
)
def test_scores_of_the_test_vector(rule: str, expected: float) -> None:
    # float32
    assert float(score(rule, at())[0]) == pytest.approx(expected, abs=2e-6)


def test_every_rule_is_tested_above() -> None:
    assert list(RULES) == ["js", "kl", "tv", "entropy", "delta_logp", "rank", "random", "first_k"]


def test_cut_before_comparing() -> None:
    # 0.65 keeps 0.5 and 0.3 of the one, 0.7 of the other; 0.93 keeps four and three: METHODS' vectors.
    assert float(score("js", at(0.65))[0]) == pytest.approx(0.2903048, abs=2e-6)
    assert float(score("js", at(0.93))[0]) == pytest.approx(0.1041094, abs=2e-6)
    assert float(score("tv", at(0.65))[0]) == pytest.approx(0.625, abs=1e-6)  # (5/8, 3/8) against (0, 1)
    assert float(score("entropy", at(0.65))[0]) == pytest.approx(
        -(0.625 * math.log(0.625) + 0.375 * math.log(0.375)), abs=2e-6
    )


def test_tokens_that_one_model_excludes() -> None:
    p, q = torch.tensor([[0.5, 0.5, 0.0]]).log(), torch.tensor([[0.0, 0.5, 0.5]]).log()
    zeros = torch.zeros(1, dtype=torch.long)
    here = Position(p, q, zeros, zeros, torch.zeros(1))
    assert float(score("kl", here)[0]) == math.inf
    assert float(score("delta_logp", here)[0]) == math.inf
    assert float(score("entropy", here)[0]) == pytest.approx(math.log(2), abs=1e-6)
    assert float(score("js", here)[0]) == pytest.approx(math.log(2) / 2, abs=1e-6)


def test_equal_models_differ_nowhere() -> None:
    log_p = torch.randn(4, 50).log_softmax(-1)
    here = Position(log_p, log_p, torch.arange(4), torch.arange(4), torch.zeros(4))
    for rule in ("js", "kl", "tv", "delta_logp", "rank"):
        assert score(rule, here).tolist() == [0.0] * 4, rule


@pytest.mark.parametrize("rule", ["js", "kl", "tv"])
def test_distances_of_nearly_equal_models_are_not_below_zero(rule: str) -> None:
    """Else an ε just below 0 would leave tokens to the primary."""
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    log_p, log_q = logits.log_softmax(-1), (logits + 1e-5 * torch.randn(200, 50)).log_softmax(-1)
    here = Position(log_p, log_q, *(torch.zeros(200, dtype=torch.long),) * 2, torch.zeros(200))
    assert score(rule, here).min() >= 0


def test_sampling_follows_the_distribution_function() -> None:
    # Cumulated: .5 .8 .9 .96 1
    numbers = torch.tensor([0.0, 0.4999, 0.5001, 0.85, 0.95, 0.97, 1 - 2**-53], dtype=torch.float64)
    assert choose(P.log().expand(7, -1), numbers, 1.0).tolist() == [0, 0, 1, 2, 3, 4, 4]
    # Cut to two, brought back to one: .625 1
    assert choose(P.log().expand(7, -1), numbers, 0.65).tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_a_token_without_probability_is_never_drawn() -> None:
    log_p = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).log()
    numbers = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert choose(log_p.expand(3, -1), numbers, 1.0).tolist() == [1, 3, 3]


def test_frequencies() -> None:
    numbers = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    drawn = choose(P.log().expand(10_000, -1), numbers, 1.0).bincount(minlength=5) / 10_000
    assert torch.allclose(drawn, P[0], atol=2e-4)


def test_nucleus_of_a_flat_distribution_needs_a_whole_sort() -> None:
    flat = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)) + 1
    p = flat / flat.sum(-1, keepdim=True)
    kept = nucleus(p, 0.9)
    ranked = p.sort(dim=-1, descending=True).values
    for row in range(2):
        count = int(kept[row].sum())
        assert float(ranked[row, :count].sum()) >= 0.9 > float(ranked[row, : count - 1].sum())
        assert float(p[row][kept[row]].min()) == float(ranked[row, count - 1])
    assert nucleus(p, 1.0).all()


def test_ties_at_the_cut_stay_together() -> None:
    tied = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    assert nucleus(tied, 0.6).tolist() == [[True] * 4]
    # Wherever distributions are compared, and in whatever order their tokens stand.
    other = tied.flip(-1)
    assert float(js_divergence(tied.log(), other.log(), top_p=0.6)) == float(js_divergence(tied.log(), other.log()))


@pytest.mark.parametrize("top_p", [None, 0.7])
def test_models_that_share_nothing_are_at_the_upper_bounds(top_p: float | None) -> None:
    halves = torch.arange(2000) < 1000
    wild = torch.randn(8, 2000, generator=torch.Generator().manual_seed(0))
    log_p, log_q = (wild.masked_fill(half, -math.inf).log_softmax(-1) for half in (halves, ~halves))
    zeros = torch.zeros(8, dtype=torch.long)
    here = Position(log_p, log_q, zeros, zeros, torch.zeros(8), top_p)
    for rule, most in (("js", math.log(2)), ("tv", 1.0)):
        found = score(rule, here).double()
        assert float(found.max()) <= most, rule
        assert float(found.min()) == pytest.approx(most, abs=1e-6)


@pytest.mark.parametrize(
    ("rule", "cut", "message"),
    [
        ("jsd", None, "no rule 'jsd'; there are js, kl"),
        ("kl", 0.7, "kl compares whole distributions; leave it out"),
        ("js", 0.0, "0.0 is no share of probability"),
    ],
)
def test_wrong_rules(rule: str, cut: float | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_rule(rule, cut)


def test_threshold_of_the_first_tokens_is_their_number() -> None:
    assert threshold_of("first_k", epsilon=None, budget=4) == -4
    with pytest.raises(InputError, match="epsilon: is missing"):
        threshold_of("js", epsilon=None, budget=4)
