"""Seconds from a command to the first step of training: two processes with Ray and without."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from datasets import Dataset

from tests.benchmarks.pairs import Ratio, alternate
from tokencredit.recipes.init_model import write_initial_model
from tokencredit.recipes.schema import Init

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(16)]
CONFIG = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
RECIPE = {
    "trainer": "sft",
    "model_name_or_path": "model",
    "dataset_name": "rows.jsonl",
    "max_steps": 1,
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "launch": {"strategy": "ddp", "num_processes": 2},
}


def _seconds(folder: Path, *words: str) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as run:
        command = [sys.executable, "-m", "tokencredit", "train", "recipe.yaml", f"output_dir={run}", *words]
        start = time.perf_counter()
        with subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step 1/1"):
                    seconds = time.perf_counter() - start
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return seconds


def run() -> list[Ratio]:
    """`launch.ray=local` against PyTorch's launcher; Ray starts a cluster, and eight processes besides the workers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_initial_model(Init(model_type="llama", config=CONFIG), ROWS, folder / "model", seed=0)
        Dataset.from_list(ROWS).to_json(folder / "rows.jsonl")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        return [
            alternate(
                "command to first step, Ray / local",
                lambda: _seconds(folder),
                lambda: _seconds(folder, "launch.ray=local"),
                repeats=3,
            )
        ]
