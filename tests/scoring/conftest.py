"""Tiny models with random weights, built from their configuration."""

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 97

# Soft-capping at 2 and a window of 4 tokens: small enough that leaving either out would show.
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen2_moe": (Qwen2MoeConfig, EXPERTS | {"shared_expert_intermediate_size": 16}),
    "qwen3": (Qwen3Config, {"head_dim": 8}),
    "qwen3_moe": (Qwen3MoeConfig, EXPERTS | {"head_dim": 8}),
    "mixtral": (MixtralConfig, {"num_local_experts": 4, "sliding_window": 4}),
    "mistral": (MistralConfig, {"sliding_window": 4}),
    "gemma2": (Gemma2Config, {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 2.0}),
    "gemma3": (Gemma3TextConfig, {"head_dim": 8, "sliding_window": 4, "final_logit_softcapping": 2.0}),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    """A function from a family's name (and changes to its configuration) to a model in evaluation mode."""

    def build(family: str = "llama", **changes: object) -> PreTrainedModel:
        config_class, settings = CONFIGS[family]
        config = config_class(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            # Ten times the usual scale: the distributions are far from uniform, so a mistake costs nats.
            initializer_range=0.2,
            **{"vocab_size": VOCAB} | settings | changes,
        )
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()

    return build
