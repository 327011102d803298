"""What is logged of the tokens of preference pairs: sums per token class, and samples that can be read later."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokencredit.trainers.callbacks import write_whole

SAMPLES = "token_samples"
FROM_LOSS = "loss."
_MOMENTS = ("x", "y", "xx", "yy", "xy")

RATIOS: Mapping[str, tuple[str, str]] = {
    "logps_change": ("change", "chosen_tokens"),
    "logps_fell": ("fell", "chosen_tokens"),
}
"""Metric → the two sums it is the ratio of."""

HEAD_RATIOS: Mapping[str, tuple[str, str]] = {
    "entropy": ("entropy", "tokens"),
    "logits/chosen": ("logits/chosen", "chosen_tokens"),
    "logits/rejected": ("logits/rejected", "rejected_tokens"),
    "mean_token_accuracy": ("mean_token_accuracy", "chosen_tokens"),
}
"""What TRL's DPO logs from its output head."""

SHARED_RATIOS: Mapping[str, tuple[str, str]] = {
    "shared_prefix/token_ratio": ("distinct_tokens", "alone_tokens"),
    "shared_prefix/used": ("shared_batches", "batches"),
}
"""Distinct (prefix, token) among all, and in how many batches they were computed once."""


@dataclass
class ScoredPairs:
    """A batch of pairs under the loss: tensors over tokens are `[2B, T]`, chosen responses first.

    Args:
        logps: ℓ_t under the policy.
        ref_logps: ℓ_t^ref, where the loss asks for it.
        mask: 1 on response tokens.
        losses: `[B]`.
        metrics: What the loss returns besides: `[B]`, or one per chosen token `[B, T]`.
    """

    logps: Tensor
    ref_logps: Tensor | None
    mask: Tensor
    losses: Tensor
    metrics: Mapping[str, Tensor]

    def means(self) -> dict[str, Tensor]:
        """The metrics with one number per pair, `[B]`."""
        return {name: value for name, value in self.metrics.items() if value.dim() == 1}

    def tokens(self, classes: Tensor | None, names: list[str]) -> "PairTokens":
        """The tokens, with their classes if they have any."""
        gradient = None
        if self.losses.requires_grad:
            # Stops at the log-probabilities: the model is not run backwards here.
            (gradient,) = torch.autograd.grad(self.losses.sum(), self.logps, retain_graph=True)
        return PairTokens(
            mask=self.mask,
            logps=self.logps.detach(),
            ref_logps=self.ref_logps,
            gradient=gradient,
            chosen={name: value for name, value in self.metrics.items() if value.dim() == 2},
            classes=classes,
            names=names,
        )


@dataclass
class PairTokens:
    """The tokens of a batch of pairs, `[2B, T]`, chosen responses first; detached.

    Args:
        mask: 1 on response tokens.
        logps: ℓ_t under the policy.
        ref_logps: ℓ_t^ref, where the loss asks for it.
        gradient: ∂L/∂ℓ_t of the sum of the losses; None where no gradient is computed.
        chosen: What the loss returns per token of the chosen response, `[B, T]`.
        classes: Index of each token's class, −1 outside the responses; None without classes.
        names: Of the classes.
        both: What the trainer knows of every token besides, `[2B, T]`.
        correlated: Metric → the two of `both` that it compares.
    """

    mask: Tensor
    logps: Tensor
    ref_logps: Tensor | None
    gradient: Tensor | None
    chosen: Mapping[str, Tensor]
    classes: Tensor | None
    names: list[str]
    both: Mapping[str, Tensor] = field(default_factory=dict)
    correlated: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def values(self) -> dict[str, Tensor]:
        """What is summed, `[2B, T]`, 0 where it does not count."""
        mask = self.mask.float()
        chosen_side = torch.ones_like(mask)
        chosen_side[len(mask) // 2 :] = 0
        on_chosen = mask * chosen_side
        found = {"tokens": mask, "chosen_tokens": on_chosen}
        if self.gradient is not None:
            found["gradient"] = self.gradient.abs() * mask
        if self.ref_logps is not None:
            change = (self.logps - self.ref_logps) * mask
            found |= {"change": change * on_chosen, "fell": (change < 0) * on_chosen}
            found["margin"] = change * (2 * chosen_side - 1)
        for name, per_token in self.chosen.items():
            # Under a prefix: a loss may name its metrics as it likes.
            on_both = torch.cat([per_token.float(), torch.zeros_like(per_token, dtype=torch.float32)])
            found[FROM_LOSS + name] = on_both * mask
        for name, pair in self.correlated.items():
            x, y = (self.both[part].float() * mask for part in pair)
            found |= {f"{name}.{key}": value for key, value in zip(_MOMENTS, (x, y, x * x, y * y, x * y), strict=True)}
        return found

    def sums(self) -> dict[tuple[str, str], Tensor]:
        """(quantity, class) → its sum over each pair, `[B]`; the class "" is all tokens."""
        values = self.values()
        stacked = torch.stack([*values.values()], dim=-1)
        found = {(name, ""): column for name, column in zip(values, _columns(stacked.sum(1)), strict=True)}
        if self.classes is not None and self.names:
            numbers = torch.arange(len(self.names), device=self.classes.device)
            member = (self.classes[..., None] == numbers).float()
            by_class = torch.einsum("btc,btq->bcq", member, stacked)
            for place, label in enumerate(self.names):
                columns = zip(values, _columns(by_class[:, place]), strict=True)
                found |= {(name, label): column for name, column in columns}
        return found

    def rows(self, pairs: int) -> list[tuple[int, str, dict[str, list[Any]]]]:
        """(pair, side, columns over its response tokens) of the first pairs."""
        columns = {"logps": self.logps, "ref_logps": self.ref_logps, "gradient": self.gradient, **self.both}
        half = len(self.mask) // 2
        found = []
        for pair in range(min(pairs, half)):
            for side, row in (("chosen", pair), ("rejected", pair + half)):
                inside = self.mask[row].bool()
                numbers = {name: values[row][inside].tolist() for name, values in columns.items() if values is not None}
                if self.classes is not None:
                    numbers["classes"] = [self.names[number] for number in self.classes[row][inside].tolist()]
                if side == "chosen":
                    numbers |= {name: values[row][inside].tolist() for name, values in self.chosen.items()}
                found.append((pair, side, numbers))
        return found


def _columns(rows: Tensor) -> Iterator[Tensor]:
    """The columns `[B]` of `[2B, Q]`, both responses of a pair added."""
    yield from _per_pair(rows).unbind(-1)


def _per_pair(rows: Tensor) -> Tensor:
    chosen, rejected = rows.chunk(2)
    return chosen + rejected


def head_sums(outputs: Any, mask: Tensor, attention_mask: Tensor) -> dict[tuple[str, str], Tensor]:
    """Sums over each pair, `[B]`, behind the metrics that TRL's DPO logs from its output head; all tokens last."""
    inside = mask.float()
    entropy, logits, top1 = (
        (getattr(outputs, name)[:, -mask.size(1) :].detach().float() * inside).sum(-1)
        for name in ("entropy", "mean_logits", "is_top1")
    )
    found = {
        "entropy": _per_pair(entropy),
        "logits/chosen": logits.chunk(2)[0],
        "logits/rejected": logits.chunk(2)[1],
        "mean_token_accuracy": top1.chunk(2)[0],
        "rejected_tokens": inside.sum(-1).chunk(2)[1],
        "sequence_tokens": _per_pair(attention_mask.sum(-1)),
    }
    return {(name, ""): value for name, value in found.items()}


def shared_sums(counts: Tensor, pairs: int) -> dict[tuple[str, str], Tensor]:
    """Sums behind `SHARED_RATIOS`, spread over pairs, from `counts` of `scoring.tree_batch.batch_trees`."""
    names = "distinct_tokens", "alone_tokens", "shared_batches", "batches"
    values = torch.cat([counts, torch.ones_like(counts[:1])]).float() / pairs
    return {(name, ""): value.expand(pairs) for name, value in zip(names, values, strict=True)}


class TokenMetrics:
    """Metrics that are ratios of sums over the tokens since the last log: no batch counts more than its tokens.

    `<name>` is over all response tokens and `<name>/<class>` over those of a class; a ratio whose denominator is 0 is
    left out. Besides the table and what the loss returns per chosen token (as its mean): `gradient_mass/<class>`, the
    class's share of Σ |∂L/∂ℓ_t|; `token_share/<class>`, its share of the tokens; `margins/<class>`, what its tokens add
    to Σ (ℓ − ℓ^ref) of chosen minus rejected, nats per pair. Of two quantities that are compared: `<name>/<class>`, the
    sum of their products over the class, per pair; and `<name>_correlation`, Pearson's, over all tokens and per class.

    Args:
        table: Metric → the two sums it is the ratio of.
        correlated: Names of the comparisons.
    """

    def __init__(self, table: Mapping[str, tuple[str, str]], correlated: Iterable[str] = ()) -> None:
        self.table = {**HEAD_RATIOS, **SHARED_RATIOS, **table}
        self.correlated = tuple(correlated)
        self.sums: dict[str, Counter[tuple[str, str]]] = {"train": Counter(), "eval": Counter()}
        self.pairs: Counter[str] = Counter()

    def add(self, mode: str, sums: Mapping[tuple[str, str], float], pairs: int, per_token: Iterable[str]) -> None:
        """Add the sums of a batch of so many pairs; `per_token` names those that the loss returned."""
        for key, value in sums.items():
            self.sums[mode][key] += value  # type: ignore[assignment]
        self.pairs[mode] += pairs
        used = {name for pair in self.table.values() for name in pair}
        named = {name: FROM_LOSS + name for name in per_token}
        self.table |= {name: (key, "chosen_tokens") for name, key in named.items() if key not in used}

    def drain(self, mode: str) -> dict[str, float]:
        """The metrics since the last call."""
        sums, pairs = self.sums[mode], self.pairs[mode]
        self.sums[mode], self.pairs[mode] = Counter(), 0
        found: dict[str, float] = {}
        for label in dict.fromkeys(label for _, label in sums):
            ending = f"/{label}" if label else ""
            ratios = {
                name: (sums.get((above, label)), sums[below, label]) for name, (above, below) in self.table.items()
            }
            if label:
                ratios["gradient_mass"] = sums.get(("gradient", label)), sums["gradient", ""]
                ratios["token_share"] = sums.get(("tokens", label)), sums["tokens", ""]
                ratios["margins"] = sums.get(("margin", label)), pairs
                ratios |= {name: (sums.get((f"{name}.xy", label)), pairs) for name in self.correlated}
            found |= {name + ending: a / b for name, (a, b) in ratios.items() if a is not None and b}
            for name in self.correlated:
                value = _correlation(sums["tokens", label], *(sums[f"{name}.{key}", label] for key in _MOMENTS))
                found |= {} if value is None else {f"{name}_correlation{ending}": value}
        return found


def _correlation(count: float, x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    """Pearson's correlation from sums; None where one of the two does not vary."""
    spread = (xx - x * x / max(count, 1)) * (yy - y * y / max(count, 1))
    # Sums of float32: what is left of equal values is rounding.
    return (xy - x * y / count) / math.sqrt(spread) if spread > 1e-12 * xx * yy else None


def write_samples(
    run: Path, step: int, tokens: PairTokens, ids: Tensor, weights: Tensor | None, tokenizer: Any, pairs: int
) -> None:
    """Write `token_samples/step-<n>.jsonl`: a line per response, readable without the model.

    Each line has `step`, `pair`, `side`, `prompt` (text), and lists over the response tokens: `tokens` (text), `ids`,
    `weights` (raw, where set), `logps`, `ref_logps`, `gradient`, `classes`, what the trainer knows of every token
    besides, and what the loss returned per chosen token.
    """
    lines = []
    for pair, side, numbers in tokens.rows(pairs):
        row = pair if side == "chosen" else pair + len(ids) // 2
        inside = tokens.mask[row].bool()
        response = ids[row, 1:][inside].tolist()
        # What stands before the first response token; padding is on the right.
        prompt = ids[row, : int(inside.int().argmax()) + 1].tolist()
        line: dict[str, Any] = {"step": step, "pair": pair, "side": side, "prompt": tokenizer.decode(prompt)}
        line |= {"tokens": [tokenizer.decode([token]) for token in response], "ids": response}
        if weights is not None:
            line["weights"] = weights[row, 1:][inside].tolist()
        lines.append(json.dumps(line | numbers, ensure_ascii=False))
    folder = run / SAMPLES
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"step-{step:08d}.jsonl", "".join(line + "\n" for line in lines))
