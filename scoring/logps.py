"""Exact per-token numbers of token sequences under a causal language model."""

import warnings
from collections.abc import Iterator
from typing import Any, overload

import torch
from torch import Tensor, nn

from tokencredit.errors import InputError
from tokencredit.scoring.prefix_tree import PrefixTree, grouped
from tokencredit.scoring.shared_forward import refusal, run_trees
from tokencredit.scoring.tree_batch import MAX_ROWS, lay_out, packed_trees
from tokencredit.scoring.trl_compat import OUTPUTS, fused_lm_head

_IGNORED_LABEL = -100
Scores = list[Tensor] | list[tuple[Tensor, ...]]


@overload
def sequence_logps(
    model: nn.Module,
    sequences: list[list[int]],
    *,
    share_prefixes: bool = True,
    temperature: float = 1.0,
    outputs: tuple[str] = ("log_probs",),
    batch_tokens: int = 16384,
) -> list[Tensor]: ...


@overload
def sequence_logps(
    model: nn.Module,
    sequences: list[list[int]],
    *,
    share_prefixes: bool = True,
    temperature: float = 1.0,
    outputs: tuple[str, str, *tuple[str, ...]],
    batch_tokens: int = 16384,
) -> list[tuple[Tensor, ...]]: ...


def sequence_logps(
    model: nn.Module,
    sequences: list[list[int]],
    *,
    share_prefixes: bool = True,
    temperature: float = 1.0,
    outputs: tuple[str, ...] = ("log_probs",),
    batch_tokens: int = 16384,
) -> Scores:
    """Score tokens 1.. of each sequence, given the tokens before.

    ℓ_t = log π(y_t | y_<t), π = softmax(logits / temperature), t = 1 … n−1

    Differentiable when gradients are enabled. The model is left as found: same `forward`, same training mode, same
    config; in training mode its dropout is active. Sequences are sorted by length, padded on the right and run in
    batches, so results depend on `batch_tokens` by rounding only (about 1e-6 in float32).

    The number of forwards depends on the sequences. Where the parameters are sharded over processes (ZeRO-3, FSDP), the
    caller has to give every process lists that need the same number.

    Args:
        model: A causal language model, plain or wrapped (PEFT, DDP, DeepSpeed engine).
        sequences: Token ids, at least one each, without padding.
        share_prefixes: Compute common prefixes once, where that costs less (`tokencredit.scoring.prefix_tree.grouped`).
            It changes cost, never numbers; dropout in training mode then is the same for all sequences on the part they
            share. A model that cannot take it runs padded, and a warning says why
            (`tokencredit.scoring.shared_forward.refusal`).
        temperature: Divides the logits.
        outputs: Which numbers to return: `log_probs` (nats), `entropy` (nats, differentiable too), and without gradient
            `log_sum_sq_probs` (log Σ_v p_v²), `mean_logits` and `is_top1` (whether the token is the most likely one).
        batch_tokens: At most so many padded tokens in one forward; a longer sequence runs alone.

    Returns:
        In the order of `sequences`, a tensor `[n − 1]` for a sequence of n tokens, empty for n = 1; when several
        outputs are asked for, a tuple of them in the order of `outputs`. float32 whatever the model's dtype, but
        `is_top1` is bool.

    Raises:
        InputError: If a sequence is empty or holds an id outside the vocabulary, an output is unknown, or the
            temperature is not positive; or if an adapter sits on the output head itself.
    """
    check_outputs(outputs, temperature)
    with fused_lm_head(model, temperature=temperature, outputs=outputs) as base:
        check_ids(sequences, base.config.get_text_config().vocab_size)
        scores = [unscored(outputs, base.device)] * len(sequences)
        shared = _shared(model, base, sequences, batch_tokens) if share_prefixes else []
        trees, shared = packed_trees(sequences, shared) if shared else ([], [])
        for lines in _batches(list(map(len, trees)), batch_tokens):
            values = _forward_trees(model, [trees[line] for line in lines], base, outputs)
            for line in lines:
                for row, places in zip(shared[line], trees[line].places, strict=True):
                    at = torch.from_numpy(places).to(base.device)
                    scores[row] = tuple(value[at] for value in values)
                values = [value[len(trees[line].heads) :] for value in values]
        alone = sorted(set(range(len(sequences))) - {row for rows in shared for row in rows})
        # A sequence of one token has nothing to score.
        alone = [row for row in alone if len(sequences[row]) > 1]
        for batch in _batches([len(sequences[row]) for row in alone], batch_tokens):
            rows = [alone[place] for place in batch]
            values = _forward(model, [sequences[row] for row in rows], base.device, outputs)
            for i, row in enumerate(rows):
                scores[row] = tuple(value[i, : len(sequences[row]) - 1] for value in values)
    return [score[0] for score in scores] if len(outputs) == 1 else scores


def _shared(model: nn.Module, base: Any, sequences: list[list[int]], batch_tokens: int) -> list[list[int]]:
    """Groups of several sequences that are to be run as one tree."""
    config = base.config.get_text_config()
    longest = max(map(len, sequences), default=0)
    # A line's mask has a byte for each pair of its rows.
    max_rows = max(longest, min(batch_tokens, MAX_ROWS))
    groups = [rows for rows in grouped(sequences, hidden_size=config.hidden_size, max_rows=max_rows) if len(rows) > 1]
    reason = refusal(model, config) if groups else None
    if reason is not None:
        warnings.warn(f"common prefixes are computed again for each sequence: {reason}", stacklevel=3)
        return []
    return groups


def check_outputs(outputs: tuple[str, ...], temperature: float) -> None:
    """Refuse names that are no outputs, none at all, and a temperature that is not positive."""
    unknown = [name for name in outputs if name not in OUTPUTS]
    if unknown or not outputs:
        raise InputError("outputs", f"cannot compute {unknown or 'nothing'}", f"use a tuple of {', '.join(OUTPUTS)}")
    if temperature <= 0:
        raise InputError("temperature", f"{temperature} is not positive", "use a number above 0")


def unscored(outputs: tuple[str, ...], device: torch.device) -> tuple[Tensor, ...]:
    """The numbers of no token."""
    types = {"is_top1": torch.bool}
    return tuple(torch.empty(0, dtype=types.get(name, torch.float32), device=device) for name in outputs)


def check_ids(sequences: list[list[int]], vocab_size: int) -> None:
    """Refuse an empty sequence and a token outside the vocabulary."""
    for i, sequence in enumerate(sequences):
        if not sequence:
            raise InputError(f"sequences[{i}]", "is empty", "give at least one token")
        # On a GPU the embedding would fail with an assertion that names nothing and ends the process.
        for token in (min(sequence), max(sequence)):
            if not 0 <= token < vocab_size:
                raise InputError(
                    f"sequences[{i}][{sequence.index(token)}]",
                    f"token id {token} is outside the model's vocabulary of {vocab_size}",
                    "use the tokenizer of this model",
                )


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places of each batch, longest first."""
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    start = 0
    while start < len(order):
        stop = start + max(1, batch_tokens // lengths[order[start]])
        yield order[start:stop]
        start = stop


def _forward_trees(model: nn.Module, trees: list[PrefixTree], base: Any, outputs: tuple[str, ...]) -> list[Tensor]:
    """One forward over trees: a tensor per output, the predictions of one tree after those of the other."""
    lines = {name: value.to(base.device) for name, value in lay_out(trees).items()}
    output = run_trees(model, base, lines)
    return [getattr(output, name) for name in outputs]


def _forward(
    model: nn.Module, sequences: list[list[int]], device: torch.device, outputs: tuple[str, ...]
) -> list[Tensor]:
    """One padded forward: a tensor `[B, T − 1]` per output, the first n − 1 positions of a row being its n tokens'."""
    width = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence)] = torch.tensor(sequence)
        mask[i, : len(sequence)] = 1
    ids, mask = ids.to(device), mask.to(device)
    # Padding stands on the right, where the model's own positions 0, 1, 2, … are the right ones.
    output = model(
        input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, _IGNORED_LABEL), fused_lm_head=True
    )
    # Prompt-learning adapters put virtual tokens in front.
    return [getattr(output, name)[:, 1 - width :] for name in outputs]
