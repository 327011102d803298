"""Any pair loss over per-token log-probabilities, on TRL's DPO trainer."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from trl import DPOConfig

from tokencredit.errors import InputError
from tokencredit.scoring.trl_compat import disable_gradient_checkpointing, prepare_deepspeed, use_adapter
from tokencredit.trainers.annotate import REFERENCE, REWARDS, WEIGHTS, first_row
from tokencredit.trainers.diagnostics import (
    RATIOS,
    PairTokens,
    ScoredPairs,
    TokenMetrics,
    head_sums,
    shared_sums,
    write_samples,
)
from tokencredit.trainers.pair_loss import PairLoss, Returned, pair_loss
from tokencredit.trainers.pairs import TokenPairTrainer
from tokencredit.trainers.reference import with_reference_logps
from tokencredit.trainers.sharing import TREES, PairSettings
from tokencredit.trainers.token_rewards import check_rewards

# Settings of DPO that would be taken and do nothing.
_WITHOUT_EFFECT = (
    "loss_type",
    "loss_weights",
    "label_smoothing",
    "ld_alpha",
    "f_divergence_type",
    "f_alpha_divergence_coef",
    "discopop_tau",
    "use_weighting",
)


@dataclass
class PreferenceConfig(PairSettings, DPOConfig):
    """Configuration of `PreferenceTrainer`: TRL's `DPOConfig`, and

    Args:
        loss: `module:function`, a pair loss. It names the tensors it wants among its parameters: `chosen_logps`,
            `rejected_logps`, `ref_chosen_logps`, `ref_rejected_logps`, `chosen_mask`, `rejected_mask`,
            `chosen_weights`, `rejected_weights` (raw weights, ones where none are set), `chosen_rewards`,
            `rejected_rewards` (the data's columns of these names), all `[B, T]`, aligned, float32.
            It returns `(loss [B], metrics)`; metrics are `[B]` or one per chosen token `[B, T]`. A loss that names no
            `ref_` tensor runs without a reference model.
        loss_kwargs: Keywords for the loss besides the settings it names (`beta`).
        token_weights: What `tokencredit.data.weighters.from_recipe` takes.
        share_prefixes: See `tokencredit.trainers.sharing.PairSettings`.
        token_samples_steps: Write token-level samples every so many steps; None writes none.
        num_token_samples: Pairs in each of them.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "token_weights", "loss_kwargs"]  # noqa: RUF012

    loss: str | None = field(default=None, metadata={"help": "module:function of a pair loss."})
    loss_kwargs: dict[str, Any] | None = field(default=None, metadata={"help": "Keywords for the loss."})
    token_samples_steps: int | None = field(default=100, metadata={"help": "Steps between token-level samples."})
    num_token_samples: int = field(default=4, metadata={"help": "Pairs in a token-level sample."})

    default_loss = None
    """The loss where none is named, and the fields that it and any other loss may name."""
    loss_settings = ("beta",)

    @classmethod
    def pair_loss(cls, values: Mapping[str, Any]) -> PairLoss:
        """The loss that fields of this configuration describe."""
        given: str | Callable[..., Returned] | None = values["loss"] or cls.default_loss
        if given is None:
            raise InputError("loss", "is missing", "name a pair loss as module:function, or choose trainer: tab_po")
        return pair_loss(given, {name: values[name] for name in cls.loss_settings}, values["loss_kwargs"])

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """As the base class does, and what the loss leaves without effect or cannot do without."""
        super().refuse(values)
        defaults = {item.name: item.default for item in fields(DPOConfig)}
        defaults["loss_type"] = ["sigmoid"]
        for name in _WITHOUT_EFFECT:
            if values[name] != defaults[name]:
                raise InputError(name, f"{values[name]!r} has no effect with this loss", "remove it")
        for name in ("token_samples_steps", "num_token_samples"):
            if values[name] is not None and values[name] < 1:
                raise InputError(name, f"{values[name]} is too small", "give 1 or more")
        if not values["beta"] > 0:
            raise InputError("beta", f"{values['beta']} is not positive", "give a number above 0")
        loss = cls.pair_loss(values)
        if values["token_weights"] is not None and not loss.wants_weights:
            problem = f"{loss.name} uses no token weights"
            raise InputError("token_weights", problem, "name chosen_weights in the loss, or remove them")
        if values["precompute_ref_log_probs"] and not loss.wants_reference:
            raise InputError("precompute_ref_log_probs", f"{loss.name} uses no reference", "remove it")


class PreferenceTrainer(TokenPairTrainer):
    """Trainer of a pair loss that takes one log-probability per token; see `PreferenceConfig.loss`.

    Takes what `trl.DPOTrainer` takes, with a `PreferenceConfig`, and logs its metrics; and per token class what
    `tokencredit.trainers.diagnostics` computes.
    """

    _tag_names = ["trl", "tokencredit"]  # noqa: RUF012  (as in the base class)

    config_class: type[PreferenceConfig] = PreferenceConfig
    ratio_metrics: Mapping[str, tuple[str, str]] = RATIOS
    """Metrics that are ratios of sums over tokens, overall and per class."""
    correlation_metrics: Mapping[str, tuple[str, str]] = {}
    """Metrics that compare two of `_token_values`, overall and per class."""

    def __init__(self, model: Any, ref_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        if not isinstance(args, self.config_class):
            problem = f"{type(args).__name__} is not the configuration of {type(self).__name__}"
            raise InputError("args", problem, f"give a {self.config_class.__name__}")
        self._loss = args.pair_loss(vars(args))
        self._token_metrics = TokenMetrics(self.ratio_metrics, self.correlation_metrics)
        self._sampled_step = -1
        if self._loss.wants_reference:
            super().__init__(model, ref_model, args, **kwargs)
            return
        if ref_model is not None:
            raise InputError("ref_model", f"{self._loss.name} uses no reference", "leave it out")
        # The way to a trainer without a second model; nothing is computed, see `_precompute_ref_logps`.
        args.precompute_ref_log_probs = True
        super().__init__(model, None, args, **kwargs)
        args.precompute_ref_log_probs = self.precompute_ref_logps = False

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        forward = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "use_cache": False}
        trees = {TREES: inputs[TREES]} if TREES in inputs else {}
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        router = {"output_router_logits": True} if self.aux_loss_enabled else {}
        outputs = model(**forward, **trees, labels=labels, **router, fused_lm_head=True)
        mask = inputs["completion_mask"][:, 1:]
        # Prompt-learning PEFT puts virtual tokens in front: the last positions are the real ones.
        policy = outputs.log_probs[:, -mask.size(1) :]
        reference = None
        if self._loss.wants_reference:
            given = inputs.get("ref_logps")
            reference = self._reference_logps(forward | trees | {"labels": labels}) if given is None else given[:, 1:]
        losses, metrics = self._call_loss(policy, reference, mask, inputs)
        if torch.is_grad_enabled() and not losses.requires_grad:
            raise InputError("loss", f"{self._loss.name} does not depend on the policy", "use its log-probabilities")
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        self._record(ScoredPairs(policy, reference, mask, losses, metrics), outputs, inputs)
        if return_outputs:
            with torch.no_grad():
                outputs = model(**forward)
        return (loss, outputs) if return_outputs else loss

    def _call_loss(self, policy: Tensor, reference: Tensor | None, mask: Tensor, inputs: dict[str, Any]) -> Returned:
        weights, rewards = inputs.get("token_weights"), inputs.get("token_rewards")
        weights = torch.ones_like(policy, requires_grad=False) if weights is None else weights[:, 1:]
        batch = {"{}_logps": policy, "ref_{}_logps": reference, "{}_mask": mask, "{}_weights": weights}
        batch["{}_rewards"] = None if rewards is None else rewards[:, 1:]
        tensors: dict[str, Tensor] = {}
        for name, both in batch.items():
            if both is not None:
                for side, half in zip(("chosen", "rejected"), both.chunk(2), strict=True):
                    tensors[name.format(side)] = half
        return self._loss(tensors, len(mask) // 2)

    def _adapter_off(self) -> Any:
        """What the policy's forwards run in where it stands for the reference."""
        base = self.accelerator.unwrap_model(self.model)
        if self.ref_model is None and is_peft_model(base):
            return use_adapter(base, adapter_name="ref" if "ref" in base.peft_config else None)
        return contextlib.nullcontext()

    def _reference_engine(self) -> Any:
        """The policy in DeepSpeed's engine, where it has to stand for the reference before training; or None."""
        if self.ref_model is None and self.is_deepspeed_enabled:
            policy: Any = self.model
            # TRL keeps the one engine between its passes too.
            self._precompute_engine: Any = self._precompute_engine or prepare_deepspeed(policy, self.accelerator)
            return self._precompute_engine
        return None

    def _reference_logps(self, forward: dict[str, Any], engine: Any = None) -> Tensor:
        """ℓ^ref [2B, T − 1] from the reference model, or from the policy with its adapter off."""
        policy: Any = self.model
        model: Any = engine or self.ref_model or policy
        keywords: Any = self.args.gradient_checkpointing_kwargs
        with torch.no_grad(), disable_gradient_checkpointing(policy, keywords), self._adapter_off():
            found: Tensor = model(**forward, fused_lm_head=True).log_probs
        return found[:, 1 - forward["input_ids"].size(1) :]

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """TRL's step for `precompute_ref_log_probs`, with one number per token instead of one per response."""
        if not self._loss.wants_reference or REFERENCE[0] in first_row(dataset):
            return dataset
        if not hasattr(dataset, "select_columns") or not hasattr(dataset, "__len__"):
            raise InputError("precompute_ref_log_probs", "the data is a stream", "load it whole, or remove the key")
        self._use_token_collator()  # called while the base class is being constructed
        engine = self._reference_engine()

        def score(batch: dict[str, Any]) -> Tensor:
            forward = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
            forward["labels"] = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
            forward |= {TREES: batch[TREES]} if TREES in batch else {}
            with self.accelerator.autocast():
                return self._reference_logps(forward, engine)

        dataset = with_reference_logps(
            dataset,
            engine or self.ref_model or self.model,
            score,
            accelerator=self.accelerator,
            collator=self.data_collator,
            batch_size=batch_size,
            name=name,
        )
        self._prepared.add(dataset._fingerprint)
        return dataset

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if not self._loss.wants_weights and set(WEIGHTS) & set(first_row(dataset)):
            remedy = "name chosen_weights in the loss, or remove the columns"
            raise InputError("loss", f"{self._loss.name} uses no token weights, and the data has them", remedy)
        given = getattr(dataset, "_fingerprint", None) in self._prepared
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        return self._with_rewards(dataset, dataset_name) if self._loss.wants_rewards and not given else dataset

    def _with_rewards(self, dataset: Any, name: str) -> Any:
        """The data with the token rewards that the loss asks for: its own, checked."""
        if not set(REWARDS) & set(first_row(dataset)):
            problem = f"{self._loss.name} needs token rewards, and the {name} data has none"
            raise InputError("loss", problem, f"give {' and '.join(REWARDS)}, or choose trainer: t_reg")
        return check_rewards(dataset)

    def _token_values(self, scored: ScoredPairs, inputs: dict[str, Any]) -> dict[str, Tensor]:
        """Numbers per token of both responses, `[2B, T]`, for the samples and `correlation_metrics`."""
        return {}

    def _record(self, scored: ScoredPairs, outputs: Any, inputs: dict[str, Any]) -> None:
        """Gather what is logged, in one exchange: means over pairs, and sums over tokens."""
        module: Any = self.model
        mode = "train" if module.training else "eval"
        classes = inputs.get("token_classes")
        collator: Any = self.data_collator
        tokens = scored.tokens(None if classes is None else classes[:, 1:], collator.classes)
        tokens.both, tokens.correlated = self._token_values(scored, inputs), self.correlation_metrics
        means = scored.means()
        sums = tokens.sums() | head_sums(outputs, scored.mask, inputs["attention_mask"])
        if TREES in inputs:
            sums |= shared_sums(inputs[TREES]["counts"], len(scored.losses))
        table = torch.stack([*means.values(), *sums.values()], dim=1).float()
        # What fills up the last batch of an evaluation is dropped. In training every row counts, and with accumulation
        # `gather_for_metrics` would cut all batches of the last step.
        rows = (self.accelerator.gather if mode == "train" else self.accelerator.gather_for_metrics)(table)
        totals = dict(zip([*means, *sums], rows.sum(0).tolist(), strict=True))
        for name in means:
            self._metrics[mode][name].append(totals[name] / len(rows))
        self._token_metrics.add(mode, {key: totals[key] for key in sums}, len(rows), tokens.chosen)
        if self.aux_loss_enabled:
            aux_loss = self.accelerator.gather(outputs.aux_loss.detach())
            self._metrics[mode]["aux_loss"].append(aux_loss.mean().item())
        if mode == "train":
            self._total_train_tokens += totals["sequence_tokens", ""] // self._tp_size
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        self._sample(mode, tokens, inputs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the ratios of sums since the last call, then log as TRL does."""
        module: Any = self.model
        mode = "train" if module.training else "eval"
        for name, value in self._token_metrics.drain(mode).items():
            self._metrics[mode][name] = [value]
        super().log(logs, start_time)

    def _sample(self, mode: str, tokens: PairTokens, inputs: dict[str, Any]) -> None:
        settings: Any = self.args
        step, every = self.state.global_step, settings.token_samples_steps
        due = mode == "train" and every is not None and step % every == 0 and step != self._sampled_step
        if due and self.is_world_process_zero():
            self._sampled_step = step
            run, pairs = Path(settings.output_dir), settings.num_token_samples
            write_samples(run, step, tokens, inputs["input_ids"], inputs.get("token_weights"), self._tokenizer, pairs)
