"""What the losses share: shape checks, sums over the tokens that count, and what is logged of a pair."""

import torch
from torch import Tensor


def check_shapes(**tensors: Tensor) -> None:
    """Require every tensor to be `[B, T]` with the shape of the first.

    Args:
        **tensors: The tensors under the names of the caller's arguments.

    Raises:
        ValueError: Naming the argument that differs and both shapes.
    """
    (first, reference), *others = tensors.items()
    if reference.dim() != 2:
        raise ValueError(f"{first} must be [B, T], but has shape {list(reference.shape)}")
    for name, tensor in others:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, but {first} has shape {list(reference.shape)}; they must agree"
            )


def check_batch(**tensors: Tensor) -> None:
    """Require every tensor to hold as many sequences (`B`) as the first.

    Args:
        **tensors: Tensors `[B, ...]` under the names of the caller's arguments.

    Raises:
        ValueError: Naming the argument that differs and both shapes.
    """
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape[0] != reference.shape[0]:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, but {first} has shape {list(reference.shape)}; "
                "the first dimension must agree"
            )


def zero_padding(x: Tensor, mask: Tensor) -> Tensor:
    """x_t where m_t = 1, else 0, in float32.

    Padding may hold anything, NaN and ±∞ included: neither the value nor its gradient gets through. Apply it *before* a
    non-linear function: masking only afterwards keeps the value but turns the gradient into 0 · ∞ = NaN.

    Args:
        x: Values `[B, T]`.
        mask: 1 where a value counts, else 0, `[B, T]`.

    Returns:
        float32 `[B, T]`.
    """
    # A product would keep NaN: 0 · NaN = NaN.
    return torch.where(mask.bool(), x.float(), 0.0)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Σ_t m_t x_t in float32.

    Args:
        x: Values `[B, T]`.
        mask: 1 where a value counts, else 0, `[B, T]`.

    Returns:
        float32 `[B]`; 0 for a sequence without tokens.
    """
    return zero_padding(x, mask).sum(-1)


def masked_mean(x: Tensor, mask: Tensor, *, name: str = "mask") -> Tensor:
    """(1/N) Σ_t m_t x_t with N = Σ_t m_t, in float32.

    Args:
        x: Values `[B, T]`.
        mask: 1 where a value counts, else 0, `[B, T]`.
        name: What the caller calls `mask`, for the message.

    Returns:
        float32 `[B]`.

    Raises:
        ValueError: If a sequence has no token, naming the rows: its mean is not defined.
    """
    count = mask.bool().sum(-1)
    if not bool(count.all()):
        raise ValueError(f"{name} has no token in rows {(count == 0).nonzero().flatten().tolist()}: no mean is defined")
    return masked_sum(x, mask) / count


def pair_metrics(
    chosen_rewards: Tensor, rejected_rewards: Tensor, chosen_logps: Tensor, rejected_logps: Tensor
) -> dict[str, Tensor]:
    """What every pair loss logs, under TRL's names.

    Args:
        chosen_rewards: r(y_w), `[B]`.
        rejected_rewards: r(y_l), `[B]`.
        chosen_logps: Σ_t m_t ℓ_t of the chosen response, `[B]`.
        rejected_logps: Σ_t m_t ℓ_t of the rejected response, `[B]`.

    Returns:
        Detached `[B]`: the four as `rewards/chosen`, `rewards/rejected`, `logps/chosen` and `logps/rejected`, and
        `rewards/margins` (r(y_w) − r(y_l)) and `rewards/accuracies` (1 where the margin is positive, else 0).
    """
    margins = chosen_rewards - rejected_rewards
    metrics = {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).float(),
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
    }
    return {name: value.detach() for name, value in metrics.items()}
