"""How far two next-token distributions are apart, and weights made of such a distance."""

import math

import torch
from torch import Tensor

from tokencredit.losses.ops import check_shapes, zero_padding

MAX_JS = math.nextafter(math.log(2), 0) - 2**-25
"""ln 2 as it comes out in float32 when rounded down: rounded to the nearest it lies above."""

_FEW = 256


def js_divergence(logits_p: Tensor, logits_q: Tensor, *, top_p: float | None = None) -> Tensor:
    """Jensen-Shannon divergence of two distributions, in nats.

    JS(p ‖ q) = ½ KL(p ‖ m) + ½ KL(q ‖ m),   m = (p + q) / 2      ∈ [0, ln 2]

    Used on the next tokens of two models by "Sparse but Critical", arXiv 2603.22446 [N]. Symmetric; exactly 0 for equal
    logits. Computed in float32 from log-probabilities, term by term without differences of near numbers, so that small
    divergences keep their digits. Without gradient.

    Args:
        logits_p: Of the one model, `[..., V]`; −∞ is a probability of 0.
        logits_q: Of the other, same shape.
        top_p: Cut each distribution to the fewest tokens whose probabilities reach this sum and bring it back to one,
            as the paper does with 0.7 [N]; those as probable as the last of them stay too [O]. That can raise the
            divergence; None compares the whole vocabulary [O].

    Returns:
        float32 `[...]`, never above ln 2.

    Raises:
        ValueError: If the shapes disagree, or top_p is outside (0, 1].
    """
    if logits_p.shape != logits_q.shape:
        raise ValueError(
            f"logits_p has shape {list(logits_p.shape)}, but logits_q {list(logits_q.shape)}; they must agree"
        )
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, but must be in (0, 1]")
    log_p, log_q = (logits.detach().float().log_softmax(-1) for logits in (logits_p, logits_q))
    if top_p is not None and top_p < 1:
        log_p, log_q = cut(log_p, top_p), cut(log_q, top_p)
    p, q = log_p.exp(), log_q.exp()
    d = (log_q - log_p).masked_fill((p == 0) & (q == 0), 0.0)
    # With h(d) = ln((1 + e^d) / 2) each token adds −½ (p h(d) + q h(−d)). Where d is small both are near ±d/2 and
    # nearly cancel: there h(d) = d/2 + ln cosh(d/2) takes the difference out.
    small = d.masked_fill(d.abs() > 1, 0.0)
    near = (q - p) * small / 2 - (p + q) * torch.log1p(2 * torch.sinh(small / 4) ** 2)
    far = -_product(p, _log_mean_ratio(d)) - _product(q, _log_mean_ratio(-d))
    return (torch.where(d.abs() > 1, far, near).sum(-1) / 2).clamp(0.0, MAX_JS)


def divergence_weights(log_ratio: Tensor, mask: Tensor, *, scale: float = 0.3, sharpness: float = 10.0) -> Tensor:
    """Multipliers of advantages by how far the policy has moved on a token since the rollout.

    w_t = 1 + s (σ(a KL_t) − ½),   KL_t = r_t − 1 − ln r_t,   r = π_θ / π_old on the sampled token

    "Sparse but Critical", arXiv 2603.22446 [N]; s 0.3 and a 10 are our choice [O]. A positive a lifts tokens with a
    high KL, a negative one those with a low KL, which then lose nothing. 1 where nothing has moved, so on fresh
    rollouts everywhere.

    Args:
        log_ratio: ln r = log π_θ − log π_old, `[B, T]`.
        mask: 1 on the tokens that count, else 0, `[B, T]`.
        scale: s.
        sharpness: a.

    Returns:
        w, float32 `[B, T]`, without gradient; 1 where the mask is 0.

    Raises:
        ValueError: If the shapes disagree.
    """
    check_shapes(log_ratio=log_ratio, mask=mask)
    log_ratio = zero_padding(log_ratio.detach(), mask)
    k3 = torch.expm1(log_ratio) - log_ratio
    return 1 + scale * (torch.sigmoid(sharpness * k3) - 0.5)


def cut(log_probs: Tensor, top_p: float) -> Tensor:
    """Log-probabilities `[..., V]` of the `nucleus` alone, brought back to one; −∞ elsewhere."""
    return log_probs.masked_fill(~nucleus(log_probs.exp(), top_p), -torch.inf).log_softmax(-1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The fewest most probable tokens whose probabilities reach `top_p`, and those as probable as the last of them.

    Args:
        probabilities: `[..., V]`, each row summing to one.
        top_p: In (0, 1].

    Returns:
        Which tokens stay, bool `[..., V]`.
    """
    if top_p >= 1:
        return torch.ones_like(probabilities, dtype=torch.bool)
    # The few most probable ones nearly always suffice, and sorting a whole vocabulary costs more than all the rest.
    ranked = probabilities.topk(min(_FEW, probabilities.shape[-1])).values
    if bool((ranked.sum(-1) < top_p).any()):
        ranked = probabilities.sort(dim=-1, descending=True).values
    last = (ranked.cumsum(-1) < top_p).sum(-1, keepdim=True).clamp(max=ranked.shape[-1] - 1)
    return probabilities >= ranked.gather(-1, last)


def _log_mean_ratio(d: Tensor) -> Tensor:
    """ln((1 + e^d) / 2), also for d = ±∞."""
    return d.clamp(min=0) + torch.log1p(torch.expm1(-d.abs()) / 2)


def _product(probabilities: Tensor, x: Tensor) -> Tensor:
    """p x, with 0 · ∞ = 0."""
    return torch.where(probabilities > 0, probabilities * x, 0.0)
