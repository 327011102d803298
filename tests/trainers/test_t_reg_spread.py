"""T-REG on two processes: the rewards, losses and gradients of one process, and as many forwards on every rank.

Tolerance 1e-6 absolute: float32 sums are taken in another order.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import config as datasets_config
from safetensors.torch import load_file

from tests.trainers.side_by_side import run_processes
from tests.trainers.test_parity import compare, zero
from tests.trainers.two_steps import run

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

OURS = "tokencredit.trainers.t_reg:TREGTrainer", "tokencredit.trainers.t_reg:TREGConfig"
SIMPO = {"base": "simpo", "beta": 0.5, "gamma": 0.5}
# One response a forward: an odd number of them leaves a rank without work at the end.
KEYS: dict[str, Any] = {"beta": 0.1, "alpha": 0.5, "reward_batch_tokens": 1}
SPREADS: dict[str, dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "ddp": {"dpo": ({}, {}), "simpo": (SIMPO, {}), "lora": ({}, {"lora": True})},
    "zero3": {
        "dpo": ({"deepspeed": zero(3)}, {}),
        "precomputed": ({"deepspeed": zero(3), "precompute_ref_log_probs": True}, {}),
        "simpo": (SIMPO | {"deepspeed": zero(3)}, {}),
        "lora": ({"deepspeed": zero(3)}, {"lora": True}),
    },
}


@pytest.fixture(scope="module")
def model(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights far from zero, so that the rewards are too."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("spread") / "model"
    found = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    found.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_chat_model).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("spread", SPREADS)
def test_two_processes(spread: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {
        name: {
            "model": str(model),
            "output_dir": str(tmp_path / name),
            "classes": OURS,
            "keys": KEYS | {"per_device_train_batch_size": 4} | keys,
            **options,
        }
        for name, (keys, options) in SPREADS[spread].items()
    }
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    cache = tmp_path / "cache"
    files = (str(tmp_path / "runs.json"), str(tmp_path / "found.safetensors"))
    run_processes("tests.trainers.two_steps", *files, str(cache))
    stores = sorted((cache / "tokencredit" / "token-rewards").iterdir())
    # Of two kinds: with an adapter the weights have other names. Sharded or not, they are the same weights.
    assert len(stores) == 2
    assert all([path.suffix for path in store.iterdir()] == [".parquet"] for store in stores)

    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "other cache")
    found = load_file(tmp_path / "found.safetensors")
    for name, (keys, options) in SPREADS[spread].items():
        ours = {key.removeprefix(f"{name}/"): value for key, value in found.items() if key.startswith(f"{name}/")}
        if spread == "zero3":
            assert ours["sharded"].all(), "every parameter must be sharded, or this is ZeRO-2"
        plain = {key: value for key, value in keys.items() if key != "deepspeed"}
        alone = run(str(model), str(tmp_path / "alone"), OURS, KEYS | plain, **options).found
        assert (alone["losses"] != alone["losses"][0]).any()
        compare(ours, alone)
    again = {path.name for path in (tmp_path / "other cache" / "tokencredit" / "token-rewards").iterdir()}
    assert again == {path.name for path in stores}
