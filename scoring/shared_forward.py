"""The forward over prefix trees: what the model is given, and which models can take it.

A batch of trees is a dictionary of tensors, so that it travels like the rest of a batch: `tokens`, `positions`, `ends`
`[L, R]` (L lines of R rows), `heads` and `labels` `[N]` (rows of the flattened lines and what they predict), and
`places`, which says where in the N predictions a sequence's tokens stand.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from tokencredit.scoring.prefix_tree import PrefixTree, grouped, packed, prefix_tree
from tokencredit.scoring.trl_compat import OUTPUTS, bare_model

SUPPORTED = ("gemma2", "gemma3_text", "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""`model_type` of the architectures whose numbers the tests compare with those of the padded forward."""
_WORTH_IT = 0.95
MAX_ROWS = 4096
"""Of a line with several sequences, unless two of them need more: a mask has an entry for each pair of its rows."""
_ATTENTION = ("sdpa", "eager")
_LAYERS = {"full_attention", "sliding_attention"}


def refusal(model: nn.Module, config: Any) -> str | None:
    """Say why a model cannot run over trees.

    Args:
        model: The model as it is called, perhaps with an adapter.
        config: Its text configuration.

    Returns:
        The reason, or None if it can.
    """
    attention, kinds = config._attn_implementation, set(getattr(config, "layer_types", None) or ())
    if attention not in _ATTENTION:
        return f"attention {attention!r} takes no mask; load the model with attn_implementation='sdpa'"
    if kinds - _LAYERS:
        return f"layers of type {min(kinds - _LAYERS)!r} do not attend to chosen tokens only"
    if config.model_type not in SUPPORTED:
        return f"architecture {config.model_type!r} has not been compared with the padded forward"
    if any(isinstance(part, PeftModel) and part.active_peft_config.is_prompt_learning for part in model.modules()):
        return "its adapter puts virtual tokens before each sequence"
    return None


def batch_trees(
    input_ids: Tensor,
    attention_mask: Tensor,
    scored: Tensor,
    *,
    hidden_size: int,
    always: bool = False,
    multiple_of: int | None = None,
) -> dict[str, Tensor]:
    """Merge the sequences of a batch that is padded on the right, where one forward over trees costs less [O].

    The cost is that of `grouped`, over all lines and their padding, against half the attention for the padded batch,
    whose kernels skip what a causal mask hides. A saving below a twentieth does not count: masks have to be made.

    Args:
        input_ids: `[S, T]`.
        attention_mask: `[S, T]`, 1 on tokens.
        scored: `[S, T]`, 1 on the tokens whose numbers are wanted.
        hidden_size: Of the model.
        always: Lay out trees, whatever they cost.
        multiple_of: Rows per line are padded to a multiple of it.

    Returns:
        `counts` `[3]`: the rows of the trees, what they would be without sharing, and 1 if trees are laid out; then
        also what the module's docstring names, with `places` `[S, T − 1]`, −1 where nothing is scored.
    """
    lengths = attention_mask.sum(1).tolist()
    sequences = [row[:length] for row, length in zip(input_ids.tolist(), lengths, strict=True)]
    longest = max(lengths)
    groups = grouped(sequences, hidden_size=hidden_size, max_rows=max(2 * longest, MAX_ROWS))
    trees, members = packed_trees(sequences, groups)
    alone = sum(length - 1 for length in lengths)
    rows = max(map(len, trees))
    cost = len(trees) * rows * (1 + rows / (6 * hidden_size))
    padded = input_ids.numel() * (1 + input_ids.size(1) / (12 * hidden_size))
    used = always or cost < _WORTH_IT * padded
    found = {"counts": torch.tensor([sum(map(len, trees)), alone, int(used)])}
    if not used:
        return found
    lines = lay_out(trees, multiple_of=multiple_of)
    places = np.full((len(sequences), input_ids.size(1) - 1), -1)
    for offset, tree, sequences_of_line in zip(_offsets(trees), trees, members, strict=True):
        for row, own in zip(sequences_of_line, tree.places, strict=True):
            places[row, : len(own)] = offset + own
    places[~scored[:, 1:].bool().numpy()] = -1
    wanted, numbered = np.unique(places[places >= 0], return_inverse=True)
    places[places >= 0] = numbered
    kept = torch.from_numpy(wanted)
    lines["heads"], lines["labels"] = lines["heads"][kept], lines["labels"][kept]
    return found | lines | {"places": torch.from_numpy(places)}


def packed_trees(
    sequences: Sequence[Sequence[int]], groups: Sequence[list[int]]
) -> tuple[list[PrefixTree], list[list[int]]]:
    """Make each group a tree, and put several into a line where the longest leaves room.

    Returns:
        A tree per line, and the indices of its sequences.
    """
    sizes = [len(prefix_tree([sequences[row] for row in rows])) for rows in groups]
    lines = [[row for place in line for row in groups[place]] for line in packed(sizes, max(sizes))]
    return [prefix_tree([sequences[row] for row in line]) for line in lines], lines


def _offsets(trees: Sequence[PrefixTree]) -> list[int]:
    """Where the predictions of each tree begin among those of all."""
    counts = [len(tree.heads) for tree in trees]
    return [sum(counts[:line]) for line in range(len(trees))]


def lay_out(trees: Sequence[PrefixTree], *, multiple_of: int | None = None) -> dict[str, Tensor]:
    """Put trees one a line: `tokens`, `positions`, `ends`, `heads` and `labels`."""
    rows = max(map(len, trees))
    rows += -rows % (multiple_of or 1)
    tokens, positions = (np.zeros((len(trees), rows), dtype=np.int64) for _ in range(2))
    # A padding row sees itself only: a row of the mask without any key would give NaN.
    ends = np.tile(np.arange(1, rows + 1), (len(trees), 1))
    for line, tree in enumerate(trees):
        own = slice(len(tree))
        tokens[line, own], positions[line, own], ends[line, own] = tree.tokens, tree.positions, tree.ends
    heads = np.concatenate([line * rows + tree.heads for line, tree in enumerate(trees)])
    labels = np.concatenate([tree.labels for tree in trees])
    arrays = {"tokens": tokens, "positions": positions, "ends": ends, "heads": heads, "labels": labels}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def run_trees(model: Callable[..., Any], base: Any, lines: dict[str, Tensor], **keywords: Any) -> Any:
    """One forward over trees: what a fused head returns, with a number per prediction, `[N]` each.

    Args:
        model: What is called: a model with a fused head, plain or wrapped, or the forward of that.
        base: The bare model inside.
        lines: As the module's docstring describes, on the model's device.
        keywords: For the model.
    """
    config = base.config.get_text_config()
    inputs = {
        "input_ids": lines["tokens"],
        "position_ids": lines["positions"],
        "attention_mask": _masks(lines["positions"], lines["ends"], config, attention_dtype(base)),
    }
    return run_rows(model, base, inputs, lines["heads"], lines["labels"], **keywords)


def run_rows(
    model: Callable[..., Any], base: Any, inputs: dict[str, Any], heads: Tensor, labels: Tensor, **keywords: Any
) -> Any:
    """One forward with numbers for chosen rows only.

    Args:
        model: As for `run_trees`.
        base: As for `run_trees`.
        inputs: `input_ids` `[L, R]`, and what belongs to them.
        heads: `[N]`, rows of the flattened lines.
        labels: `[N]`, the token whose numbers are wanted there.
        keywords: For the model.
    """
    with handing_on(base.base_model, heads):
        outputs = model(**inputs, shift_labels=labels[None], fused_lm_head=True, **keywords)
    for name in OUTPUTS:
        values = getattr(outputs, name)
        setattr(outputs, name, None if values is None else values[0])
    return outputs


@contextmanager
def handing_on(backbone: nn.Module, rows: Tensor) -> Iterator[None]:
    """Let the layers hand only these rows of the flattened lines to the output head, as one line `[1, N, H]`.

    The vocabulary is the widest matrix of a small model: rows of prompts and of padding need not be multiplied by it.
    """

    def select(_module: nn.Module, _arguments: Any, outputs: Any) -> None:
        hidden = outputs.last_hidden_state
        outputs.last_hidden_state = hidden.reshape(-1, hidden.size(-1)).index_select(0, rows)[None]

    hook = backbone.register_forward_hook(select)
    try:
        yield
    finally:
        hook.remove()


def share_prefixes(model: nn.Module) -> None:
    """Let a fused head take `prefix_trees` (`batch_trees`), and return what it would for the padded batch.

    The caller sees `[S, T − 1]` numbers, 0 where nothing is scored, and one forward, as without trees. Put on a
    trainer's model after TRL's head and before `weigh_log_probs`; whatever wraps the model (PEFT, DDP, DeepSpeed) sees
    the padded batch too.

    Args:
        model: A causal language model whose forward takes `fused_lm_head=True`, plain or wrapped.
    """
    base: Any = bare_model(model)
    inner: Callable[..., Any] = base.forward

    @wraps(inner)
    def forward(*args: Any, prefix_trees: dict[str, Tensor] | None = None, **kwargs: Any) -> Any:
        if prefix_trees is None or "tokens" not in prefix_trees or not kwargs.get("fused_lm_head"):
            return inner(*args, **kwargs)
        padded = ("input_ids", "attention_mask", "labels", "fused_lm_head")
        rest = {name: value for name, value in kwargs.items() if name not in padded}
        outputs = run_trees(inner, base, prefix_trees, **rest)
        places = prefix_trees["places"]
        for name in OUTPUTS:
            values = getattr(outputs, name)
            if values is not None:
                setattr(outputs, name, values[places.clamp(min=0)].masked_fill(places < 0, 0))
        outputs.label_mask = places >= 0
        outputs.loss = -outputs.log_probs.sum() / outputs.label_mask.sum().clamp(min=1)
        return outputs

    base.forward = forward


def attention_dtype(base: Any) -> torch.dtype:
    """What queries come in; a mask of another type would be converted in every layer."""
    device = base.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else base.dtype


def _masks(positions: Tensor, ends: Tensor, config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """What rows see of each other, `[L, 1, R, R]`, or such a mask for each kind of layer."""
    place = torch.arange(positions.shape[1], device=positions.device)
    row, key = place[:, None], place[None, :]
    seen = (key <= row) & (row < ends[:, None, :])
    return layer_masks(seen, positions[:, :, None] - positions[:, None, :], config, dtype)


def layer_masks(seen: Tensor, apart: Tensor, config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    """The masks of a model's layers, made once for all of them.

    They are added to the attention's scores: a boolean mask would be converted in every layer, and each layer keeps
    what it converted for the backward pass.

    Args:
        seen: `[L, Q, K]`, whether a row attends to a key, windows left aside.
        apart: `[L, Q, K]`, how many tokens a key lies before a row. Not how many rows: branches stand between them.
        config: The model's text configuration.
        dtype: Of the queries.

    Returns:
        `[L, 1, Q, K]`, or one for each kind of layer where there are two.
    """
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())

    def mask(kind: str) -> Tensor:
        found = seen & (apart < window) if kind == "sliding_attention" and window is not None else seen
        added = torch.zeros(found.shape, dtype=dtype, device=found.device)
        return added.masked_fill_(~found, torch.finfo(dtype).min)[:, None]

    if len(kinds) > 1:
        return {kind: mask(kind) for kind in sorted(kinds)}
    return mask(kinds.pop() if kinds else "sliding_attention")
