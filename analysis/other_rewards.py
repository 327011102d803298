"""Token rewards that T-REG's are compared with: the same ones in another order, and those a tuned model implies."""

import random
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from tokencredit.analysis.reward_figures import in_text
from tokencredit.losses import token_rewards
from tokencredit.scoring import sequence_logps

Rows = Iterable[Mapping[str, Any]]
SIDES = ("chosen", "rejected")


def shuffled_rewards(rows: Rows, *, special: Collection[int], seed: int) -> dict[str, list[list[float]]]:
    """The rewards of each response, dealt out at random among the tokens of its text [O].

    What is left is their size; which token has which is gone.

    Args:
        rows: With `chosen_ids`, `chosen_rewards` and the like.
        special: From the first of these tokens on, such as end-of-turn, every one keeps its own.
        seed: Of the order.

    Returns:
        The two columns `chosen_rewards` and `rejected_rewards`.
    """
    rng = random.Random(seed)
    found: dict[str, list[list[float]]] = {f"{side}_rewards": [] for side in SIDES}
    for row in rows:
        for side in SIDES:
            rewards = list(row[f"{side}_rewards"])
            places = [place for place, inside in enumerate(in_text(row[f"{side}_ids"], special)) if inside]
            dealt = rng.sample(places, len(places))
            for place, source in zip(places, dealt, strict=True):
                rewards[place] = row[f"{side}_rewards"][source]
            found[f"{side}_rewards"].append(rewards)
    return found


def dpo_rewards(
    rows: Rows, tuned: nn.Module, reference: nn.Module, *, special: Collection[int], batch_size: int = 32
) -> dict[str, list[list[float]]]:
    """What a tuned model implies of each token: σ( log π_tuned(y_t) − log π_ref(y_t) ) − ½.

    DPO's implicit reward, the ablation of T-REG (arXiv 2412.02685) [N]; without β, so that its size is that of r̂ [O].

    Args:
        rows: With `prompt_ids`, `chosen_ids` and `rejected_ids`.
        tuned: After DPO.
        reference: Before it.
        special: From the first of these tokens on, such as end-of-turn, every one gets 0.
        batch_size: Pairs at a time.

    Returns:
        As `shuffled_rewards`.
    """
    pairs = list(rows)
    found: dict[str, list[list[float]]] = {f"{side}_rewards": [] for side in SIDES}
    for start in range(0, len(pairs), batch_size):
        for side in SIDES:
            batch = pairs[start : start + batch_size]
            sequences = [[*row["prompt_ids"], *row[f"{side}_ids"]] for row in batch]
            with torch.no_grad():
                scores = [sequence_logps(model, sequences) for model in (tuned, reference)]
            for row, after, before in zip(batch, *scores, strict=True):
                inside = torch.tensor([in_text(row[f"{side}_ids"], special)])
                # Without a prompt the first token has no log-probability.
                a, b = (nn.functional.pad(x.cpu(), (1, 0))[-inside.shape[1] :][None] for x in (after, before))
                found[f"{side}_rewards"].append(token_rewards(a, b, inside)[0].tolist())
    return found
