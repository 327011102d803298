"""Weights and classes of response tokens, written into the rows of a dataset that TRL has tokenised."""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from datasets.fingerprint import Hasher

from tokencredit.data import alignment, json_values, responses, spans, weighters
from tokencredit.data.responses import response_offsets
from tokencredit.data.spans import Offsets
from tokencredit.data.weighters import ALARMS, Alarms, Weighter, from_recipe, token_classes
from tokencredit.errors import InputError

SIDES = ("chosen", "rejected")
WEIGHTS = tuple(f"{side}_weights" for side in SIDES)
CLASSES = tuple(f"{side}_classes" for side in SIDES)
REFERENCE = tuple(f"ref_{side}_token_logps" for side in SIDES)
SFT_WEIGHTS = "token_weights"
SCAFFOLD = "scaffold"

_ALARMS = "token_alarms"
_SOURCES = (alignment, json_values, responses, spans, weighters)


def truncation(max_length: int | None, mode: str) -> slice:
    """The part of prompt and response together that TRL keeps."""
    if max_length is None:
        return slice(None)
    return slice(None, max_length) if mode == "keep_start" else slice(-max_length, None)


def refuse_doubled_bos(dataset: Any, tokenizer: Any) -> None:
    """Refuse tokenised data whose prompts hold the beginning-of-text token already, so that it stands there twice.

    Raises:
        InputError: The first row begins with two of them.
    """
    row: dict[str, Any] = next(iter(dataset), {})
    ids = row.get("prompt_ids") or row.get("input_ids") or []
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        problem = f"the prompts begin with {tokenizer.bos_token!r}, which the tokenizer puts there again"
        raise InputError("dataset_name", problem, "remove it from the text, or give chat messages")


def pair_row(
    row: dict[str, Any], index: int, *, tokenizer: Any, weighter: Weighter | None, alarms: Alarms, kept: slice
) -> dict[str, Any]:
    """Raw weights and token classes of both responses of a row.

    Args:
        row: With `prompt`, `chosen`, `rejected` and their `*_ids`.
        index: Its place in the data, for messages.
        tokenizer: The one that made the ids.
        weighter: See `tokencredit.data.weighters`; None leaves the row's own weights, if any.
        alarms: What the weighter reports to; drained into the row, so that a cached result still sounds.
        kept: What truncation leaves of prompt and response.

    Returns:
        `chosen_classes` and `rejected_classes`, one per response token, and with a weighter `chosen_weights` and
        `rejected_weights`.

    Raises:
        InputError: The responses are the same, no usable weight is left, or weighter or tokenizer cannot do it.
    """
    if row["chosen_ids"] == row["rejected_ids"]:
        raise InputError("dataset_name", f"chosen and rejected of row {index} are the same", "drop the row")
    found: dict[str, Any] = {}
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        ids, place = row[f"{side}_ids"], f"the {side} response of example {index}"
        example = row | {"side": side, "index": index, "response_ids": ids, "other_ids": row[f"{other}_ids"]}
        try:
            text, offsets = _offsets(tokenizer, row, row[side], row["prompt_ids"], ids)
            found[f"{side}_classes"] = token_classes(example, text, offsets)
        except InputError as error:
            if weighter is not None:
                raise
            alarms.sound("no token classes", f"{place}, {error}")
            found[f"{side}_classes"] = [SCAFFOLD] * len(ids)
        if weighter is not None:
            found[f"{side}_weights"] = list(weighter(example, text, offsets))
        given = found.get(f"{side}_weights", row.get(f"{side}_weights"))
        if given is not None:
            _check(given, [True] * len(ids), len(row["prompt_ids"]), kept, place)
    return found | {_ALARMS: json.dumps(alarms.drain())}


def completion_row(
    row: dict[str, Any], index: int, *, tokenizer: Any, weighter: Weighter, alarms: Alarms, kept: slice
) -> dict[str, Any]:
    """Raw weights of the completion of an SFT row, 1 on its prompt; arguments and errors as for `pair_row`.

    Returns:
        `token_weights`, one per token of `input_ids`.
    """
    ids, place = row["input_ids"], f"the completion of example {index}"
    inside = row.get("completion_mask") or [label != -100 for label in row["labels"]]
    start = list(map(bool, inside)).index(True)
    text, offsets = _offsets(tokenizer, row, row["completion"], ids[:start], ids[start:])
    weights = list(weighter(row | {"side": "completion", "index": index, "response_ids": ids[start:]}, text, offsets))
    _check(weights, [label != -100 for label in row["labels"][start:]], start, kept, place)
    return {SFT_WEIGHTS: [1.0] * start + weights, _ALARMS: json.dumps(alarms.drain())}


def _offsets(
    tokenizer: Any, row: Mapping[str, Any], response: Any, prompt_ids: list[int], ids: list[int]
) -> tuple[str, Offsets]:
    tools = row.get("tools")
    template = {"tools": json.loads(tools) if isinstance(tools, str) else tools} if tools else {}
    template |= row.get("chat_template_kwargs") or {}
    return response_offsets(tokenizer, row["prompt"], response, prompt_ids, ids, **template)


def _check(weights: Sequence[Any], counts: Sequence[bool], prompt: int, kept: slice, place: str) -> None:
    if len(weights) != len(counts):
        problem = f"{len(weights)} weights for the {len(counts)} tokens of {place}"
        raise InputError("token_weights", problem, "give one weight per response token, end-of-turn included")
    for token, weight in enumerate(weights):
        if weight is None or not 0 <= weight < math.inf:
            problem = f"{weight} for token {token} of {place}"
            raise InputError("token_weights", problem, "give finite numbers of 0 or more")
    counted = [weight * count for weight, count in zip(weights, counts, strict=True)]
    if not any(([0.0] * prompt + counted)[kept]):
        remedy = "give one token a positive weight, or raise max_length"
        raise InputError("token_weights", f"every weight of {place} that max_length keeps is 0", remedy)


def annotate_pairs(
    dataset: Any,
    tokenizer: Any,
    token_weights: Mapping[str, Any] | None,
    *,
    kept: slice,
    classes: bool,
    num_proc: int | None = None,
) -> Any:
    """`pair_row` on every row, reusing the result of an earlier run with the same data, tokenizer and weights.

    Args:
        dataset: Tokenised by TRL; returned as it is when annotated already, or when there is nothing to do.
        tokenizer: The one that made the ids.
        token_weights: What `from_recipe` takes, or None.
        kept: What truncation leaves of prompt and response.
        classes: Whether token classes are wanted where there are no weights.
        num_proc: Processes for the work.

    Raises:
        InputError: See `pair_row`; or the data has weights of its own besides `token_weights`.
    """
    columns = set(dataset.column_names or next(iter(dataset)))
    own_weights = columns & set(WEIGHTS)
    if CLASSES[0] in columns:
        return dataset
    if token_weights is None and not own_weights and not (classes and tokenizer.is_fast):
        return dataset
    if token_weights is not None and own_weights:
        problem = f"the data has a column {min(own_weights)!r} already"
        raise InputError("token_weights", problem, "remove the column or token_weights")
    return _mapped(dataset, pair_row, tokenizer, token_weights, kept, num_proc)


def annotate_completions(
    dataset: Any, tokenizer: Any, token_weights: Mapping[str, Any], *, kept: slice, num_proc: int | None = None
) -> Any:
    """`completion_row` on every row, as `annotate_pairs` does for pairs."""
    columns = set(dataset.column_names or next(iter(dataset)))
    if SFT_WEIGHTS in columns:
        return dataset
    if not {"prompt", "completion"} <= columns:
        problem = f"the data has {', '.join(sorted(columns))}, but no prompt and completion"
        raise InputError("token_weights", problem, "give prompt and completion columns, or remove token_weights")
    return _mapped(dataset, completion_row, tokenizer, token_weights, kept, num_proc)


def _mapped(
    dataset: Any,
    function: Callable[..., dict[str, Any]],
    tokenizer: Any,
    token_weights: Mapping[str, Any] | None,
    kept: slice,
    num_proc: int | None,
) -> Any:
    alarms = Alarms(quiet=True)
    weighter = None if token_weights is None else from_recipe(token_weights, alarms=alarms)
    keywords = {"tokenizer": tokenizer, "weighter": weighter, "alarms": alarms, "kept": kept}
    options: dict[str, Any] = {"with_indices": True, "fn_kwargs": keywords}
    if not isinstance(dataset, Dataset):  # a stream: nothing to cache, and nobody to tell before it runs
        return dataset.map(function, remove_columns=[], **options)
    if "function" not in (token_weights or {}):
        # The weighter is a closure, which cannot be hashed; a function of the user's may change between runs.
        sources = [inspect.getsource(item) for item in (function, *_SOURCES)]
        options["new_fingerprint"] = Hasher.hash([dataset._fingerprint, token_weights, tokenizer, str(kept), sources])
    options |= {"num_proc": num_proc, "desc": "Annotating tokens"}
    with PartialState().main_process_first():
        dataset = dataset.map(function, **options)
    if PartialState().is_main_process:
        for text in dataset.unique(_ALARMS):
            for name, detail in json.loads(text).items():
                ALARMS.sound(name, detail)
    return dataset.remove_columns(_ALARMS)
