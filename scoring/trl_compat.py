"""The only touch of TRL's private surface.

No other module of this package relies on an undocumented name of TRL. Each name used here has a canary test that fails
by that name when TRL changes under it:

- `trl.trainer.utils.add_fused_lm_head(model, temperature, cast_lm_head_to_fp32, outputs)`: replaces `model.forward` by
  one that understands `fused_lm_head=True` and then returns per-token numbers instead of logits;
- `trl.trainer.utils.FusedCausalLMOutput`: what that forward returns; the fields in `OUTPUTS` are read;
- `trl.trainer.dpo_trainer.DataCollatorForPreference`: pads `[chosen, rejected]` batches; per-token columns are padded
  like its `completion_mask`;
- `trl.trainer.utils.use_adapter` and `trl.models.utils.disable_gradient_checkpointing`: contexts of a reference pass;
- of `trl.DPOTrainer`, overridden: `_prepare_dataset`, `_set_signature_columns_if_needed`, `_compute_loss`; read:
  `_metrics`, `_total_train_tokens`, `_tokenizer`, `_tp_size`, `aux_loss_enabled`, `router_aux_loss_coef`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate.utils import extract_model_from_parallel, get_mixed_precision_context_manager
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from trl.models.utils import disable_gradient_checkpointing
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head, use_adapter

from tokencredit.errors import InputError

__all__ = ["OUTPUTS", "DataCollatorForPreference", "disable_gradient_checkpointing", "fused_lm_head", "use_adapter"]

OUTPUTS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")


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
    base = extract_model_from_parallel(model, keep_torch_compile=False)
    if isinstance(base, PeftModel):
        base = base.get_base_model()
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
