"""DPO and SimPO: golden values, gradients in closed form, and what must not change them."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from tokencredit.losses import dpo_loss, simpo_loss

CHOSEN = [-0.05, -0.9, -0.02, -1.6, -0.3, -0.01]
REF_CHOSEN = [-0.06, -1.1, -0.02, -1.5, -0.28, -0.01]
REJECTED = [-0.05, -0.9, -0.02, -0.7, -0.5, -0.4, -0.01]
REF_REJECTED = [-0.06, -1.1, -0.02, -0.6, -0.45, -0.4, -0.02]

METRICS = {
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
}


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def row(values: list[float]) -> Tensor:
    return torch.tensor([values])


def random_pairs(seed: int = 0) -> dict[str, Tensor]:
    """Four pairs whose prompts (masked on the left) and padding (masked on the right) differ."""
    generator = torch.Generator().manual_seed(seed)
    t_w, t_l = 9, 7
    masks = {
        "chosen_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0, 0, 0]] * 2),
        "rejected_mask": torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]] * 2),
    }
    return {
        "chosen_logps": -torch.rand(4, t_w, generator=generator),
        "rejected_logps": -torch.rand(4, t_l, generator=generator),
        "ref_chosen_logps": -torch.rand(4, t_w, generator=generator),
        "ref_rejected_logps": -torch.rand(4, t_l, generator=generator),
        **masks,
    }


def dpo(pairs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return dpo_loss(**pairs, beta=0.3)


def simpo(pairs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    return simpo_loss(**{k: v for k, v in pairs.items() if not k.startswith("ref_")}, beta=2.0, gamma=0.5)


both = pytest.mark.parametrize("loss_fn", [dpo, simpo])


def test_dpo_golden() -> None:
    # Σ(ℓ − ℓref): chosen .01 + .2 + 0 − .1 − .02 + 0 = .09, rejected .01 + .2 + 0 − .1 − .05 + 0 + .01 = .07
    # −log σ(.1 · (.09 − .07)) = −log σ(.002) = .692148
    loss, metrics = dpo_loss(
        row(CHOSEN),
        row(REJECTED),
        row(REF_CHOSEN),
        row(REF_REJECTED),
        torch.ones(1, 6),
        torch.ones(1, 7),
        beta=0.1,
    )
    assert loss.item() == pytest.approx(-math.log(sigmoid(0.002)), abs=1e-6)
    assert loss.item() == pytest.approx(0.692148, abs=1e-6)
    expected = {
        "rewards/chosen": 0.009,
        "rewards/rejected": 0.007,
        "rewards/margins": 0.002,
        "rewards/accuracies": 1.0,
        "logps/chosen": -2.88,
        "logps/rejected": -2.58,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-6)


def test_simpo_golden() -> None:
    # Σℓ = −2.88 over 6 and −2.58 over 7 tokens; z = 10 · (−2.88/6) − 10 · (−2.58/7) − 3 = −4.8 + 3.685714 − 3
    # −log σ(−4.114286) = 4.130491
    loss, metrics = simpo_loss(row(CHOSEN), row(REJECTED), torch.ones(1, 6), torch.ones(1, 7), beta=10.0, gamma=3.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(4.8 - 25.8 / 7 + 3)), abs=2e-6)
    assert loss.item() == pytest.approx(4.130491, abs=2e-6)
    expected = {
        "rewards/chosen": -4.8,
        "rewards/rejected": -25.8 / 7,
        "rewards/margins": -4.8 + 25.8 / 7,
        "rewards/accuracies": 0.0,
        "logps/chosen": -2.88,
        "logps/rejected": -2.58,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=2e-6)


def test_dpo_is_trl_sigmoid() -> None:
    pairs = random_pairs()
    # The formula of TRL's `sigmoid`: masked positions set to zero, sums per sequence, difference of log-ratios.
    sums = {
        name: (pairs[name] * pairs["rejected_mask" if "rejected" in name else "chosen_mask"]).sum(dim=1)
        for name in ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    }
    delta = (sums["chosen_logps"] - sums["ref_chosen_logps"]) - (sums["rejected_logps"] - sums["ref_rejected_logps"])
    torch.testing.assert_close(dpo(pairs)[0], -nn.functional.logsigmoid(0.3 * delta), atol=1e-6, rtol=0)


def test_policy_equal_to_reference_gives_log_2() -> None:
    pairs = random_pairs()
    pairs |= {"ref_chosen_logps": pairs["chosen_logps"], "ref_rejected_logps": pairs["rejected_logps"]}
    loss, metrics = dpo(pairs)
    assert loss.tolist() == pytest.approx([math.log(2)] * 4)
    assert metrics["rewards/accuracies"].tolist() == [0.0] * 4


def test_simpo_gamma_is_the_margin_itself() -> None:
    # Equal mean log-probs: z = −γ whatever β is.
    for beta in (1.0, 10.0):
        loss, _ = simpo_loss(
            row([-1.0, -1.0]), row([-1.0] * 3), torch.ones(1, 2), torch.ones(1, 3), beta=beta, gamma=1.5
        )
        assert loss.item() == pytest.approx(math.log1p(math.exp(1.5)), abs=1e-6)


def test_dpo_gradient_is_the_closed_form() -> None:
    pairs = random_pairs()
    chosen, rejected = pairs["chosen_logps"].requires_grad_(), pairs["rejected_logps"].requires_grad_()
    loss, metrics = dpo(pairs)
    loss.sum().backward()
    # ∂L/∂ℓ_t = ∓β σ(−βΔ) on the tokens of y_w / y_l; the margin metric is βΔ.
    slope = 0.3 * torch.sigmoid(-metrics["rewards/margins"])[:, None]
    torch.testing.assert_close(chosen.grad, -slope * pairs["chosen_mask"], atol=1e-6, rtol=0)
    torch.testing.assert_close(rejected.grad, slope * pairs["rejected_mask"], atol=1e-6, rtol=0)


def test_simpo_gradient_is_the_closed_form() -> None:
    pairs = random_pairs()
    chosen, rejected = pairs["chosen_logps"].requires_grad_(), pairs["rejected_logps"].requires_grad_()
    loss, metrics = simpo(pairs)
    loss.sum().backward()
    # ∂L/∂ℓ_t = ∓(β/|y|) σ(−z), z = margin − γ
    slope = 2.0 * torch.sigmoid(0.5 - metrics["rewards/margins"])[:, None]
    weights = {name: mask / mask.sum(1, keepdim=True) for name, mask in pairs.items() if name.endswith("mask")}
    torch.testing.assert_close(chosen.grad, -slope * weights["chosen_mask"], atol=1e-6, rtol=0)
    torch.testing.assert_close(rejected.grad, slope * weights["rejected_mask"], atol=1e-6, rtol=0)


@both
def test_metrics_are_detached_and_complete(loss_fn) -> None:
    pairs = random_pairs()
    pairs["chosen_logps"].requires_grad_()
    loss, metrics = loss_fn(pairs)
    assert loss.requires_grad
    assert set(metrics) == METRICS
    for value in metrics.values():
        assert value.shape == loss.shape == (4,)
        assert value.dtype == torch.float32
        assert not value.requires_grad


@both
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_never_leaks(loss_fn, garbage: float) -> None:
    clean = random_pairs()
    dirty = {
        name: value.masked_fill(clean["rejected_mask" if "rejected" in name else "chosen_mask"] == 0, garbage)
        if name.endswith("logps")
        else value
        for name, value in clean.items()
    }
    gradients = []
    for pairs in (clean, dirty):
        chosen, rejected = pairs["chosen_logps"].requires_grad_(), pairs["rejected_logps"].requires_grad_()
        loss, _ = loss_fn(pairs)
        loss.sum().backward()
        gradients.append((loss.detach(), chosen.grad, rejected.grad))
    for expected, actual in zip(*gradients, strict=True):
        assert torch.equal(expected, actual)
    _, chosen_grad, rejected_grad = gradients[1]
    assert (chosen_grad[clean["chosen_mask"] == 0] == 0).all()
    assert (rejected_grad[clean["rejected_mask"] == 0] == 0).all()


@both
@pytest.mark.parametrize("pad", [(3, 0), (0, 5), (2, 2)], ids=["left", "right", "both sides"])
def test_padding_side_and_amount_do_not_matter(loss_fn, pad: tuple[int, int]) -> None:
    pairs = random_pairs()
    padded = {
        name: nn.functional.pad(value, pad, value=0 if name.endswith("mask") else -7.0) for name, value in pairs.items()
    }
    torch.testing.assert_close(loss_fn(padded)[0], loss_fn(pairs)[0], atol=1e-6, rtol=0)


@both
def test_batch_permutation_permutes_the_loss(loss_fn) -> None:
    pairs, order = random_pairs(), torch.tensor([2, 0, 3, 1])
    assert torch.equal(loss_fn({name: value[order] for name, value in pairs.items()})[0], loss_fn(pairs)[0][order])


@both
def test_mask_dtype_does_not_matter(loss_fn) -> None:
    pairs = random_pairs()
    for dtype in (torch.bool, torch.float32, torch.bfloat16):
        cast = {name: value.to(dtype) if name.endswith("mask") else value for name, value in pairs.items()}
        assert torch.equal(loss_fn(cast)[0], loss_fn(pairs)[0])


@both
def test_bfloat16_inputs_are_computed_in_float32(loss_fn) -> None:
    low = {k: v.bfloat16() if k.endswith("logps") else v for k, v in random_pairs().items()}
    exact = {k: v.float() if k.endswith("logps") else v for k, v in low.items()}
    loss, _ = loss_fn(low)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, loss_fn(exact)[0])


def test_long_responses_keep_their_digits() -> None:
    # Σℓ is about −40,000, where float32 resolves 0.004; the margin itself is 0.02.
    policy = torch.full((1, 4096), -10.0)
    reference = policy.clone()
    reference[0, 0] -= 0.02
    mask = torch.ones(1, 4096)
    _, metrics = dpo_loss(policy, policy, reference, policy, mask, mask, beta=1.0)
    assert metrics["rewards/margins"].item() == pytest.approx(0.02, abs=1e-6)


def test_dpo_of_an_empty_response_has_reward_zero() -> None:
    pairs = random_pairs()
    pairs["rejected_mask"][1] = 0
    _, metrics = dpo(pairs)
    assert metrics["rewards/rejected"][1] == 0
    assert metrics["rewards/margins"][1] == metrics["rewards/chosen"][1]


@pytest.mark.parametrize("name", ["chosen_mask", "rejected_mask"])
def test_simpo_refuses_an_empty_response(name: str) -> None:
    pairs = random_pairs()
    pairs[name][[1, 3]] = 0
    with pytest.raises(ValueError, match=rf"{name} has no token in rows \[1, 3\]"):
        simpo(pairs)


@pytest.mark.parametrize("name", ["ref_chosen_logps", "chosen_mask", "ref_rejected_logps", "rejected_mask"])
def test_dpo_names_the_argument_of_another_shape(name: str) -> None:
    pairs = random_pairs()
    other = "rejected_logps" if "rejected" in name else "chosen_logps"
    expected = list(pairs[other].shape)
    pairs[name] = pairs[name][:, 1:]
    message = f"{name} has shape {[4, expected[1] - 1]}, but {other} has shape {expected}"
    with pytest.raises(ValueError, match=re.escape(message)):
        dpo(pairs)


@both
def test_a_batch_of_one_is_not_broadcast(loss_fn) -> None:
    pairs = {name: value[:1] if "rejected" in name else value for name, value in random_pairs().items()}
    with pytest.raises(ValueError, match=r"rejected_logps has shape \[1, 7\], but chosen_logps has shape \[4, 9\]"):
        loss_fn(pairs)


@both
def test_sequence_sums_are_refused(loss_fn) -> None:
    pairs = {name: value.sum(1) for name, value in random_pairs().items()}
    with pytest.raises(ValueError, match=r"chosen_logps must be \[B, T\], but has shape \[4\]"):
        loss_fn(pairs)
