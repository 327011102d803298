"""How many processes of which kind a recipe becomes, and the settings that follow from the machine."""

import json
import os
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokencredit.errors import InputError
from tokencredit.recipes.files import load_yaml, merge
from tokencredit.recipes.schema import Launch, Recipe

STRATEGIES = ("none", "ddp", "zero1", "zero2", "zero3", "fsdp")


@dataclass(frozen=True)
class Plan:
    """The processes of a run: on this machine, or the workers of `launch.ray`.

    Args:
        strategy: One of `STRATEGIES`, or `accelerate` for a configuration file of Accelerate's.
        num_processes: How many.
        accelerate_file: That file, or None.
    """

    strategy: str
    num_processes: int
    accelerate_file: str | None = None


def config_file(name: str) -> Path:
    """A configuration that ships with the package, e.g. `zero3.json`."""
    return Path(str(files("tokencredit.cluster"))) / "configs" / name


def accelerator_count() -> int:
    """Accelerators visible to this process (0 on a CPU machine); none of them is touched."""
    import torch

    return int(torch.accelerator.device_count()) if torch.accelerator.is_available() else 0


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve(recipe: Recipe, *, dry_run: bool = False) -> tuple[Recipe, Plan, list[str]]:
    """Fill in what depends on the machine and refuse what cannot run on it.

    Args:
        recipe: A checked recipe.
        dry_run: Where there is no accelerator, plan what needs some for a machine that has them.

    Returns:
        The recipe with the settings that its launch strategy implies, the plan, and one line for each
        setting that was chosen because of the machine.

    Raises:
        InputError: When the strategy is unknown or cannot do here what it says.
    """
    on_cpu = bool(recipe.training.get("use_cpu", False)) or accelerator_count() == 0
    plan = _plan_elsewhere(recipe) if dry_run else None
    if plan is not None:
        on_cpu, many = False, f"{plan.num_processes} of them, one process each"
        shown = "one process per accelerator, shown for one" if recipe.own.launch.num_processes is None else many
        notes = [f"no accelerator here: planned for a machine that has some ({plan.strategy}, {shown})"]
    else:
        recipe, notes = device_defaults(recipe, on_cpu)
        plan = _plan(recipe.own.launch, on_cpu)
    _refuse_surprises(plan, on_cpu)
    return complete(recipe, plan), plan, notes


def complete(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe with the settings that its plan implies: what shards the model, and accumulation steps.

    Raises:
        InputError: When the plan and settings of the recipe contradict each other.
    """
    _check_deepspeed(recipe, plan)
    return _with_batch(_with_sharding(recipe, plan.strategy), plan.num_processes)


def device_defaults(recipe: Recipe, on_cpu: bool) -> tuple[Recipe, list[str]]:
    """TRL's default precision is bfloat16 on an accelerator; without one the trainer would refuse to start."""
    if not on_cpu:
        return recipe, []
    changes: dict[str, Any] = {}
    if "use_cpu" not in recipe.training:
        changes["use_cpu"] = True
    if "bf16" not in recipe.training and "fp16" not in recipe.training:
        changes["bf16"] = False
    whole = "bf16" in changes and recipe.model.get("dtype", "float32") == "float32"
    note = "no accelerator here: training on CPU" + (" in float32" if whole else "")
    return recipe.with_training(**changes), [note] if changes else []


def _plan_elsewhere(recipe: Recipe) -> Plan | None:
    """The plan for a machine with accelerators, if there is none here and CPU cores cannot stand in for them."""
    strategy, asked = recipe.own.launch.strategy, recipe.own.launch.num_processes
    if recipe.training.get("use_cpu") or accelerator_count() or strategy not in STRATEGIES or strategy == "none":
        return None
    if strategy != "fsdp" and asked is not None and asked <= cpu_count():
        return None
    _require_libraries(strategy)
    return Plan(strategy, asked or 1)


def _plan(launch: Launch, on_cpu: bool) -> Plan:
    strategy, asked = launch.strategy, launch.num_processes
    if strategy.endswith((".yaml", ".yml", ".json")):
        return _accelerate_plan(Path(strategy), asked, on_cpu)
    check_strategy(launch, on_cpu)
    if strategy == "none":
        return Plan("none", 1)
    available, unit = (cpu_count(), "CPU core") if on_cpu else (accelerator_count(), "accelerator")
    if asked is not None and asked > available:
        plural = "" if available == 1 else "s"
        raise InputError(
            "launch.num_processes", f"{asked} is more than this machine has", f"{available} {unit}{plural} here"
        )
    return Plan(strategy, asked or available)


def check_strategy(launch: Launch, on_cpu: bool) -> None:
    """Refuse a strategy that is not known, cannot do on this device what it says, or lacks a count or a library.

    Raises:
        InputError: Naming it.
    """
    strategy, asked = launch.strategy, launch.num_processes
    if strategy not in STRATEGIES:
        known = ", ".join(STRATEGIES)
        raise InputError("launch.strategy", f"unknown strategy {strategy!r}", f"one of {known}, or an Accelerate file")
    if strategy == "none":
        if asked not in (None, 1):
            raise InputError(
                "launch.num_processes", f"{asked} processes with strategy none", "set launch=ddp or a zero stage"
            )
        return
    _require_libraries(strategy)
    if strategy == "fsdp" and on_cpu:
        raise InputError("launch.strategy", "fsdp does not shard on CPU", "use ddp, zero1, zero2 or zero3 on CPU")
    if asked is None and on_cpu:
        raise InputError("launch.num_processes", f"is missing for {strategy} on CPU", "say how many, at most the cores")


def _require_libraries(strategy: str) -> None:
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        raise InputError("launch.strategy", f"{strategy} needs DeepSpeed", "pip install 'tokencredit[deepspeed]'")


def _accelerate_plan(path: Path, asked: int | None, on_cpu: bool) -> Plan:
    if not path.is_file():
        raise InputError(
            "launch.strategy", f"no Accelerate file {str(path)!r}", f"give a file or {', '.join(STRATEGIES)}"
        )
    config = load_yaml(path)
    kind = str(config.get("distributed_type", "NO")).upper()
    processes = asked or int(config.get("num_processes", 1))
    if kind == "DEEPSPEED":
        _require_libraries("zero")
    cpu_only = on_cpu or bool(config.get("use_cpu"))
    if cpu_only and kind in ("NO", "MULTI_CPU") and processes > 1:
        # `accelerate launch` starts one process here and says nothing.
        raise InputError(
            "launch.strategy",
            f"{path.name} asks Accelerate for {processes} CPU processes and would get one",
            "launch=ddp",
        )
    if cpu_only and kind in ("MULTI_GPU", "FSDP"):
        raise InputError("launch.strategy", f"{path.name} is {kind}, which needs accelerators", "use launch=ddp on CPU")
    return Plan("accelerate", processes, str(path))


def _refuse_surprises(plan: Plan, on_cpu: bool) -> None:
    if plan.strategy == "none" and not on_cpu and accelerator_count() > 1:
        raise InputError(
            "launch.strategy",
            f"one process sees {accelerator_count()} accelerators and would spread over all of them",
            "set launch=ddp, or CUDA_VISIBLE_DEVICES=0",
        )


def _check_deepspeed(recipe: Recipe, plan: Plan) -> None:
    given = recipe.training.get("deepspeed")
    if given is None:
        return
    _require_libraries("deepspeed in the recipe")
    if plan.strategy == "none":
        raise InputError("deepspeed", "given with one plain process", "set launch=ddp, or launch=zero3 without a file")
    if plan.strategy.startswith("zero") and isinstance(given, str):
        raise InputError(
            "deepspeed", f"a file together with launch={plan.strategy}", "set launch=ddp to use the file as it is"
        )


def _with_sharding(recipe: Recipe, strategy: str) -> Recipe:
    """The `deepspeed` or `fsdp` settings of a strategy; a mapping in the recipe is laid over the shipped one."""
    if strategy.startswith("zero"):
        shipped = json.loads(config_file(f"{strategy}.json").read_text(encoding="utf-8"))
        return recipe.with_training(deepspeed=merge(shipped, recipe.training.get("deepspeed") or {}))
    if strategy == "fsdp":
        shipped = json.loads(config_file("fsdp.json").read_text(encoding="utf-8"))
        given = recipe.training.get("fsdp_config") or {}
        return recipe.with_training(fsdp=True, fsdp_config=given if isinstance(given, str) else merge(shipped, given))
    return recipe


def _with_batch(recipe: Recipe, processes: int) -> Recipe:
    """`total_train_batch_size` as accumulation steps, whatever the number of processes."""
    total = recipe.own.total_train_batch_size
    if total is None:
        return recipe
    per_step = int(recipe.training.get("per_device_train_batch_size", 8)) * processes
    if total % per_step:
        raise InputError(
            "total_train_batch_size",
            f"{total} is not a multiple of per_device_train_batch_size x processes = {per_step}",
            "change one of the three",
        )
    steps = total // per_step
    given = recipe.training.get("gradient_accumulation_steps", steps)
    if given != steps:
        product = f"{per_step // processes} x {processes} process{'es' if processes > 1 else ''} x {given} accumulated"
        raise InputError("total_train_batch_size", f"{total} is not {product}", "remove gradient_accumulation_steps")
    return recipe.with_training(gradient_accumulation_steps=steps)
