"""Preference pairs with numbers per token: the padded batch, and the trainer whose batches they are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute
import torch
from datasets import Dataset
from trl import DPOTrainer

from tokencredit.errors import InputError
from tokencredit.scoring.trl_compat import DataCollatorForPreference
from tokencredit.trainers.annotate import (
    CLASSES,
    OWN_COLUMNS,
    REFERENCE,
    REWARDS,
    SCAFFOLD,
    WEIGHTS,
    annotate_pairs,
    first_row,
    refuse_columns,
    refuse_doubled_bos,
    truncation,
)
from tokencredit.trainers.sharing import TREES, SharedPairs, shared_pairs

OTHER = "other"
MOST_CLASSES = 12


def class_names(datasets: Sequence[Any]) -> list[str]:
    """The token classes of annotated datasets, the scaffold first, then the most frequent; the rest count as `other`.

    Empty where no dataset has classes, or everything is scaffold.
    """
    counts: dict[str, int] = {}
    for dataset in datasets:
        for column in CLASSES:
            if not (isinstance(dataset, Dataset) and column in dataset.column_names):
                continue
            for part in dataset.select_columns([column]).with_format("arrow").iter(batch_size=10_000):
                values = part[column].combine_chunks().flatten()
                for item in pyarrow.compute.value_counts(values).to_pylist():
                    counts[item["values"]] = counts.get(item["values"], 0) + item["counts"]
    named = sorted(counts.keys() - {SCAFFOLD}, key=lambda name: (-counts[name], name))
    if not named:
        return []
    rest = [OTHER] if len(named) > MOST_CLASSES else []
    return [SCAFFOLD, *named[:MOST_CLASSES], *rest]


@dataclass
class TokenPairCollator(DataCollatorForPreference):
    """TRL's pair collator, and what the rows hold per response token beside it, `[2B, T]`.

    Rows are `[chosen, rejected]` as in `input_ids`, cut where the ids are cut: `token_weights` (1 on prompt and
    padding; the completion mask decides what counts), `token_rewards` (0 there), `token_classes` (indices into
    `classes`, −1 elsewhere) and `ref_logps` (ℓ^ref at the token it belongs to, 0 elsewhere), each where the rows have
    it. And the trees of the batch.

    Args:
        classes: Names of the token classes, in the order of their indices.
        sharing: Makes the trees; None makes none.
    """

    classes: list[str] = field(default_factory=list)
    sharing: SharedPairs | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a batch."""
        batch: dict[str, Any] = super().torch_call(examples)
        shape = batch["input_ids"].shape
        if WEIGHTS[0] in examples[0]:
            batch["token_weights"] = self._align(examples, WEIGHTS, torch.ones(shape))
        if isinstance(examples[0].get(REWARDS[0]), list):
            batch["token_rewards"] = self._align(examples, REWARDS, torch.zeros(shape))
        if REFERENCE[0] in examples[0]:
            batch["ref_logps"] = self._align(examples, REFERENCE, torch.zeros(shape))
        if self.classes and CLASSES[0] in examples[0]:
            number = {name: place for place, name in enumerate(self.classes)}
            rest = number.get(OTHER, -1)
            numbered = [
                {"prompt_ids": example["prompt_ids"]}
                | {column: [number.get(name, rest) for name in example[column]] for column in CLASSES}
                for example in examples
            ]
            batch["token_classes"] = self._align(numbered, CLASSES, torch.full(shape, -1))
        if self.sharing is not None:
            batch[TREES] = self.sharing(batch)
        return batch

    def _align(self, examples: list[dict[str, Any]], columns: tuple[str, ...], filled: torch.Tensor) -> torch.Tensor:
        kept = truncation(self.max_length, self.truncation_mode)
        rows = [(example, column) for column in columns for example in examples]
        fill = filled[0, 0].item()
        for place, (example, column) in enumerate(rows):
            values = ([fill] * len(example["prompt_ids"]) + list(example[column]))[kept]
            filled[place, : len(values)] = torch.tensor(values, dtype=filled.dtype)
        return filled


class TokenPairTrainer(DPOTrainer):
    """TRL's DPO trainer on batches that carry numbers per token; its configuration is a `PairSettings`."""

    _has_classes = True
    """Whether batches carry token classes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._prepared: set[str] = set()
        super().__init__(*args, **kwargs)
        self._use_token_collator()

    def _use_token_collator(self) -> None:
        given: Any = self.data_collator
        if isinstance(given, TokenPairCollator):
            return
        if type(given) is not DataCollatorForPreference:
            problem = f"{type(given).__name__} makes no batches with numbers per token"
            raise InputError("data_collator", problem, "leave it out; images are not supported")
        sets: list[Any] = [self.train_dataset]
        sets += self.eval_dataset.values() if isinstance(self.eval_dataset, dict) else [self.eval_dataset]
        self.data_collator = TokenPairCollator(
            pad_token_id=given.pad_token_id,
            max_length=given.max_length,
            truncation_mode=given.truncation_mode,
            pad_to_multiple_of=given.pad_to_multiple_of,
            classes=class_names(sets) if self._has_classes else [],
            sharing=shared_pairs(self),
        )

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if getattr(dataset, "_fingerprint", None) in self._prepared:
            return dataset  # `evaluate` was given what this trainer holds
        refuse_columns(dataset, OWN_COLUMNS)
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        if not first_row(dataset):
            problem = f"{args.max_length} leaves no response token in any row of the {dataset_name} data"
            raise InputError("max_length", problem, "raise it above the length of the prompts")
        refuse_doubled_bos(dataset, self._tokenizer)
        kept = truncation(args.max_length, args.truncation_mode)
        keywords = {"kept": kept, "classes": self._has_classes, "num_proc": args.dataset_num_proc}
        dataset = annotate_pairs(dataset, self._tokenizer, args.token_weights, **keywords)
        self._prepared.add(getattr(dataset, "_fingerprint", ""))
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[no-untyped-call]
        columns: Any = self._signature_columns
        self._signature_columns: Any = [*dict.fromkeys([*columns, *WEIGHTS, *REWARDS, *CLASSES, *REFERENCE])]
