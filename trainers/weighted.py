"""Token weights on TRL's own SFT and DPO losses: every log-probability is multiplied by its token's weight.

Without weights the losses are TRL's own. Weights are brought to mean one over the tokens that count of a sequence (ours
[O]), so that a loss keeps its scale and the unit of the raw weights does not matter.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from trl import DPOConfig, SFTConfig, SFTTrainer

from tokencredit.errors import InputError
from tokencredit.scoring.trl_compat import DataCollatorForLanguageModeling, weigh_log_probs
from tokencredit.trainers.annotate import (
    SFT_WEIGHTS,
    WEIGHTS,
    annotate_completions,
    first_row,
    refuse_columns,
    refuse_doubled_bos,
    truncation,
)
from tokencredit.trainers.pairs import TokenPairTrainer
from tokencredit.trainers.settings import TokenWeighted
from tokencredit.trainers.sharing import TREES, PairSettings


@dataclass
class WeightedDPOConfig(PairSettings, DPOConfig):
    """TRL's `DPOConfig`, and

    Args:
        token_weights: What `tokencredit.data.weighters.from_recipe` takes; works with every `loss_type`.
        share_prefixes: See `tokencredit.trainers.sharing.PairSettings`; works with every `loss_type`.
    """

    _VALID_DICT_FIELDS = [*DPOConfig._VALID_DICT_FIELDS, "token_weights"]  # noqa: RUF012  (as in the base class)

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """As the base class does, and what does not go with token weights."""
        super().refuse(values)
        if values["token_weights"] is not None and values["use_weighting"]:
            problem = "WPO takes its weights from log-probabilities without token weights"
            raise InputError("use_weighting", problem, "remove it or token_weights")


class WeightedDPOTrainer(TokenPairTrainer):
    """TRL's DPO trainer; with token weights every loss type sees w̃_t ℓ_t and w̃_t ℓ_t^ref, w̃ of mean one.

    `rewards/*` and `logps/*` are then weighted too.
    """

    _has_classes = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._weighs = False
        super().__init__(*args, **kwargs)
        self._weigh()

    def _weigh(self) -> None:
        if not self._weighs:
            self._weighs = True
            for model in (self.model, self.ref_model):
                if model is not None:
                    weigh_log_probs(model)

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        if TREES in inputs:
            # TRL averages over batches what it logs.
            gathered = self.accelerator.gather(inputs[TREES]["counts"][None]).double()
            distinct, alone, used = gathered.sum(0).tolist()
            module: Any = self.model
            found: Any = self._metrics["train" if module.training else "eval"]
            found["shared_prefix/token_ratio"].append(distinct / alone)
            found["shared_prefix/used"].append(used / len(gathered))
        return super()._compute_loss(model, inputs, return_outputs)  # type: ignore[no-untyped-call]

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if args.use_weighting and set(WEIGHTS) & set(first_row(dataset)):
            problem = "the data has token weights, and WPO takes its own from log-probabilities without them"
            raise InputError("use_weighting", problem, "remove it or the columns")
        return super()._prepare_dataset(dataset, processing_class, args, dataset_name)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        # Called while the base class is being constructed.
        self._use_token_collator()
        self._weigh()
        return super()._precompute_ref_logps(dataset, name, batch_size)


@dataclass
class WeightedSFTConfig(TokenWeighted, SFTConfig):
    """TRL's `SFTConfig`, and

    Args:
        token_weights: What `tokencredit.data.weighters.from_recipe` takes; for data with `prompt` and `completion`.
    """

    _VALID_DICT_FIELDS = [*SFTConfig._VALID_DICT_FIELDS, "token_weights"]  # noqa: RUF012  (as in the base class)

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """As the base class does, and what does not go with token weights."""
        super().refuse(values)
        if values["token_weights"] is None:
            return
        # What would leave the weights out, with the value that asks for nothing.
        plain: dict[str, Any] = {
            "dataset_kwargs": None,
            "packing": False,
            "padding_free": False,
            "assistant_only_loss": False,
            "loss_type": "nll",
            "label_smoothing_factor": 0.0,
        }
        for name, value in plain.items():
            if values[name] != value:
                raise InputError(name, f"{values[name]!r} does not go with token_weights", "remove one of them")


@dataclass
class WeightedCollator(DataCollatorForLanguageModeling):
    """TRL's collator, and `token_weights` `[B, T]` beside it, 1 on padding."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a batch."""
        batch: dict[str, Any] = super().torch_call(examples)
        if SFT_WEIGHTS in examples[0]:
            weights = torch.ones(batch["input_ids"].shape)
            for row, example in zip(weights, examples, strict=True):
                row[: len(example[SFT_WEIGHTS])] = torch.tensor(example[SFT_WEIGHTS])
            batch[SFT_WEIGHTS] = weights
        return batch


class WeightedSFTTrainer(SFTTrainer):
    """TRL's SFT trainer; with token weights the loss is −Σ w̃_t ℓ_t over the number of tokens, w̃ of mean one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._prepared: set[str] = set()
        super().__init__(*args, **kwargs)
        settings: Any = self.args
        if settings.token_weights is None:
            return
        given: Any = self.data_collator
        if type(given) is not DataCollatorForLanguageModeling or self.compute_loss_func is not None:
            problem = "a data collator or a loss function of your own does not go with them"
            raise InputError("token_weights", problem, "remove one of the two; images are not supported")
        self.data_collator = WeightedCollator(given.pad_token_id, pad_to_multiple_of=given.pad_to_multiple_of)
        model: Any = self.model
        weigh_log_probs(model)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        if args.token_weights is None:
            dataset = super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)
            refuse_doubled_bos(dataset, self._tokenizer)
            return dataset
        if formatting_func is not None or packing:
            raise InputError("token_weights", "packing and formatting_func do not go with them", "remove them")
        # Weights are made of the whole response, so what TRL cuts is cut afterwards.
        if getattr(dataset, "_fingerprint", None) in self._prepared:
            return dataset  # `evaluate` was given what this trainer holds
        refuse_columns(dataset, [SFT_WEIGHTS])
        whole = copy.copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        dataset = super()._prepare_dataset(dataset, processing_class, whole, packing, None, dataset_name)
        refuse_doubled_bos(dataset, self._tokenizer)
        kept = truncation(args.max_length, args.truncation_mode)
        keywords = {"num_proc": args.dataset_num_proc} if isinstance(dataset, Dataset) else {}
        if args.max_length is not None:
            with PartialState().main_process_first():
                dataset = dataset.filter(lambda row: any(label != -100 for label in row["labels"][kept]), **keywords)
        if not first_row(dataset):
            problem = f"{args.max_length} leaves no completion token in any row of the {dataset_name} data"
            raise InputError("max_length", problem, "raise it above the length of the prompts")
        dataset = annotate_completions(
            dataset, self._tokenizer, args.token_weights, kept=kept, num_proc=args.dataset_num_proc
        )
        columns = ("input_ids", "labels", SFT_WEIGHTS)
        with PartialState().main_process_first():
            dataset = dataset.map(lambda row: {column: row[column][kept] for column in columns}, **keywords)
        dataset = dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset
        self._prepared.add(getattr(dataset, "_fingerprint", ""))
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        columns: Any = self._signature_columns
        self._signature_columns: Any = [*dict.fromkeys([*columns, SFT_WEIGHTS])]
