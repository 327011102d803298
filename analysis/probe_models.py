"""Models that answer problems and are probed after each step of their answers, one after the other."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch

from tokencredit.analysis.models import check_positions, free, load_model, load_tokenizer, max_positions
from tokencredit.analysis.probe import Exit, ProbedResponse
from tokencredit.analysis.statistics import RESAMPLES
from tokencredit.analysis.token_texts import token_texts
from tokencredit.data.boxed import last_boxed
from tokencredit.data.steps import DELIMITER, THINK_END
from tokencredit.errors import InputError
from tokencredit.rewards import RewardPool
from tokencredit.scoring import ProbeTask, draw_answers, probe_steps
from tokencredit.scoring.probe import CLOSING, TEMPLATE
from tokencredit.trainers.spae_tasks import TaskMaker, continuations
from tokencredit.trainers.task_metric import Answer, greedy, question

MODES = ("forced", "sampled")
_OF_RECIPES = (
    *("step_delimiter", "think_end", "probe_template", "probe_template_column", "probe_closing", "answer_column"),
    *("probe_temperature", "probe_max_tokens"),
)
_EXIT_TOKENS = 64
"""Tokens of an answer that is asked for at an exit."""


@dataclass(frozen=True)
class ProbeSettings:
    """What is asked for; those of `SPAEConfig` mean what they mean there.

    Args:
        mode: `forced`, or `sampled`, which computes both.
        limit: Problems.
        max_new_tokens: Where a response without end is cut.
        batch_size: Prompts at a time.
        saturation: ε.
        num_samples: Answers after each step in mode `sampled`.
        probe_temperature: Of these.
        probe_max_tokens: Of these.
        seed: Of their draw and of the resampling.
        resamples: Of the bootstrap.
        step_delimiter: Ends a step.
        think_end: Ends the thinking.
        probe_template: What is put after a step.
        probe_template_column: Column with that of a row.
        probe_closing: What follows an answer.
        answer_column: Column with the right answer.
    """

    mode: str = "forced"
    limit: int | None = None
    max_new_tokens: int = 256
    batch_size: int = 64
    saturation: float = 0.9
    num_samples: int = 5
    probe_temperature: float = 0.6
    probe_max_tokens: int = 10
    seed: int = 0
    resamples: int = RESAMPLES
    step_delimiter: str = DELIMITER
    think_end: str = THINK_END
    probe_template: str = TEMPLATE
    probe_template_column: str | None = None
    probe_closing: str = CLOSING
    answer_column: str = "answer"

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if self.mode not in MODES:
            raise InputError("--mode", f"unknown value {self.mode!r}", "choose forced or sampled")
        for name in ("limit", "max_new_tokens", "batch_size", "num_samples", "resamples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')}", f"{value} is too small", "give 1 or more")
        if self.seed < 0:
            raise InputError("--seed", f"{self.seed} is negative", "give 0 or more")


@dataclass(frozen=True)
class Probed:
    """One model and its responses.

    Args:
        label: Of its arm; models of one label are its runs.
        model: Folder or hub name.
        settings: Of its probe.
        responses: One per problem.
    """

    label: str
    model: str
    settings: ProbeSettings
    responses: list[ProbedResponse]


def probe_model(
    label: str,
    model: str,
    prompts: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    settings: ProbeSettings,
    *,
    progress: Callable[[str], None] = lambda text: None,
) -> Probed:
    """Let a model answer greedily, probe every step, and cut where the answer is there.

    Args:
        label: Of its arm.
        model: Folder or hub name.
        prompts: Text or chat messages `[N]`.
        rows: The columns of the data `[N]`.
        settings: Of the probe.
        progress: Called with a line on what is being done.

    Raises:
        InputError: The model or the answers cannot be used.
    """
    tokenizer = load_tokenizer(model)
    maker = TaskMaker(tokenizer, settings)
    maker.check("problem", list(rows))
    asked = [question(tokenizer, prompt, "").prompt_ids for prompt in prompts]
    check_positions(model, max_positions(model), max(map(len, asked)), settings.max_new_tokens)
    loaded = load_model(model)
    progress(f"answers of {label}")
    options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "batch_size": settings.batch_size}
    answers = greedy(loaded, tokenizer, asked, **options)
    progress(f"probe of {label}")
    made = [maker.task(ids, answer.text_ids, dict(row)) for ids, answer, row in zip(asked, answers, rows, strict=True)]
    tasks = [task for _, task in made]
    measured = probe_steps(loaded, tasks)
    sampled = _sampled(loaded, tokenizer, tasks, settings) if settings.mode == "sampled" else None

    texts = token_texts(tokenizer)
    found = []
    for number, (prompt, answer, row) in enumerate(zip(prompts, answers, rows, strict=True)):
        steps, task = made[number]
        acc, conf = measured[number]
        found.append(
            ProbedResponse(
                prompt=prompt,
                answers=maker.spellings(dict(row)),
                answer_tokens=len(task.answers[0]) if task.answers else 0,
                tokens=[texts(token) for token in answer.text_ids],
                ended=answer.ended,
                right=False,
                ends=list(steps.ends),
                thinking=steps.thinking,
                acc=acc.tolist(),
                conf=conf.tolist(),
                sampled_conf=None if sampled is None else sampled[number],
            )
        )
    progress(f"early exits of {label}")
    cuts = _cuts(loaded, tokenizer, found, tasks, settings)
    del loaded
    free()
    _judge(found, answers, cuts)
    return Probed(label, model, settings, found)


def _sampled(model: Any, tokenizer: Any, tasks: Sequence[ProbeTask], settings: ProbeSettings) -> list[list[float]]:
    def generate(contexts: list[list[int]]) -> list[list[int]]:
        limits = {"temperature": settings.probe_temperature, "max_new_tokens": settings.probe_max_tokens}
        return continuations(model, tokenizer, contexts, seed=settings.seed, **limits)  # type: ignore[arg-type]

    drawn = draw_answers(tasks, generate, tokenizer, num_samples=settings.num_samples, closing=settings.probe_closing)
    return [conf.tolist() for _, conf in probe_steps(model, drawn)]


@dataclass(frozen=True)
class _Cut:
    """A response that ends after a step, and what the model then gives as its answer."""

    response: int
    by_conf: bool
    step: int
    tokens: int
    text: str


def _cuts(
    model: Any,
    tokenizer: Any,
    responses: Sequence[ProbedResponse],
    tasks: Sequence[ProbeTask],
    settings: ProbeSettings,
) -> list[_Cut]:
    """Ask for the answer at the first saturated step, and at the first step of which Conf alone is as high."""
    places: list[tuple[int, bool, int]] = []
    for number, response in enumerate(responses):
        surest = next((step for step, value in enumerate(response.conf) if value > settings.saturation), None)
        for by_conf, step in ((False, response.saturated_step(settings.saturation)), (True, surest)):
            if step is not None:
                places.append((number, by_conf, step))
    contexts = [[*tasks[n].trunk[: tasks[n].places[step]], *tasks[n].template] for n, _, step in places]
    options: dict[str, Any] = {
        "max_new_tokens": min(_EXIT_TOKENS, settings.max_new_tokens),
        "batch_size": settings.batch_size,
    }
    answers = greedy(model, tokenizer, contexts, **options) if contexts else []
    found = []
    for (number, by_conf, step), answer in zip(places, answers, strict=True):
        template = tokenizer.decode(tasks[number].template)
        tokens = responses[number].ends[step] + len(tasks[number].template) + len(answer.text_ids)
        found.append(_Cut(number, by_conf, step, tokens, template + answer.text))
    return found


def _judge(responses: Sequence[ProbedResponse], answers: Sequence[Answer], cuts: Sequence[_Cut]) -> None:
    """Mark what is right: the box holds a spelling of the answer, or what equals it as mathematics."""
    pairs = [(answer.text, response.answers) for answer, response in zip(answers, responses, strict=True)]
    pairs += [(cut.text, responses[cut.response].answers) for cut in cuts]
    right = judged(pairs)
    for response, value in zip(responses, right, strict=False):
        response.right = value
    for cut, value in zip(cuts, right[len(responses) :], strict=True):
        made = Exit(cut.step, cut.tokens, value)
        if cut.by_conf:
            responses[cut.response].conf_exit = made
        else:
            responses[cut.response].exit = made


def judged(pairs: Sequence[tuple[str, list[str]]]) -> list[bool]:
    """Whether each text gives one of the answers: in its last box word for word, else as mathematics where that can be.

    Args:
        pairs: A text, and the spellings of the right answer.
    """
    boxes = [last_boxed(text) for text, _ in pairs]
    right = [
        box is not None and box in [answer.strip() for answer in answers]
        for box, (_, answers) in zip(boxes, pairs, strict=True)
    ]
    unsure = [
        (number, answer)
        for number, (_, answers) in enumerate(pairs)
        if not right[number] and boxes[number] is not None
        for answer in answers
    ]
    if unsure and find_spec("math_verify") is None:
        text = "math_verify is not installed: answers count as right only where they are so word for word"
        warnings.warn(text, stacklevel=2)
    elif unsure:
        with RewardPool(["math"], workers=1) as pool:
            texts, golds = [pairs[number][0] for number, _ in unsure], [answer for _, answer in unsure]
            values = pool.score(texts, answer=golds).values
        for (number, _), (value,) in zip(unsure, values, strict=True):
            right[number] = right[number] or bool(value)
    return right


def with_keys(settings: ProbeSettings, given: Mapping[str, Any]) -> ProbeSettings:
    """The settings with what a recipe says about the probe."""
    return replace(settings, **{name: given[name] for name in _OF_RECIPES if given.get(name) is not None})


def device() -> str:
    """The kind of device that models run on."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def spans(response: ProbedResponse) -> list[tuple[int, int]]:
    """First token and one past the last of each step."""
    return list(pairwise([0, *response.ends]))
