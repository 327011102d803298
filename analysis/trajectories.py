"""Responses as token ids, written by a model or stored before: what both models of a comparison are to predict."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokencredit.analysis.run_folder import json_object, read_run
from tokencredit.data.responses import prompt_text
from tokencredit.errors import InputError
from tokencredit.scoring.shift import Side
from tokencredit.trainers.sampling import sampled
from tokencredit.trainers.task_metric import greedy, question

_ONE_EACH = "give one object a line"

GIVEN = "given"
WRITERS = ("tuned", "base", GIVEN)


@dataclass(frozen=True)
class Trajectory:
    """A prompt and a response to it.

    Args:
        prompt: Which problem it is; several responses to one share it.
        prompt_ids: Its tokens.
        ids: Those of the response, `[T]`; there may be none.
        led: Who wrote it, one of `WRITERS`.
        text: The prompt, to be shown.
    """

    prompt: int
    prompt_ids: list[int]
    ids: list[int]
    led: str = GIVEN
    text: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As a line of JSON; `Trajectory(**line)` reads it."""
        return asdict(self)


@dataclass(frozen=True)
class Generation:
    """How responses are drawn.

    Args:
        num_samples: Responses per prompt.
        temperature: 0 takes the most likely token.
        max_new_tokens: Where a response without end is cut.
        batch_size: Prompts at a time.
        seed: Of the draws; a response depends on it, its prompt's place and its number alone.

    Raises:
        InputError: A count is below 1, the temperature is no number from 0 up, or there are several at 0.
    """

    num_samples: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 256
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_samples", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(name, f"{getattr(self, name)} is none", "use at least 1")
        if not 0 <= self.temperature < math.inf:
            problem = f"{self.temperature} is not from 0 up"
            raise InputError("temperature", problem, "use 0 for the most likely token, 1 for the model's own draws")
        if self.temperature == 0 and self.num_samples > 1:
            problem = f"{self.num_samples} responses at temperature 0 would all be the same"
            raise InputError("num_samples", problem, "use 1, or a temperature above 0")


def generate(
    side: Side, tokenizer: Any, prompts: Sequence[Any], generation: Generation, *, led: str = "tuned"
) -> list[Trajectory]:
    """Let one of the models respond.

    Args:
        side: The model.
        tokenizer: Its tokenizer.
        prompts: Texts or chat messages.
        generation: How.
        led: What the trajectories say.

    Raises:
        InputError: There is no prompt, or one without tokens.
    """
    ids = prompt_ids(tokenizer, prompts)
    with side.active():
        if generation.temperature == 0:
            written = greedy(
                side.model, tokenizer, ids, max_new_tokens=generation.max_new_tokens, batch_size=generation.batch_size
            )
            found = [[answer] for answer in written]
        else:
            found = sampled(
                side.model,
                tokenizer,
                ids,
                num_samples=generation.num_samples,
                temperature=generation.temperature,
                top_p=1.0,
                seed=generation.seed,
                max_new_tokens=generation.max_new_tokens,
                batch_size=generation.batch_size,
            )
    return [
        Trajectory(number, ids[number], answer.ids, led, prompt_text(prompts[number]))
        for number, answers in enumerate(found)
        for answer in answers
    ]


def prompt_ids(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Prompts as a trainer tokenises them.

    Raises:
        InputError: There is none, or one cannot be used (`prompt_tokens`).
    """
    if not prompts:
        raise InputError("prompts", "there are none", "give at least one")
    return [prompt_tokens(tokenizer, prompt, f"prompts row {n}") for n, prompt in enumerate(prompts)]


def prompt_tokens(tokenizer: Any, prompt: Any, where: str) -> list[int]:
    """One prompt as a trainer tokenises it.

    Args:
        tokenizer: Of the model.
        prompt: Text or chat messages.
        where: What an error names.

    Raises:
        InputError: It is neither, it has no tokens, or it is a chat that the tokenizer has no template for.
    """
    if not is_prompt(prompt):
        raise InputError(where, f"{repr(prompt)[:40]} is no prompt", "give a text or chat messages")
    if not isinstance(prompt, str) and getattr(tokenizer, "chat_template", None) is None:
        remedy = "use an instruction-tuned model, or plain text"
        raise InputError(where, "it is chat messages, and the tokenizer has no chat template", remedy)
    try:
        ids = question(tokenizer, prompt, "").prompt_ids
    except Exception as error:  # a chat template raises whatever the messages make it raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(where, f"cannot be tokenised ({reason})", "see what the chat template takes") from None
    if not ids:
        raise InputError(where, "is empty", "drop it, or give it a prompt")
    return ids


def is_prompt(prompt: Any) -> bool:
    """Whether it is a text, or a list of chat messages."""
    chat = isinstance(prompt, list) and bool(prompt) and all(isinstance(message, dict) for message in prompt)
    return chat or isinstance(prompt, str)


def check_lengths(trajectories: Sequence[Trajectory], rooms: Sequence[tuple[str, int | None]]) -> None:
    """Refuse responses that are longer, with their prompt, than a model can take.

    Args:
        trajectories: Prompts and responses.
        rooms: Name of each model and how many tokens it takes; None is any length.

    Raises:
        InputError: Naming the first such response.
    """
    for name, room in rooms:
        for number, item in enumerate(trajectories):
            length = len(item.prompt_ids) + len(item.ids)
            if room is not None and length > room:
                problem = f"it has {length} tokens with its prompt, and {name!r} has {room} positions"
                raise InputError(f"response {number}", problem, "shorten it, or leave it out")


def read_trajectories(path: Path, tokenizer: Any) -> list[Trajectory]:
    """Stored responses.

    Args:
        path: A run folder with token samples; or a JSONL file whose lines have `prompt` (text or messages) or
            `prompt_ids`, and the response as `ids`, `completion_ids`, or `completion` (text or messages); `led` may
            say who wrote it.
        tokenizer: Makes ids of texts; ids are taken as they are.

    Returns:
        In the order of the file; lines with the same prompt are responses to one problem.

    Raises:
        InputError: Nothing is there, or a line is no trajectory, naming it.
    """
    if path.is_dir():
        lines = [(f"{path} sample {n}", line) for n, line in enumerate(read_run(path).samples)]
    elif path.is_file():
        lines = [
            (f"{path} line {n}", json_object(path, n, text, _ONE_EACH))
            for n, text in enumerate(_lines(path), 1)
            if text.strip()
        ]
    else:
        raise InputError(str(path), "there is no such file or folder", "give a JSONL file or a run folder")
    if not lines:
        raise InputError(str(path), "holds no responses", "give at least one line, or a run with token samples")
    numbers: dict[tuple[int, ...], int] = {}
    found = []
    for where, line in lines:
        prompt = _prompt(where, line, tokenizer, stored=path.is_dir())
        number = numbers.setdefault(tuple(prompt), len(numbers))
        # The number of a problem, in a file that `shift` wrote, is not its text.
        text = prompt_text(line["prompt"]) if is_prompt(line.get("prompt")) else line.get("text")
        text = tokenizer.decode(prompt) if text is None else str(text)
        found.append(Trajectory(number, prompt, _response(where, line, tokenizer), _writer(where, line), text))
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "give a JSONL file in UTF-8") from None


def _prompt(where: str, line: dict[str, Any], tokenizer: Any, *, stored: bool) -> list[int]:
    if "prompt_ids" in line:
        return _ids(where, "prompt_ids", line["prompt_ids"])
    prompt = line.get("prompt")
    if prompt is None:
        raise InputError(where, "has no `prompt` and no `prompt_ids`", "give the prompt's text, messages or token ids")
    if stored and isinstance(prompt, str):  # decoded from ids, so that special tokens stand in it
        return list(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return prompt_tokens(tokenizer, prompt, where)


def _writer(where: str, line: dict[str, Any]) -> str:
    led = line.get("led", GIVEN)
    if led not in WRITERS:
        raise InputError(where, f"`led` is {repr(led)[:40]}", f"use one of {', '.join(WRITERS)}, or leave it out")
    return str(led)


def _response(where: str, line: dict[str, Any], tokenizer: Any) -> list[int]:
    for name in ("ids", "completion_ids"):
        if name in line:
            return _ids(where, name, line[name])
    completion = line.get("completion")
    if is_prompt(completion) and isinstance(completion, list):
        completion = completion[-1].get("content")
    if not isinstance(completion, str):
        raise InputError(where, "has no response", "give `ids`, `completion_ids` or `completion`")
    return list(tokenizer(completion, add_special_tokens=False)["input_ids"])


def _ids(where: str, name: str, ids: Any) -> list[int]:
    if not isinstance(ids, list) or not all(type(token) is int and token >= 0 for token in ids):
        raise InputError(where, f"`{name}` is no list of token ids", "give whole numbers")
    return ids
