"""TAB-PO: a preference loss with token weights, and a barrier on the chosen tokens the policy is unsure of."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tokencredit.losses.ops import check_batch, check_shapes, masked_mean, masked_sum, pair_metrics, zero_padding

_LAM = {"weighted": 0.5, "sum": 1.5}


def tab_po_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    chosen_weights: Tensor | None = None,
    rejected_weights: Tensor | None = None,
    *,
    beta: float = 0.5,
    tau: float = 0.66,
    lam: float | None = None,
    form: Literal["weighted", "sum"] = "weighted",
    barrier_scope: Literal["all", "weighted"] = "all",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token-Adaptive Barrier Preference Optimization, in its two published forms.

    w̃_t = w_t m_t N / Σ_t w_t m_t,   N = Σ_t m_t          mean one, per sequence
    s(y) = (1/N) Σ_t w̃_t ℓ_t                              `weighted`; s_ref(y) from ℓ_t^ref with the same weights
    s(y) = Σ_t m_t ℓ_t,   w̃_t = m_t                       `sum`
    Δ = [s(y_w) − s_ref(y_w)] − [s(y_l) − s_ref(y_l)],   L_pref = −log σ(β Δ)
    g_t = 1[ℓ_t < log τ] m_t on y_w, no gradient through it
    L_barrier = Σ_t g_t w̃_t (−ℓ_t) / max(1, Σ_t g_t w̃_t),   L = L_pref + λ L_barrier

    "Token-Adaptive Barrier Preference Optimization", arXiv 2603.00025: `weighted` is its first version [C], `sum` its
    second [N]. β 0.5, τ 0.66 and λ 0.5 are published for `weighted` [C]; for `sum` nothing is, and λ 1.5 is our choice
    [O]. Computed in float32 whatever the dtype of the inputs; padding may hold anything, in the weights too.

    `sum` with λ = 0 is `dpo_loss`; `weighted` with unit weights and λ = 0 is TRL's `loss_type="sigmoid_norm"`. What
    both responses begin with gets no preference gradient in `sum`, but does in `weighted` where N or Σ w m differ [D].

    Args:
        chosen_logps: ℓ_t of the chosen response under the policy, `[B, T_w]`.
        rejected_logps: ℓ_t of the rejected response under the policy, `[B, T_l]`; T_l may differ from T_w.
        ref_chosen_logps: ℓ_t^ref of the chosen response under the frozen reference, `[B, T_w]`.
        ref_rejected_logps: ℓ_t^ref of the rejected response under the frozen reference, `[B, T_l]`.
        chosen_mask: 1 on the chosen response's tokens, else 0, `[B, T_w]`.
        rejected_mask: 1 on the rejected response's tokens, else 0, `[B, T_l]`.
        chosen_weights: w_t ≥ 0 of the chosen response in any unit, `[B, T_w]`; None is one everywhere. `sum` has none
            and ignores what is given, so a caller who lets users choose both must refuse the combination.
        rejected_weights: w_t ≥ 0 of the rejected response, `[B, T_l]`.
        beta: β, how strongly the policy is held to the reference.
        tau: τ in (0, 1], the probability below which a chosen token is lifted by the barrier.
        lam: λ, the weight of the barrier; None is 0.5 for `weighted` and 1.5 for `sum`.
        form: Which of the two.
        barrier_scope: `"all"` gates every chosen token, `"weighted"` only those that weigh more than the lightest of
            their response [O].

    Returns:
        The loss, float32 `[B]`, and detached float32 metrics: per pair `[B]` `pref_loss`, `barrier_loss` (without λ),
        `gated_fraction` (Σ g / N on the chosen response), `rewards/chosen` and `rewards/rejected` (β [s − s_ref]),
        `rewards/margins` (β Δ), `rewards/accuracies` (1 where the margin is positive, else 0), `logps/chosen` and
        `logps/rejected` (Σ_t m_t ℓ_t, without weights); and over the chosen response's tokens `[B, T_w]` `gated` (g_t),
        `barrier_gradient` (λ |∂L_barrier/∂ℓ_t|) and `preference_gradient` (g_t |∂L_pref/∂ℓ_t|), whose sums give the
        barrier-to-preference ratio.

    Raises:
        ValueError: If the shapes disagree; a response has no token or no weight, naming the rows; τ is outside (0, 1];
            the form or the scope is unknown; or the scope is `"weighted"` without weights to go by.
    """
    if form not in _LAM:
        raise ValueError(f"form is {form!r}, but must be one of {', '.join(_LAM)}")
    if not 0 < tau <= 1:
        raise ValueError(f"tau is {tau}, but must be a probability in (0, 1]")
    if barrier_scope not in ("all", "weighted"):
        raise ValueError(f"barrier_scope is {barrier_scope!r}, but must be one of all, weighted")
    if barrier_scope == "weighted" and (form == "sum" or chosen_weights is None):
        raise ValueError("barrier_scope='weighted' needs chosen_weights and form='weighted'")
    if form == "sum" or chosen_weights is None:
        chosen_weights = torch.ones_like(chosen_logps)
    if form == "sum" or rejected_weights is None:
        rejected_weights = torch.ones_like(rejected_logps)
    check_shapes(
        chosen_logps=chosen_logps,
        ref_chosen_logps=ref_chosen_logps,
        chosen_mask=chosen_mask,
        chosen_weights=chosen_weights,
    )
    check_shapes(
        rejected_logps=rejected_logps,
        ref_rejected_logps=ref_rejected_logps,
        rejected_mask=rejected_mask,
        rejected_weights=rejected_weights,
    )
    check_batch(chosen_logps=chosen_logps, rejected_logps=rejected_logps)
    lam = _LAM[form] if lam is None else lam

    w_chosen = _mean_one(chosen_weights, chosen_mask, "chosen")
    w_rejected = _mean_one(rejected_weights, rejected_mask, "rejected")
    n_chosen, n_rejected = masked_sum(chosen_mask, chosen_mask), masked_sum(rejected_mask, rejected_mask)
    if form == "sum":
        n_chosen, n_rejected = torch.ones_like(n_chosen), torch.ones_like(n_rejected)

    # The difference is taken per token: two long sums that nearly cancel would lose digits.
    chosen_ratio = zero_padding(chosen_logps.float() - ref_chosen_logps.float(), chosen_mask)
    rejected_ratio = zero_padding(rejected_logps.float() - ref_rejected_logps.float(), rejected_mask)
    chosen_rewards = beta * (w_chosen * chosen_ratio).sum(-1) / n_chosen
    rejected_rewards = beta * (w_rejected * rejected_ratio).sum(-1) / n_rejected
    pref_loss = -logsigmoid(chosen_rewards - rejected_rewards)

    gate = chosen_mask.bool() & (chosen_logps.float() < math.log(tau))
    if barrier_scope == "weighted":
        lightest = chosen_weights.masked_fill(~chosen_mask.bool(), torch.inf).amin(-1, keepdim=True)
        gate = gate & (chosen_weights > lightest)
    gated = zero_padding(w_chosen, gate)
    barrier_loss = -(gated * zero_padding(chosen_logps, chosen_mask)).sum(-1) / gated.sum(-1).clamp(min=1)

    slope = beta * torch.sigmoid(rejected_rewards - chosen_rewards).detach()
    logps = masked_sum(chosen_logps, chosen_mask), masked_sum(rejected_logps, rejected_mask)
    metrics = pair_metrics(chosen_rewards, rejected_rewards, *logps)
    metrics |= {
        "pref_loss": pref_loss.detach(),
        "barrier_loss": barrier_loss.detach(),
        "gated_fraction": masked_mean(gate, chosen_mask),
        "gated": gate.float(),
        "barrier_gradient": lam * gated.detach() / gated.detach().sum(-1, keepdim=True).clamp(min=1),
        "preference_gradient": gate * slope[:, None] * w_chosen.detach() / n_chosen[:, None],
    }
    return pref_loss + lam * barrier_loss, metrics


def _mean_one(weights: Tensor, mask: Tensor, side: str) -> Tensor:
    """w̃ `[B, T]`, 0 on padding."""
    mean = masked_mean(weights, mask, name=f"{side}_mask")
    usable = (mean > 0) & mean.isfinite()
    if not bool(usable.all()):
        rows = (~usable).nonzero().flatten().tolist()
        raise ValueError(f"{side}_weights have no positive, finite sum over the tokens of rows {rows}")
    return zero_padding(weights, mask) / mean[:, None]
