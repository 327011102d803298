"""T-REG: golden values, the plain losses it reduces to, multipliers in closed form, and what must not change it."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokencredit.losses import dpo_loss, simpo_loss, t_reg_loss, token_rewards

torch.set_num_threads(1)

CHOSEN = [-0.05, -0.9, -0.02, -1.6, -0.3, -0.01]
REF_CHOSEN = [-0.06, -1.1, -0.02, -1.5, -0.28, -0.01]
REJECTED = [-0.05, -0.9, -0.02, -0.7, -0.5, -0.4, -0.01]
REF_REJECTED = [-0.06, -1.1, -0.02, -0.6, -0.45, -0.4, -0.02]
BETTER_CHOSEN, WORSE_CHOSEN = [-0.1, -1, -0.05, -1, -0.4, -0.02], [-0.2, -0.8, -0.05, -2.5, -0.4, -0.05]
BETTER_REJECTED = [-0.1, -1, -0.05, -1.2, -0.6, -0.5, -0.02]
WORSE_REJECTED = [-0.2, -0.8, -0.05, -0.6, -0.4, -0.5, -0.02]
R_CHOSEN = [0.024979, -0.049834, 0, 0.317574, 0, 0.007499]
R_REJECTED = [0.024979, -0.049834, 0, -0.145656, -0.049834, 0, 0]

DPO: dict[str, Any] = {"beta": 0.1, "alpha": 0.25}
SIMPO: dict[str, Any] = {"beta": 10.0, "alpha": 0.25, "base": "simpo", "gamma": 3.0}
bases = pytest.mark.parametrize("options", [DPO, SIMPO], ids=["dpo", "simpo"])


def rewards(better: list[float], worse: list[float]) -> Tensor:
    return token_rewards(torch.tensor([better]), torch.tensor([worse]), torch.ones(1, len(better)))


def example() -> dict[str, Tensor]:
    """The one pair of the golden values."""
    logps = {"chosen_logps": CHOSEN, "rejected_logps": REJECTED}
    reference = {"ref_chosen_logps": REF_CHOSEN, "ref_rejected_logps": REF_REJECTED}
    masks = {"chosen_mask": [1] * 6, "rejected_mask": [1] * 7}
    pairs = {name: torch.tensor([values]) for name, values in (logps | reference | masks).items()}
    pairs["chosen_rewards"] = rewards(BETTER_CHOSEN, WORSE_CHOSEN)
    pairs["rejected_rewards"] = rewards(BETTER_REJECTED, WORSE_REJECTED)
    return pairs


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
        pairs[f"{side}_rewards"] = torch.rand(mask.shape, generator=generator) - 0.5
        pairs[f"{side}_mask"] = mask
    return pairs


def plain(pairs: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    """The base loss."""
    given = {name: value for name, value in pairs.items() if not name.endswith("rewards")}
    if options.get("base") == "simpo":
        given = {name: value for name, value in given.items() if not name.startswith("ref_")}
        return simpo_loss(**given, beta=options["beta"], gamma=options["gamma"])
    return dpo_loss(**given, beta=options["beta"])


def gradients(pairs: dict[str, Tensor], function: Any = t_reg_loss, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Loss [B] and its gradients with respect to the policy's log-probs of both sides."""
    chosen = pairs["chosen_logps"].clone().requires_grad_()
    rejected = pairs["rejected_logps"].clone().requires_grad_()
    loss, _ = function({**pairs, "chosen_logps": chosen, "rejected_logps": rejected}, options)
    loss.sum().backward()
    return loss.detach(), chosen.grad, rejected.grad


def regularised(pairs: dict[str, Tensor], options: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    return t_reg_loss(**pairs, **options)


def test_token_rewards_golden() -> None:
    # σ(.1) − ½ = .024979, σ(−.2) − ½ = −.049834, σ(1.5) − ½ = .317574, σ(.03) − ½ = .007499, σ(−.6) − ½ = −.145656
    assert rewards(BETTER_CHOSEN, WORSE_CHOSEN)[0].tolist() == pytest.approx(R_CHOSEN, abs=1e-6)
    assert rewards(BETTER_REJECTED, WORSE_REJECTED)[0].tolist() == pytest.approx(R_REJECTED, abs=1e-6)


def test_token_rewards_are_zero_for_equal_prompts_and_outside_the_mask() -> None:
    logps = torch.tensor([[-0.3, -2.0, -math.inf, math.nan]])
    assert token_rewards(logps, logps, torch.tensor([[1, 1, 0, 0]])).tolist() == [[0.0] * 4]
    assert token_rewards(logps, logps - 1, torch.tensor([[1, 0, 0, 0]]))[0, 1:].tolist() == [0.0] * 3


def test_token_rewards_are_bounded_antisymmetric_float32_and_constant() -> None:
    # At ±40 nats σ rounds to 1 and 0 in float32: the bound is reached, never passed.
    better = torch.tensor([[0.0, -40.0, -1.0]], dtype=torch.bfloat16, requires_grad=True)
    worse = torch.tensor([[-40.0, 0.0, -2.0]], dtype=torch.bfloat16)
    mask = torch.ones(1, 3)
    found = token_rewards(better, worse, mask)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found[0].tolist() == pytest.approx([0.5, -0.5, 1 / (1 + math.exp(-1)) - 0.5], abs=1e-6)
    torch.testing.assert_close(token_rewards(worse, better, mask), -found, atol=1e-6, rtol=0)


def test_dpo_golden() -> None:
    # r(y_w) = .1 · .09, r(y_l) = .1 · .07; −log σ(.002) = .692148; w = σ(−.002) = .499500
    # Σ r̂ ℓ: chosen .024979 · −.05 + .049834 · .9 − .317574 · 1.6 − .007499 · .01 = −.464590
    #        rejected −.001249 + .049834 · .9 + .145656 · .7 + .049834 · .5    = +.170478;  −.1 · sum = .029411
    loss, metrics = t_reg_loss(**example(), **DPO)
    assert metrics["pref_loss"].item() == pytest.approx(0.692148, abs=1e-6)
    assert metrics["weight"].item() == pytest.approx(0.499500, abs=1e-6)
    assert metrics["regulariser"].item() == pytest.approx(0.029411, abs=1e-6)
    # .692148 + .25 · .4995 · .029411
    assert loss.item() == pytest.approx(0.695820, abs=1e-6)
    # β Σ r̂ (ℓ − ℓref): chosen .00024979 − .0099668 − .0317574; rejected .00024979 − .0099668 + .0145656 + .0024917
    assert metrics["alignment"].item() == pytest.approx(0.1 * (-0.0414744 + 0.0073403), abs=1e-6)


def test_simpo_golden() -> None:
    loss, metrics = t_reg_loss(**example(), **SIMPO)
    assert metrics["pref_loss"].item() == pytest.approx(4.130491, abs=1e-6)
    assert metrics["weight"].item() == pytest.approx(0.983925, abs=1e-6)
    # −(10/6 · −.464590 + 10/7 · .170478)
    assert metrics["regulariser"].item() == pytest.approx(0.530781, abs=2e-6)
    assert loss.item() == pytest.approx(4.261053, abs=2e-6)
    assert metrics["alignment"].item() == pytest.approx(-0.530781, abs=2e-6)


def test_simpo_uses_no_reference() -> None:
    none = {"ref_chosen_logps": None, "ref_rejected_logps": None}
    assert torch.equal(t_reg_loss(**example(), **SIMPO)[0], t_reg_loss(**(example() | none), **SIMPO)[0])
    with pytest.raises(ValueError, match="ref_rejected_logps are None, but DPO needs them"):
        t_reg_loss(**(example() | none), **DPO)


@bases
@pytest.mark.parametrize("neutral", ["alpha", "rewards"])
def test_neutral_settings_are_the_base_loss(options: dict[str, Any], neutral: str) -> None:
    pairs = random_pairs()
    changed = dict(options) | ({"alpha": 0.0} if neutral == "alpha" else {})
    if neutral == "rewards":
        pairs |= {name: 0 * value for name, value in pairs.items() if name.endswith("rewards")}
    for expected, actual in zip(
        gradients(pairs, plain, **options), gradients(pairs, regularised, **changed), strict=True
    ):
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
    expected_metrics, metrics = plain(pairs, options)[1], regularised(pairs, changed)[1]
    for name, value in expected_metrics.items():
        torch.testing.assert_close(metrics[name], value, atol=1e-6, rtol=0)


@bases
@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 3.0])
def test_it_is_the_base_loss_with_token_multipliers(options: dict[str, Any], alpha: float) -> None:
    """∂L/∂ℓ_t on y_w is that of the base loss times 1 + α r̂_t, on y_l times 1 − α r̂_t."""
    pairs = random_pairs()
    _, chosen, rejected = gradients(pairs, regularised, **options | {"alpha": alpha})
    _, base_chosen, base_rejected = gradients(pairs, plain, **options)
    assert base_chosen[pairs["chosen_mask"] == 1].abs().min() > 1e-3
    # Relative: for SimPO β/|y| is above 1.
    torch.testing.assert_close(chosen, base_chosen * (1 + alpha * pairs["chosen_rewards"]), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rejected, base_rejected * (1 - alpha * pairs["rejected_rewards"]), atol=1e-6, rtol=1e-6)


def test_gradient_in_closed_form() -> None:
    pairs = random_pairs()
    _, metrics = regularised(pairs, DPO)
    slope = 0.1 * torch.sigmoid(-metrics["rewards/margins"])[:, None]
    _, chosen, rejected = gradients(pairs, regularised, **DPO)
    expected = -slope * (1 + 0.25 * pairs["chosen_rewards"]) * pairs["chosen_mask"]
    torch.testing.assert_close(chosen, expected, atol=1e-7, rtol=0)
    expected = slope * (1 - 0.25 * pairs["rejected_rewards"]) * pairs["rejected_mask"]
    torch.testing.assert_close(rejected, expected, atol=1e-7, rtol=0)


@bases
def test_a_weight_with_gradient_adds_its_slope(options: dict[str, Any]) -> None:
    # dw/dz = −w (1 − w), z = r(y_w) − r(y_l) − γ: the extra gradient is −α L_reg w (1 − w) ∂z/∂ℓ
    pairs = random_pairs()
    _, metrics = regularised(pairs, options)
    w, extra = metrics["weight"], options["alpha"] * metrics["regulariser"]
    found = gradients(pairs, regularised, **options | {"detach_weight": False})
    detached = gradients(pairs, regularised, **options)
    assert torch.equal(found[0], detached[0])
    for place, side, sign in ((1, "chosen", 1), (2, "rejected", -1)):
        mask = pairs[f"{side}_mask"]
        scale = options["beta"] / (mask.sum(1) if options.get("base") == "simpo" else torch.ones(4))
        expected = detached[place] - sign * (extra * w * (1 - w) * scale)[:, None] * mask
        torch.testing.assert_close(found[place], expected, atol=2e-6, rtol=1e-5)
    assert not torch.allclose(found[1], detached[1], atol=1e-5)


@bases
def test_the_weight_is_exact_for_pairs_told_apart_already(options: dict[str, Any]) -> None:
    # σ(−30) = 9.4e-14: 1 − σ(30) in float32 would be 0.
    pairs = example()
    margin = {"dpo": 50.0, "simpo": 3.0}[options.get("base", "dpo")]
    pairs["chosen_logps"] = pairs["chosen_logps"] + margin
    _, metrics = regularised(pairs, options)
    z = plain(pairs, options)[1]["rewards/margins"] - options.get("gamma", 0.0)
    assert metrics["weight"].item() == pytest.approx(math.exp(-z.item()), rel=1e-4)
    assert 0 < metrics["weight"].item() < 1e-9


@bases
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_never_leaks(options: dict[str, Any], garbage: float) -> None:
    clean = random_pairs()
    dirty = {
        name: value
        if name.endswith("mask")
        else value.masked_fill(clean["rejected_mask" if "rejected" in name else "chosen_mask"] == 0, garbage)
        for name, value in clean.items()
    }
    for expected, actual in zip(
        gradients(clean, regularised, **options), gradients(dirty, regularised, **options), strict=True
    ):
        assert torch.equal(expected, actual)
    for expected, actual in zip(*(regularised(p, options)[1].values() for p in (clean, dirty)), strict=True):
        assert torch.equal(expected, actual)


@bases
@pytest.mark.parametrize("pad", [(3, 0), (0, 5), (2, 2)], ids=["left", "right", "both sides"])
def test_padding_and_order_do_not_matter(options: dict[str, Any], pad: tuple[int, int]) -> None:
    pairs, order = random_pairs(), torch.tensor([2, 0, 3, 1])
    changed = {
        name: nn.functional.pad(value[order], pad, value=0 if name.endswith("mask") else -7.0)
        for name, value in pairs.items()
    }
    # 1e-6 relative: sums over another number of terms.
    expected = regularised(pairs, options)[0][order]
    torch.testing.assert_close(regularised(changed, options)[0], expected, atol=1e-6, rtol=1e-6)


@bases
def test_everything_is_float32_and_metrics_are_detached(options: dict[str, Any]) -> None:
    pairs = random_pairs()
    low = {name: value if name.endswith("mask") else value.bfloat16() for name, value in pairs.items()}
    exact = {name: value if name.endswith("mask") else value.float() for name, value in low.items()}
    low["chosen_logps"].requires_grad_()
    low["chosen_rewards"].requires_grad_()
    loss, metrics = regularised(low, options)
    assert torch.equal(loss, regularised(exact, options)[0])
    for value in (loss, *metrics.values()):
        assert (value.shape, value.dtype) == ((4,), torch.float32)
    assert not any(value.requires_grad for value in metrics.values())
    loss.sum().backward()
    assert low["chosen_rewards"].grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "ipo"}, "base is 'ipo', but must be one of dpo, simpo"),
        ({"alpha": -0.1}, "alpha is -0.1, but must be 0 or more"),
        ({"alpha": math.nan}, "alpha is nan, but"),
        ({"gamma": 1.0}, "gamma is 1.0, but DPO has no target margin"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        t_reg_loss(**random_pairs(), **(DPO | options))


@pytest.mark.parametrize("name", [name for name in random_pairs() if name not in ("chosen_logps", "rejected_logps")])
def test_the_argument_of_another_shape_is_named(name: str) -> None:
    pairs = random_pairs()
    pairs[name] = pairs[name][:, 1:]
    other = "rejected_logps" if "rejected" in name else "chosen_logps"
    with pytest.raises(ValueError, match=rf"{name} has shape .*, but {other} has shape"):
        t_reg_loss(**pairs, **DPO)


def test_token_rewards_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"worse_logps has shape \[1, 2\], but better_logps has shape \[1, 3\]"):
        token_rewards(torch.zeros(1, 3), torch.zeros(1, 2), torch.ones(1, 3))
