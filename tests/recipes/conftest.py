"""Models and a working directory for the tests of pairs."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.recipes.pairs_runs import BASE, MEASURES
from tokencredit.data.loading import load_split


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one, with functions that score."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "measures.py").write_text(MEASURES)


@pytest.fixture(scope="session")
def one_answer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that calls everything a street's name, whatever it is asked."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokencredit.recipes.init_model import write_initial_model
    from tokencredit.recipes.schema import Init
    from tokencredit.trainers.task_metric import question

    text = '[{"code":"Street","subcode":"Name","span":"Main"}]'
    pieces = ['[{"code":"Street","subcode":"Name","span":"', '"}]']
    config = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("constant") / "model"
    rows = list(load_split("us_addresses", "train"))
    init = Init(model_type="llama", config=config, tokenizer={"pieces": pieces})  # type: ignore[arg-type]
    write_initial_model(init, rows, folder, seed=0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    answer = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for row in random.Random(0).sample(rows, 100):
        asked = question(tokenizer, row["text"] + "\n", "").prompt_ids
        ids = torch.tensor([asked + answer])
        labels = torch.tensor([[-100] * len(asked) + answer])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def brief_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained model with every eighth token as a stop token, so that most of its answers end."""
    folder = tmp_path_factory.mktemp("brief") / "model"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": list(range(0, 288, 8))}))
    return folder


@pytest.fixture
def model_keys(one_answer: Path) -> dict[str, Any]:
    """A recipe whose model is the constant one."""
    return BASE | {"model_name_or_path": str(one_answer)}
