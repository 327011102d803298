"""Sequence-level preference losses: the plain methods that the token-level ones reduce to."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from tokencredit.losses.ops import check_batch, check_shapes, masked_mean, masked_sum, pair_metrics


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    *,
    beta: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Direct Preference Optimization.

    r(y) = β Σ_t m_t (ℓ_t − ℓ_t^ref),   L = −log σ( r(y_w) − r(y_l) )

    "Direct Preference Optimization", arXiv 2305.18290 [P]; equal to TRL's `loss_type="sigmoid"`. Computed in
    float32 whatever the dtype of the inputs. A response without tokens has reward 0.

    Args:
        chosen_logps: ℓ_t of the chosen response under the policy, `[B, T_w]`.
        rejected_logps: ℓ_t of the rejected response under the policy, `[B, T_l]`; T_l may differ from T_w.
        ref_chosen_logps: ℓ_t^ref of the chosen response under the frozen reference, `[B, T_w]`.
        ref_rejected_logps: ℓ_t^ref of the rejected response under the frozen reference, `[B, T_l]`.
        chosen_mask: 1 on the chosen response's tokens, else 0, `[B, T_w]`.
        rejected_mask: 1 on the rejected response's tokens, else 0, `[B, T_l]`.
        beta: β, how strongly the policy is held to the reference.

    Returns:
        The loss, float32 `[B]`, and detached float32 metrics `[B]`: `rewards/chosen` and `rewards/rejected` (r),
        `rewards/margins` (r(y_w) − r(y_l)), `rewards/accuracies` (1 where the margin is positive, else 0),
        `logps/chosen` and `logps/rejected` (Σ_t m_t ℓ_t).

    Raises:
        ValueError: If the shapes disagree.
    """
    check_shapes(chosen_logps=chosen_logps, ref_chosen_logps=ref_chosen_logps, chosen_mask=chosen_mask)
    check_shapes(rejected_logps=rejected_logps, ref_rejected_logps=ref_rejected_logps, rejected_mask=rejected_mask)
    check_batch(chosen_logps=chosen_logps, rejected_logps=rejected_logps)

    # The difference is taken per token: two long sums that nearly cancel would lose digits.
    chosen_rewards = beta * masked_sum(chosen_logps.float() - ref_chosen_logps.float(), chosen_mask)
    rejected_rewards = beta * masked_sum(rejected_logps.float() - ref_rejected_logps.float(), rejected_mask)
    loss = -logsigmoid(chosen_rewards - rejected_rewards)
    logps = masked_sum(chosen_logps, chosen_mask), masked_sum(rejected_logps, rejected_mask)
    return loss, pair_metrics(chosen_rewards, rejected_rewards, *logps)


def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_mask: Tensor,
    rejected_mask: Tensor,
    *,
    beta: float,
    gamma: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Simple Preference Optimization: no reference, rewards normalised by length.

    r(y) = (β/|y|) Σ_t m_t ℓ_t,   |y| = Σ_t m_t,   L = −log σ( r(y_w) − r(y_l) − γ )

    "SimPO", arXiv 2405.14734 [P]. Computed in float32 whatever the dtype of the inputs.

    Args:
        chosen_logps: ℓ_t of the chosen response under the policy, `[B, T_w]`.
        rejected_logps: ℓ_t of the rejected response under the policy, `[B, T_l]`; T_l may differ from T_w.
        chosen_mask: 1 on the chosen response's tokens, else 0, `[B, T_w]`.
        rejected_mask: 1 on the rejected response's tokens, else 0, `[B, T_l]`.
        beta: β, the scale of the rewards.
        gamma: γ, the target margin, in units of the rewards. Settings given as a ratio γ/β are multiplied by β first.

    Returns:
        The loss, float32 `[B]`, and detached float32 metrics `[B]`: `rewards/chosen` and `rewards/rejected` (r),
        `rewards/margins` (r(y_w) − r(y_l), without γ), `rewards/accuracies` (1 where the margin is positive, else 0),
        `logps/chosen` and `logps/rejected` (Σ_t m_t ℓ_t, not divided by the length).

    Raises:
        ValueError: If the shapes disagree, or a response has no token (its mean is not defined), naming the rows.
    """
    check_shapes(chosen_logps=chosen_logps, chosen_mask=chosen_mask)
    check_shapes(rejected_logps=rejected_logps, rejected_mask=rejected_mask)
    check_batch(chosen_logps=chosen_logps, rejected_logps=rejected_logps)

    chosen_rewards = beta * masked_mean(chosen_logps, chosen_mask, name="chosen_mask")
    rejected_rewards = beta * masked_mean(rejected_logps, rejected_mask, name="rejected_mask")
    loss = -logsigmoid(chosen_rewards - rejected_rewards - gamma)
    logps = masked_sum(chosen_logps, chosen_mask), masked_sum(rejected_logps, rejected_mask)
    return loss, pair_metrics(chosen_rewards, rejected_rewards, *logps)
