"""T-REG's token rewards of a tokenised dataset: from its columns, from the store, or computed."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, concatenate_datasets
from datasets import config as datasets_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from tokencredit.data.responses import response_offsets
from tokencredit.errors import InputError
from tokencredit.scoring.contrastive import Draft, Templates, check_vocabulary, contrastive_rewards
from tokencredit.scoring.reward_store import RewardStore
from tokencredit.trainers.annotate import REWARDS, SIDES, first_row, template_keywords
from tokencredit.trainers.reference import weights_hash

_MODEL_KEYS = ("dtype", "attn_implementation")


def check_rewards(dataset: Any) -> Any:
    """Check rewards that the data itself holds, `chosen_rewards` and `rejected_rewards`, one number per token.

    Args:
        dataset: Tokenised; a stream is checked row by row as it is read.

    Raises:
        InputError: One of the columns is missing, or a row holds something else.
    """
    given = set(REWARDS) & set(first_row(dataset))
    if len(given) == 1:
        raise InputError("dataset_name", f"the data has {min(given)!r} only", f"give {' and '.join(REWARDS)}")
    if not isinstance(dataset, Dataset):
        return dataset.map(_checked, with_indices=True)
    columns = [*REWARDS, *(f"{side}_ids" for side in SIDES)]
    for index, row in enumerate(dataset.select_columns(columns)):
        _checked(row, index)
    return dataset


def _checked(row: dict[str, Any], index: int) -> dict[str, Any]:
    for side, column in zip(SIDES, REWARDS, strict=True):
        values, size, place = row[column], len(row[f"{side}_ids"]), f"the {side} response of example {index}"
        if not isinstance(values, list | tuple):
            raise InputError(column, f"{str(values)[:40]!r} are the rewards of {place}", "give a list of numbers")
        if len(values) != size:
            problem = f"{len(values)} rewards for the {size} tokens of {place}"
            raise InputError(column, problem, "give one per response token, end-of-turn included")
        for token, value in enumerate(values):
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(column, f"{value} for token {token} of {place}", "give finite numbers")
    return row


def drafts(dataset: Dataset, tokenizer: Any) -> list[Draft]:
    """Both responses of every pair, chosen before rejected.

    Args:
        dataset: Tokenised by TRL.
        tokenizer: The one that made the ids.

    Raises:
        InputError: Text and ids of a response do not go together, or the tokenizer gives no offsets.
    """
    return [draft for index, row in enumerate(dataset) for draft in _row_drafts(row, index, tokenizer)]


def _row_drafts(row: dict[str, Any], index: int, tokenizer: Any) -> Iterator[Draft]:
    for side in SIDES:
        ids, place = row[f"{side}_ids"], f"the {side} response of example {index}"
        try:
            text, offsets = response_offsets(tokenizer, row["prompt"], row[side], ids, **template_keywords(row))
        except InputError as error:
            raise InputError("token rewards", f"{place}: {error.problem}", error.remedy) from None
        yield Draft(_question(row["prompt"]), text, ids, [start < end for start, end in offsets], place)


def _question(prompt: str | Sequence[dict[str, Any]]) -> str:
    """A prompt as text: of a conversation its turns, and of a single one what it says."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def with_token_rewards(
    dataset: Dataset,
    tokenizer: Any,
    evaluator: Any,
    evaluator_tokenizer: Any,
    templates: Templates,
    *,
    batch_tokens: int,
    precision: str,
    name: str,
) -> Dataset:
    """Add `chosen_rewards` and `rejected_rewards`, one number per response token.

    They are kept beside the datasets cache, under a hash of the evaluator's weights and configuration and of its
    precision, each response under a hash of its ids and of the requests as the evaluator reads them.

    Args:
        dataset: Tokenised by TRL.
        tokenizer: The one that made the ids.
        evaluator: The model, perhaps wrapped or sharded.
        evaluator_tokenizer: Its tokenizer, to which the ids must mean the same.
        templates: The requests.
        batch_tokens: At most so many padded tokens in one forward.
        precision: What the forwards compute in.
        name: Of the data, for the progress bar.

    Raises:
        InputError: See `drafts`, `check_vocabulary` and `contrastive_rewards`.
    """
    both = drafts(dataset, tokenizer)
    check_vocabulary(tokenizer, evaluator_tokenizer, both)
    store = RewardStore(store_folder(weights_hash(evaluator)[:32], precision))
    rewards = contrastive_rewards(
        evaluator,
        evaluator_tokenizer,
        both,
        templates,
        batch_tokens=batch_tokens,
        store=store,
        name=name,
    )
    columns = {column: pa.array(rewards[place::2], type=pa.list_(pa.float32())) for place, column in enumerate(REWARDS)}
    return concatenate_datasets([dataset, Dataset(pa.table(columns))], axis=1)


def store_folder(evaluator: str, precision: str) -> Path:
    """Where the rewards of an evaluator are kept."""
    return Path(datasets_config.HF_DATASETS_CACHE) / "tokencredit" / "token-rewards" / f"{evaluator}-{precision}"


def load_evaluator(name: str, settings: Any) -> tuple[Any, Any]:
    """A saved model in evaluation mode and its tokenizer.

    Args:
        name: Folder or hub name.
        settings: A TRL configuration; the evaluator is loaded in the precision and with the attention of the policy.

    Raises:
        InputError: It cannot be loaded.
    """
    given = {key: value for key, value in (settings.model_init_kwargs or {}).items() if key in _MODEL_KEYS}
    keywords = {"dtype": "float32", "trust_remote_code": settings.trust_remote_code, **given}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=settings.trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(name, **keywords)
    except Exception as error:  # the loaders raise whatever the files make them raise
        reason = " ".join(str(error).split())[:200]
        raise InputError("evaluator", f"{name!r} cannot be loaded ({reason})", "name a saved model") from None
    return model.eval(), tokenizer
