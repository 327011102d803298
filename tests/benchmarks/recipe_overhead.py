"""Training steps of a recipe's trainer, with all its callbacks, against TRL's trainer built by hand."""

import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from trl import SFTConfig, SFTTrainer

from tests.benchmarks.pairs import Ratio, alternate
from tokencredit.recipes.build import build_trainer
from tokencredit.recipes.data import load_data
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.schema import Init, parse_recipe

STEPS = 40
ROWS = [{"prompt": f"question {i} " * 4, "completion": f"answer {i} " * 4} for i in range(16 * STEPS)]
CONFIG = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
COMMON: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 16,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
}


def _train(trainer: Any) -> float:
    start = time.perf_counter()
    trainer.train()
    return time.perf_counter() - start


def run() -> list[Ratio]:
    """40 SFT steps with a log line each."""
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_initial_model(Init(model_type="llama", config=CONFIG), ROWS, folder / "model", seed=0)
        Dataset.from_list(ROWS).to_json(folder / "rows.jsonl")

        def stock() -> float:
            arguments = SFTConfig(output_dir=str(folder / "stock"), **COMMON)
            return _train(SFTTrainer(str(folder / "model"), arguments, train_dataset=Dataset.from_list(ROWS)))

        def ours() -> float:
            paths = {"model_name_or_path": str(folder / "model"), "dataset_name": str(folder / "rows.jsonl")}
            (folder / "ours").mkdir(exist_ok=True)
            recipe = parse_recipe({"trainer": "sft", "output_dir": str(folder / "ours")} | paths | COMMON)
            return _train(build_trainer(recipe, load_data(recipe)))

        return [alternate("recipe's SFT / TRL's SFT, 40 steps", stock, ours, repeats=5)]
