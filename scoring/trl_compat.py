"""The only touch of TRL's private surface.

No other module of this package relies on an undocumented name of TRL. Each name used here has a canary test that fails
by that name when TRL changes under it:

- `trl.trainer.utils.add_fused_lm_head(model, temperature, cast_lm_head_to_fp32, outputs)`: replaces `model.forward` by
  one that understands `fused_lm_head=True` and then returns per-token numbers instead of logits;
- that this forward runs `base_model`, and reads `last_hidden_state` and `router_logits` of what that returns;
- `trl.trainer.utils.FusedCausalLMOutput`: what that forward returns; the fields in `OUTPUTS` are read;
- `trl.trainer.dpo_trainer.DataCollatorForPreference`: pads `[chosen, rejected]` batches; per-token columns are padded
  like its `completion_mask`;
- `trl.trainer.sft_trainer.DataCollatorForLanguageModeling`: pads batches on the right;
- that `trl.DPOTrainer` and `trl.SFTTrainer` hand keys of the batch which they do not know on to the model, and take
  their losses from `log_probs`;
- of `trl.SFTTrainer`, overridden: `_prepare_dataset`, `_set_signature_columns_if_needed`;
- `trl.trainer.utils.use_adapter` and `trl.models.utils.disable_gradient_checkpointing`: contexts of a reference pass;
- `trl.models.prepare_deepspeed`: an engine for the reference pass before training;
- of `trl.DPOTrainer`, overridden: `_prepare_dataset`, `_set_signature_columns_if_needed`, `_compute_loss`,
  `_precompute_ref_logps`; read: `_metrics`, `_total_train_tokens`, `_tokenizer`, `_tp_size`, `_precompute_engine`,
  `aux_loss_enabled`, `router_aux_loss_coef`;
- of `trl.GRPOTrainer`, overridden (in `trainers/token_grpo.py`): `_generate`, `_calculate_rewards`,
  `_generate_and_score_completions`, `_prepare_inputs`, `_compute_loss`, `_get_per_token_logps_and_entropies`,
  `_save_checkpoint`, `_load_optimizer_and_scheduler`; read: `_buffered_inputs`, `_step`, `_metrics`, `_tokenizer`,
  `_log_completion_extra`, `_log_metric`, `_pending_extra_logs`;
- of the same, that log-probabilities come from one call of the model for each batch, by keywords, that `_generate` gets
  the list of prompts and `_calculate_rewards` the list of rows which the trainer goes on with, and that the first five
  things that `_generate` returns are lists with an entry per row (`trainers/grpo_refill.py`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel, get_mixed_precision_context_manager
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.models import prepare_deepspeed
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head, use_adapter

from tokencredit.errors import InputError
from tokencredit.losses.ops import masked_sum

__all__ = [
    "OUTPUTS",
    "DataCollatorForLanguageModeling",
    "DataCollatorForPreference",
    "bare_model",
    "disable_gradient_checkpointing",
    "fused_lm_head",
    "prepare_deepspeed",
    "use_adapter",
    "weigh_log_probs",
]

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


def bare_model(model: nn.Module) -> PreTrainedModel:
    """The language model inside DDP, a DeepSpeed engine and PEFT: the one that carries the fused head."""
    base: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    found: Any = base.get_base_model() if isinstance(base, PeftModel) else base
    return found  # type: ignore[no-any-return]


@contextmanager
def fused_lm_head(
    model: nn.Module, *, temperature: float = 1.0, outputs: tuple[str, ...] = ("log_probs",)
) -> Iterator[PreTrainedModel]:
    """Let `model(..., labels=…, fused_lm_head=True)` return per-token numbers, and leave the model as found.

    The numbers come from TRL's chunked kernel, which never holds the `[B, T, V]` logits: float32 whatever the model's
    dtype, `[B, T−1]` with `labels` and `[B, T]` with `shift_labels`, 0 where the label is −100. Inside, call `model`
    itself (not what is yielded), so that DDP and DeepSpeed see the call. On leaving, also through an exception,
    the instance's `forward` is again what it was: absent, or the very object that stood there (a trainer's own head).
    Uses may be nested; the innermost settings count.

    Args:
        model: A causal language model, plain or inside PEFT, DDP or a DeepSpeed engine.
        temperature: Divides the logits.
        outputs: Which of `OUTPUTS` to compute; `log_probs` always is.

    Yields:
        The bare model that carries the head.

    Raises:
        InputError: If an adapter (LoRA and the like) sits on the output head itself.
    """
    base = bare_model(model)
    # The kernel reads the head's weight without calling the head: the adapter would be left out in silence.
    if isinstance(base.get_output_embeddings(), BaseTunerLayer):
        raise InputError(
            "peft_config",
            "it puts an adapter on the output head, which per-token log-probabilities cannot see",
            "leave the head out of target_modules, or train it whole with modules_to_save",
        )
    found = vars(base).get("forward")
    add_fused_lm_head(base, temperature=temperature, outputs=outputs)
    try:
        # Accelerate's mixed precision lives in the forward that the head now stands in front of, and would be lost.
        if "_original_forward" in vars(base):
            base.forward = get_mixed_precision_context_manager(native_amp=True)(base.forward)
        yield base
    finally:
        if found is None:
            del base.forward
        else:
            base.forward = found


def weigh_log_probs(model: nn.Module) -> None:
    """Let a fused head take `token_weights` `[B, T]`, aligned with `input_ids`, and multiply `log_probs` by them.

    ℓ_t → w̃_t ℓ_t,   w̃_t = w_t N / Σ_t w_t over the N tokens with a label: mean one per row

    Put on a trainer's model after TRL's head. The trainer's loss follows, whichever it is.

    Args:
        model: A causal language model whose forward takes `fused_lm_head=True`, plain or wrapped.
    """
    base: Any = bare_model(model)
    inner: Callable[..., Any] = base.forward

    @wraps(inner)
    def forward(*args: Any, token_weights: Tensor | None = None, **kwargs: Any) -> Any:
        outputs = inner(*args, **kwargs)
        if token_weights is None or not kwargs.get("fused_lm_head"):
            return outputs
        weights, mask = token_weights[:, 1:], kwargs["labels"][:, -token_weights.size(1) :][:, 1:] != -100
        mean = masked_sum(weights, mask) / mask.sum(-1).clamp(min=1)
        weights = weights / mean.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        # Prompt-learning PEFT puts virtual tokens in front; they carry no label.
        virtual = outputs.log_probs.size(1) - weights.size(1)
        outputs.log_probs = outputs.log_probs * nn.functional.pad(weights, (virtual, 0), value=1.0)
        return outputs

    base.forward = forward
