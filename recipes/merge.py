"""LoRA adapter and base model to one plain model."""

import os
import shutil
from pathlib import Path

from tokencredit.errors import InputError
from tokencredit.recipes.files import RECIPE_FILE


def merge_adapter(adapter: Path, output: Path) -> None:
    """Merge an adapter into its base model and save model and tokenizer, in one step.

    The recipe of the run goes with them: it says how the model is asked.

    Args:
        adapter: Folder with `adapter_config.json`.
        output: Folder of the merged model, in safetensors; it must not exist.

    Raises:
        InputError: When `adapter` is none, its base model cannot be loaded, or `output` exists.
    """
    if not (adapter / "adapter_config.json").is_file():
        is_model = (adapter / "config.json").is_file()
        problem = f"{str(adapter)!r} is a plain model already" if is_model else f"{str(adapter)!r} is no adapter"
        raise InputError("adapter", problem, "name the folder of a LoRA run or checkpoint")
    if output.exists():
        raise InputError("output", f"{str(output)!r} exists", "name a new folder")
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    try:
        model = AutoPeftModelForCausalLM.from_pretrained(adapter, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(adapter)
        merged = model.merge_and_unload()
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            "adapter", f"{str(adapter)!r} cannot be merged ({reason})", "keep its base model in place"
        ) from None
    temporary = output.with_name(output.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    merged.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    run = adapter.resolve().parent if adapter.resolve().name.startswith("checkpoint-") else adapter
    if (run / RECIPE_FILE).is_file():
        shutil.copyfile(run / RECIPE_FILE, temporary / RECIPE_FILE)
    os.replace(temporary, output)
