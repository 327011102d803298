"""Preference pairs with one number per token: from the data row to the padded batch."""

from dataclasses import dataclass
from typing import Any

import torch

from tokencredit.data.responses import response_offsets
from tokencredit.data.weighters import Weighter
from tokencredit.errors import InputError
from tokencredit.scoring.trl_compat import DataCollatorForPreference

WEIGHT_COLUMNS = ("chosen_weights", "rejected_weights")


def add_pair_weights(row: dict[str, Any], index: int, *, tokenizer: Any, weighter: Weighter) -> dict[str, list[float]]:
    """Raw weights of both responses of a row that TRL has tokenised.

    Args:
        row: With `prompt`, `chosen`, `rejected` and their `*_ids`.
        index: Its place in the data, for messages.
        tokenizer: The one that made the ids.
        weighter: See `tokencredit.data.weighters`.

    Returns:
        `chosen_weights` and `rejected_weights`, one per response token.

    Raises:
        InputError: When the responses are the same, or the weighter or the tokenizer cannot do it.
    """
    if row["chosen_ids"] == row["rejected_ids"]:
        raise InputError("dataset_name", f"chosen and rejected of row {index} are the same", "drop the row")
    weights = {}
    for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
        ids = row[f"{side}_ids"]
        text, offsets = response_offsets(tokenizer, row["prompt"], row[side], row["prompt_ids"], ids)
        example = row | {"side": side, "index": index, "response_ids": ids, "other_ids": row[f"{other}_ids"]}
        weights[f"{side}_weights"] = list(weighter(example, text, offsets))
    return weights


@dataclass
class WeightedPairCollator(DataCollatorForPreference):
    """TRL's pair collator, and `token_weights` `[2B, T]` beside it.

    Rows are `[chosen, rejected]` as in `input_ids`, cut where the ids are cut. Prompt and padding weigh 1; the
    completion mask decides what counts.
    """

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a batch."""
        batch: dict[str, Any] = super().torch_call(examples)
        if WEIGHT_COLUMNS[0] not in examples[0]:
            return batch
        kept = (
            slice(None, self.max_length)
            if self.truncation_mode == "keep_start"
            else slice(-(self.max_length or 0), None)
        )
        weights = torch.ones(batch["input_ids"].shape)
        rows = [(example, column) for column in WEIGHT_COLUMNS for example in examples]
        for place, (example, column) in enumerate(rows):
            values = ([1.0] * len(example["prompt_ids"]) + example[column])[kept]
            weights[place, : len(values)] = torch.tensor(values)
        batch["token_weights"] = weights
        return batch
