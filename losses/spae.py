"""SPAE: credit for the steps of a chain of thought, from what a probe says after each of them."""

import torch
from torch import Tensor

from tokencredit.losses.advantages import Reduce, alone, group_advantages, live_rows, whiten
from tokencredit.losses.ops import check_shapes


def step_potential(acc: Tensor, conf: Tensor) -> Tensor:
    """How far a response has come after a step.

    Φ = 1.5 · Acc · Conf + 0.5 · Acc − Conf      ∈ [−1, 1]

    "Step Potential Advantage Estimation", arXiv 2601.03823 [C]: 1 for a right and sure answer, −1 for a wrong and sure
    one, near 0 for an unsure one.

    Args:
        acc: Probability of the right answer, in [0, 1], any shape.
        conf: Confidence in the answer that is given, in [0, 1], same shape.

    Returns:
        Φ, float32, same shape.

    Raises:
        ValueError: If the shapes disagree.
    """
    if acc.shape != conf.shape:
        raise ValueError(f"acc has shape {list(acc.shape)}, but conf has shape {list(conf.shape)}; they must agree")
    acc, conf = acc.float(), conf.float()
    return 1.5 * acc * conf + 0.5 * acc - conf


def saturation_factors(phi: Tensor, step_mask: Tensor, *, alpha: float, saturation: float) -> Tensor:
    """What is left of the outcome's credit in a step, after steps at which the answer was there already.

    f_k = 1 − α (1 − e^{−C_k}),   C_k = #{ j < k : Φ_j > ε }

    arXiv 2601.03823 [N].

    Args:
        phi: Φ, `[B, K]`.
        step_mask: 1 where a response has that step, else 0, `[B, K]`.
        alpha: α in [0, 1].
        saturation: ε.

    Returns:
        f, float32 `[B, K + 1]`. A response with K_i steps has at place K_i what holds after its last one.
    """
    saturated = ((phi > saturation) & step_mask.bool()).float().cumsum(-1)
    before = torch.cat([torch.zeros_like(saturated[:, :1]), saturated], dim=-1)
    return 1 - alpha * (1 - torch.exp(-before))


def difference_shaping(
    phi: Tensor, step_ids: Tensor, step_mask: Tensor, mask: Tensor, *, reduce: Reduce | None = None
) -> Tensor:
    """Credit for what a step adds, with a token sum of zero over the batch.

    ΔΦ_1 = 0,  ΔΦ_k = Φ_k − Φ_{k−1},   z = (ΔΦ − min ΔΦ) / (max ΔΦ − min ΔΦ) over the batch
    g_k = e^{z_k} − mean(e^z)

    arXiv 2601.03823 [N]; the mean counts a step as often as it has tokens [O].

    Args:
        phi: Φ, `[B, K]`.
        step_ids: As for `spae_credit`, `[B, T]`.
        step_mask: 1 where a response has that step, else 0, `[B, K]`.
        mask: 1 on the tokens that count, `[B, T]`.
        reduce: Combines processes; None for one.

    Returns:
        g, float32 `[B, K]`; 0 where there is no step, and everywhere if all ΔΦ are equal.
    """
    reduce = reduce or alone
    real = step_mask.bool()
    delta = torch.zeros_like(phi)
    delta[:, 1:] = phi[:, 1:] - phi[:, :-1]
    low = reduce(delta.masked_fill(~real, torch.inf).min(), "min")
    high = reduce(delta.masked_fill(~real, -torch.inf).max(), "max")
    if not bool(low < high):
        return torch.zeros_like(phi)
    lifted = torch.exp((delta - low) / (high - low)).masked_fill(~real, 0.0)
    tokens = _tokens_per_step(step_ids, real, mask)
    total, count = reduce(torch.stack([(lifted * tokens).sum(), tokens.sum()]))
    mean: Tensor = total / count.clamp(min=1)
    return (lifted - mean).masked_fill(~real, 0.0)


def spae_credit(
    outcome: Tensor,
    step_ids: Tensor,
    acc: Tensor,
    conf: Tensor,
    step_mask: Tensor,
    mask: Tensor,
    *,
    alpha: float,
    xi: float,
    saturation: float,
    positive_only: bool,
    reduce: Reduce | None = None,
) -> Tensor:
    """The outcome's advantage, told apart by steps.

    A_t = Â_i f_{k(t)} + ξ g_{k(t)},   f and g as in `saturation_factors` and `difference_shaping`

    "Step Potential Advantage Estimation", arXiv 2601.03823 [P]; f and g [N]. α = ξ = 0 is the outcome itself. Tokens
    outside the thinking have f = 1 and g = 0; those after its last step f with all steps counted, and g = 0 [O].

    Args:
        outcome: Â, `[B]`.
        step_ids: k(t): 0 … K_i − 1 in a step, K_i in the thinking after the last one, −1 elsewhere, `[B, T]`.
        acc: Acc after each step, `[B, K]`; anything where there is none.
        conf: Conf after each step, `[B, K]`.
        step_mask: 1 where a response has that step, else 0, `[B, K]`: its first K_i are 1.
        mask: 1 on the response's tokens, else 0, `[B, T]`.
        alpha: α in [0, 1], the strength of the penalty; 0.5 is published [P].
        xi: ξ, the strength of the shaping; 0.5 is published [P].
        saturation: ε, the potential above which the answer counts as found; 0.9 is our choice [O].
        positive_only: Whether f is left out where Â is not positive [O]. As published it also softens what a response
            is charged after it was right and became wrong.
        reduce: Combines processes; None for one.

    Returns:
        A before whitening, float32 `[B, T]`; 0 where the mask is 0.

    Raises:
        ValueError: If the shapes disagree, α is outside [0, 1], or a step id is none of its response's.
    """
    check_shapes(step_ids=step_ids, mask=mask)
    check_shapes(acc=acc, conf=conf, step_mask=step_mask)
    if outcome.dim() != 1 or not len(outcome) == len(mask) == len(acc):
        raise ValueError(
            f"outcome has shape {list(outcome.shape)} for {len(mask)} responses with steps of {len(acc)}; give [B]"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, but must be in [0, 1]")
    _check_steps(step_ids, step_mask, mask)
    if not acc.shape[1]:
        # No response has a step; a process without any still takes part in what is computed over all of them.
        acc, conf, step_mask = (torch.nn.functional.pad(x, (0, 1)) for x in (acc, conf, step_mask))

    real = step_mask.bool()
    phi = step_potential(acc.masked_fill(~real, 0.0), conf.masked_fill(~real, 0.0))
    factors = saturation_factors(phi, step_mask, alpha=alpha, saturation=saturation)
    if positive_only:
        factors = torch.where(outcome[:, None] > 0, factors, 1.0)
    shaping = difference_shaping(phi, step_ids, step_mask, mask, reduce=reduce) if xi else torch.zeros_like(phi)
    shaping = torch.cat([shaping, torch.zeros_like(shaping[:, :1])], dim=-1)  # nothing after the last step

    inside = (step_ids >= 0) & mask.bool()
    at = step_ids.clamp(min=0).masked_fill(~inside, 0)
    f = torch.where(inside, factors.gather(1, at), 1.0)
    g = torch.where(inside, shaping.gather(1, at), 0.0)
    return torch.where(mask.bool(), outcome.float()[:, None] * f + xi * g, 0.0)


def spae_advantages(
    rewards: Tensor,
    group_size: int,
    step_ids: Tensor,
    acc: Tensor,
    conf: Tensor,
    step_mask: Tensor,
    mask: Tensor,
    *,
    alpha: float = 0.5,
    xi: float = 0.5,
    saturation: float = 0.9,
    positive_only: bool = False,
) -> Tensor:
    """SPAE from rewards to advantages, on one process.

    In the published order [P]: groups whose rewards are all equal are dropped, the outcome is `group_advantages`, then
    `spae_credit`, then `whiten` over the tokens of what is left.

    Args:
        rewards: R, `[B]`, the responses to one prompt next to each other; NaN where no reward is known.
        group_size: How many responses a prompt has.
        step_ids: As for `spae_credit`, like all that follows.
        acc: See there.
        conf: See there.
        step_mask: See there.
        mask: See there.
        alpha: α 0.5 [P].
        xi: ξ 0.5 [P].
        saturation: ε 0.9 [O].
        positive_only: See there.

    Returns:
        float32 `[B, T]`; 0 in dropped groups and where the mask is 0.

    Raises:
        ValueError: As `spae_credit`; or the batch is no whole number of groups.
    """
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} rewards are no whole number of groups of {group_size}")
    group_ids = torch.arange(len(rewards), device=rewards.device) // group_size
    live = live_rows(rewards, group_ids)[:, None]
    mask, step_mask = mask.bool() & live, step_mask.bool() & live
    credit = spae_credit(
        group_advantages(rewards, group_ids),
        torch.where(live, step_ids, -1),
        acc,
        conf,
        step_mask,
        mask,
        alpha=alpha,
        xi=xi,
        saturation=saturation,
        positive_only=positive_only,
    )
    return whiten(credit, mask)


def _tokens_per_step(step_ids: Tensor, real: Tensor, mask: Tensor) -> Tensor:
    """How many counted tokens each step has, `[B, K]`."""
    rows, steps = real.shape
    counts = torch.zeros(rows, steps + 2, device=real.device)
    counted = mask.bool() & (step_ids >= 0)
    # The last column takes what belongs to no step.
    at = torch.where(counted, step_ids, steps + 1)
    return counts.scatter_add(1, at, torch.ones_like(at, dtype=counts.dtype))[:, :steps] * real


def _check_steps(step_ids: Tensor, step_mask: Tensor, mask: Tensor) -> None:
    count = step_mask.bool().sum(-1)
    expected = torch.arange(step_mask.shape[1], device=step_mask.device)[None] < count[:, None]
    if not bool((expected == step_mask.bool()).all()):
        raise ValueError("step_mask has a gap: the first K_i of a row must be 1, the rest 0")
    wrong = ((step_ids > count[:, None]) | (step_ids < -1)) & mask.bool()
    if bool(wrong.any()):
        row = int(wrong.any(-1).nonzero()[0])
        problem = f"step_ids of row {row} reach {int(step_ids[row][mask[row].bool()].max())}"
        raise ValueError(f"{problem}, but it has {int(count[row])} steps; use -1 outside the thinking")
