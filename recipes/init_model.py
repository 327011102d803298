"""`init:` — a model from scratch: architecture from its configuration, tokenizer from the training data.

The untrained model is written to disk once, before any process starts. Every process, every restart and the
reference model of a preference trainer then load the same weights by path.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokencredit.data.tokenizers import build_tokenizer
from tokencredit.errors import InputError
from tokencredit.recipes.schema import Init

INITIAL_MODEL = "init"
"""Its folder in the run folder."""

EOS, PAD = "<|end|>", "<|pad|>"


def write_initial_model(init: Init, train: Any, folder: Path, seed: int) -> None:
    """Build the tokenizer and the untrained model, and save both in `folder`, in one step.

    Args:
        init: The recipe's section.
        train: Rows whose text the tokenizer is built from.
        folder: Where the model goes; it must not exist.
        seed: Of the random weights.

    Raises:
        InputError: For an unknown architecture or configuration field.
    """
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    spec = init.tokenizer
    core = build_tokenizer(
        _texts(train), kind=spec.kind, vocab_size=spec.vocab_size, pieces=spec.pieces, special=[EOS, PAD]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    config = model_config(init, tokenizer)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    os.replace(temporary, folder)


def model_config(init: Init, tokenizer: Any = None) -> Any:
    """The architecture's configuration; the vocabulary is the tokenizer's.

    Raises:
        InputError: When the architecture is unknown or has no such configuration field.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if init.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(
            "init.model_type", f"{init.model_type!r} is no causal language model of Transformers", "e.g. llama or qwen3"
        )
    given = dict(init.config)
    if "vocab_size" in given:
        raise InputError("init.config.vocab_size", "is set by the tokenizer", "remove it, or set tokenizer.vocab_size")
    try:
        default = AutoConfig.for_model(init.model_type)
        for key in given:
            if not hasattr(default, key):
                raise InputError(f"init.config.{key}", "unknown field", f"see the configuration of {init.model_type}")
        if tokenizer is not None:
            given |= {
                "vocab_size": len(tokenizer),
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": None,
            }
        return AutoConfig.for_model(init.model_type, **given)
    except InputError:
        raise
    except Exception as error:  # every architecture validates its fields in its own way
        raise InputError(
            "init.config", " ".join(str(error).split()), f"correct the fields of {init.model_type}"
        ) from None


def _texts(rows: Any) -> Iterator[str]:
    for row in rows:
        for name in ("prompt", "completion", "chosen", "rejected", "text", "messages"):
            yield from _strings(row.get(name))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for message in value:
            yield message["content"]
