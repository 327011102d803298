"""The forward over prefix trees: what the model is given, and which models can take it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from tokencredit.scoring.prefix_tree import IGNORED_LABEL, PrefixTree

SUPPORTED = ("gemma2", "gemma3_text", "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
"""`model_type` of the architectures whose numbers the tests compare with those of the padded forward."""
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


def tree_inputs(trees: Sequence[PrefixTree], config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Lay out trees, one a line, as the keywords of one forward of a model with a fused head.

    Args:
        trees: At least one.
        config: The model's text configuration.
        dtype: Of the model.
        device: Of the model.

    Returns:
        `input_ids`, `position_ids` and `shift_labels` `[B, R]`, and `attention_mask`: `[B, 1, R, R]`, or one for each
        kind of layer.
    """
    rows = max(map(len, trees))
    ids, positions = (np.zeros((len(trees), rows), dtype=np.int64) for _ in range(2))
    labels = np.full((len(trees), rows), IGNORED_LABEL)
    # A padding row sees itself only: a row of the mask without any key would give NaN.
    ends = np.tile(np.arange(1, rows + 1), (len(trees), 1))
    for line, tree in enumerate(trees):
        own = slice(len(tree))
        ids[line, own], positions[line, own] = tree.tokens, tree.positions
        labels[line, own], ends[line, own] = tree.labels, tree.ends
    on_device = [torch.from_numpy(array).to(device) for array in (ids, positions, labels, ends)]
    return {
        "input_ids": on_device[0],
        "position_ids": on_device[1],
        "shift_labels": on_device[2],
        "attention_mask": _masks(on_device[1], on_device[3], config, dtype),
    }


def _masks(positions: Tensor, ends: Tensor, config: Any, dtype: torch.dtype) -> Tensor | dict[str, Tensor]:
    place = torch.arange(positions.shape[1], device=positions.device)
    row, key = place[:, None], place[None, :]
    seen = (key <= row) & (row < ends[:, None, :])
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    near = seen
    if window is not None:
        # Tokens apart, not rows apart: branches stand between a row and those above it.
        near = seen & (positions[:, :, None] - positions[:, None, :] < window)
    full, sliding = (_as_mask(found, config, dtype) for found in (seen, near))
    if kinds:
        masks = {"full_attention": full, "sliding_attention": sliding}
        return masks if len(kinds) > 1 else masks[kinds.pop()]
    return sliding


def _as_mask(seen: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    seen = seen[:, None]
    if config._attn_implementation != "eager":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
