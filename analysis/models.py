"""Saved models for reading: a folder, a LoRA folder or a hub name, with its tokenizer."""

import gc
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tokencredit.errors import InputError

_ADAPTER = "adapter_config.json"


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a saved model, with a padding token.

    Args:
        name: Folder or hub name.

    Returns:
        The tokenizer; one without padding token pads with its end-of-text token.

    Raises:
        InputError: There is no such model, it has no tokenizer, or the tokenizer has neither token.
    """
    _check_folder(name)
    tokenizer: Any = _load(AutoTokenizer, "tokenizer", name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        problem = f"the tokenizer of {name!r} has neither a padding nor an end-of-text token"
        raise InputError("MODEL", problem, "give it one of them")
    return tokenizer  # type: ignore[no-any-return]


def max_positions(name: str) -> int | None:
    """How many tokens a saved model can take, or None if its configuration does not say.

    Args:
        name: Folder or hub name.

    Raises:
        InputError: The configuration cannot be loaded.
    """
    name = adapter_base(name) or name
    return positions(_load(AutoConfig, "configuration", name))


def positions(config: Any) -> int | None:
    """How many tokens a model with this configuration can take, or None if it does not say."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def check_positions(name: str, room: int | None, longest: int, max_new_tokens: int) -> None:
    """Refuse responses that may become longer than a model can take.

    Args:
        name: Of the model.
        room: What it can take with the prompt; None is any length.
        longest: Tokens of the longest prompt.
        max_new_tokens: How long a response may be.

    Raises:
        InputError: Saying how long they may be.
    """
    if room is not None and longest + max_new_tokens > room:
        problem = f"{name!r} has {room} positions, and the longest prompt takes {longest} of them"
        remedy = f"set max_new_tokens to {room - longest} or less" if longest < room else "shorten the prompts"
        raise InputError("max_new_tokens", f"{max_new_tokens} is too much: {problem}", remedy)


def adapter_base(name: str) -> str | None:
    """The model that a folder's adapter was trained on; None where the folder holds no adapter, or a whole model.

    Raises:
        InputError: The adapter does not say.
    """
    adapter = Path(name) / _ADAPTER
    if not adapter.is_file() or (Path(name) / "config.json").is_file():
        return None
    try:
        found = json.loads(adapter.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(str(adapter), f"cannot be read ({error})", "save the adapter again") from None
    base = found.get("base_model_name_or_path") if isinstance(found, dict) else None
    if not isinstance(base, str) or not base:
        raise InputError(str(adapter), "names no base model", "set base_model_name_or_path in it")
    return base


def load_model(name: str, dtype: str = "auto") -> Any:
    """A saved model in evaluation mode, on the accelerator if there is one.

    Args:
        name: Folder of a model or of a LoRA adapter, or hub name.
        dtype: Precision, e.g. `float32`; by default that which it was saved in.

    Returns:
        The causal language model.

    Raises:
        InputError: It cannot be loaded, or some of its weights are missing and would be random.
    """
    model, report = _load(AutoModelForCausalLM, "model", name, dtype=dtype, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        problem = f"{name!r} lacks {len(missing)} of its weights ({missing[0]}, …)"
        raise InputError("MODEL", problem, "name a folder with a whole model")
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return model.to(accelerator or torch.device("cpu")).eval()


def _check_folder(name: str) -> None:
    """A path that looks local is one; anything else may be a hub name."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.is_absolute() or name.startswith((".", "~")):
            raise InputError("MODEL", f"no folder {name!r}", "name the folder of a saved model")
        return
    for file in ("config.json", _ADAPTER):
        if (folder / file).is_file():
            return
    raise InputError("MODEL", f"{name!r} is no model (no config.json)", "name the folder of a saved model")


def _load(kind: Any, part: str, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except Exception as error:  # the loaders raise whatever the files make them raise
        reason = " ".join(str(error).split())[:200]
        if Path(name).is_dir():
            problem = f"{name!r} has no {part} that can be loaded ({reason})"
        else:
            problem = f"no folder {name!r}, and no model of that name on the hub that can be loaded ({reason})"
        raise InputError("MODEL", problem, "name the folder of a saved model with its tokenizer") from None


def free() -> None:
    """Give back what models that nothing refers to any more have held."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
