"""From rollouts to what SPAE probes: steps of the responses, right answers as tokens, and answers of the model."""

import logging
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tokencredit.data.steps import StepFinder, Steps
from tokencredit.errors import InputError
from tokencredit.scoring import ProbeTask
from tokencredit.scoring.probe import answer_ids, template_ids
from tokencredit.trainers.rollouts import Rollouts
from tokencredit.trainers.task_metric import left_padded, stop_tokens

_BATCH_TOKENS = 16384


class ProbeKeys(Protocol):
    """What says how a response is probed; `SPAEConfig` describes its fields."""

    @property
    def step_delimiter(self) -> str: ...
    @property
    def think_end(self) -> str: ...
    @property
    def probe_template(self) -> str: ...
    @property
    def probe_template_column(self) -> str | None: ...
    @property
    def probe_closing(self) -> str: ...
    @property
    def answer_column(self) -> str: ...


class TaskMaker:
    """Makes the tasks of a probe, and remembers the tokens of answers.

    Args:
        tokenizer: The model's.
        args: Names of columns, template and delimiter.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, args: ProbeKeys) -> None:
        self.tokenizer, self.args = tokenizer, args
        self.finder = StepFinder(tokenizer, args.step_delimiter, args.think_end)
        self._templates: dict[str, list[int]] = {}
        self._answers: dict[tuple[str, str], list[int]] = {}
        self._said = False

    def check(self, name: str, dataset: Any) -> None:
        """Refuse data that lacks answers; of a streamed dataset only the first row is looked at.

        Args:
            name: What error messages call the data.
            dataset: A dataset, or several by name; None is none.
        """
        if isinstance(dataset, dict):
            for part, rows in dataset.items():
                self.check(f"{name} {part!r}", rows)
        elif dataset is not None:
            rows = dataset if hasattr(dataset, "__len__") else [next(iter(dataset))]
            for index, row in enumerate(self._narrowed(rows)):
                try:
                    self.of_row(row)
                except InputError as error:
                    problem = f"{error.problem} (row {index} of the {name} data)"
                    raise InputError(error.where, problem, error.remedy) from None

    def _narrowed(self, rows: Any) -> Any:
        """Only the columns that are read: others may be images."""
        if not hasattr(rows, "column_names"):
            return rows
        wanted = {self.args.answer_column.partition(".")[0], self.args.probe_template_column}
        found = [column for column in rows.column_names if column in wanted]
        return rows.select_columns(found) if found else rows

    def of_row(self, row: dict[str, Any]) -> tuple[list[int], list[list[int]]]:
        """Tokens of a row's template and of the spellings of its answer.

        Raises:
            InputError: A column is missing or empty, or an answer cannot be written in tokens.
        """
        column = self.args.probe_template_column
        template = self.args.probe_template if column is None else row.get(column)
        if not isinstance(template, str) or not template:
            raise InputError("probe_template_column", f"column {column!r} holds {template!r}", "give text")
        if template not in self._templates:
            self._templates[template] = template_ids(self.tokenizer, template)
        return self._templates[template], [self._answer(template, text) for text in self.spellings(row)]

    def spellings(self, row: dict[str, Any]) -> list[str]:
        """The right answer of a row, in each of its spellings.

        Raises:
            InputError: There is none.
        """
        name = self.args.answer_column
        value: Any = row
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        found = value if isinstance(value, (list, tuple)) else [value]
        if not found or any(item is None or not isinstance(item, (str, int, float)) for item in found):
            problem = f"column {name!r} holds {value!r}"
            raise InputError("answer_column", problem, "name the column with the right answer: text or a list of texts")
        return [str(item) for item in found]

    def _answer(self, template: str, text: str) -> list[int]:
        if (template, text) not in self._answers:
            try:
                found = answer_ids(self.tokenizer, template, text, closing=self.args.probe_closing)
            except InputError as error:
                raise InputError("answer_column", error.problem, error.remedy) from None
            self._answers[template, text] = found
        return self._answers[template, text]

    def make(self, rollouts: Rollouts, prompts: Sequence[Sequence[int]]) -> tuple[list[Steps], list[ProbeTask]]:
        """Steps and tasks of all rollouts of this process; those that take no part are not probed.

        Args:
            rollouts: Finished.
            prompts: Ids of their prompts `[B]`.
        """
        live = rollouts.mask.any(dim=1).tolist()
        steps, tasks = [], []
        for row, length in enumerate(rollouts.lengths):
            values = {name: column[row] for name, column in rollouts.columns.items()}
            ids = rollouts.ids[row][:length].tolist() if live[row] else []
            found, task = self.task(prompts[row], ids, values)
            steps.append(found if live[row] else Steps([], length))
            tasks.append(task)
        return steps, tasks

    def task(self, prompt: Sequence[int], response: Sequence[int], row: dict[str, Any]) -> tuple[Steps, ProbeTask]:
        """Steps and task of one response.

        Args:
            prompt: Ids.
            response: Ids, as sampled.
            row: The columns of the data.
        """
        found = self.finder.find(response)
        template, answers = self._known(row) if found.ends else ([], [])
        if not answers:
            found = Steps([], found.thinking)
        places = [len(prompt) + end for end in found.ends]
        trunk = [*prompt, *response[: found.ends[-1]]] if places else list(prompt)
        return found, ProbeTask(trunk, places, template, answers)

    def _known(self, row: dict[str, Any]) -> tuple[list[int], list[list[int]]]:
        try:
            return self.of_row(row)
        except InputError as error:  # of one row of a stream: the other processes would wait for this one
            if not self._said:
                self._said = True
                text = f"{error}: responses to such rows are not probed (logged once)"
                logging.getLogger("tokencredit").warning(text)
            return [], []


def continuations(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    contexts: Sequence[Sequence[int]],
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    rounds: int | None = None,
) -> list[list[int]]:
    """Draw a continuation of each context; the random numbers of the run are as before.

    Args:
        model: With `generate`.
        tokenizer: Its padding and end of text are used.
        contexts: Ids, at least one each.
        temperature: Divides the logits.
        max_new_tokens: Where it is cut.
        seed: Of the draw.
        rounds: How many calls of `generate` to make, the last of them for nothing; by default as many as are needed.

    Returns:
        Ids `[contexts]`, without the token that ended it and what follows.
    """
    stops = stop_tokens(model, tokenizer)
    # What is not given here would be the model's own: many models ship with a penalty.
    config = GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stops,
    )
    found: dict[int, list[int]] = {}
    batches = context_batches(contexts)
    batches += [[]] * ((rounds or len(batches)) - len(batches))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for batch in batches:
            rows = [list(contexts[place]) for place in batch] or [[tokenizer.pad_token_id]]
            ids, mask = (tensor.to(model.device) for tensor in left_padded(rows, tokenizer))
            written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
            found |= {place: until(row.tolist(), stops) for place, row in zip(batch, written, strict=False)}
    return [found[place] for place in range(len(contexts))]


def context_batches(contexts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The places of the contexts of each call of `generate`."""
    order = sorted(range(len(contexts)), key=lambda place: -len(contexts[place]))
    batches, start = [], 0
    while start < len(order):
        stop = start + max(1, _BATCH_TOKENS // len(contexts[order[start]]))
        batches.append(order[start:stop])
        start = stop
    return batches


def until(written: Sequence[int], stops: Sequence[int]) -> list[int]:
    """What was written before the first of some tokens."""
    return list(takewhile(lambda token: token not in stops, written))
