"""Real models whose next token depends on the last one alone, by a table: what they do is known exactly."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokencredit.data.tokenizers import build_tokenizer

LETTERS = "pqrsxymuvdGBnwz"
ROWS: list[tuple[str, dict[str, float]]] = [
    ("pqr", {"s": 1.0}),
    ("s", {"x": 0.5, "y": 0.5}),
    ("xy", {"m": 1.0}),
    ("m", {"u": 0.3, "v": 0.7}),
    ("uv", {"d": 1.0}),
    ("d", {"G": 0.05, "B": 0.95}),
    ("GB", {"n": 1.0}),
    ("n", {"w": 0.5, "z": 0.5}),
    ("wz", {"": 1.0}),
]
STEPS = {letter: after for letters, after in ROWS for letter in letters}
"""Each answer is s, x or y, m, u or v, d, then the decision, n, w or z, and the end: nine tokens."""
LENGTH, DECISION = 9, 5


def letters_tokenizer(more: str = "") -> Any:
    tokenizer = build_tokenizer([LETTERS + more], kind="characters")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def chain(tokenizer: Any, **changes: Mapping[str, float]) -> Any:
    """A Llama without layers to speak of: embeddings are unit vectors, so the head is the table."""
    size = 4 * math.ceil(len(tokenizer) / 4)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        rms_norm_eps=1e-12,
    )
    model = LlamaForCausalLM(config).eval()
    table = torch.full((size, size), -1e4)
    for before, after in (STEPS | changes).items():
        for token, probability in after.items():
            place = tokenizer.convert_tokens_to_ids(token) if token else tokenizer.eos_token_id
            table[tokenizer.convert_tokens_to_ids(before), place] = math.log(probability)
    with torch.no_grad():
        for weight in (model.model.layers[0].self_attn.o_proj.weight, model.model.layers[0].mlp.down_proj.weight):
            weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(table.T / math.sqrt(size))  # the norm makes a unit vector √size long
    return model


def pair(tokenizer: Any) -> tuple[Any, Any]:
    """Two that differ in the decision alone: G, which is right, with 5 % or with 95 %."""
    return chain(tokenizer), chain(tokenizer, d={"G": 0.95, "B": 0.05})


def save(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def says_good(completions: list[str], **columns: Any) -> list[float]:
    """1 for an answer with the right decision."""
    return [float("G" in text) for text in completions]
