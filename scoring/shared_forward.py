"""The forward over prefix trees: what the model is given, and which models can take it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from tokencredit.scoring.trl_compat import OUTPUTS, bare_model

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


def run_trees(model: Callable[..., Any], base: Any, lines: dict[str, Tensor], **keywords: Any) -> Any:
    """One forward over trees: what a fused head returns, with a number per prediction, `[N]` each.

    Where the experts' load is asked for, it is that of the sequences: a row counts as often as it is used.

    Args:
        model: What is called: a model with a fused head, plain or wrapped, or the forward of that.
        base: The bare model inside.
        lines: As `tokencredit.scoring.tree_batch` describes, on the model's device.
        keywords: For the model.
    """
    config = base.config.get_text_config()
    inputs: dict[str, Any] = {"input_ids": lines["tokens"]}
    # Lines of one sequence are causal, for which there are faster kernels; what pads them stands behind.
    if "ends" in lines:
        inputs["position_ids"] = lines["positions"]
        inputs["attention_mask"] = _masks(lines["positions"], lines["ends"], config, attention_dtype(base))
    with router_logits_taken(base.base_model) as taken:
        outputs = run_rows(model, base, inputs, lines["heads"], lines["labels"], **keywords)
    if taken:
        experts, chosen = config.num_experts, config.num_experts_per_tok
        outputs.aux_loss = load_balancing_loss_func(taken[0], experts, chosen, lines["weights"])
    return outputs


@contextmanager
def router_logits_taken(backbone: nn.Module) -> Iterator[list[Any]]:
    """Take the router's logits from what the layers hand on, where there are any.

    TRL's head would compute the load with the attention's mask, which for trees is none over tokens.
    """
    taken: list[Any] = []

    def take(_module: nn.Module, _arguments: Any, outputs: Any) -> None:
        if getattr(outputs, "router_logits", None) is not None:
            taken.append(outputs.router_logits)
            outputs.router_logits = None

    hook = backbone.register_forward_hook(take)
    try:
        yield taken
    finally:
        hook.remove()


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
    """Let a fused head take `prefix_trees` (`tree_batch.batch_trees`), and return what it would for the padded batch.

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
        if outputs.aux_loss is not None:
            outputs.loss = outputs.loss + base.config.get_text_config().router_aux_loss_coef * outputs.aux_loss
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
