"""Task metric during training: greedy answers to the evaluation prompts, scored as text.

The loss on gold answers says little about what a model writes by itself. This callback generates, scores, and
adds the figures to the evaluation metrics as `eval_<name>`, so that `metric_for_best_model`,
`load_best_model_at_end` and early stopping can use them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl.models import unwrap_model_for_generation

Metric = Callable[[list[str], list[str]], dict[str, float]]


def reached(stop_at: Mapping[str, float], metrics: Mapping[str, Any]) -> bool:
    """Whether `metrics` holds, as `eval_<name>`, at least the value of every figure that training is to stop at.

    It is false when `stop_at` is empty or a figure is missing.
    """
    found = ((metrics.get(f"eval_{name}"), value) for name, value in stop_at.items())
    return bool(stop_at) and all(figure is not None and figure >= value for figure, value in found)


@dataclass(frozen=True)
class Question:
    """One evaluation row: the prompt as tokens, and the answer to compare with."""

    prompt_ids: list[int]
    reference: str


@dataclass(frozen=True)
class Answer:
    """What a model wrote, whether it ended by itself instead of being cut, and the ids, its stop token among them."""

    text: str
    ended: bool
    ids: list[int] = field(default_factory=list, compare=False)

    @property
    def text_ids(self) -> list[int]:
        """The ids without the stop token."""
        return self.ids[:-1] if self.ended else self.ids


def question(tokenizer: PreTrainedTokenizerBase, prompt: Any, reference: Any) -> Question:
    """Tokenise a prompt as the trainer does: plain text as it is, messages through the chat template."""
    if isinstance(prompt, str):
        ids = tokenizer(prompt)["input_ids"]
    else:
        encoded: Any = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)
        ids = encoded["input_ids"]
    return Question(list(ids), answer_text(reference))


def answer_text(reference: Any) -> str:
    """The text of an answer that is plain text or chat messages, of which the last one counts."""
    return str(reference if isinstance(reference, str) else reference[-1]["content"])


def left_padded(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[B, T]` of prompts that all end where generation starts."""
    pad: Any = tokenizer.pad_token_id
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    return (
        pad_sequence(ids, batch_first=True, padding_value=pad, padding_side="left"),
        pad_sequence([torch.ones_like(row) for row in ids], batch_first=True, padding_side="left"),
    )


def greedy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    processors: Callable[[list[int]], LogitsProcessorList] | None = None,
) -> list[Answer]:
    """Greedy continuations, without special tokens, in the order of the prompts.

    Args:
        model: A causal language model with `generate`. Of its own generation settings only the stop tokens count.
        tokenizer: Its tokenizer; `pad_token_id` and `eos_token_id` are used.
        prompts: Token ids of each prompt.
        max_new_tokens: Where an answer without end is cut.
        batch_size: Prompts per call; those of similar length go together.
        processors: What changes the scores of a batch before the highest is taken, made from the places of its
            prompts in the order given.
    """
    stops = stop_tokens(model, tokenizer)
    # What is not set here, `generate` would take from the model: beams or penalties are not greedy.
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stops,
    )
    answers: dict[int, Answer] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        ids, mask = left_padded([prompts[row] for row in rows], tokenizer)
        with torch.no_grad():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=config,
                logits_processor=processors(rows) if processors is not None else None,
            )
        written = output[:, ids.shape[1] :]
        stopped = torch.isin(written, torch.tensor(stops, dtype=written.dtype, device=written.device))
        ended = stopped.any(dim=1).tolist()
        texts = tokenizer.batch_decode(written, skip_special_tokens=True)
        # What comes after the first stop token is padding.
        lengths = torch.where(stopped.any(dim=1), stopped.int().argmax(dim=1) + 1, written.size(1)).tolist()
        sampled = [line[:length] for line, length in zip(written.tolist(), lengths, strict=True)]
        answers |= {row: Answer(*answer) for row, *answer in zip(rows, texts, ended, sampled, strict=True)}
    return [answers[row] for row in range(len(prompts))]


def greedy_answers(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[str]:
    """The texts alone of what `greedy` gives for the same arguments."""
    found = greedy(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return [answer.text for answer in found]


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's end of text and every other token that the model stops at (chat models have several)."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    return sorted({token for token in [tokenizer.eos_token_id, *own] if token is not None})


class TaskMetricCallback(TrainerCallback):
    """Answer the evaluation prompts greedily after each evaluation and score the answers.

    Args:
        trainer: The trainer; its processes share the prompts equally.
        questions: All evaluation prompts with their references.
        metric: `fn(predictions, references) -> {name: value}`, called once over all answers on every process.
        max_new_tokens: Where an answer without end is cut.
        stop_at: Training ends at the first evaluation in which each of these figures is at least so high.
    """

    def __init__(
        self,
        trainer: Trainer,
        questions: list[Question],
        metric: Metric,
        max_new_tokens: int,
        stop_at: Mapping[str, float] | None = None,
    ) -> None:
        self.trainer = trainer
        self.questions = questions
        self.metric = metric
        self.max_new_tokens = max_new_tokens
        self.stop_at = stop_at or {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Add the scores to `metrics`, by which the trainer picks the best checkpoint; end training where asked."""
        references = [item.reference for item in self.questions]
        scores = self.metric(self.answers(), references)
        named = {f"eval_{name}": float(value) for name, value in scores.items()}
        if metrics is not None:
            metrics.update(named)
        self.trainer.log(dict(named))
        if reached(self.stop_at, named):
            control.should_training_stop = True

    def answers(self) -> list[str]:
        """Greedy answers to all questions, on every process."""
        accelerator = self.trainer.accelerator
        tokenizer: Any = self.trainer.processing_class
        world, rank = accelerator.num_processes, accelerator.process_index
        # Every process answers the same number, so that sharded models run the same number of forwards.
        share = -(-len(self.questions) // world)
        mine = [self.questions[min(rank * share + i, len(self.questions) - 1)].prompt_ids for i in range(share)]
        # Given back as they were: the default would change how checkpointing recomputes from here on.
        checkpointing: Any = self.trainer.args.gradient_checkpointing_kwargs
        with unwrap_model_for_generation(
            self.trainer.model_wrapped, accelerator, gradient_checkpointing_kwargs=checkpointing
        ) as model:
            was_training = model.training
            model.eval()
            try:
                texts = greedy_answers(
                    model,
                    tokenizer,
                    mine,
                    max_new_tokens=self.max_new_tokens,
                    batch_size=self.trainer.args.per_device_eval_batch_size,
                )
            finally:
                model.train(was_training)
        everything: list[str] = gather_object(texts)
        return everything[: len(self.questions)]
