"""Two optimiser steps; loss and every gradient of each, in one process or in several.

The gradients are those the optimiser
gets: accumulated, averaged over processes, and gathered whole where they are sharded.
"""

import json
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from datasets import config as datasets_config
from peft import LoraConfig
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, TrainerCallback

from tests.conftest import SHORT_RUN, preferences

COMMON: dict[str, Any] = SHORT_RUN | {
    "max_steps": 2,
    "use_cpu": True,
    "bf16": False,
    "beta": 0.5,
    "disable_tqdm": True,
    "max_grad_norm": 0.0,
    # Adam divides by the gradient's size and would turn a last-bit difference into a whole step.
    "optim": "sgd",
    "learning_rate": 1.0,
}
STOCK = "trl:DPOTrainer", "trl:DPOConfig"
DPO = "tokencredit.trainers.weighted:WeightedDPOTrainer", "tokencredit.trainers.weighted:WeightedDPOConfig"
OURS = "tokencredit.trainers.tab_po:TABPOTrainer", "tokencredit.trainers.tab_po:TABPOConfig"


def load(dotted: str) -> Any:
    module, name = dotted.split(":")
    return getattr(import_module(module), name)


class Gradients(TrainerCallback):
    """What the optimiser is given at every step, `step/parameter` → gradient."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}
        self.step = 0

    def take(self, model: Any, gradient: Any) -> None:
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                # Wrappers differ between ways of training; a parameter does not.
                plain = name.replace("module.", "")
                self.found[f"{self.step}/{plain}"] = gradient(parameter).detach().clone().contiguous()
        self.step += 1

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not hasattr(model, "ds_config") and not args.deepspeed:
            self.take(model, lambda parameter: parameter.grad)


def watch_engine(trainer: Any, gradients: Gradients) -> None:
    """DeepSpeed steps inside `backward`: look at the gradients right before."""
    from deepspeed.utils import safe_get_full_grad

    class BeforeStep(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            engine = trainer.model_wrapped
            step = engine.step

            def watched(*args: Any, **kwargs: Any) -> Any:
                gradients.take(engine.module, safe_get_full_grad)
                return step(*args, **kwargs)

            engine.step = watched

    trainer.add_callback(BeforeStep())


def run(model: str, output_dir: str, classes: tuple[str, str], keys: dict[str, Any], **options: Any) -> Gradients:
    """Train; `options` are `lora` (bool) and `reference` (path of a separate reference model)."""
    trainer_class, config_class = map(load, classes)
    peft = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if options.get("lora") else None
    args = config_class(output_dir=output_dir, **(COMMON | keys))
    reference = options.get("reference")
    torch.manual_seed(0)  # of the adapter
    trainer = trainer_class(
        model,
        args=args,
        train_dataset=Dataset.from_list(preferences(64)),
        peft_config=peft,
        ref_model=AutoModelForCausalLM.from_pretrained(reference) if reference else None,
    )
    gradients = Gradients()
    trainer.add_callback(gradients)
    if args.deepspeed:
        watch_engine(trainer, gradients)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    gradients.found["losses"] = torch.tensor(losses)
    if args.deepspeed:
        parts = [
            (getattr(p, "ds_tensor", p).numel(), getattr(p, "ds_numel", p.numel())) for p in trainer.model.parameters()
        ]
        sharded = [part <= (whole + 1) // 2 for part, whole in parts]
        gradients.found["sharded"] = torch.tensor(sharded)
    return gradients


def main(runs_file: str, found_file: str, cache: str = "") -> None:
    """Do the runs of a file, each by name, with another cache of datasets if wanted; write what was found in them."""
    if cache:
        datasets_config.HF_DATASETS_CACHE = Path(cache)
    runs = json.loads(Path(runs_file).read_text())
    if any(settings["keys"].get("deepspeed") for settings in runs.values()):
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo")
    found = {f"{name}/{key}": value for name, s in runs.items() for key, value in run(**s).found.items()}
    if os.environ.get("RANK", "0") == "0":
        save_file(found, found_file)
