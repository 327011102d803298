"""TAB-PO on TRL's DPO trainer: token weights and the adaptive barrier.

What differs from the authors' release (arXiv 2603.00025): log-probabilities in float32; both sides of a pair
serialised by one function; weights at the offsets of parsed JSON values; differing tokens by alignment of ids.
"""

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import is_peft_model
from trl import DPOConfig, DPOTrainer

from tokencredit.data.weighters import from_recipe
from tokencredit.errors import InputError
from tokencredit.losses import tab_po_loss
from tokencredit.scoring.trl_compat import disable_gradient_checkpointing, use_adapter
from tokencredit.trainers.pairs import WEIGHT_COLUMNS, WeightedPairCollator, add_pair_weights

# Settings of DPO that would be taken and do nothing, with the value that asks for nothing.
_WITHOUT_EFFECT: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
    "precompute_ref_log_probs": False,
    "sync_ref_model": False,
}


@dataclass
class TABPOConfig(DPOConfig):
    """Configuration of `TABPOTrainer`: TRL's `DPOConfig`, and

    Args:
        form: `weighted` (first version of the paper) [C] or `sum` (second) [N].
        beta: β; 0.5 [C] instead of DPO's 0.1.
        tau: τ, the probability below which a chosen token is lifted by the barrier; 0.66 [C].
        lam: λ, the weight of the barrier; by default 0.5 for `weighted` [C] and 1.5 for `sum` [O].
        barrier_scope: `all` response tokens may be lifted, or only the `weighted` ones [O].
        token_weights: What `tokencredit.data.weighters.from_recipe` takes; for `weighted` only.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "token_weights"]  # noqa: RUF012  (as in the base class)

    beta: float = field(default=0.5, metadata={"help": "How strongly the policy is held to the reference."})
    form: str = field(default="weighted", metadata={"help": "Version of the loss.", "choices": ["weighted", "sum"]})
    tau: float = field(default=0.66, metadata={"help": "Probability below which a chosen token is lifted."})
    lam: float | None = field(default=None, metadata={"help": "Weight of the barrier."})
    barrier_scope: str = field(
        default="all", metadata={"help": "Tokens that may be lifted.", "choices": ["all", "weighted"]}
    )
    token_weights: dict[str, Any] | None = field(default=None, metadata={"help": "Weights of response tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if not 0 < self.tau <= 1:
            raise InputError("tau", f"{self.tau} is no probability", "give 0 < tau <= 1")
        if self.form == "sum" and self.token_weights is not None:
            raise InputError("token_weights", "the sum form has no token weights", "remove them, or set form: weighted")
        if self.barrier_scope == "weighted" and self.token_weights is None:
            raise InputError("barrier_scope", "'weighted' without token weights", "set token_weights, or scope: all")
        for name, value in _WITHOUT_EFFECT.items():
            if getattr(self, name) != value:
                raise InputError(name, f"{getattr(self, name)!r} has no effect in TAB-PO", "remove it")


class TABPOTrainer(DPOTrainer):
    """Trainer of Token-Adaptive Barrier Preference Optimization (arXiv 2603.00025); see `tab_po_loss`.

    Takes what `trl.DPOTrainer` takes, with a `TABPOConfig`. Without token weights every weight is one.
    """

    _tag_names = ["trl", "tab-po"]  # noqa: RUF012  (as in the base class)
    _name = "TAB-PO"
    _paper = {  # noqa: RUF012
        "title": "Token-Adaptive Barrier Preference Optimization",
        "id": "2603.00025",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        given: Any = self.data_collator
        self.data_collator = WeightedPairCollator(
            pad_token_id=given.pad_token_id,
            max_length=given.max_length,
            truncation_mode=given.truncation_mode,
            pad_to_multiple_of=given.pad_to_multiple_of,
        )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if args.token_weights is None:
            return dataset
        weighter = from_recipe(args.token_weights)
        keywords = {"tokenizer": self._tokenizer, "weighter": weighter}
        return dataset.map(add_pair_weights, with_indices=True, fn_kwargs=keywords)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        columns: Any = self._signature_columns
        self._signature_columns: Any = [*dict.fromkeys([*columns, *WEIGHT_COLUMNS])]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        forward = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        mask = inputs["completion_mask"]
        forward["labels"] = inputs["input_ids"].masked_fill(mask == 0, -100)
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**forward, **router, fused_lm_head=True)
        mask = mask[:, 1:]
        # Prompt-learning PEFT puts virtual tokens in front: the last positions are the real ones.
        policy = outputs.log_probs[:, -mask.size(1) :]
        reference = self._reference_logps(forward)[:, -mask.size(1) :]
        weights = inputs.get("token_weights")
        chosen_weights, rejected_weights = (None, None) if weights is None else weights[:, 1:].chunk(2)
        chosen_logps, rejected_logps = policy.chunk(2)
        ref_chosen_logps, ref_rejected_logps = reference.chunk(2)
        chosen_mask, rejected_mask = mask.chunk(2)
        settings: Any = self.args
        losses, metrics = tab_po_loss(
            chosen_logps,
            rejected_logps,
            ref_chosen_logps,
            ref_rejected_logps,
            chosen_mask,
            rejected_mask,
            chosen_weights,
            rejected_weights,
            beta=settings.beta,
            tau=settings.tau,
            lam=settings.lam,
            form=settings.form,
            barrier_scope=settings.barrier_scope,
        )
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        self._record(metrics, inputs)
        return (loss, outputs) if return_outputs else loss

    def _reference_logps(self, forward: dict[str, Any]) -> torch.Tensor:
        """ℓ^ref [2B, T − 1] from the reference model, or from the policy with its adapter off."""
        adapter: Any = contextlib.nullcontext()
        model: Any = self.ref_model
        policy: Any = self.model
        if model is None:
            model = policy
            base = self.accelerator.unwrap_model(self.model)
            assert is_peft_model(base)
            adapter = use_adapter(base, adapter_name="ref" if "ref" in base.peft_config else None)
        keywords: Any = self.args.gradient_checkpointing_kwargs
        checkpointing = disable_gradient_checkpointing(policy, keywords)
        with torch.no_grad(), checkpointing, adapter:
            found: torch.Tensor = model(**forward, fused_lm_head=True).log_probs
        return found

    def _record(self, metrics: dict[str, torch.Tensor], inputs: dict[str, Any]) -> None:
        model: Any = self.model
        mode = "train" if model.training else "eval"
        for name, values in metrics.items():
            self._metrics[mode][name].append(self.accelerator.gather_for_metrics(values).mean().item())
        if mode == "train":
            tokens = self.accelerator.gather_for_metrics(inputs["attention_mask"].sum()).sum().item()
            self._total_train_tokens += tokens // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
