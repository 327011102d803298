"""The estimate against what a trainer's tensors take, and the shares of ZeRO's stages."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import SHORT_RUN
from tokencredit.cluster import devices
from tokencredit.cluster.memory import GIB, Memory, check_fits, count_parameters, needed_memory
from tokencredit.cluster.plan import Plan
from tokencredit.errors import InputError
from tokencredit.recipes.build import build_trainer
from tokencredit.recipes.data import load_data
from tokencredit.recipes.schema import Recipe, parse_recipe

LORA = {"use_peft": True, "lora_r": 4, "lora_target_modules": "all-linear"}


@pytest.fixture
def base(tiny_model: Path, dpo_data: Path, tmp_path: Path) -> dict[str, Any]:
    return SHORT_RUN | {
        "trainer": "dpo",
        "output_dir": str(tmp_path),
        "model_name_or_path": str(tiny_model),
        "dataset_name": str(dpo_data),
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
    }


def held(recipe: Recipe) -> Memory:
    """Bytes of the tensors that a trainer holds after a step."""
    trainer = build_trainer(recipe, load_data(recipe))
    trainer.train()
    model, reference = trainer.accelerator.unwrap_model(trainer.model), trainer.ref_model
    trained = [p for p in model.parameters() if p.requires_grad]
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]

    def size(tensors: Any) -> float:
        return float(sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.dim()))

    return Memory(
        weights=size(model.parameters()),
        gradients=size(trained),  # a gradient has the type of its parameter; they are gone after the step
        optimizer=size(states),
        reference=0.0 if reference is None else size(reference.parameters()),
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"precompute_ref_log_probs": True},
        {"optim": "sgd"},
        {"optim": "adagrad"},
        LORA,
        LORA | {"dtype": "bfloat16"},
        {"trainer": "preference", "loss": "tokencredit.losses:simpo_loss", "loss_kwargs": {"gamma": 0.5}},
    ],
    ids=str,
)
def test_one_process(base: dict[str, Any], changes: dict[str, Any]) -> None:
    recipe = parse_recipe(base | changes)
    assert needed_memory(recipe, Plan("none", 1)) == held(recipe)


def test_parameters_are_counted_without_being_made(base: dict[str, Any], tiny_model: Path) -> None:
    whole = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_model).parameters())
    full = count_parameters(parse_recipe(base))
    assert (full.frozen, full.trained) == (0, whole)
    lora = count_parameters(parse_recipe(base | LORA))
    assert lora.frozen == whole
    assert 0 < lora.trained < whole


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ddp", (4, 8, 8, 4)),
        ("zero1", (2, 2, 12 / 4, 2)),
        ("zero2", (2, 2 / 4, 12 / 4, 2)),
        ("zero3", (2 / 4, 2 / 4, 12 / 4, 2 / 4)),
        ("fsdp", (4 / 4, 4 / 4, 8 / 4, 4 / 4)),
    ],
)
def test_bytes_a_parameter_on_four_processes(base: dict[str, Any], strategy: str, expected: tuple[float, ...]) -> None:
    """bf16 with Adam: ZeRO's 2 + 2 + 12; float32 parameters under autocast elsewhere, DDP's buckets besides."""
    stage = {"deepspeed": {"zero_optimization": {"stage": int(strategy[-1])}}} if strategy[:4] == "zero" else {}
    recipe = parse_recipe(base | {"use_cpu": False, "bf16": True} | stage)
    memory = needed_memory(recipe, Plan(strategy, 4))
    assert memory is not None
    count = count_parameters(recipe).trained
    found = (memory.weights, memory.gradients, memory.optimizer, memory.reference)
    assert found == pytest.approx([count * size for size in expected])
    assert memory.total == pytest.approx(count * sum(expected))


def test_offloaded_parts_are_elsewhere(base: dict[str, Any], tmp_path: Path) -> None:
    settings = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(settings, indent="\t"))
    on_gpu = base | {"use_cpu": False}
    given = needed_memory(parse_recipe(on_gpu | {"deepspeed": settings}), Plan("zero3", 2))
    assert given is not None
    assert (given.optimizer, given.gradients) == (0, 0)
    assert given.weights > 0
    assert given == needed_memory(parse_recipe(on_gpu | {"deepspeed": str(file)}), Plan("ddp", 2))
    on_cpu = needed_memory(parse_recipe(base | {"deepspeed": settings}), Plan("zero3", 2))
    assert on_cpu is not None
    assert on_cpu.optimizer > 0, "a machine has one memory"


def test_half_precision_is_the_default_on_accelerators(base: dict[str, Any]) -> None:
    stage = {"deepspeed": {"zero_optimization": {"stage": 0}}}
    unsaid = {key: value for key, value in base.items() if key not in ("bf16", "use_cpu")} | stage
    said = unsaid | {"bf16": True}
    given = needed_memory(parse_recipe(unsaid), Plan("zero3", 1))
    assert given == needed_memory(parse_recipe(said), Plan("zero3", 1))
    assert given != needed_memory(parse_recipe(unsaid | {"bf16": False}), Plan("zero3", 1))


def test_tied_weights_count_once(base: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    counts = []
    for tied in (False, True):
        shutil.copytree(tiny_model, tmp_path / str(tied))
        (tmp_path / str(tied) / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": tied}))
        changed = base | {"model_name_or_path": str(tmp_path / str(tied))}
        counts.append(count_parameters(parse_recipe(changed)).trained)
    assert counts[0] - counts[1] == config["vocab_size"] * config["hidden_size"]


def test_what_cannot_be_known(base: dict[str, Any], tiny_model: Path, tmp_path: Path) -> None:
    assert needed_memory(parse_recipe(base), Plan("accelerate", 2, "a.yaml")) is None
    quantised = tmp_path / "quantised"
    shutil.copytree(tiny_model, quantised)
    config = json.loads((quantised / "config.json").read_text())
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))
    assert needed_memory(parse_recipe(base | {"model_name_or_path": str(quantised)}), Plan("none", 1)) is None
    scratch = {key: value for key, value in base.items() if key != "model_name_or_path"}
    assert needed_memory(parse_recipe(scratch | {"init": {"model_type": "llama"}}), Plan("none", 1)) is None


def test_places() -> None:
    memory = Memory(2 * GIB, 2 * GIB, 4 * GIB)
    assert "8.0 GiB a process (weights 2.0 GiB, gradients 2.0 GiB, optimiser 4.0 GiB;" in str(memory)
    assert str(Memory(2**20, 0, 0)).startswith("1.0 MiB a process")
    assert check_fits(memory, Plan("ddp", 2), [8 * GIB, 8 * GIB], "accelerator").endswith("accelerator has 8.0 GiB")
    check_fits(memory, Plan("ddp", 2), [16 * GIB], "machine")
    for places, what, room in (([80 * GIB], "accelerator", 1), ([15 * GIB], "machine", 1), ([7 * GIB], "machine", 0)):
        with pytest.raises(InputError, match=f"^launch: 2 under ddp need 8.0 GiB a process .* room for {room}; "):
            check_fits(memory, Plan("ddp", 2), places, what)


def test_accelerators_are_asked_through_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert devices.accelerator_bytes() == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 40960\n")
    program.chmod(0o755)
    assert devices.accelerator_bytes() == [81559 * 2**20, 40960 * 2**20]
    program.write_text("#!/bin/sh\necho no devices were found\nexit 6\n")
    assert devices.accelerator_bytes() == []


def test_memory_of_this_machine() -> None:
    assert GIB < devices.memory_bytes() < 2**50
