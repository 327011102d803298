"""Divergences: golden values, bounds, small ones in full precision; and the weights made of them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokencredit.losses import divergence_weights, js_divergence

torch.set_num_threads(1)

BASE = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04]).log()
TUNED = torch.tensor([0.2, 0.7, 0.05, 0.03, 0.02]).log()


@pytest.mark.parametrize(
    ("top_p", "expected"), [(None, 0.0828435), (1.0, 0.0828435), (0.65, 0.2903048), (0.93, 0.1041094)]
)
def test_golden_divergence(top_p: float | None, expected: float) -> None:
    # Seven digits are given; two of float32's are spent on the sum.
    assert js_divergence(BASE, TUNED, top_p=top_p).item() == pytest.approx(expected, abs=2e-7)


def test_equal_logits_are_exactly_zero_apart() -> None:
    logits = torch.randn(3, 4, 1000, generator=torch.Generator().manual_seed(0)) * 10
    assert js_divergence(logits, logits.clone()).tolist() == [[0.0] * 4] * 3


def test_distributions_that_share_nothing_are_ln_2_apart() -> None:
    p, q = torch.tensor([0.0, 0.0, -math.inf]), torch.tensor([-math.inf, -math.inf, 0.0])
    assert js_divergence(p, q).item() == pytest.approx(math.log(2), abs=1e-7)
    assert js_divergence(torch.tensor([100.0, -100.0]), torch.tensor([-100.0, 100.0])).item() == pytest.approx(
        math.log(2), abs=1e-7
    )


logits = st.lists(st.floats(-30, 30, width=32), min_size=6, max_size=6)


@settings(deadline=None, max_examples=200)
@given(logits, logits)
def test_bounds_symmetry_and_the_definition_in_float64(first: list[float], second: list[float]) -> None:
    p, q = torch.tensor(first), torch.tensor(second)
    found = js_divergence(p, q).item()
    assert 0 <= found <= math.log(2), "in float64 too"
    assert found == pytest.approx(js_divergence(q, p).item(), abs=1e-7)
    p, q = (x.double().log_softmax(-1).exp() for x in (p, q))
    m = (p + q) / 2
    expected = (torch.special.xlogy(p, p / m) + torch.special.xlogy(q, q / m)).sum().item() / 2
    assert found == pytest.approx(expected, abs=1e-6)


def test_small_divergences_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(5000, generator=generator)
    q = p + 1e-3 * torch.randn(5000, generator=generator)
    a, b = (x.double().log_softmax(-1).exp() for x in (p, q))
    m = (a + b) / 2
    expected = ((a * (a / m).log()).sum() + (b * (b / m).log()).sum()).item() / 2
    assert expected < 2e-7, "below the rounding of float32 for numbers near one"
    assert js_divergence(p, q).item() == pytest.approx(expected, rel=1e-2)


def test_divergence_of_bfloat16_logits_is_float32() -> None:
    found = js_divergence(BASE.bfloat16(), TUNED.bfloat16())
    assert found.dtype == torch.float32
    assert found.item() == js_divergence(BASE.bfloat16().float(), TUNED.bfloat16().float()).item()


def test_golden_weights() -> None:
    log_ratio = torch.tensor([[-2.0, -1.0, -0.1, 0.0, 0.1, 1.0, 2.0]])
    k3 = [1.1353, 0.3679, 0.0048, 0.0, 0.0052, 0.7183, 4.3891]
    expected = [1 + 0.3 * (1 / (1 + math.exp(-10 * value)) - 0.5) for value in k3]
    found = divergence_weights(log_ratio, torch.ones(1, 7))
    assert found[0].tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("kl", "expected"), [(0.0, 1.0), (0.001, 1.0007), (0.01, 1.0075), (0.1, 1.0693), (1.0, 1.15)])
def test_weights_by_kl(kl: float, expected: float) -> None:
    low, high = 0.0, 3.0
    for _ in range(60):  # the ratio with that k3
        middle = (low + high) / 2
        low, high = (middle, high) if math.expm1(middle) - middle < kl else (low, middle)
    found = divergence_weights(torch.tensor([[low]]), torch.ones(1, 1))
    assert found.item() == pytest.approx(expected, abs=5e-5)


def test_weights_outside_the_mask_and_without_gradient() -> None:
    log_ratio = torch.tensor([[1.0, math.nan, math.inf]], requires_grad=True)
    found = divergence_weights(log_ratio, torch.tensor([[1, 0, 0]]), sharpness=-10.0)
    assert found[0, 1:].tolist() == [1.0, 1.0]
    assert found[0, 0] < 1, "a negative sharpness takes from tokens with a high KL"
    assert not found.requires_grad


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match=r"logits_p has shape \[5\], but logits_q \[4\]"):
        js_divergence(BASE, TUNED[:4])
    with pytest.raises(ValueError, match=r"top_p is 0, but must be in \(0, 1\]"):
        js_divergence(BASE, TUNED, top_p=0)
    with pytest.raises(ValueError, match="mask has shape"):
        divergence_weights(torch.zeros(2, 3), torch.zeros(3, 2))
