"""From a recipe and a machine to processes."""

import json
from pathlib import Path
from typing import Any

import pytest

from tokencredit.cluster import plan
from tokencredit.cluster.plan import Plan, config_file, resolve
from tokencredit.errors import InputError
from tokencredit.recipes.schema import Recipe, parse_recipe


def recipe(**keys: Any) -> Recipe:
    return parse_recipe({"trainer": "sft", "output_dir": "/runs/a"} | keys)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "accelerator_count", lambda: 4)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "accelerator_count", lambda: 0)
    monkeypatch.setattr(plan, "cpu_count", lambda: 4)


def launch(strategy: str, processes: int | None = None) -> dict[str, Any]:
    return {"launch": {"strategy": strategy, "num_processes": processes}}


def test_cpu_is_said_and_float32(cores: None) -> None:
    resolved, _, notes = resolve(recipe())
    assert resolved.training["use_cpu"] is True
    assert resolved.training["bf16"] is False
    assert notes == ["no accelerator here: training on CPU in float32"]


def test_precision_of_the_recipe_stays(cores: None) -> None:
    resolved, _, notes = resolve(recipe(use_cpu=True, bf16=True))
    assert resolved.training["bf16"] is True
    assert notes == []


def test_accelerator_keeps_the_defaults(gpus: None) -> None:
    resolved, made, notes = resolve(recipe(**launch("ddp")))
    assert made == Plan("ddp", 4)
    assert not {"use_cpu", "bf16"} & set(resolved.training)
    assert notes == []


def test_processes_up_to_what_is_there(gpus: None) -> None:
    assert resolve(recipe(**launch("zero3", 2)))[1] == Plan("zero3", 2)
    with pytest.raises(InputError, match="5 is more than this machine has; 4 accelerators here"):
        resolve(recipe(**launch("ddp", 5)))


def test_the_precision_that_is_said_is_that_of_the_model(cores: None) -> None:
    assert resolve(recipe(dtype="bfloat16"))[2] == ["no accelerator here: training on CPU"]


def test_dry_run_plans_what_needs_accelerators_for_another_machine(cores: None) -> None:
    for strategy, processes, count in (("zero3", None, 1), ("zero3", 8, 8), ("fsdp", 2, 2)):
        resolved, made, notes = resolve(recipe(**launch(strategy, processes)), dry_run=True)
        assert made == Plan(strategy, count)
        assert not {"use_cpu", "bf16"} & set(resolved.training)
        assert [note.partition(":")[0] for note in notes] == ["no accelerator here"]
    resolved, made, notes = resolve(recipe(**launch("ddp", 2)), dry_run=True)
    assert made == Plan("ddp", 2)
    assert resolved.training["use_cpu"] is True, "what can run on these cores is planned for them"
    with pytest.raises(InputError, match="8 is more than this machine has"):
        resolve(recipe(use_cpu=True, **launch("ddp", 8)), dry_run=True)


def test_dry_run_plans_for_the_accelerators_that_are_here(gpus: None) -> None:
    assert resolve(recipe(**launch("zero3")), dry_run=True)[1] == Plan("zero3", 4)
    with pytest.raises(InputError, match="5 is more than this machine has"):
        resolve(recipe(**launch("zero3", 5)), dry_run=True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_settings(stage: int, cores: None) -> None:
    mine = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    resolved, _, _ = resolve(recipe(**launch(f"zero{stage}", 2), deepspeed=mine))
    settings = resolved.training["deepspeed"]
    assert settings["zero_optimization"]["stage"] == stage
    assert settings["zero_optimization"]["stage3_param_persistence_threshold"] == 0
    assert settings["train_batch_size"] == "auto"


def test_zero_file_is_used_as_it_is(cores: None) -> None:
    resolved, made, _ = resolve(recipe(**launch("ddp", 2), deepspeed="/zero.json"))
    assert resolved.training["deepspeed"] == "/zero.json"
    assert made == Plan("ddp", 2)
    with pytest.raises(InputError, match="deepspeed: a file together with launch=zero2"):
        resolve(recipe(**launch("zero2", 2), deepspeed="/zero.json"))


def test_fsdp_settings(gpus: None) -> None:
    resolved, _, _ = resolve(recipe(**launch("fsdp"), fsdp_config={"reshard_after_forward": False}))
    assert resolved.training["fsdp"] is True
    assert resolved.training["fsdp_config"]["reshard_after_forward"] is False
    assert resolved.training["fsdp_config"]["version"] == 2


@pytest.mark.parametrize(
    ("strategy", "per_device", "steps"), [("none", 16, 1), ("none", 4, 4), ("ddp", 4, 1), ("ddp", 2, 2)]
)
def test_same_total_batch_on_any_number_of_processes(strategy: str, per_device: int, steps: int, cores: None) -> None:
    processes = 4 if strategy == "ddp" else None
    keys = launch(strategy, processes) | {"per_device_train_batch_size": per_device, "total_train_batch_size": 16}
    resolved, _, _ = resolve(recipe(**keys))
    assert resolved.training["gradient_accumulation_steps"] == steps
    again, _, _ = resolve(resolved)
    assert again == resolved, "a resolved recipe resolves to itself"


def test_total_batch_that_contradicts(cores: None) -> None:
    with pytest.raises(InputError, match="total_train_batch_size: 16 is not 8 x 1 process x 3"):
        resolve(recipe(total_train_batch_size=16, gradient_accumulation_steps=3))


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_deepspeed_reads_the_shipped_settings(name: str) -> None:
    """Every key is one that the installed DeepSpeed knows: its models refuse others."""
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = json.loads(config_file(f"{name}.json").read_text())
    fixed = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1}
    fixed |= {"gradient_clipping": 1.0, "bf16": {"enabled": False}, "fp16": {"enabled": False}}
    zero = {key: 1000 if value == "auto" else value for key, value in settings["zero_optimization"].items()}
    assert set(settings) - set(fixed) == {"zero_optimization", "steps_per_print"}
    config = DeepSpeedConfig(settings | fixed | {"zero_optimization": zero})
    assert config.zero_optimization_stage == int(name[-1])
    if name == "zero3":
        assert config.zero_config.gather_16bit_weights_on_model_save is True, "or a saved model has no weights"


def test_transformers_reads_the_shipped_fsdp_settings(tmp_path: Path) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin
    from transformers import TrainingArguments

    settings = json.loads(config_file("fsdp.json").read_text())
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, fsdp=True, fsdp_config=dict(settings))
    plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.cpu_ram_efficient_loading is True
    assert str(plugin.state_dict_type).endswith("FULL_STATE_DICT")
