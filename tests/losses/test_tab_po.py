"""TAB-PO: golden values, the plain methods it reduces to, gradients in closed form, and what must not change it."""

import math
import re

import pytest
import torch
from torch import Tensor, nn

from tokencredit.losses import dpo_loss, tab_po_loss

torch.set_num_threads(1)

CHOSEN = [-0.05, -0.9, -0.02, -1.6, -0.3, -0.01]
REF_CHOSEN = [-0.06, -1.1, -0.02, -1.5, -0.28, -0.01]
REJECTED = [-0.05, -0.9, -0.02, -0.7, -0.5, -0.4, -0.01]
REF_REJECTED = [-0.06, -1.1, -0.02, -0.6, -0.45, -0.4, -0.02]
W_CHOSEN = [1, 1.44, 1, 1.1, 1.1, 1]
W_REJECTED = [1, 1.44, 1, 1.1, 1.1, 1, 1]

forms = pytest.mark.parametrize("form", ["weighted", "sum"])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def example() -> dict[str, Tensor]:
    """The one pair of the golden values."""
    logps = {"chosen_logps": CHOSEN, "rejected_logps": REJECTED}
    reference = {"ref_chosen_logps": REF_CHOSEN, "ref_rejected_logps": REF_REJECTED}
    masks = {"chosen_mask": [1] * 6, "rejected_mask": [1] * 7}
    weights = {"chosen_weights": W_CHOSEN, "rejected_weights": W_REJECTED}
    return {name: torch.tensor([values]) for name, values in (logps | reference | masks | weights).items()}


def random_pairs(seed: int = 0) -> dict[str, Tensor]:
    """Four pairs whose prompts (masked on the left) and padding (masked on the right) differ."""
    generator = torch.Generator().manual_seed(seed)
    masks = {
        "chosen": torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0, 0, 0, 0]] * 2),
        "rejected": torch.tensor([[0, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]] * 2),
    }
    pairs = {}
    for side, mask in masks.items():
        pairs[f"{side}_logps"] = -torch.rand(mask.shape, generator=generator)
        pairs[f"ref_{side}_logps"] = -torch.rand(mask.shape, generator=generator)
        pairs[f"{side}_weights"] = 0.5 + torch.rand(mask.shape, generator=generator)
        pairs[f"{side}_mask"] = mask
    return pairs


def side_of(name: str) -> str:
    return "rejected" if "rejected" in name else "chosen"


def without(pairs: dict[str, Tensor], ending: str) -> dict[str, Tensor]:
    return {name: value for name, value in pairs.items() if not name.endswith(ending)}


def per_pair(metrics: dict[str, Tensor]) -> dict[str, float]:
    """The metrics of the only pair, with the barrier-to-preference ratio of its sums."""
    found = {name: value.item() for name, value in metrics.items() if value.dim() == 1}
    below = metrics["preference_gradient"].sum().item()
    return found | {"barrier_to_preference": metrics["barrier_gradient"].sum().item() / below if below else 0.0}


def gradients(pairs: dict[str, Tensor], **options) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B] and its gradients with respect to the policy's log-probs of both sides."""
    chosen = pairs["chosen_logps"].clone().requires_grad_()
    rejected = pairs["rejected_logps"].clone().requires_grad_()
    loss, _ = tab_po_loss(**{**pairs, "chosen_logps": chosen, "rejected_logps": rejected}, **options)
    loss.sum().backward()
    return loss.detach(), chosen.grad, rejected.grad


def test_sum_golden() -> None:
    # Σ(ℓ − ℓref): chosen .09, rejected .07;  −log σ(.5 · .02) = .688160
    # log .66 = −.4155 gates −.9 and −1.6 of the chosen response: (.9 + 1.6) / 2 = 1.25;  .688160 + .5 · 1.25
    loss, metrics = tab_po_loss(**example(), form="sum", lam=0.5)
    assert metrics["pref_loss"].item() == pytest.approx(-math.log(sigmoid(0.01)), abs=1e-6)
    expected = {
        "pref_loss": 0.688160,
        "barrier_loss": 1.25,
        "gated_fraction": 2 / 6,
        "barrier_to_preference": 0.5 / (0.5 * sigmoid(-0.01) * 2),
        "rewards/chosen": 0.045,
        "rewards/rejected": 0.035,
        "rewards/margins": 0.01,
        "rewards/accuracies": 1.0,
        "logps/chosen": -2.88,
        "logps/rejected": -2.58,
    }
    assert per_pair(metrics) == pytest.approx(expected, abs=1e-6)
    assert loss.item() == pytest.approx(1.313160, abs=1e-6)


def test_weighted_golden() -> None:
    # Σ w = 6.64 and 7.64, so w̃/N = w/6.64 and w/7.64.
    # s − s_ref: chosen   (.01 + 1.44 · .2 − 1.1 · .1 − 1.1 · .02) / 6.64               = .166 / 6.64 = .025
    #            rejected (.01 + 1.44 · .2 − 1.1 · .1 − 1.1 · .05 + .01) / 7.64         = .143 / 7.64 = .018717
    # −log σ(.5 · .006283) = .691578
    # Barrier: w̃ = 1.44 · 6/6.64 and 1.1 · 6/6.64, whose sum is above 1: (1.44 · .9 + 1.1 · 1.6) / 2.54 = 1.203150
    loss, metrics = tab_po_loss(**example())
    margin = 0.5 * (0.166 / 6.64 - 0.143 / 7.64)
    gated = 2.54 * 6 / 6.64
    expected = {
        "pref_loss": 0.691578,
        "barrier_loss": 1.203150,
        "gated_fraction": 2 / 6,
        "barrier_to_preference": 0.5 * 6 / (0.5 * sigmoid(-margin) * gated),
        "rewards/chosen": 0.5 * 0.025,
        "rewards/rejected": 0.5 * 0.143 / 7.64,
        "rewards/margins": margin,
        "rewards/accuracies": 1.0,
        "logps/chosen": -2.88,
        "logps/rejected": -2.58,
    }
    assert per_pair(metrics) == pytest.approx(expected, abs=2e-6)
    assert loss.item() == pytest.approx(1.293153, abs=1e-6)


def test_the_default_lam_belongs_to_the_form() -> None:
    for form, lam in (("weighted", 0.5), ("sum", 1.5)):
        default, named = (tab_po_loss(**example(), form=form, **options)[0] for options in ({}, {"lam": lam}))
        assert torch.equal(default, named)


def test_sum_without_barrier_is_dpo() -> None:
    pairs = random_pairs()
    loss, metrics = tab_po_loss(**pairs, beta=0.3, lam=0, form="sum")
    plain, plain_metrics = dpo_loss(**without(pairs, "weights"), beta=0.3)
    torch.testing.assert_close(loss, plain, atol=1e-6, rtol=0)
    for name, value in plain_metrics.items():
        torch.testing.assert_close(metrics[name], value, atol=1e-6, rtol=0)


def test_weighted_with_unit_weights_and_no_barrier_is_trl_sigmoid_norm() -> None:
    pairs = random_pairs()
    # TRL: scores over completion_mask.sum(dim=1), then −logsigmoid(β · difference).
    scores = {
        side: ((pairs[f"{side}_logps"] - pairs[f"ref_{side}_logps"]) * pairs[f"{side}_mask"]).sum(dim=1)
        / pairs[f"{side}_mask"].sum(dim=1)
        for side in ("chosen", "rejected")
    }
    expected = -nn.functional.logsigmoid(0.3 * (scores["chosen"] - scores["rejected"]))
    ones = {name: torch.ones_like(value) for name, value in pairs.items() if name.endswith("weights")}
    for weights in ({}, ones):
        loss, _ = tab_po_loss(**without(pairs, "weights"), **weights, beta=0.3, lam=0)
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_the_unit_of_the_raw_weights_does_not_matter(scale: float) -> None:
    pairs = random_pairs()
    scaled = {name: value * scale if name.endswith("weights") else value for name, value in pairs.items()}
    for expected, actual in zip(gradients(pairs), gradients(scaled), strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


def test_sum_ignores_weights() -> None:
    pairs = random_pairs()
    expected = gradients(without(pairs, "weights"), form="sum")
    for left, right in zip(gradients(pairs, form="sum"), expected, strict=True):
        assert torch.equal(left, right)


@forms
@pytest.mark.parametrize("tau", [0.66, 0.9, 1.0])
def test_gradient_is_the_closed_form(form: str, tau: float) -> None:
    # y_w: −β σ(−βΔ) w̃/n − λ g w̃ / max(1, Σ g w̃)      y_l: +β σ(−βΔ) w̃/n      n = N, or 1 in `sum` where w̃ = m
    pairs = random_pairs()
    _, metrics = tab_po_loss(**pairs, form=form, tau=tau, lam=0.7)
    slope = 0.5 * torch.sigmoid(-metrics["rewards/margins"])[:, None]
    expected = {}
    for side in ("chosen", "rejected"):
        mask = pairs[f"{side}_mask"].float()
        n = mask.sum(1, keepdim=True)
        weights = pairs[f"{side}_weights"] * mask
        unit = weights / weights.sum(1, keepdim=True) * n if form == "weighted" else mask
        expected[side] = slope * unit / (n if form == "weighted" else 1)
        if side == "chosen":
            gated = unit * (pairs["chosen_logps"] < math.log(tau))
            assert gated.any()
            barrier = 0.7 * gated / gated.sum(1, keepdim=True).clamp(min=1)
            torch.testing.assert_close(metrics["barrier_gradient"], barrier, atol=1e-6, rtol=0)
            on_gated = expected[side] * (gated > 0)
            torch.testing.assert_close(metrics["preference_gradient"], on_gated, atol=1e-6, rtol=0)
            assert torch.equal(metrics["gated"], (gated > 0).float())
            expected[side] = -expected[side] - barrier
    _, chosen, rejected = gradients(pairs, form=form, tau=tau, lam=0.7)
    torch.testing.assert_close(chosen, expected["chosen"], atol=1e-6, rtol=0)
    torch.testing.assert_close(rejected, expected["rejected"], atol=1e-6, rtol=0)


@forms
def test_a_log_prob_on_the_gate_is_not_gated(form: str) -> None:
    edge = torch.tensor(math.log(0.66))
    below = torch.nextafter(edge, torch.tensor(-1.0))
    pairs = without(example(), "weights")
    pairs["chosen_logps"] = torch.stack([edge] * 6)[None]
    loss, metrics = tab_po_loss(**pairs, form=form)
    assert metrics["barrier_loss"].item() == metrics["gated_fraction"].item() == 0
    assert torch.equal(loss, metrics["pref_loss"])
    pairs["chosen_logps"] = torch.stack([edge] * 5 + [below])[None]
    _, metrics = tab_po_loss(**pairs, form=form)
    assert metrics["gated_fraction"].item() == pytest.approx(1 / 6)
    assert metrics["barrier_loss"].item() == pytest.approx(-math.log(0.66))
    for gradient in gradients(pairs, form=form):
        assert torch.isfinite(gradient).all()


@forms
def test_a_gated_weight_below_one_is_not_blown_up(form: str) -> None:
    # One gated token of 10 with weight .1 against 1.1: w̃ = .1, and max(1, .1) leaves .1 · 2 as it is.
    logps = torch.tensor([[-2.0] + [0.0] * 9])
    weights = torch.tensor([[0.1] + [1.1] * 9])
    mask = torch.ones(1, 10)
    _, metrics = tab_po_loss(logps, logps, logps, logps, mask, mask, weights, weights, form=form)
    assert metrics["barrier_loss"].item() == pytest.approx({"weighted": 0.2, "sum": 2.0}[form], abs=1e-6)


@pytest.mark.parametrize(("form", "ratio"), [("weighted", 37.5), ("sum", 0.25)])
def test_the_two_forms_balance_differently_at_the_start(form: str, ratio: float) -> None:
    # Policy = reference, so σ(−βΔ) = ½; T = 150, 8 gated tokens, β = λ = ½, unit weights. On a gated token
    # weighted: (½ · 1/8) / (½ · ½ · 1/150) = 37.5     sum: (½ · 1/8) / (½ · ½) = .25
    logps, mask = torch.full((1, 150), -0.1), torch.ones(1, 150)
    logps[0, 5:45:5] = -1.0
    tensors = [logps, logps, logps, logps, mask, mask]
    _, metrics = tab_po_loss(*tensors, lam=0.5, form=form)
    assert metrics["gated_fraction"].item() == pytest.approx(8 / 150)
    assert per_pair(metrics)["barrier_to_preference"] == pytest.approx(ratio, rel=1e-6)
    assert tab_po_loss(*tensors, lam=0.5, form=form, tau=0.3)[1]["barrier_gradient"].sum() == 0
    assert tab_po_loss(*tensors, lam=0, form=form)[1]["barrier_gradient"].sum() == 0


def test_the_scope_restricts_the_gate_to_weighted_tokens() -> None:
    # τ = .99 gates all but the last token; of these, tokens 1, 3 and 4 have a raw weight above 1:
    # (1.44 · .9 + 1.1 · 1.6 + 1.1 · .3) / 3.64 = 3.386 / 3.64
    _, metrics = tab_po_loss(**example(), tau=0.99)
    assert metrics["gated_fraction"].item() == pytest.approx(5 / 6)
    _, metrics = tab_po_loss(**example(), tau=0.99, barrier_scope="weighted")
    assert metrics["gated_fraction"].item() == pytest.approx(3 / 6)
    assert metrics["barrier_loss"].item() == pytest.approx(3.386 / 3.64, abs=1e-6)


@pytest.mark.parametrize(("form", "cancels"), [("sum", True), ("weighted", False)])
def test_a_shared_prefix(form: str, cancels: bool) -> None:
    shared = torch.tensor([[-0.05, -0.9, -0.02]], requires_grad=True)
    chosen, rejected = torch.tensor([[-1.6, -0.3, -0.01]]), torch.tensor([[-0.7, -0.5, -0.4, -0.01]])
    pairs = without(example(), "weights") | {
        "chosen_logps": torch.cat([shared, chosen], dim=1),
        "rejected_logps": torch.cat([shared, rejected], dim=1),
    }
    loss, metrics = tab_po_loss(**pairs, lam=0, form=form)
    loss.sum().backward()
    if cancels:
        assert shared.grad.tolist() == [[0.0] * 3]
    else:
        # −β σ(−βΔ) (1/6 − 1/7) on each
        slope = 0.5 * torch.sigmoid(-metrics["rewards/margins"]).item()
        assert shared.grad[0].tolist() == pytest.approx([-slope * (1 / 6 - 1 / 7)] * 3, abs=1e-7)


@forms
def test_loss_and_metrics_are_float32_and_metrics_detached(form: str) -> None:
    pairs = random_pairs()
    pairs["chosen_logps"].requires_grad_()
    loss, metrics = tab_po_loss(**pairs, form=form)
    assert loss.requires_grad
    for value in (loss, *metrics.values()):
        assert value.shape in ((4,), pairs["chosen_logps"].shape)
        assert value.dtype == torch.float32
    assert not any(value.requires_grad for value in metrics.values())


@forms
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_never_leaks(form: str, garbage: float) -> None:
    clean = random_pairs()
    dirty = {
        name: value if name.endswith("mask") else value.masked_fill(clean[f"{side_of(name)}_mask"] == 0, garbage)
        for name, value in clean.items()
    }
    for expected, actual in zip(gradients(clean, form=form), gradients(dirty, form=form), strict=True):
        assert torch.equal(expected, actual)
    _, chosen, rejected = gradients(dirty, form=form)
    assert (chosen[clean["chosen_mask"] == 0] == 0).all()
    assert (rejected[clean["rejected_mask"] == 0] == 0).all()
    for expected, actual in zip(*(tab_po_loss(**p, form=form)[1].values() for p in (clean, dirty)), strict=True):
        assert torch.equal(expected, actual)


@forms
@pytest.mark.parametrize("pad", [(3, 0), (0, 5), (2, 2)], ids=["left", "right", "both sides"])
def test_padding_side_and_amount_do_not_matter(form: str, pad: tuple[int, int]) -> None:
    pairs = random_pairs()
    padded = {
        name: nn.functional.pad(value, pad, value=0 if name.endswith("mask") else -7.0) for name, value in pairs.items()
    }
    torch.testing.assert_close(
        tab_po_loss(**padded, form=form)[0], tab_po_loss(**pairs, form=form)[0], atol=1e-6, rtol=0
    )


@forms
def test_batch_permutation_permutes_the_loss(form: str) -> None:
    pairs, order = random_pairs(), torch.tensor([2, 0, 3, 1])
    permuted = {name: value[order] for name, value in pairs.items()}
    assert torch.equal(tab_po_loss(**permuted, form=form)[0], tab_po_loss(**pairs, form=form)[0][order])


@forms
def test_bfloat16_inputs_are_computed_in_float32(form: str) -> None:
    pairs = random_pairs()
    low = {name: value if name.endswith("mask") else value.bfloat16() for name, value in pairs.items()}
    exact = {name: value if name.endswith("mask") else value.float() for name, value in low.items()}
    loss, metrics = tab_po_loss(**low, form=form)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, tab_po_loss(**exact, form=form)[0])
    assert {value.dtype for value in metrics.values()} == {torch.float32}


@forms
@pytest.mark.parametrize("name", ["chosen_mask", "rejected_mask"])
def test_an_empty_response_is_refused(form: str, name: str) -> None:
    pairs = random_pairs()
    pairs[name][[1, 3]] = 0
    with pytest.raises(ValueError, match=rf"{name} has no token in rows \[1, 3\]"):
        tab_po_loss(**pairs, form=form)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["chosen_weights", "rejected_weights"])
def test_weights_without_a_usable_sum_are_refused(name: str, value: float) -> None:
    pairs = random_pairs()
    pairs[name][[0, 2]] = value
    with pytest.raises(ValueError, match=rf"{name} have no positive, finite sum .* rows \[0, 2\]"):
        tab_po_loss(**pairs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "mean"}, "form is 'mean', but must be one of weighted, sum"),
        ({"tau": 0.0}, "tau is 0.0, but"),
        ({"tau": 1.01}, "tau is 1.01, but"),
        ({"tau": math.nan}, "tau is nan, but"),
        ({"barrier_scope": "none"}, "barrier_scope is 'none', but must be one of all, weighted"),
        ({"barrier_scope": "weighted", "form": "sum"}, "barrier_scope='weighted' needs chosen_weights"),
        ({"barrier_scope": "weighted", "chosen_weights": None}, "barrier_scope='weighted' needs chosen_weights"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        tab_po_loss(**{**random_pairs(), **options})


@pytest.mark.parametrize("name", [name for name in random_pairs() if name not in ("chosen_logps", "rejected_logps")])
def test_the_argument_of_another_shape_is_named(name: str) -> None:
    pairs = random_pairs()
    other = f"{side_of(name)}_logps"
    expected = list(pairs[other].shape)
    pairs[name] = pairs[name][:, 1:]
    message = f"{name} has shape {[4, expected[1] - 1]}, but {other} has shape {expected}"
    with pytest.raises(ValueError, match=re.escape(message)):
        tab_po_loss(**pairs)


@forms
def test_a_batch_of_one_is_not_broadcast(form: str) -> None:
    pairs = {name: value[:1] if "rejected" in name else value for name, value in random_pairs().items()}
    with pytest.raises(ValueError, match=r"rejected_logps has shape \[1, 7\], but chosen_logps has shape \[4, 9\]"):
        tab_po_loss(**pairs, form=form)
