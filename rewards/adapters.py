"""Reward functions written for other toolkits, called the way they expect.

Each adapter takes such a function and gives one of ours.
"""

import inspect
import json
from collections.abc import Callable
from typing import Any

from tokencredit.errors import InputError
from tokencredit.rewards.contract import Completion, text_of

Function = Callable[..., Any]


def verl(compute_score: Function) -> Function:
    """verl's `compute_score(data_source, solution_str, ground_truth, extra_info)` → a number, or `{"score": …, …}`.

    `ground_truth` is that column, or the one inside verl's column `reward_model`; `extra_info` may be missing. What
    else is in the mapping is logged as extra columns.
    """

    async def adapted(
        completions: list[Completion],
        data_source: list[str] | None = None,
        ground_truth: list[Any] | None = None,
        reward_model: list[Any] | None = None,
        extra_info: list[Any] | None = None,
        log_extra: Function | None = None,
    ) -> list[Any]:
        if ground_truth is None:
            if reward_model is None:
                raise InputError("verl", "no column ground_truth or reward_model", "name one with `columns:`")
            ground_truth = [_decoded(row)["ground_truth"] for row in reward_model]
        scores, extras = [], []
        for index, completion in enumerate(completions):
            score = compute_score(
                data_source=data_source[index] if data_source else None,
                solution_str=text_of(completion),
                ground_truth=ground_truth[index],
                extra_info=extra_info[index] if extra_info else None,
            )
            if inspect.isawaitable(score):
                score = await score
            extra = dict(score) if isinstance(score, dict) else {"score": score}
            scores.append(extra.pop("score"))
            extras.append(extra)
        if log_extra is not None:
            for column in dict.fromkeys(name for extra in extras for name in extra):
                log_extra(column, [extra.get(column) for extra in extras])
        return scores

    return adapted


def openrlhf(reward_func: Function) -> Function:
    """OpenRLHF's `reward_func(queries, prompts, labels)` → one number per row, or `{"rewards": …, "extra_logs": …}`.

    A query is prompt and completion together. `labels` is that column, or `label`, or else `answer`.
    """

    async def adapted(
        completions: list[Completion],
        prompts: list[Completion],
        labels: list[Any] | None = None,
        label: list[Any] | None = None,
        answer: list[Any] | None = None,
        log_extra: Function | None = None,
    ) -> list[Any]:
        chosen = next((column for column in (labels, label, answer) if column is not None), [None] * len(completions))
        texts = [prompt if isinstance(prompt, str) else _conversation(prompt) for prompt in prompts]
        queries = [text + text_of(completion) for text, completion in zip(texts, completions, strict=True)]
        result = reward_func(queries, texts, chosen)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, dict):
            for column, values in (result.get("extra_logs") or {}).items():
                if log_extra is not None:
                    log_extra(column, _listed(values))
            result = result["rewards"]
        return _listed(result)

    return adapted


def reasoning_gym(dataset: Any) -> Function:
    """A reasoning-gym dataset, or anything with `score_answer(answer, entry)`.

    The entry is made of the columns `answer`, `question` and `metadata`; the answer is what the last `<answer>` tag
    holds, or the whole text.
    """
    from tokencredit.rewards.gym import score_answers

    def adapted(
        completions: list[Completion],
        answer: list[Any],
        metadata: list[Any] | None = None,
        question: list[Any] | None = None,
    ) -> list[float]:
        return score_answers(dataset, completions, answer, metadata, question)

    return adapted


ADAPTERS: dict[str, Callable[[Any], Function]] = {"verl": verl, "openrlhf": openrlhf, "reasoning_gym": reasoning_gym}


def _conversation(messages: list[dict[str, Any]]) -> str:
    return "".join(f"{message['role']}: {message['content']}\n" for message in messages)


def _decoded(value: Any) -> Any:
    """A cell that holds a mapping, which some data keep as JSON text."""
    return json.loads(value) if isinstance(value, str) else value


def _listed(values: Any) -> list[Any]:
    return list(values.tolist()) if hasattr(values, "tolist") else list(values)
