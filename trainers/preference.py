"""Any pair loss over per-token log-probabilities, on TRL's DPO trainer."""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from trl import DPOConfig

from tokencredit.data.functions import load_function
from tokencredit.errors import InputError
from tokencredit.scoring.trl_compat import disable_gradient_checkpointing, prepare_deepspeed, use_adapter
from tokencredit.trainers.diagnostics import RATIOS, PairTokens, TokenMetrics, head_sums, write_samples
from tokencredit.trainers.pairs import TokenPairTrainer
from tokencredit.trainers.reference import with_reference_logps

PairLoss = Callable[..., tuple[Tensor, dict[str, Tensor]]]

TENSORS = tuple(
    name.format(side)
    for name in ("{}_logps", "ref_{}_logps", "{}_mask", "{}_weights")
    for side in ("chosen", "rejected")
)
"""Parameters of a pair loss that the trainer fills with tensors `[B, T]`."""

# Settings of DPO that would be taken and do nothing, with the value that asks for nothing.
_WITHOUT_EFFECT: dict[str, Any] = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0.0,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "use_weighting": False,
}


@dataclass
class PreferenceConfig(DPOConfig):
    """Configuration of `PreferenceTrainer`: TRL's `DPOConfig`, and

    Args:
        loss: `module:function`, a pair loss. It names the tensors it wants among its parameters: `chosen_logps`,
            `rejected_logps`, `ref_chosen_logps`, `ref_rejected_logps`, `chosen_mask`, `rejected_mask`,
            `chosen_weights`, `rejected_weights` (raw weights, ones where none are set), all `[B, T]`, aligned, float32.
            It returns `(loss [B], metrics)`; metrics are detached, `[B]` or one per chosen token `[B, T]`. A loss that
            names no `ref_` tensor runs without a reference model.
        loss_kwargs: Keywords for the loss besides the settings it names (`beta`).
        token_weights: What `tokencredit.data.weighters.from_recipe` takes.
        token_samples_steps: Write token-level samples every so many steps; None writes none.
        num_token_samples: Pairs in each of them.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "token_weights", "loss_kwargs"]  # noqa: RUF012

    loss: str | None = field(default=None, metadata={"help": "module:function of a pair loss."})
    loss_kwargs: dict[str, Any] | None = field(default=None, metadata={"help": "Keywords for the loss."})
    token_weights: dict[str, Any] | None = field(default=None, metadata={"help": "Weights of response tokens."})
    token_samples_steps: int | None = field(default=100, metadata={"help": "Steps between token-level samples."})
    num_token_samples: int = field(default=4, metadata={"help": "Pairs in a token-level sample."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.token_samples_steps is not None and self.token_samples_steps < 1:
            raise InputError("token_samples_steps", f"{self.token_samples_steps} is too small", "give 1 or more")
        for name, value in _WITHOUT_EFFECT.items():
            if getattr(self, name) != value:
                raise InputError(name, f"{getattr(self, name)!r} has no effect with this loss", "remove it")


class PreferenceTrainer(TokenPairTrainer):
    """Trainer of a pair loss that takes one log-probability per token; see `PreferenceConfig.loss`.

    Takes what `trl.DPOTrainer` takes, with a `PreferenceConfig`, and logs its metrics; and per token class what
    `tokencredit.trainers.diagnostics` computes. A method of its own overrides `default_loss` and `loss_settings`.
    """

    _tag_names = ["trl", "tokencredit"]  # noqa: RUF012  (as in the base class)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._token_metrics = TokenMetrics(self.ratio_metrics)
        self._sampled_step = -1
        super().__init__(*args, **kwargs)
        if not self.wants_reference:
            self.ref_model: Any = None

    def default_loss(self) -> PairLoss:
        """The loss where the configuration names none."""
        raise InputError("loss", "is missing", "name a pair loss as module:function, or choose trainer: tab_po")

    def loss_settings(self) -> dict[str, Any]:
        """Keywords a loss may name."""
        settings: Any = self.args
        return {"beta": settings.beta}

    ratio_metrics: Mapping[str, tuple[str, str]] = RATIOS
    """Metrics that are ratios of sums over tokens, overall and per class."""

    @cached_property
    def _pair_loss(self) -> tuple[PairLoss, tuple[str, ...], dict[str, Any]]:
        """The loss, the tensors it wants and the keywords it is called with."""
        settings: Any = self.args
        function = load_function(settings.loss, "loss") if settings.loss else self.default_loss()
        parameters = inspect.signature(function).parameters
        anything = any(item.kind is item.VAR_KEYWORD for item in parameters.values())
        given = settings.loss_kwargs or {}
        for name in given:
            if name in TENSORS or not (anything or name in parameters):
                remedy = f"it takes {', '.join(name for name in parameters if name not in TENSORS)}"
                raise InputError(f"loss_kwargs.{name}", f"is no setting of {settings.loss or 'the loss'}", remedy)
        keywords = {name: value for name, value in self.loss_settings().items() if anything or name in parameters}
        keywords |= given
        wanted = TENSORS if anything else tuple(name for name in TENSORS if name in parameters)
        for name, item in parameters.items():
            required = item.default is item.empty and item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
            if required and name not in wanted and name not in keywords:
                raise InputError("loss", f"{settings.loss} needs {name!r}", "give it under loss_kwargs")
        return function, wanted, keywords

    @property
    def wants_reference(self) -> bool:
        """Whether the loss uses the reference's log-probabilities."""
        return any(name.startswith("ref_") for name in self._pair_loss[1])

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        forward = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**forward, labels=labels, **router, fused_lm_head=True)
        mask = inputs["completion_mask"][:, 1:]
        # Prompt-learning PEFT puts virtual tokens in front: the last positions are the real ones.
        policy = outputs.log_probs[:, -mask.size(1) :]
        reference = None
        if self.wants_reference:
            given = inputs.get("ref_logps")
            reference = self._reference_logps(forward | {"labels": labels}) if given is None else given[:, 1:]
        losses, metrics = self._call_loss(policy, reference, mask, inputs.get("token_weights"))
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        self._record(policy, reference, mask, losses, metrics, outputs, inputs)
        if return_outputs:
            with torch.no_grad():
                outputs = model(**forward)
        return (loss, outputs) if return_outputs else loss

    def _call_loss(
        self, policy: Tensor, reference: Tensor | None, mask: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        function, wanted, keywords = self._pair_loss
        weights = torch.ones_like(policy, requires_grad=False) if weights is None else weights[:, 1:]
        batch = {"{}_logps": policy, "ref_{}_logps": reference, "{}_mask": mask, "{}_weights": weights}
        tensors: dict[str, Tensor] = {}
        for name, both in batch.items():
            if both is not None:
                for side, half in zip(("chosen", "rejected"), both.chunk(2), strict=True):
                    tensors[name.format(side)] = half
        returned: Any = function(**{name: tensors[name] for name in wanted}, **keywords)
        size = len(mask) // 2
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise InputError("loss", f"returned {type(returned).__name__}", "return (loss [B], metrics)")
        losses, metrics = returned
        if not (isinstance(losses, Tensor) and losses.shape == (size,)):
            problem = f"returned a loss of shape {list(getattr(losses, 'shape', []))} for {size} pairs"
            raise InputError("loss", problem, "return one number per pair")
        return losses, metrics

    def _reference_logps(self, forward: dict[str, Any], engine: Any = None) -> Tensor:
        """ℓ^ref [2B, T − 1] from the reference model, or from the policy with its adapter off."""
        adapter: Any = contextlib.nullcontext()
        policy: Any = self.model
        model: Any = engine or self.ref_model or policy
        base = self.accelerator.unwrap_model(policy)
        if self.ref_model is None and is_peft_model(base):
            adapter = use_adapter(base, adapter_name="ref" if "ref" in base.peft_config else None)
        keywords: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(policy, keywords), adapter:
            found: Tensor = model(**forward, fused_lm_head=True).log_probs
        return found[:, 1 - forward["input_ids"].size(1) :]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """TRL's step for `precompute_ref_log_probs`, with one number per token instead of one per response."""
        if not self.wants_reference:
            return dataset
        if not hasattr(dataset, "select_columns") or not hasattr(dataset, "__len__"):
            raise InputError("precompute_ref_log_probs", "the data is a stream", "load it whole, or remove the key")
        engine: Any = None
        policy: Any = self.model
        if self.ref_model is None and self.is_deepspeed_enabled:
            # TRL keeps the one engine between its passes too.
            self._precompute_engine: Any = self._precompute_engine or prepare_deepspeed(policy, self.accelerator)
            engine = self._precompute_engine

        def score(batch: dict[str, Any]) -> Tensor:
            forward = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
            forward["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            with self.accelerator.autocast():
                return self._reference_logps(forward, engine)

        return with_reference_logps(
            dataset,
            engine or self.ref_model or policy,
            score,
            accelerator=self.accelerator,
            collator=self.data_collator,
            batch_size=batch_size,
            name=name,
        )

    def _record(
        self,
        policy: Tensor,
        reference: Tensor | None,
        mask: Tensor,
        losses: Tensor,
        metrics: dict[str, Tensor],
        outputs: Any,
        inputs: dict[str, Any],
    ) -> None:
        """Gather what is logged, in one exchange: means over pairs, and sums over tokens."""
        module: Any = self.model
        mode = "train" if module.training else "eval"
        gradient = None
        if losses.requires_grad:
            # Stops at the log-probabilities: the model is not run backwards here.
            (gradient,) = torch.autograd.grad(losses.sum(), policy, retain_graph=True)
        classes = inputs.get("token_classes")
        collator: Any = self.data_collator
        tokens = PairTokens(
            mask=mask,
            logps=policy.detach(),
            ref_logps=reference,
            gradient=gradient,
            chosen={name: value for name, value in metrics.items() if value.dim() == 2},
            classes=None if classes is None else classes[:, 1:],
            names=collator.classes,
        )
        means = {name: value for name, value in metrics.items() if value.dim() == 1}
        sums = tokens.sums() | head_sums(outputs, mask, inputs["attention_mask"])
        table = torch.stack([*means.values(), *sums.values()], dim=1).float()
        rows = self.accelerator.gather_for_metrics(table)
        totals = rows.sum(0).tolist()
        for name, total in zip(means, totals, strict=False):
            self._metrics[mode][name].append(total / len(rows))
        self._token_metrics.add(mode, dict(zip(sums, totals[len(means) :], strict=True)), len(rows), tokens.chosen)
        if mode == "train":
            self._total_train_tokens += totals[-1] // self._tp_size  # the last sum is that of all tokens
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._sample(mode, tokens, inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the ratios of sums since the last call, then log as TRL does."""
        module: Any = self.model
        mode = "train" if module.training else "eval"
        for name, value in self._token_metrics.drain(mode).items():
            self._metrics[mode].setdefault(name, [value])
        super().log(logs, start_time)

    def _sample(self, mode: str, tokens: PairTokens, inputs: dict[str, Any]) -> None:
        settings: Any = self.args
        step, every = self.state.global_step, settings.token_samples_steps
        due = mode == "train" and every is not None and step % every == 0 and step != self._sampled_step
        if due and self.is_world_process_zero():
            self._sampled_step = step
            run, pairs = Path(settings.output_dir), settings.num_token_samples
            write_samples(run, step, tokens, inputs["input_ids"], inputs.get("token_weights"), self._tokenizer, pairs)
