"""A trunk with many short branches, without gradient: probes of one response at many of its places."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache

from tokencredit.errors import InputError
from tokencredit.scoring.logps import Scores, check_ids, check_outputs, sequence_logps, unscored
from tokencredit.scoring.prefix_tree import PrefixTree, prefix_tree
from tokencredit.scoring.shared_forward import attention_dtype, layer_masks, refusal, run_rows
from tokencredit.scoring.trl_compat import fused_lm_head

Branch = tuple[int, Sequence[int]]


def branch_logps(
    model: nn.Module,
    trunk: Sequence[int],
    branches: Sequence[Branch],
    *,
    temperature: float = 1.0,
    outputs: tuple[str, ...] = ("log_probs",),
    chunk_rows: int = 1024,
    forwards: int | None = None,
    unscored_tokens: int = 0,
) -> Scores:
    """Score continuations of prefixes of one sequence: the trunk is computed once.

    ℓ_t = log π(b_t | trunk_<p, b_<t) for a branch b at p

    The trunk runs first and leaves its keys and values; branches follow in chunks, many in one line, each of whose rows
    attends to the trunk before its branch and to its own branch. Common beginnings of branches at one place are
    computed once too. Nothing is copied per branch, and a chunk's mask has chunk_rows · (T + chunk_rows) entries,
    however many branches there are. Without gradient and without dropout; the model is left as found.

    Args:
        model: A causal language model, plain or wrapped.
        trunk: T token ids.
        branches: `(p, tokens)` each: tokens that follow the first p of the trunk, 1 ≤ p ≤ T; at least one.
        temperature: Divides the logits.
        outputs: As for `sequence_logps`.
        chunk_rows: At most so many branch tokens in one forward; a longer branch runs alone.
        forwards: Run so many forwards, the last of them on a single token for nothing. Where parameters are sharded
            over processes (ZeRO-3, FSDP) all have to run the same number: the largest `branch_forwards`.
        unscored_tokens: So many first tokens of every branch, fewer than it has, get no number: the output head does
            not compute them.

    Returns:
        In the order of `branches`, a tensor with a number per scored token of the branch; a tuple of them when several
        outputs are asked for.

    Raises:
        InputError: Trunk or branches hold no token or one outside the vocabulary, a place is outside the trunk, more
            than `forwards` are needed, or they are given for a model that cannot do this. Without `forwards` such a
            model scores whole sequences, padded, and a warning says why.
    """
    check_outputs(outputs, temperature)
    trunk = list(trunk)
    check_branches(trunk, branches, unscored_tokens)
    needed = branch_forwards(branches, chunk_rows=chunk_rows)
    if forwards is not None and forwards < needed:
        raise InputError("forwards", f"{forwards} are too few", f"give {needed} or more")
    with torch.no_grad(), evaluating(model), fused_lm_head(model, temperature=temperature, outputs=outputs) as base:
        check_ids([trunk, *(list(tokens) for _, tokens in branches)], base.config.get_text_config().vocab_size)
        reason = refusal(model, base.config.get_text_config())
        if reason is not None:
            if forwards is not None:
                raise InputError("forwards", f"the trunk cannot be shared: {reason}", "leave them out")
            warnings.warn(f"the trunk is computed again for each branch: {reason}", stacklevel=2)
            return _padded(model, trunk, branches, temperature, outputs, unscored_tokens)
        scores = [unscored(outputs, base.device)] * len(branches)
        if branches:
            cache = DynamicCache()  # keeps all keys; one made for a window would drop those that a branch needs
            size = base.config.get_text_config().vocab_size
            rooted = [_rooted(trunk, *branch, size, unscored_tokens) for branch in branches]
            known = max(1, max(sequence[0] // size for sequence in rooted))
            _extend(model, base, cache, trunk[:known])
            for chunk in _chunks(branches, chunk_rows):
                tree = prefix_tree([rooted[i] for i in chunk])
                counts = [len(branches[i][1]) - unscored_tokens for i in chunk]
                wanted, at = np.unique(
                    np.concatenate([own[-count:] for own, count in zip(tree.places, counts, strict=True)]),
                    return_inverse=True,
                )
                values = _score(model, base, cache, known, tree, size, wanted, outputs)
                cache.crop(-len(tree))
                places = np.split(at, np.cumsum(counts)[:-1])
                for i, own in zip(chunk, places, strict=True):
                    found = torch.from_numpy(own).to(base.device)
                    scores[i] = tuple(value[found] for value in values)
        for _ in range((forwards or needed) - needed):
            _extend(model, base, None, trunk[:1])
    return [score[0] for score in scores] if len(outputs) == 1 else scores


def branch_forwards(branches: Sequence[Branch], *, chunk_rows: int = 1024) -> int:
    """How many forwards `branch_logps` runs: one for the trunk and one per chunk; none without branches."""
    return sum(1 for _ in _chunks(branches, chunk_rows)) + bool(branches)


def _chunks(branches: Sequence[Branch], chunk_rows: int) -> Iterator[list[int]]:
    """Indices of the branches of each chunk, sorted so that common beginnings meet."""
    chunk: list[int] = []
    rows = 0
    for i in sorted(range(len(branches)), key=lambda i: (branches[i][0], list(branches[i][1]))):
        length = len(branches[i][1])
        if chunk and rows + length > chunk_rows:
            yield chunk
            chunk, rows = [], 0
        chunk.append(i)
        rows += length
    if chunk:
        yield chunk


def _extend(model: nn.Module, base: Any, cache: DynamicCache | None, tokens: list[int]) -> None:
    """Run tokens from the start, for the keys and values that they leave in the cache."""
    ids = torch.tensor([tokens], device=base.device)
    last = torch.tensor([len(tokens) - 1], device=base.device)
    run_rows(model, base, {"input_ids": ids}, last, ids[0, -1:], past_key_values=cache)


def _rooted(trunk: list[int], place: int, tokens: Sequence[int], size: int, unscored_tokens: int) -> list[int]:
    """The branch after its root, which says where it stands and which token it is: start · V + token.

    The root is the trunk's last token before the branch, computed again, for it predicts the branch's first token;
    where that is not asked for, it is the first token itself.
    """
    if unscored_tokens:
        return [place * size + tokens[0], *tokens[1:]]
    return [(place - 1) * size + trunk[place - 1], *tokens]


def _score(
    model: nn.Module,
    base: Any,
    cache: DynamicCache,
    known: int,
    tree: PrefixTree,
    size: int,
    wanted: NDArray[np.int64],
    outputs: tuple[str, ...],
) -> list[Tensor]:
    """Numbers of a chunk of branches, one for each of the wanted predictions, per output.

    Args:
        known: So many tokens of the trunk are in the cache.
        tree: Of the branches after their roots.
        size: V of `_rooted`.
        wanted: Places among what the tree predicts.
    """
    roots = tree.positions == 0
    starts = (tree.tokens // size)[roots][np.cumsum(roots) - 1]
    arrays = (tree.tokens % size, tree.positions + starts, starts, tree.ends, tree.heads[wanted], tree.labels[wanted])
    ids, depths, start, ends, heads, labels = (torch.from_numpy(array).to(base.device) for array in arrays)
    trunk_keys, rows = torch.arange(known, device=base.device), torch.arange(len(tree), device=base.device)
    before = trunk_keys[None] < start[:, None]
    inside = (rows[None] <= rows[:, None]) & (rows[:, None] < ends[None])
    apart = depths[:, None] - torch.cat([trunk_keys, depths])[None]
    config = base.config.get_text_config()
    mask = layer_masks(torch.cat([before, inside], dim=1)[None], apart[None], config, attention_dtype(base))
    inputs = {"input_ids": ids[None], "position_ids": depths[None], "attention_mask": mask}
    found = run_rows(model, base, inputs, heads, labels, past_key_values=cache)
    return [getattr(found, name) for name in outputs]


def _padded(
    model: nn.Module,
    trunk: list[int],
    branches: Sequence[Branch],
    temperature: float,
    outputs: tuple[str, ...],
    unscored_tokens: int,
) -> Scores:
    whole = [[*trunk[:place], *tokens] for place, tokens in branches]
    options: Any = {"share_prefixes": False, "temperature": temperature, "outputs": outputs}
    found: Any = sequence_logps(model, whole, **options)
    counts = [len(tokens) - unscored_tokens for _, tokens in branches]
    if len(outputs) == 1:
        return [score[-count:] for score, count in zip(found, counts, strict=True)]
    return [tuple(value[-count:] for value in score) for score, count in zip(found, counts, strict=True)]


def check_branches(trunk: Sequence[int], branches: Sequence[Branch], unscored_tokens: int) -> None:
    """Refuse a trunk or a branch without a token, and a place outside the trunk."""
    if not trunk:
        raise InputError("trunk", "is empty", "give at least one token")
    for i, (place, tokens) in enumerate(branches):
        if not 1 <= place <= len(trunk):
            problem = f"place {place} is outside the trunk of {len(trunk)} tokens"
            raise InputError(f"branches[{i}]", problem, f"give 1 to {len(trunk)}")
        if not len(tokens):
            raise InputError(f"branches[{i}]", "has no token", "give at least one")
        if not 0 <= unscored_tokens < len(tokens):
            problem = f"{unscored_tokens} leave none of the {len(tokens)} tokens of branches[{i}]"
            raise InputError("unscored_tokens", problem, "give less")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout, and without gradient checkpointing, which keeps no keys and values."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
