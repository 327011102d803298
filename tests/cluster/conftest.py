"""Recipes that several tests run in different ways, and a Ray cluster, each made once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.curves import Line, curve, train
from tests.cluster.ray_nodes import SETTINGS, Nodes, processes_with, wait_until
from tests.conftest import SHORT_RUN, preferences, write_jsonl

os.environ.update(SETTINGS)


@pytest.fixture(scope="session")
def short_recipes(
    tiny_model: Path, sft_data: Path, dpo_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """Four steps of 8 examples each, by method."""
    # Labelled spans, so that figures per token class are compared too.
    labelled = {f"{side}_spans": [{"start": 0, "end": 2, "label": "name"}] for side in ("chosen", "rejected")}
    spans = write_jsonl(tmp_path_factory.mktemp("spans") / "train.jsonl", [row | labelled for row in preferences(64)])
    # Short, as the model's context is.
    templates = tmp_path_factory.mktemp("templates") / "short.yaml"
    templates.write_text("version: 1\nbetter: 'good {prompt} {response}'\nworse: 'bad {prompt} {response}'\n")
    common = SHORT_RUN | {"model_name_or_path": str(tiny_model), "total_train_batch_size": 8}
    return {
        "sft": common | {"trainer": "sft", "dataset_name": str(sft_data)},
        # beta 1 makes the preference loss move by tenths within four steps
        "dpo": common | {"trainer": "dpo", "dataset_name": str(dpo_data), "beta": 1.0},
        "tab_po": common | {"trainer": "tab_po", "dataset_name": str(spans), "token_weights": {"differing": 1.5}},
        "t_reg": common
        | {"trainer": "t_reg", "dataset_name": str(dpo_data), "beta": 1.0, "alpha": 0.5, "templates": str(templates)},
    }


@pytest.fixture(scope="session")
def curves(short_recipes: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Line]]:
    """The reference curves: one process, whole batches."""
    found = {}
    for name, recipe in short_recipes.items():
        folder = tmp_path_factory.mktemp(f"reference_{name}")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": "run"}))
        assert train(folder / "recipe.yaml") == 0
        found[name] = curve(folder / "run")
        assert len(found[name]) == 4
        first, last = (found[name][step]["loss"] for step in (0, 3))
        assert abs(first - last) > 0.01, "the model must move, or equal curves prove nothing"
    return found


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """A Ray cluster of two nodes with one CPU each."""
    made = Nodes()
    try:
        made.add()
        made.add()
        assert processes_with(str(made.folder)) != []
        yield made
    finally:
        made.stop()
    wait_until(lambda: processes_with(str(made.folder)) == [], seconds=10)
    assert not made.folder.exists()
