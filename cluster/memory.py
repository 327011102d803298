"""How much memory a process of a run needs at least: weights, gradients, the optimiser's state, the reference model.

What comes on top depends on the data (activations, the communication buffers): a run that fits by this estimate may
still run out of memory, one that does not fit cannot run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokencredit.cluster.plan import Plan
from tokencredit.errors import InputError
from tokencredit.recipes.build import peft_config, with_defaults
from tokencredit.recipes.schema import Recipe, as_list

GIB = 2**30
_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# Numbers kept per trained parameter, and bytes of each (None: those of the parameter). Unlisted optimisers count as
# having none, so that the estimate stays a lower bound.
_OPTIMIZERS: dict[str, tuple[int, float | None]] = {
    "adamw_torch": (2, None),
    "adamw_torch_fused": (2, None),
    "adamw_apex_fused": (2, 4.0),
    "adamw_anyprecision": (2, None),
    "adamw_8bit": (2, 1.0),
    "adamw_bnb_8bit": (2, 1.0),
    "ademamix": (3, 4.0),
    "adagrad": (1, None),
    "rmsprop": (1, None),
    "lion_32bit": (1, 4.0),
    "lion_8bit": (1, 1.0),
    "sgd": (0, None),
}
_SHARDS = {
    "none": (),
    "ddp": (),
    "zero1": ("optimizer",),
    "zero2": ("gradients", "optimizer"),
    "zero3": ("weights", "gradients", "optimizer", "reference"),
    "fsdp": ("weights", "gradients", "optimizer", "reference"),
}


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Args:
        frozen: Those of the model that are not trained.
        trained: Those that are, adapters included.
    """

    frozen: int
    trained: int


@dataclass(frozen=True)
class Memory:
    """Bytes per process."""

    weights: float
    gradients: float
    optimizer: float
    reference: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.reference

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients": self.gradients, "optimiser": self.optimizer}
        parts |= {"reference": self.reference} if self.reference else {}
        shown = ", ".join(f"{name} {_size(value)}" for name, value in parts.items())
        return f"{_size(self.total)} a process ({shown}; activations come on top)"


def _size(value: float) -> str:
    if value < 0.1 * GIB:
        return f"{value / 2**20:.1f} MiB"
    return f"{value / GIB:.1f} GiB" if value < 10 * GIB else f"{value / GIB:.0f} GiB"


def needed_memory(recipe: Recipe, plan: Plan) -> Memory | None:
    """The memory that each process of a resolved recipe needs at least.

    Without DeepSpeed the optimiser's numbers have the type of the parameters, and DDP holds gradients a second time, in
    its buckets. DeepSpeed adds float32 parameters, their share of each process, which the optimiser works on (ZeRO,
    arXiv 1910.02054: 2 + 2 + 12 bytes a parameter with Adam in half precision, divided as the stage says).

    Returns:
        None where it cannot be known before the run: a model made of its data, one that is stored quantised, or an
        Accelerate file.
    """
    if recipe.own.init is not None or plan.strategy == "accelerate":
        return None
    config = _model_config(recipe)
    if getattr(config, "quantization_config", None) is not None:
        return None
    counts = count_parameters(recipe, config)
    stage, settings = _deepspeed(recipe)
    size = 2.0 if stage is not None and _in_half(recipe) else _stored_bytes(recipe, config)
    states, state_size = (0, None) if "optimizer" in settings else _optimizer(recipe)
    master = 0.0 if stage is None else 4.0
    trained_size = _adapter_bytes(recipe) if stage is None and _has_adapter(recipe) else size
    parts = {
        "weights": counts.frozen * _frozen_bytes(recipe, size) + counts.trained * trained_size,
        "gradients": counts.trained * trained_size * (2 if plan.strategy == "ddp" and stage is None else 1),
        "optimizer": counts.trained * (states * (state_size or (4.0 if master else trained_size)) + master),
        "reference": (counts.frozen + counts.trained) * size if _has_reference(recipe) else 0.0,
    }
    for name in _SHARDS[f"zero{stage}" if stage else plan.strategy]:
        parts[name] /= plan.num_processes
    for name in _offloaded(recipe, settings):
        parts[name] = 0.0
    return Memory(**parts)


def check_fits(memory: Memory, plan: Plan, places: list[float], what: str) -> str:
    """Refuse a run whose processes find no place.

    Args:
        memory: From `needed_memory`.
        plan: The plan.
        places: Bytes of each accelerator, which is one process's, or of each machine's memory, which several share.
        what: `accelerator` or `machine`.

    Returns:
        What is needed and what there is.

    Raises:
        InputError: The same, where it is too little.
    """
    room = sum(size >= memory.total if what == "accelerator" else int(size // max(memory.total, 1)) for size in places)
    there = f"{memory}; the largest {what} has {_size(max(places))}"
    if room < plan.num_processes:
        problem = f"{plan.num_processes} under {plan.strategy} need {there}: room for {room}"
        raise InputError("launch", problem, "launch=zero3 on more processes, use_peft=true, or dtype=bfloat16")
    return there


def count_parameters(recipe: Recipe, config: Any = None) -> Parameters:
    """Count the parameters of a recipe's model without making any of them; tied ones count once.

    Args:
        recipe: The recipe.
        config: Of its model; None reads it.

    Raises:
        InputError: When PEFT cannot put the recipe's adapter on the model.
    """
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    trust = bool(recipe.training.get("trust_remote_code", False))
    config = _model_config(recipe) if config is None else config
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
        adapter = peft_config(recipe)
        if adapter is not None:
            try:
                model = get_peft_model(model, adapter, low_cpu_mem_usage=True)
            except (ValueError, TypeError) as error:
                raise InputError("peft", " ".join(str(error).split()), "correct the adapter's settings") from None
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Parameters(sum(parameter.numel() for parameter in model.parameters()) - trained, trained)


def _has_adapter(recipe: Recipe) -> bool:
    return recipe.own.peft is not None or bool(recipe.model.get("use_peft"))


def _adapter_bytes(recipe: Recipe) -> float:
    """PEFT keeps adapters in float32; TRL brings those of quantised models to bfloat16."""
    return 2.0 if recipe.model.get("load_in_4bit") or recipe.model.get("load_in_8bit") else 4.0


def _model_config(recipe: Recipe) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(
        recipe.model["model_name_or_path"],
        revision=recipe.model.get("model_revision", "main"),
        trust_remote_code=bool(recipe.training.get("trust_remote_code", False)),
    )


def _in_half(recipe: Recipe) -> bool:
    """Whether training is in half precision; TRL's default is bfloat16, but on a CPU."""
    training = recipe.training
    bf16 = training.get("bf16")
    return bool(training.get("fp16") or (not training.get("use_cpu") if bf16 is None else bf16))


def _stored_bytes(recipe: Recipe, config: Any) -> float:
    given = (recipe.training.get("model_init_kwargs") or {}).get("dtype") or recipe.model.get("dtype", "float32")
    return _BYTES.get(str(config.dtype if given == "auto" else given).removeprefix("torch."), 4.0)


def _frozen_bytes(recipe: Recipe, size: float) -> float:
    if recipe.model.get("load_in_4bit"):
        return 0.5
    return 1.0 if recipe.model.get("load_in_8bit") else size


def _optimizer(recipe: Recipe) -> tuple[int, float | None]:
    return _OPTIMIZERS.get(str(recipe.training.get("optim", "adamw_torch_fused")), (0, None))


def _deepspeed(recipe: Recipe) -> tuple[int | None, dict[str, Any]]:
    """The stage of ZeRO, None without DeepSpeed, and DeepSpeed's settings."""
    given = recipe.training.get("deepspeed")
    if given is None:
        return None, {}
    if isinstance(given, str):
        given = json.loads(given if given.lstrip().startswith("{") else Path(given).read_text(encoding="utf-8"))
    return int(given.get("zero_optimization", {}).get("stage", 0)), given


def _offloaded(recipe: Recipe, deepspeed: dict[str, Any]) -> list[str]:
    """The parts that lie in main memory or on disk; on a CPU that is the same memory."""
    if recipe.training.get("use_cpu"):
        return []
    fsdp = recipe.training.get("fsdp_config") or {}
    if isinstance(fsdp, dict) and fsdp.get("cpu_offload"):
        return ["weights", "gradients", "optimizer", "reference"]
    zero = deepspeed.get("zero_optimization", {})
    elsewhere = {"offload_optimizer": ("optimizer", "gradients"), "offload_param": ("weights", "reference")}
    return [
        part
        for key, parts in elsewhere.items()
        if (zero.get(key) or {}).get("device", "none") != "none"
        for part in parts
    ]


def _has_reference(recipe: Recipe) -> bool:
    """Whether a second model is held: the frozen reference, where no adapter of the policy can be switched off."""
    config = recipe.method.config_class()
    if "precompute_ref_log_probs" not in config.__dataclass_fields__:
        return False
    if recipe.training.get("precompute_ref_log_probs") or _has_adapter(recipe):
        return False
    pair_loss = getattr(config, "pair_loss", None)
    if pair_loss is None:
        return as_list(recipe.training.get("loss_type", "sigmoid")) != ["sft"]
    return bool(pair_loss(with_defaults(config, recipe.training)).wants_reference)
