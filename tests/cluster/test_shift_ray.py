"""A comparison on a cluster of two nodes is the one that this process makes."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tests.cluster.ray_nodes import Nodes
from tests.conftest import answers, write_jsonl
from tokencredit.analysis.models import load_tokenizer
from tokencredit.analysis.shift import Scoring
from tokencredit.analysis.shift_run import Request, run
from tokencredit.analysis.trajectories import read_trajectories
from tokencredit.cli import app
from tokencredit.cluster.shift_ray import ray_scorer


@pytest.mark.distributed
def test_the_same_on_two_nodes(nodes: Nodes, tiny_model: Path, tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(tiny_model, tuned)
    model = AutoModelForCausalLM.from_pretrained(tuned)
    torch.manual_seed(0)
    with torch.no_grad():
        model.lm_head.weight += 0.1 * torch.randn_like(model.lm_head.weight)
    model.save_pretrained(tuned)
    rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in answers(12)]
    tokenizer = load_tokenizer(str(tiny_model))
    given = read_trajectories(write_jsonl(tmp_path / "stored.jsonl", rows), tokenizer)
    torch.set_num_threads(1)
    written = {}
    for name, scorer in (("here", None), ("ray", ray_scorer(nodes.address))):
        request = Request(str(tiny_model), {"tuned": str(tuned)}, given, tmp_path / name, scoring=Scoring(shard=3))
        found = run(request, tokenizer, scorer=scorer)
        assert len(found.table) > 12
        written[name] = [(tmp_path / name / file).read_bytes() for file in ("shift.parquet", "shift.json")]
    assert written["here"] == written["ray"], "to the byte"


def test_wrong_addresses_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    stored = write_jsonl(tmp_path / "stored.jsonl", [{"prompt": "a", "completion": "b"}])
    words = [
        "shift",
        str(tiny_model),
        f"t={tiny_model}",
        "--trajectories",
        str(stored),
        "--output",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(app, [*words, "--ray", "http://127.0.0.1:8265"])
    assert done.exit_code == 2
    assert "error: --ray: 'http://127.0.0.1:8265' is a job server" in done.stderr
