"""A base model and what was tuned from it, loaded from disk: the base once, an adapter on top of it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel

from tokencredit.analysis.models import adapter_base, load_model, load_tokenizer
from tokencredit.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")
_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


class ModelPair:
    """A base that stays in memory, and tuned models that come and go.

    Args:
        base: Folder or hub name.
        dtype: One of `DTYPES`, of both.

    Raises:
        InputError: The dtype is unknown.
    """

    def __init__(self, base: str, dtype: str = "auto") -> None:
        check_dtype(dtype)
        self.name, self.dtype = base, dtype
        self._base: Any = None

    @property
    def base(self) -> Any:
        """The base model, loaded when first asked for."""
        if self._base is None:
            self._base = load_model(self.name, self.dtype)
        return self._base

    @contextmanager
    def against(self, tuned: str) -> Iterator[tuple[Any, Any]]:
        """Base and tuned model as `tokencredit.analysis.shift.compare` takes them.

        Of an adapter on this base there is the one model, and None for the base; afterwards the adapter is gone.

        Args:
            tuned: Folder of a model or an adapter, or hub name.

        Raises:
            InputError: It cannot be loaded.
        """
        found = adapter_base(tuned)
        if found is None:
            yield self.base, load_model(tuned, self.dtype)
        elif _same(found, self.name):
            adapted = _adapted(self.base, tuned)
            try:
                yield None, adapted
            finally:
                adapted.unload()
        else:
            yield self.base, _adapted(load_model(found, self.dtype), tuned)


def check_dtype(dtype: str) -> None:
    """Refuse a precision that is not offered.

    Raises:
        InputError: Naming those that are.
    """
    if dtype not in DTYPES:
        raise InputError("--dtype", f"unknown {dtype!r}", f"choose one of {', '.join(DTYPES)}")


def _adapted(base: Any, folder: str) -> Any:
    try:
        return PeftModel.from_pretrained(base, folder).eval()
    except Exception as error:  # the loaders raise whatever the files make them raise
        reason = " ".join(str(error).split())[:200]
        raise InputError("MODEL", f"{folder!r} cannot be put on its base ({reason})", "check the adapter") from None


def _same(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def shared_tokenizer(base: str, tuned: str) -> Any:
    """The tokenizer of both models.

    Raises:
        InputError: They have different ones: a token of the one has another id, or none, with the other. Tokens that
            only one of them adds at the end are padding.
    """
    own = Path(tuned) / "tokenizer_config.json"
    found = load_tokenizer(base)
    if adapter_base(tuned) is not None and not own.is_file():
        return found
    other = load_tokenizer(tuned)
    few, many = sorted((found.get_vocab(), other.get_vocab()), key=len)
    differing = [token for token, number in few.items() if many.get(token) != number]
    if differing:
        problem = f"{tuned!r} and {base!r} have different tokenizers ({len(differing)} tokens, as {min(differing)!r})"
        raise InputError("TUNED", problem, "compare models with the same tokenizer")
    return found if len(found.get_vocab()) <= len(other.get_vocab()) else other


def identity(name: str) -> str:
    """What tells a saved model from others, and from itself when trained on.

    It is made of names, sizes and times of the files of weights, settings and tokenizer; those of an adapter's base
    belong to it. A model of the hub has its name alone.

    Raises:
        InputError: An adapter does not say what its base is.
    """
    names = [name]
    while (base := adapter_base(names[-1])) is not None and base not in names:
        names.append(base)
    return hashlib.sha256(json.dumps([(name, _files(name)) for name in names]).encode()).hexdigest()[:16]


def _files(name: str) -> list[tuple[str, int, int]]:
    files = sorted(path for pattern in _FILES for path in Path(name).glob(pattern)) if Path(name).is_dir() else []
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
