"""T-REG's token rewards: what a model thinks of each token of a response, from two contrastive prompts.

"T-REG", arXiv 2412.02685. The response is scored twice as the answer to a request for a better and for a worse version
of itself; see `tokencredit.losses.token_rewards`. Its ids are the same under both prompts, and nothing is generated.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from accelerate.utils import extract_model_from_parallel, gather_object, tqdm
from torch import nn
from torch.distributed.tensor import DTensor

from tokencredit.errors import InputError
from tokencredit.losses import token_rewards
from tokencredit.scoring.logps import sequence_logps
from tokencredit.scoring.reward_store import Rewards, RewardStore

BATCH_TOKENS = 16384
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_KNOWN = ("prompt", "response")
_KEYS = {"better", "worse", "version"}


@dataclass(frozen=True)
class Templates:
    """The two requests, with `{prompt}` and `{response}` where the question and the response stand.

    Args:
        name: Of a built-in pair, or the file.
        better: Asks for a better response.
        worse: Asks for a worse one.
        version: Of the wording.
    """

    name: str
    better: str
    worse: str
    version: int = 1


@dataclass(frozen=True)
class Draft:
    """A response whose tokens are to be rewarded.

    Args:
        prompt: The question as text.
        response: The response as text.
        ids: The response's token ids `[T]`, used as they are under every prompt.
        inside: Which of them belong to the text `[T]`; the others, such as end-of-turn, get 0 [O].
        place: What error messages call it.
    """

    prompt: str
    response: str
    ids: Sequence[int]
    inside: Sequence[bool]
    place: str = "the response"


def builtin_templates() -> dict[str, Path]:
    """The templates that ship with the package, name → file."""
    root = Path(str(files("tokencredit.scoring"))) / "templates"
    return {path.stem: path for path in sorted(root.glob("*.yaml"))}


def load_templates(given: str) -> Templates:
    """Read templates.

    Args:
        given: A built-in name, or the path of a YAML file with `better` and `worse`, and perhaps `version`.

    Raises:
        InputError: There is no such file or name, it has other keys, or a template lacks `{prompt}` or names another
            placeholder.
    """
    known = builtin_templates()
    path = known.get(given, Path(given))
    if not path.is_file():
        raise InputError("templates", f"no file {given!r}", f"give a YAML file or one of {', '.join(known)}")
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "correct the file") from None
    if not isinstance(found, dict) or not {"better", "worse"} <= set(found) <= _KEYS:
        keys = ", ".join(map(str, found)) if isinstance(found, dict) else "no keys"
        raise InputError(str(path), f"has {keys}", "write better: and worse:, and perhaps version:")
    for key in ("better", "worse"):
        _check_template(path, key, found[key])
    version = found.get("version", 1)
    if not isinstance(version, int):
        raise InputError(f"{path} version", f"{version!r} is no whole number", "number the wording")
    return Templates(given if given in known else str(path), found["better"], found["worse"], version)


def _check_template(path: Path, key: str, text: Any) -> None:
    if not isinstance(text, str):
        raise InputError(f"{path} {key}", f"{text!r} is no text", "write the request as text")
    names = set(_PLACEHOLDER.findall(text))
    if names - set(_KNOWN):
        other = min(names - set(_KNOWN))
        raise InputError(f"{path} {key}", f"unknown placeholder {{{other}}}", "use {prompt} and {response}")
    if "prompt" not in names:
        problem = "has no placeholder {prompt}"
        raise InputError(f"{path} {key}", problem, "write {prompt} where the question stands, {response} for the draft")


def check_vocabulary(tokenizer: Any, evaluator_tokenizer: Any, drafts: Iterable[Draft]) -> None:
    """Refuse an evaluator to which the ids of the responses mean something else.

    Args:
        tokenizer: The one that made the ids.
        evaluator_tokenizer: The evaluator's.
        drafts: The responses; only ids that occur in them are compared.

    Raises:
        InputError: Naming the first token that differs.
    """
    if evaluator_tokenizer is tokenizer:
        return
    used = sorted({token for draft in drafts for token in draft.ids})
    mine, other = tokenizer.convert_ids_to_tokens(used), evaluator_tokenizer.convert_ids_to_tokens(used)
    for token, a, b in zip(used, mine, other, strict=True):
        if a != b:
            problem = f"has another tokenizer: token {token} is {b!r} and not {a!r}"
            raise InputError("evaluator", problem, "name a model with the tokenizer of the trained one")


def contrastive_ids(tokenizer: Any, templates: Templates, drafts: Sequence[Draft]) -> list[tuple[list[int], list[int]]]:
    """Token ids of both prompts of every draft.

    A tokenizer with a chat template renders the request as the user's turn, after which the assistant's begins; one
    without gets the request as it is, which is said once.

    Args:
        tokenizer: The evaluator's.
        templates: The requests.
        drafts: The responses.

    Returns:
        (better, worse) of each draft.
    """
    chat = tokenizer.chat_template is not None
    if not chat and PartialState().is_main_process:
        _say_once("the evaluator has no chat template: requests are plain text")
    texts = [
        _rendered(tokenizer, _filled(text, draft), chat)
        for draft in drafts
        for text in (templates.better, templates.worse)
    ]
    # A chat template writes the special tokens itself.
    ids = tokenizer(texts, add_special_tokens=not chat)["input_ids"] if texts else []
    return list(zip(ids[::2], ids[1::2], strict=True))


_DATE = "{%- macro strftime_now(format) -%}1 January 2025{%- endmacro -%}"
"""What chat templates that write the date are told: with today's, rewards would change from day to day."""


@cache
def _say_once(text: str) -> None:
    logging.getLogger("tokencredit").warning(text)


def _filled(template: str, draft: Draft) -> str:
    # In one pass: braces in the texts are no placeholders.
    return _PLACEHOLDER.sub(lambda match: getattr(draft, match[1]), template)


def _rendered(tokenizer: Any, request: str, chat: bool) -> str:
    if not chat:
        return request
    turn = [{"role": "user", "content": request.strip()}]
    template = _DATE + tokenizer.get_chat_template()
    return str(tokenizer.apply_chat_template(turn, chat_template=template, add_generation_prompt=True, tokenize=False))


def contrastive_rewards(
    model: nn.Module,
    tokenizer: Any,
    drafts: Sequence[Draft],
    templates: Templates,
    *,
    batch_tokens: int = BATCH_TOKENS,
    store: RewardStore | None = None,
    name: str = "",
) -> list[Rewards]:
    """r̂ of every token of every draft; see `tokencredit.losses.token_rewards`.

    All processes of a distributed run call this with the same drafts. They share the batches and run the same number
    of forwards: what is left over at the end is filled up with a batch that counts for nothing.

    Args:
        model: The evaluator, plain or wrapped; left as found.
        tokenizer: The evaluator's.
        drafts: The responses.
        templates: The requests.
        batch_tokens: At most so many padded tokens in one forward; a longer draft runs alone.
        store: Where rewards are looked up, and kept batch by batch; None keeps nothing.
        name: Of the data, for the progress bar.

    Returns:
        float32 `[T]` of each draft, 0 where it is not `inside`.

    Raises:
        InputError: A prompt and response are longer than the evaluator can take.
    """
    prompts = contrastive_ids(tokenizer, templates, drafts)
    _check_lengths(model, prompts, drafts)
    keys = [_key(*pair) for pair in zip(prompts, drafts, strict=True)]
    by_key = {key: place for place, key in enumerate(keys)}  # equal responses are scored once
    found = {} if store is None else store.find(by_key.keys())
    # Nodes with disks of their own may have kept different parts.
    shared = set.intersection(*gather_object([set(found)]))
    todo = [by_key[key] for key in by_key if key not in shared]
    if todo:
        lengths = [max(map(len, pair)) + len(draft.ids) for pair, draft in zip(prompts, drafts, strict=True)]
        batches = _batches(todo, lengths, batch_tokens)
        sequences = [[[*prompt, *draft.ids] for prompt in pair] for pair, draft in zip(prompts, drafts, strict=True)]
        found |= _score(model, sequences, drafts, keys, batches, store, name)
    return [found[key] for key in keys]


def _check_lengths(model: nn.Module, prompts: Sequence[tuple[list[int], list[int]]], drafts: Sequence[Draft]) -> None:
    config: Any = extract_model_from_parallel(model, keep_torch_compile=False).config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    for pair, draft in zip(prompts, drafts, strict=True):
        length = max(map(len, pair)) + len(draft.ids)
        if limit and length > limit:
            problem = f"request and {draft.place} are {length} tokens, and the evaluator takes {limit}"
            raise InputError("templates", problem, "drop the row, or choose templates without {response}")


def _key(prompts: tuple[list[int], list[int]], draft: Draft) -> bytes:
    """Stands for everything but the evaluator that a draft's rewards depend on."""
    digest = hashlib.sha256()
    for part in (*prompts, draft.ids, [int(inside) for inside in draft.inside]):
        digest.update(np.asarray(part, dtype=np.int64).tobytes() + b"|")
    return digest.digest()[:16]


def _batches(places: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """The drafts of each forward, longest first; each stands there twice."""
    order = sorted(places, key=lambda place: -lengths[place])
    found, start = [], 0
    while start < len(order):
        stop = start + max(1, batch_tokens // (2 * lengths[order[start]]))
        found.append(order[start:stop])
        start = stop
    return found


def _score(
    model: nn.Module,
    sequences: Sequence[Sequence[list[int]]],
    drafts: Sequence[Draft],
    keys: Sequence[bytes],
    batches: Sequence[Sequence[int]],
    store: RewardStore | None,
    name: str,
) -> dict[bytes, Rewards]:
    state = PartialState()
    rank, world = state.process_index, state.num_processes
    steps = -(-len(batches) // world)
    found: dict[bytes, Rewards] = {}
    writes = store is not None and state.is_local_main_process
    quiet = bool(os.environ.get("TQDM_DISABLE"))
    with store.writer() if store is not None and writes else nullcontext() as writer:
        for step in tqdm(range(steps), desc=f"Token rewards{name and ' of the ' + name + ' data'}", disable=quiet):
            mine = step * world + rank
            batch = batches[min(mine, len(batches) - 1)]
            rewards = _forward(model, [sequences[place] for place in batch], [drafts[place] for place in batch])
            rows = [(keys[place], values) for place, values in zip(batch, rewards, strict=True)]
            rows = gather_object(rows if mine < len(batches) else [])
            found |= dict(rows)
            if writer is not None:
                writer.add(rows)
    state.wait_for_everyone()
    return found


def _forward(model: nn.Module, sequences: Sequence[Sequence[list[int]]], drafts: Sequence[Draft]) -> list[Rewards]:
    """One batch; where parameters are sharded, in one forward, which all processes take part in."""
    both = [sequence for pair in sequences for sequence in pair]
    room = len(both) * max(map(len, both))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logps = sequence_logps(model, both, share_prefixes=not _sharded(model), batch_tokens=room)
    finally:
        model.train(training)
    found = []
    for place, draft in enumerate(drafts):
        # A sequence has one log-probability less than tokens; the response's are the last.
        better, worse = (
            logps[2 * place + side][len(sequences[place][side]) - 1 - len(draft.ids) :][None] for side in (0, 1)
        )
        mask = torch.tensor([list(draft.inside)], device=better.device)
        found.append(token_rewards(better, worse, mask)[0].cpu().numpy())
    return found


def _sharded(model: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_tensor") or isinstance(parameter, DTensor) for parameter in model.parameters())
