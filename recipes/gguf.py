"""A GGUF file to a folder of safetensors, which a recipe, a reference model and `merge` can load."""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokencredit.errors import InputError

DTYPES = ("bfloat16", "float16", "float32")

_MAGIC = b"GGUF"


def import_gguf(file: Path, output: Path, dtype: str = "bfloat16") -> None:
    """Unpack the weights of a GGUF file and save model, tokenizer and chat template, in one step.

    The tokenizer is the one that Transformers makes of the file. Quantised weights keep the error they were quantised
    with.

    Args:
        file: One file with the whole model.
        output: Folder of the model, in safetensors; it must not exist.
        dtype: One of `DTYPES`, of the saved weights.

    Raises:
        InputError: `file` is no such file or Transformers cannot read it, `output` exists, the dtype is unknown, or the
            gguf library is missing.
    """
    _check(file, output, dtype)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Where its kernels are installed, Transformers would keep the weights packed.
    options: dict[str, Any] = {"dtype": getattr(torch, dtype), "quantization_config": GgufConfig(dequantize=True)}
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    except Exception as error:  # the readers raise whatever the content makes them raise
        reason = " ".join((str(error) or repr(error)).split())[:200]
        raise InputError("FILE", f"{str(file)!r} cannot be read ({reason})", "give a whole GGUF model") from None
    loaded, missing = found[0], found[1]["missing_keys"]
    if missing:
        lacking = f"lacks {len(missing)} of its weights ({min(missing)}, …)"
        raise InputError("FILE", f"{str(file)!r} {lacking}", "give one file with the whole model")
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    _plain(loaded).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    os.replace(temporary, output)


def _check(file: Path, output: Path, dtype: str) -> None:
    if not file.is_file():
        raise InputError("FILE", f"no file {str(file)!r}", "give a GGUF file")
    with file.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise InputError("FILE", f"{str(file)!r} is no GGUF file", "give one, or use a model folder as it is")
    if output.exists():
        raise InputError("OUTPUT", f"{str(output)!r} exists", "name a new folder")
    if dtype not in DTYPES:
        raise InputError("--dtype", f"unknown {dtype!r}", f"choose one of {', '.join(DTYPES)}")
    if find_spec("gguf") is None:
        raise InputError("FILE", "GGUF needs the library gguf", "pip install 'tokencredit[gguf]'")


def _plain(loaded: Any) -> Any:
    """The same weights in a model that was never quantised: Transformers saves no other."""
    import torch

    values = loaded.config.to_dict()
    values.pop("quantization_config", None)
    values.pop("_model_name_or_path", None)
    with torch.device("meta"):
        plain = type(loaded)(type(loaded.config).from_dict(values))
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain
