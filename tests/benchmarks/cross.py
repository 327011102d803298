"""Two models writing together against plain generation with each of them."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from tests.benchmarks.pairs import Ratio, alternate, cpu_seconds
from tokencredit.scoring.cross_decode import Decoding, Row, cross_decode

PROMPT, ANSWERS, NEW = 32, 8, 8

SHAPES: dict[int, dict[str, Any]] = {
    # SmolLM2-135M and Qwen2.5-0.5B, but for fewer layers in the latter, which would take 4 GB.
    49_152: {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    151_936: {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 12,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}


def run() -> Iterator[Ratio]:
    """Tokens a second of processor time: plain generation with both models, one after the other, and cross-sampling."""
    for vocabulary, shape in SHAPES.items():
        config = LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=True, eos_token_id=None, **shape)
        models = [peaked(LlamaForCausalLM(config).eval()) for _ in range(2)]
        yield compare(models, f"{vocabulary:,}", Decoding(epsilon=0.1, max_new_tokens=NEW))
        cut = Decoding(epsilon=0.1, max_new_tokens=NEW, top_p=0.7, score_top_p=0.7)
        yield compare(models, f"{vocabulary:,}, top-p 0.7", cut)


def peaked(model: Any) -> Any:
    """Random weights whose logits spread by 4, so that as in trained models few tokens hold most of the probability."""
    config = model.config
    torch.nn.init.constant_(model.model.norm.weight, 4 / (config.initializer_range * math.sqrt(config.hidden_size)))
    return model


def compare(models: list[Any], label: str, decoding: Decoding) -> Ratio:
    """Cross-sampling against `generate` at the same settings."""
    vocabulary = models[0].config.vocab_size
    prompts = torch.randint(vocabulary, (ANSWERS, PROMPT), generator=torch.Generator().manual_seed(0))
    rows = [Row(prompt, place, 0) for place, prompt in enumerate(prompts.tolist())]
    plain = GenerationConfig(
        do_sample=True, top_k=0, top_p=decoding.top_p, max_new_tokens=NEW, eos_token_id=None, pad_token_id=0
    )

    def alone() -> None:
        for model in models:
            model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=plain)

    def speed(work: Callable[[], object]) -> float:
        return ANSWERS * NEW / cpu_seconds(work)

    def together() -> None:
        cross_decode(*models, rows, decoding)

    name = f"cross-sampling / both alone, {label}"
    return alternate(name, lambda: speed(alone), lambda: speed(together), repeats=3, unit="tokens/s")
