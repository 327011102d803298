"""T-REG: rewards that a model gives the tokens of a response, regularising DPO and SimPO."""

from typing import Literal

import torch
from torch import Tensor

from tokencredit.losses.ops import check_batch, check_shapes, masked_sum, zero_padding
from tokencredit.losses.preference import dpo_loss, simpo_loss


def token_rewards(better_logps: Tensor, worse_logps: Tensor, mask: Tensor) -> Tensor:
    """What a model thinks of each token, from two contrastive prompts.

    r̂_t = σ( log π_eval(y_t | x_better, y_<t) − log π_eval(y_t | x_worse, y_<t) ) − ½      ∈ (−½, ½)

    "T-REG", arXiv 2412.02685 [N]. Computed in float32 whatever the dtype of the inputs; 0 where the mask is 0, and
    everywhere if both prompts are equal.

    Args:
        better_logps: Log-probabilities of the response after the prompt that asks for a better one, `[B, T]`.
        worse_logps: The same after the prompt that asks for a worse one, `[B, T]`.
        mask: 1 on the tokens that get a reward, else 0, `[B, T]`.

    Returns:
        r̂, float32 `[B, T]`, without gradient.

    Raises:
        ValueError: If the shapes disagree.
    """
    check_shapes(better_logps=better_logps, worse_logps=worse_logps, mask=mask)
    return zero_padding(torch.sigmoid(better_logps.detach().float() - worse_logps.detach().float()) - 0.5, mask)


def t_reg_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor | None,
    ref_rejected_logps: Tensor | None,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    *,
    beta: float,
    alpha: float = 0.25,
    base: Literal["dpo", "simpo"] = "dpo",
    gamma: float = 0.0,
    detach_weight: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token-level Reward Regularization of a preference loss.

    L = L_base + α w ( L_reg(y_w) + L_reg(y_l) ),   L_reg(y) = −Σ_t m_t b r̂_t ℓ_t
    DPO:    b = β,        w = σ( r(y_l) − r(y_w) ),       r(y) = β Σ_t m_t (ℓ_t − ℓ_t^ref)
    SimPO:  b = β / |y|,  w = σ( r(y_l) − r(y_w) + γ ),   r(y) = (β/|y|) Σ_t m_t ℓ_t

    "T-REG", arXiv 2412.02685: on DPO [N]; on SimPO its existence is published and the form our own choice [O], as is
    that no gradient flows through w [O]. With w detached it is the base loss with a multiplier on the gradient of every
    token [D]: ∂L/∂ℓ_t = −b w (1 + α r̂_t) on y_w and b w (1 − α r̂_t) on y_l, within [1 − α/2, 1 + α/2] for rewards of
    `token_rewards`. α = 0, or rewards of 0, is the base loss. Computed in float32; padding may hold anything.

    Args:
        chosen_logps: ℓ_t of the chosen response under the policy, `[B, T_w]`.
        rejected_logps: ℓ_t of the rejected response under the policy, `[B, T_l]`; T_l may differ from T_w.
        ref_chosen_logps: ℓ_t^ref of the chosen response under the frozen reference, `[B, T_w]`; SimPO takes none, and
            ignores what is given.
        ref_rejected_logps: ℓ_t^ref of the rejected response under the frozen reference, `[B, T_l]`.
        chosen_mask: 1 on the chosen response's tokens, else 0, `[B, T_w]`.
        rejected_mask: 1 on the rejected response's tokens, else 0, `[B, T_l]`.
        chosen_rewards: r̂_t of the chosen response, `[B, T_w]`; no gradient flows through it.
        rejected_rewards: r̂_t of the rejected response, `[B, T_l]`.
        beta: β of the base loss.
        alpha: α, the strength of the regularisation; 0.1, 0.25 and 0.5 are published [N].
        base: What is regularised.
        gamma: γ, SimPO's target margin in units of the rewards; DPO has none.
        detach_weight: Whether w is a constant to the gradient [O].

    Returns:
        The loss, float32 `[B]`, and detached float32 metrics `[B]`: those of the base loss, `pref_loss` (its value),
        `regulariser` (L_reg(y_w) + L_reg(y_l), without α and w), `weight` (w) and `alignment` (Σ_t r_θ(y_t) r̂_t over
        both responses, where r_θ(y_t) is the token's share of r(y)).

    Raises:
        ValueError: If the shapes disagree; α is negative; the base is unknown; DPO has no reference, or a γ; or, for
            SimPO, a response has no token.
    """
    if base not in ("dpo", "simpo"):
        raise ValueError(f"base is {base!r}, but must be one of dpo, simpo")
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}, but must be 0 or more")
    if base == "dpo" and gamma:
        raise ValueError(f"gamma is {gamma}, but DPO has no target margin")
    check_shapes(chosen_logps=chosen_logps, chosen_mask=chosen_mask, chosen_rewards=chosen_rewards)
    check_shapes(rejected_logps=rejected_logps, rejected_mask=rejected_mask, rejected_rewards=rejected_rewards)
    check_batch(chosen_logps=chosen_logps, rejected_logps=rejected_logps)

    logps, masks = (chosen_logps, rejected_logps), (chosen_mask, rejected_mask)
    rewards = chosen_rewards.detach(), rejected_rewards.detach()
    if base == "simpo":
        pref_loss, metrics = simpo_loss(*logps, *masks, beta=beta, gamma=gamma)
        scales = [beta / masked_sum(mask, mask) for mask in masks]
        ratios = logps
    else:
        if ref_chosen_logps is None or ref_rejected_logps is None:
            raise ValueError("ref_chosen_logps and ref_rejected_logps are None, but DPO needs them")
        pref_loss, metrics = dpo_loss(*logps, ref_chosen_logps, ref_rejected_logps, *masks, beta=beta)
        scales = [torch.full_like(pref_loss.detach(), beta)] * 2
        ratios = chosen_logps.float() - ref_chosen_logps.float(), rejected_logps.float() - ref_rejected_logps.float()

    # L_base = −log σ(z), so that w = σ(−z) = 1 − exp(−L_base), exact for small losses too.
    weight = -torch.expm1(-pref_loss)
    weight = weight.detach() if detach_weight else weight
    regulariser = -_credited(logps, rewards, masks, scales)
    alignment = _credited(ratios, rewards, masks, scales)
    metrics |= {"pref_loss": pref_loss, "regulariser": regulariser, "weight": weight, "alignment": alignment}
    return pref_loss + alpha * weight * regulariser, {name: value.detach() for name, value in metrics.items()}


def _credited(
    values: tuple[Tensor, Tensor], rewards: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor], scales: list[Tensor]
) -> Tensor:
    """Σ_t b r̂_t x_t over both responses, `[B]`."""
    chosen, rejected = (
        scale * (zero_padding(x, mask) * zero_padding(reward, mask)).sum(-1)
        for x, reward, mask, scale in zip(values, rewards, masks, scales, strict=True)
    )
    return chosen + rejected
