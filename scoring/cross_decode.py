"""Decoding with two models at once: one writes, and where a rule says so the other one's token takes the place.

    S_t = 1{score(π_prim, π_int) > ε},   y_t ~ π_int where S_t = 1, else π_prim,   both on the mixed prefix

"Sparse but Critical", arXiv 2603.22446 [N]. Both models draw by the same uniform number at a position, that of
(seed, prompt, sample, position): what differs between two runs is what the rule did, never the draw [O].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from tokencredit.errors import InputError
from tokencredit.scoring.branches import evaluating
from tokencredit.scoring.counter_random import uniforms
from tokencredit.scoring.cross_rules import Position, check_rule, check_top_p, choose, score, threshold_of
from tokencredit.scoring.logps import check_ids

_SAMPLING, _RULE = 0, 1


@dataclass(frozen=True)
class Row:
    """One answer to be written.

    Args:
        ids: Tokens of the prompt.
        prompt: Number of the prompt.
        sample: Number of the answer to it.
        start: Position of the first new token in the answer; above 0 where the prompt ends with a part of the answer.
    """

    ids: Sequence[int]
    prompt: int
    sample: int
    start: int = 0


@dataclass(frozen=True)
class Decoding:
    """How two models write together.

    Args:
        rule: Name in `RULES`.
        epsilon: ε: a position is flagged where the score is above. ∞ leaves everything to the primary, −∞ (or for
            scores that cannot be negative any ε below 0) to the intervention.
        budget: Replace at most the first so many flagged positions of an answer. `first_k` needs nothing else.
        max_new_tokens: How long an answer may be, with what of it the prompt ends with.
        temperature: Divides the logits of both models, for sampling and for the scores. 0 takes each model's most
            probable token; the scores are then those of temperature 1.
        top_p: Both sample from so much of their distribution.
        score_top_p: Cut both distributions to this before they are compared, as the paper does with 0.7 [N]; None
            compares them whole [O].
        seed: Of the numbers.
        stop_ids: Tokens that end an answer and are its last.

    Raises:
        InputError: A value is impossible.
    """

    rule: str = "js"
    epsilon: float | None = None
    budget: int | None = None
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    score_top_p: float | None = None
    seed: int = 0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_rule(self.rule, self.score_top_p)
        check_top_p("top_p", self.top_p)
        if not 0 <= self.temperature < float("inf"):
            raise InputError("temperature", f"{self.temperature} is no temperature", "give 0 or a number above")
        if self.max_new_tokens < 1:
            raise InputError("max_new_tokens", f"{self.max_new_tokens} is too few", "give 1 or more")
        if self.budget is not None and self.budget < 0:
            raise InputError("budget", f"{self.budget} is negative", "give 0 or more")
        _ = self.threshold

    @property
    def threshold(self) -> float:
        """ε, also where it follows from the budget."""
        return threshold_of(self.rule, epsilon=self.epsilon, budget=self.budget)


@dataclass
class Trace:
    """An answer, and at each of its positions what both models would have written there.

    Args:
        tokens: The answer `[T]`.
        primary: What the primary would write after the same prefix `[T]`.
        intervention: What the intervention would `[T]`.
        scores: Of the rule `[T]`.
        flagged: Whether the score is above ε `[T]`.
        used: Whether the token is the intervention's: flagged, and within the budget `[T]`.
        ended: Whether it came to a stop rather than being cut.
    """

    tokens: list[int] = field(default_factory=list)
    primary: list[int] = field(default_factory=list)
    intervention: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    flagged: list[bool] = field(default_factory=list)
    used: list[bool] = field(default_factory=list)
    ended: bool = False

    @property
    def effective(self) -> list[bool]:
        """Whether the token is another one than the primary's `[T]`."""
        return [token != own for token, own in zip(self.tokens, self.primary, strict=True)]


def cross_decode(
    primary: nn.Module, intervention: nn.Module, rows: Sequence[Row], decoding: Decoding, *, batch_size: int = 32
) -> list[Trace]:
    """Write answers with two models that share a vocabulary; what only one of them has at its end is padding.

    Each model keeps its keys and values; a prompt runs once however many answers it gets, and answers that have ended
    leave the batch. The result does not depend on the batches, up to the rounding of the models. Without gradient and
    dropout; the models are left as found.

    Args:
        primary: A causal language model.
        intervention: Another one on the same device, or the same: then it runs once.
        rows: The answers to write.
        decoding: How.
        batch_size: Answers at a time.

    Returns:
        One trace per row, in their order.

    Raises:
        InputError: The models' devices differ, a prompt is empty or holds a token outside the shared vocabulary, or a
            model's numbers are not finite.
    """
    models: list[Any] = [primary] if intervention is primary else [primary, intervention]
    _check(models, rows, decoding.max_new_tokens)
    if batch_size < 1:
        raise InputError("batch_size", f"{batch_size} is too few", "give 1 or more")
    traces: list[Trace] = []
    with torch.no_grad(), evaluating(primary), evaluating(intervention):
        for start in range(0, len(rows), batch_size):
            traces += _batch(models, rows[start : start + batch_size], decoding)
    return traces


def _batch(models: list[Any], rows: Sequence[Row], decoding: Decoding) -> list[Trace]:
    sides = [_Side(model, rows) for model in models]
    stops = torch.tensor(decoding.stop_ids, dtype=torch.long, device=models[0].device)
    counters = np.array([(row.prompt, row.sample, row.start) for row in rows]).T
    alive = torch.arange(len(rows), device=models[0].device)
    spent = torch.zeros_like(alive)
    steps = []
    while True:
        here = _decide(sides, counters, spent, decoding)
        counters[2] += 1
        steps.append(torch.cat([alive[:, None].double(), here], dim=1).cpu().numpy())
        tokens, spent = here[:, 0].long(), spent + here[:, 5].long()
        full = torch.from_numpy(counters[2] >= decoding.max_new_tokens).to(stops.device)
        ended = torch.isin(tokens, stops) | full
        if bool(ended.any()):
            left = (~ended).nonzero()[:, 0]
            alive, spent, tokens = alive[left], spent[left], tokens[left]
            counters = counters[:, left.cpu().numpy()]
            for side in sides:
                side.keep(left)
        if not len(alive):
            break
        for side in sides:
            side.extend(tokens)
    return _traces(np.concatenate(steps), len(rows), decoding.stop_ids)


def _decide(sides: "list[_Side]", counters: np.ndarray[Any, Any], spent: Tensor, decoding: Decoding) -> Tensor:
    """Token, primary's, intervention's, score, flagged, used: float64 `[B, 6]`, which holds every token id exactly."""
    draw, chance = (
        torch.from_numpy(uniforms(decoding.seed, *counters, stream)).to(spent.device) for stream in (_SAMPLING, _RULE)
    )
    # Rows that only one model has at the end pad its vocabulary and stand for no token.
    shared = min(side.logits.shape[-1] for side in sides)
    logits = [side.logits[:, :shared].float() for side in sides]
    log_probs = [(part / (decoding.temperature or 1.0)).log_softmax(-1) for part in logits]
    if decoding.temperature:
        drawn = [choose(log_p, draw, decoding.top_p) for log_p in log_probs]
    else:
        drawn = [log_p.argmax(-1) for log_p in log_probs]
    own, other = drawn[0], drawn[-1]
    places = torch.tensor(counters[2], device=own.device)
    at = Position(log_probs[0], log_probs[-1], own, places, chance, decoding.score_top_p)
    scores = score(decoding.rule, at).double()
    for log_p in log_probs:
        # One value that is not finite spreads to its whole row, but not through every rule.
        scores = scores.masked_fill(log_p[:, 0].isnan(), torch.nan)
    flagged = scores > decoding.threshold
    used = flagged if decoding.budget is None else flagged & (spent < decoding.budget)
    return torch.stack([torch.where(used, other, own), own, other, scores, flagged, used], dim=1).double()


class _Side:
    """One model with its keys and values, and what it predicts next."""

    def __init__(self, model: Any, rows: Sequence[Row]) -> None:
        self.model = model
        self.cache = DynamicCache(config=model.config)
        prompts = {prompt: place for place, prompt in enumerate(dict.fromkeys(tuple(row.ids) for row in rows))}
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        self.mask = torch.zeros_like(ids)
        # Padding stands on the left, so that all answers go on in the same column.
        for place, prompt in enumerate(prompts):
            ids[place, width - len(prompt) :] = torch.tensor(prompt)
            self.mask[place, width - len(prompt) :] = 1
        self.mask = self.mask.to(model.device)
        positions = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.logits = self._run(ids.to(model.device), positions)
        self.keep(torch.tensor([prompts[tuple(row.ids)] for row in rows], device=model.device))

    def keep(self, rows: Tensor) -> None:
        """Go on with some rows; one may be there several times."""
        self.cache.batch_select_indices(rows)
        self.mask, self.logits = self.mask[rows], self.logits[rows]

    def extend(self, tokens: Tensor) -> None:
        """Write a token in each row."""
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        self.logits = self._run(tokens[:, None], self.mask.sum(-1, keepdim=True) - 1)

    def _run(self, ids: Tensor, positions: Tensor) -> Tensor:
        found = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = found.logits[:, -1]
        return logits


def _traces(steps: np.ndarray[Any, Any], count: int, stop_ids: tuple[int, ...]) -> list[Trace]:
    """From one line per row and step to one trace per row."""
    if np.isnan(steps[:, 4]).any():
        raise InputError("models", "their predictions are not finite", "check the weights, or use another dtype")
    order = np.argsort(steps[:, 0], kind="stable")
    ends = np.cumsum(np.bincount(steps[:, 0].astype(int), minlength=count))[:-1]
    traces = []
    for part in np.split(steps[order], ends):
        tokens, own, other = (part[:, column].astype(int).tolist() for column in (1, 2, 3))
        flagged, used = (part[:, column].astype(bool).tolist() for column in (5, 6))
        scores = part[:, 4].tolist()
        traces.append(Trace(tokens, own, other, scores, flagged, used, ended=tokens[-1] in stop_ids))
    return traces


def _check(models: list[Any], rows: Sequence[Row], max_new_tokens: int) -> None:
    if len({model.device for model in models}) > 1:
        raise InputError("intervention", "is on another device than the primary", "put both on one")
    shared = min(model.config.get_text_config().vocab_size for model in models)
    check_ids([list(row.ids) for row in rows], shared)
    for row in rows:
        if row.start >= max_new_tokens:
            raise InputError("max_new_tokens", f"{max_new_tokens} leaves no room after {row.start} tokens", "raise it")
