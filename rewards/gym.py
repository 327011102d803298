"""The tasks of reasoning-gym, each of which scores answers to the questions that it makes."""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from tokencredit.errors import InputError
from tokencredit.rewards.contract import Completion, text_of

REFUSED = {
    "composite": "it mixes other tasks and needs a configuration; name those tasks",
    "game_of_life_halting": "it takes any text for a yes",
    "prime_factorization": "it raises on an answer that is no list of numbers",
}
"""Tasks of reasoning-gym 0.1.25 that cannot be rewards, and why."""

_TUPLES = {"arc_agi", "rearc"}
"""Tasks that compare grids as tuples, which JSON and Arrow turn into lists."""


def reasoning_gym(
    completions: list[Completion],
    answer: list[Any],
    metadata: list[Any] | None = None,
    question: list[Any] | None = None,
    *,
    task: str,
    **columns: Any,
) -> list[float]:
    """What a task of reasoning-gym (Apache-2.0) thinks of the answers, in [0, 1].

    Args:
        completions: The answers; what the last `<answer>` tag holds, or the whole text.
        answer: The task's own answers.
        metadata: The task's metadata, as mappings or as JSON text; many tasks need it.
        question: The questions.
        task: Name of the task.
        **columns: Are not used.
    """
    if task in _TUPLES and metadata is not None:
        metadata = [_as_tuples(_mapping(cell)) for cell in metadata]
    return score_answers(_dataset(task), completions, answer, metadata, question)


def score_answers(
    dataset: Any,
    completions: Sequence[Completion],
    answer: Sequence[Any],
    metadata: Sequence[Any] | None,
    question: Sequence[Any] | None,
) -> list[float]:
    """The same for any object with `score_answer(answer, entry)`."""
    from reasoning_gym.utils import extract_answer

    scores = []
    for row, completion in enumerate(completions):
        text = text_of(completion)
        found = extract_answer(text)
        entry = {
            "question": question[row] if question else "",
            "answer": answer[row],
            "metadata": _mapping(metadata[row]) if metadata else {},
        }
        scores.append(float(dataset.score_answer(found if found is not None else text.strip(), entry)))
    return scores


def check(where: str, arguments: Mapping[str, Any]) -> None:
    """Refuse tasks that there are not, or that do not work.

    Raises:
        InputError: Naming the task.
    """
    task = arguments.get("task")
    if task is None:
        raise InputError(where, "no task", "write reasoning_gym:<task>, e.g. reasoning_gym:chain_sum")
    known = tasks()
    if task not in known:
        near = get_close_matches(str(task), known, n=1)
        raise InputError(
            where, f"no task {task!r}", f"did you mean {near[0]!r}?" if near else "see reasoning-gym's list"
        )
    if task in REFUSED:
        raise InputError(where, f"the task {task!r} does not work: {REFUSED[task]}", "take another")


def tasks() -> list[str]:
    """The names of all tasks."""
    from reasoning_gym.factory import DATASETS

    return sorted(DATASETS)


@cache
def _dataset(task: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(task, size=1, seed=0)


def _mapping(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _as_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_tuples(item) for key, item in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, (list, tuple)) else value
