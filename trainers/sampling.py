"""Several answers to every prompt, drawn at a temperature, each from a random stream of its own."""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from tokencredit.trainers.task_metric import Answer, greedy


def sampled(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    *,
    num_samples: int,
    temperature: float,
    top_p: float,
    seed: int,
    max_new_tokens: int,
    batch_size: int,
) -> list[list[Answer]]:
    """Sampled continuations, without special tokens, in the order of the prompts.

    The random numbers of a sample follow from the seed, the prompt's place and the sample's number alone, not from
    what it is batched with or which device runs the model. What is left to depend on those is the rounding of the
    logits, which decides a token only where two are equally likely to within it.

    Args:
        model: A causal language model with `generate`. Of its own generation settings only the stop tokens count.
        tokenizer: Its tokenizer; `pad_token_id` and `eos_token_id` are used.
        prompts: Token ids of each prompt.
        num_samples: Answers per prompt.
        temperature: Divides the logits; above 0.
        top_p: Only the likeliest tokens that together reach this probability are drawn from; 1 for all.
        seed: Seed of all randomness.
        max_new_tokens: Where an answer without end is cut.
        batch_size: Answers per call.

    Returns:
        The answers to each prompt.
    """
    repeated = [prompt for prompt in prompts for _ in range(num_samples)]

    def processors(rows: list[int]) -> LogitsProcessorList:
        noise = _Gumbel([_stream(seed, *divmod(row, num_samples)) for row in rows])
        top = [TopPLogitsWarper(top_p)] if top_p < 1 else []
        return LogitsProcessorList([TemperatureLogitsWarper(temperature), *top, noise])

    answers = greedy(
        model, tokenizer, repeated, max_new_tokens=max_new_tokens, batch_size=batch_size, processors=processors
    )
    return [answers[start : start + num_samples] for start in range(0, len(answers), num_samples)]


class _Gumbel(LogitsProcessor):
    """Turns the choice of the highest score into a draw from the softmax: the Gumbel-max trick.

    `generate` itself draws for a whole batch from one stream, so that a sample would depend on its neighbours.
    """

    def __init__(self, streams: list[torch.Generator]) -> None:
        self.streams = streams

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        draws = [torch.empty(scores.shape[-1], dtype=torch.float64).exponential_(generator=s) for s in self.streams]
        # −log of an exponential draw is a Gumbel draw.
        return scores - torch.stack(draws).log().to(scores)


def _stream(seed: int, row: int, sample: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{row}/{sample}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
