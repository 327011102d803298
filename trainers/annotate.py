"""Weights and classes of response tokens, written into the rows of a dataset that TRL has tokenised."""

import inspect
import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
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
REWARDS = tuple(f"{side}_rewards" for side in SIDES)
REFERENCE = tuple(f"ref_{side}_token_logps" for side in SIDES)
SFT_WEIGHTS = "token_weights"
SCAFFOLD = "scaffold"

ALARM_COLUMN = "token_alarms"
OWN_COLUMNS = (*CLASSES, *REFERENCE, ALARM_COLUMN)
"""Columns that only this package writes."""

_SOURCES = (alignment, json_values, responses, spans, weighters)


def truncation(max_length: int | None, mode: str) -> slice:
    """The part of prompt and response together that TRL keeps."""
    if max_length is None:
        return slice(None)
    return slice(None, max_length) if mode == "keep_start" else slice(-max_length, None)


def first_row(dataset: Any) -> dict[str, Any]:
    """The first row, empty where there is none."""
    row: dict[str, Any] = next(iter(dataset), {})
    return row


def refuse_columns(dataset: Any, names: Sequence[str]) -> None:
    """Refuse data that holds columns under the names of those made here.

    Raises:
        InputError: Naming the first of them.
    """
    taken = [name for name in names if name in first_row(dataset)]
    if taken:
        raise InputError("dataset_name", f"the data has a column {taken[0]!r}, which is made here", "rename it")


def refuse_doubled_bos(dataset: Any, tokenizer: Any) -> None:
    """Refuse tokenised data whose prompts hold the beginning-of-text token already, so that it stands there twice.

    Raises:
        InputError: The first row begins with two of them.
    """
    row = first_row(dataset)
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
        index: Its place in the tokenised data, for messages.
        tokenizer: The one that made the ids.
        weighter: See `tokencredit.data.weighters`; None leaves the row's own weights, if any.
        alarms: What the weighter reports to.
        kept: What truncation leaves of prompt and response.

    Returns:
        `chosen_classes` and `rejected_classes`, one per response token, and with a weighter `chosen_weights` and
        `rejected_weights`.

    Raises:
        InputError: The responses are the same, truncation leaves nothing of one, no usable weight is left, or weighter
            or tokenizer cannot do it.
    """
    if row["chosen_ids"] == row["rejected_ids"]:
        raise InputError("dataset_name", f"chosen and rejected of row {index} are the same", "drop the row")
    found: dict[str, Any] = {}
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        ids, place = row[f"{side}_ids"], f"the {side} response of example {index}"
        scored = _scored(len(row["prompt_ids"]), len(ids), kept)
        if not any(scored):
            raise InputError("max_length", f"leaves no scored token of {place}", "raise it, or drop the row")
        example = row | {"side": side, "index": index, "response_ids": ids, "other_ids": row[f"{other}_ids"]}
        placed = _placed(tokenizer, example, weighter is not None, alarms, place)
        found[f"{side}_classes"] = [SCAFFOLD] * len(ids) if placed is None else token_classes(example, *placed)
        if weighter is not None:
            assert placed is not None
            found[f"{side}_weights"] = list(weighter(example, *placed))
        given = found.get(f"{side}_weights", row.get(f"{side}_weights"))
        if given is not None or f"{side}_weights" in row:
            _check(given, scored, place)
    return found


def _placed(
    tokenizer: Any, example: Mapping[str, Any], required: bool, alarms: Alarms, place: str
) -> tuple[str, Offsets] | None:
    """Text and offsets of a response; where they are only for diagnostics, failing is an alarm."""
    try:
        placed = _offsets(tokenizer, example, example[example["side"]], example["response_ids"])
        token_classes(example, *placed)
    except InputError as error:
        if required:
            raise
        alarms.sound("no token classes", f"{place}, {error}")
        return None
    return placed


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
    text, offsets = _offsets(tokenizer, row, row["completion"], ids[start:])
    weights = list(weighter(row | {"side": "completion", "index": index, "response_ids": ids[start:]}, text, offsets))
    labelled = [label != -100 for label in row["labels"][start:]]
    scored = [a and b for a, b in zip(labelled, _scored(start, len(weights), kept), strict=True)]
    _check(weights, scored, place)
    return {SFT_WEIGHTS: [1.0] * start + weights}


def _offsets(tokenizer: Any, row: Mapping[str, Any], response: Any, ids: list[int]) -> tuple[str, Offsets]:
    return response_offsets(tokenizer, row["prompt"], response, ids, **template_keywords(row))


def template_keywords(row: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the chat template that a row brings along."""
    tools = row.get("tools")
    found = {"tools": json.loads(tools) if isinstance(tools, str) else tools} if tools else {}
    return found | (row.get("chat_template_kwargs") or {})


def _scored(prompt: int, response: int, kept: slice) -> list[bool]:
    """Which response tokens get a log-probability: those kept, but for the first of the sequence."""
    inside = [False] * (prompt + response)
    inside[kept] = [True] * len(inside[kept])
    if any(inside):
        inside[inside.index(True)] = False
    return inside[prompt:]


def _check(weights: Any, scored: Sequence[bool], place: str) -> None:
    if not isinstance(weights, list | tuple):
        remedy = "give a list of numbers for both responses of every row"
        raise InputError("token_weights", f"{str(weights)[:40]!r} are the weights of {place}", remedy)
    if len(weights) != len(scored):
        problem = f"{len(weights)} weights for the {len(scored)} tokens of {place}"
        raise InputError("token_weights", problem, "give one weight per response token, end-of-turn included")
    for token, weight in enumerate(weights):
        if not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            problem = f"{weight} for token {token} of {place}"
            raise InputError("token_weights", problem, "give finite numbers of 0 or more")
    if not any(weight for weight, counts in zip(weights, scored, strict=True) if counts):
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
        dataset: Tokenised by TRL; returned as it is when there is nothing to do.
        tokenizer: The one that made the ids.
        token_weights: What `from_recipe` takes, or None.
        kept: What truncation leaves of prompt and response.
        classes: Whether token classes are wanted where there are no weights.
        num_proc: Processes for the work.

    Raises:
        InputError: See `pair_row`; or the data has weights of its own besides `token_weights`, or for one side only.
    """
    own_weights = set(first_row(dataset)) & set(WEIGHTS)
    if token_weights is None and not own_weights and not (classes and tokenizer.is_fast):
        return dataset
    if token_weights is not None and own_weights:
        problem = f"the data has a column {min(own_weights)!r} already"
        raise InputError("token_weights", problem, "remove the column or token_weights")
    if len(own_weights) == 1:
        raise InputError("token_weights", f"the data has {min(own_weights)!r} only", f"give {' and '.join(WEIGHTS)}")
    return _mapped(dataset, pair_row, tokenizer, token_weights, kept, num_proc)


def annotate_completions(
    dataset: Any, tokenizer: Any, token_weights: Mapping[str, Any], *, kept: slice, num_proc: int | None = None
) -> Any:
    """`completion_row` on every row, as `annotate_pairs` does for pairs."""
    columns = set(first_row(dataset))
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
    stream = not isinstance(dataset, Dataset)
    alarms = ALARMS if stream else Alarms(quiet=True)
    weighter = None if token_weights is None else from_recipe(token_weights, alarms=alarms)
    keywords = {"tokenizer": tokenizer, "weighter": weighter, "alarms": alarms, "kept": kept}
    if stream:
        return dataset.map(function, with_indices=True, fn_kwargs=keywords)

    def annotated(row: dict[str, Any], index: int) -> dict[str, Any]:
        # The alarms stand in the row, so that they sound again where a result is reused.
        return function(row, index, **keywords) | {ALARM_COLUMN: json.dumps(alarms.drain())}

    fingerprint = _fingerprint(dataset, function, tokenizer, token_weights, kept)
    with PartialState().main_process_first():
        dataset = dataset.map(
            annotated, with_indices=True, num_proc=num_proc, new_fingerprint=fingerprint, desc="Annotating tokens"
        )
    if PartialState().is_main_process:
        for text in dataset.unique(ALARM_COLUMN):
            for name, detail in json.loads(text).items():
                ALARMS.sound(name, detail)
    return dataset.remove_columns(ALARM_COLUMN)


def _fingerprint(
    dataset: Any, function: Callable[..., Any], tokenizer: Any, token_weights: Mapping[str, Any] | None, kept: slice
) -> str:
    """The name that an earlier result is found under.

    It holds the code that makes weights, as a development version changes without its number; a function of the user's
    is only known by name, so that its results are never reused.
    """
    if "function" in (token_weights or {}):
        drawn = [uuid.uuid4().hex]
        broadcast_object_list(drawn)
        return drawn[0]
    sources = [inspect.getsource(item) for item in (function, _offsets, _check, _scored, *_SOURCES)]
    return str(Hasher.hash([dataset._fingerprint, token_weights, tokenizer, str(kept), sources]))
