"""Credit functions and token weights: from finished rollouts to one advantage per token.

A credit function is `fn(rollouts, advantages, **settings) -> [B, T]`, called once per generation batch; what one
returns the next one gets, and the first one gets TRL's advantages, the same on every token of a row. A token weight is
`fn(log_ratio, entropies, mask, step, **settings) -> [B, T]`, called at every update; advantages are multiplied by it.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokencredit.data.functions import load_function
from tokencredit.errors import InputError
from tokencredit.losses.advantages import Reduce, whiten
from tokencredit.losses.divergence import divergence_weights
from tokencredit.losses.ops import zero_padding
from tokencredit.rewards.functions import import_from_working_directory
from tokencredit.trainers.rollouts import Rollouts

Hook = Callable[..., Tensor]


def outcome(rollouts: Rollouts, advantages: Tensor, *, scale: str = "group") -> Tensor:
    """Each reward against its group, the same on every token: Â_i = (R_i − mean(R)) / (std(R) + 10⁻⁴).

    GRPO, arXiv 2402.03300; with `scale="none"` without the division, as Dr. GRPO (arXiv 2503.20783) has it. What comes
    in is replaced. Equal to TRL's own advantages with the `scale_rewards` of the same name.
    """
    if scale not in ("group", "none"):
        raise InputError("outcome.scale", f"unknown value {scale!r}", "choose group or none")
    centred = rollouts.relative_rewards()
    if scale == "group":
        grouped = rollouts.scalars.rewards.view(-1, rollouts.scalars.group_size)
        known = ~grouped.isnan()
        squares = ((grouped - grouped.nanmean(1, keepdim=True)) ** 2).nansum(1)
        deviation = (squares / (known.sum(1) - 1).clamp(min=1)).sqrt()
        centred = centred / (rollouts.mine(deviation.repeat_interleave(rollouts.scalars.group_size)) + 1e-4)
    return centred[:, None].expand_as(advantages)


def reinforce_pp_baseline(rollouts: Rollouts, advantages: Tensor, *, normalise: bool = True) -> Tensor:
    """REINFORCE++-baseline: Â_i = R_i − mean_group(R), whitened over all tokens of the generation batch.

    arXiv 2501.03262. What comes in is replaced. With `normalise=False` it is TRL's GRPO with `scale_rewards: none`.
    """
    plain = rollouts.relative_rewards()[:, None].expand_as(advantages)
    return whiten(plain, rollouts.mask, reduce=rollouts.reduce) if normalise else plain


def reward_spans(rollouts: Rollouts, advantages: Tensor, *, weight: float = 1.0, keep: float = 1.0) -> Tensor:
    """What a token itself was given, beside the credit of the whole: A_t = keep · A_t + weight · r_t / rms(r).

    r_t are the values of tokens and spans (a span's is shared out among its tokens), rms over the tokens of the
    generation batch that have one. Rewards on spans: "Fine-Grained Human Feedback", arXiv 2306.01693; adding them to an
    outcome's advantage and the scale are ours [O]. With `weight=0` what comes in is kept; with `keep=0` only tokens
    that have a value of their own have credit.
    """
    values = zero_padding(rollouts.token_rewards, rollouts.mask)
    squares, count = rollouts.reduce(torch.stack([(values**2).sum(), (values != 0).sum().float()]))
    scale = torch.where(squares > 0, (count / squares.clamp(min=1e-30)).sqrt(), 0.0)
    return keep * advantages + weight * scale * values


def entropy_advantage(rollouts: Rollouts, advantages: Tensor, *, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """More for tokens chosen among many: A_t ← A_t + min(α H_t, |A_t| / κ), H the entropy, without gradient.

    "Reasoning with Exploration: An Entropy Perspective", arXiv 2506.14758: the equation [N]. The defaults are said to
    be the paper's for GRPO (with PPO α 0.1); no text that we could read confirms them [O]. κ > 1 keeps the sign. With
    `alpha=0` what comes in is kept.
    """
    if kappa <= 0:
        raise InputError("entropy_advantage.kappa", f"{kappa!r} is not above 0", "give more than 1 to keep signs")
    bonus = torch.minimum(alpha * rollouts.entropies.detach(), advantages.abs() / kappa)
    return advantages + zero_padding(bonus, rollouts.mask)


def high_entropy_mask(rollouts: Rollouts, advantages: Tensor, *, share: float = 0.2) -> Tensor:
    """Only forking tokens learn: A_t ← A_t · 1[H_t ≥ τ], τ such that `share` of the generation batch's tokens stay.

    "Beyond the 80/20 Rule", arXiv 2506.01939: 20 %. The loss is still divided by all tokens. With `share=1` what comes
    in is kept.
    """
    if not 0 < share <= 1:
        raise InputError("high_entropy_mask.share", f"{share!r} is not in (0, 1]", "give a share of the tokens")
    # A sum in float32 can come out below zero where a token is near certain.
    entropies = zero_padding(rollouts.entropies.detach(), rollouts.mask).clamp(min=0)
    threshold = _kth_largest(entropies[rollouts.mask.bool()], share, rollouts.reduce)
    return advantages * (entropies >= threshold)


def divergence_weighted(
    log_ratio: Tensor, entropies: Tensor, mask: Tensor, step: int, *, scale: float = 0.3, sharpness: float = 10.0
) -> Tensor:
    """`tokencredit.losses.divergence.divergence_weights` (arXiv 2603.22446 [N]) as a token weight; 1 with `scale=0`."""
    return divergence_weights(log_ratio, mask, scale=scale, sharpness=sharpness)


CREDIT: Mapping[str, Hook] = {
    function.__name__: function
    for function in (outcome, reinforce_pp_baseline, reward_spans, entropy_advantage, high_entropy_mask)
}
"""What a name under `credit:` stands for."""

TOKEN_WEIGHTS: Mapping[str, Hook] = {"divergence_weighted": divergence_weighted}
"""What a name under `token_weight:` stands for."""


def load_hooks(given: Any, builtin: Mapping[str, Hook], where: str, leading: int) -> list[Hook]:
    """The functions that a recipe names.

    Args:
        given: None, a name, `{function: <name>, arguments: {…}}`, or a list of those; a name is a built-in one or
            `module:function`, also of the working directory; a function stands for itself.
        builtin: Built-in names.
        where: The recipe key, for messages.
        leading: How many arguments the function is called with besides those in the recipe.

    Raises:
        InputError: A function cannot be found, or does not take its arguments.
    """
    items = given if isinstance(given, list) else [] if given is None else [given]
    return [_load_hook(item, builtin, where, leading) for item in items]


def _load_hook(item: Any, builtin: Mapping[str, Hook], where: str, leading: int) -> Hook:
    entry = dict(item) if isinstance(item, Mapping) else {"function": item}
    name, arguments = entry.pop("function", None), entry.pop("arguments", None) or {}
    if entry or name is None or not isinstance(arguments, Mapping):
        raise InputError(where, f"{item!r} is wrong", "write a name, or {function: <name>, arguments: {…}}")
    if isinstance(name, str) and ":" not in name and name not in builtin:
        raise InputError(where, f"unknown name {name!r}", f"choose {', '.join(builtin)}, or write module:function")
    import_from_working_directory()
    function: Hook = name if callable(name) else builtin.get(name) or load_function(name, where)
    try:
        inspect.signature(function).bind(*[None] * leading, **arguments)
    except TypeError as error:
        label = getattr(function, "__name__", name)
        raise InputError(where, f"{label} cannot be called so ({error})", "correct its arguments") from None
    return partial(function, **arguments) if arguments else function


def _kth_largest(values: Tensor, share: float, reduce: Reduce) -> Tensor:
    """The value at which `share` of all values, over all processes, are reached; values are not negative.

    Floats that are not negative are ordered like their bits, which are searched by halves: exact, without gathering.
    """
    bits = values.float().contiguous().view(torch.int32)
    total = int(reduce(torch.tensor(float(bits.numel()), dtype=torch.float64, device=values.device)))
    wanted = max(1, round(share * total))
    low, high = 0, 0x7F800000
    while low < high:
        middle = (low + high + 1) // 2
        reached = int(reduce((bits >= middle).sum().double())) >= wanted
        low, high = (middle, high) if reached else (low, middle - 1)
    return torch.tensor(low, dtype=torch.int32, device=values.device).view(torch.float32)
