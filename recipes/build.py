"""A recipe's parts as objects: configuration, PEFT, task metric, trainer."""

import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import MISSING, fields
from itertools import islice
from typing import Any

from tokencredit.data.boxed import boxed
from tokencredit.data.functions import load_function
from tokencredit.data.metrics import json_records
from tokencredit.errors import InputError
from tokencredit.recipes.data import RecipeData
from tokencredit.recipes.schema import Recipe, as_list
from tokencredit.recipes.versions import versions
from tokencredit.trainers.callbacks import JsonlMetrics, ProgressLines, RunEnvironment
from tokencredit.trainers.checkpoints import CheckpointManifest
from tokencredit.trainers.task_metric import Metric, TaskMetricCallback, question

TASK_METRICS: dict[str, Metric] = {"json_records": json_records, "boxed": boxed}


def build_trainer(recipe: Recipe, data: RecipeData) -> Any:
    """The TRL trainer of a recipe, with its data and callbacks."""
    from transformers import PrinterCallback, ProgressCallback
    from trl import ModelConfig, get_quantization_config

    model_args = ModelConfig(**recipe.model)
    arguments = training_arguments(recipe, model_args)
    try:
        trainer = recipe.method.trainer_class()(
            model=model_args.model_name_or_path,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.evaluation,
            quantization_config=get_quantization_config(model_args),
            peft_config=peft_config(recipe),
        )
    except InputError:
        raise
    except (ValueError, NotImplementedError) as error:
        # The constructors check their settings themselves; what fails deeper is no matter of settings.
        if traceback.extract_tb(error.__traceback__)[-1].name != "__init__":
            raise
        raise _settings_error(recipe, arguments, error) from error
    _check_kept(recipe, data.train, trainer.train_dataset)
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    # The task metric comes first: callbacks after it read the metrics it adds.
    if recipe.own.task_metric is not None and data.evaluation is not None:
        trainer.callback_handler.callbacks.insert(0, _task_metric(recipe, data.evaluation, trainer))
    trainer.add_callback(JsonlMetrics())
    trainer.add_callback(ProgressLines())
    trainer.add_callback(RunEnvironment(versions()))
    trainer.add_callback(CheckpointManifest(trainer, recipe.training.get("save_total_limit")))
    return trainer


def training_arguments(recipe: Recipe, model_args: Any) -> Any:
    """The trainer's configuration object, model keywords included as TRL's own scripts do."""
    values = dict(recipe.training)
    values.pop("resume_from_checkpoint", None)
    values.pop("save_total_limit", None)  # kept by CheckpointManifest
    keywords = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    given = values.get("model_init_kwargs") or {}
    if isinstance(given, str):
        raise InputError("model_init_kwargs", f"{given!r} is text", "write a mapping of keyword arguments")
    values["model_init_kwargs"] = keywords | given
    config = recipe.method.config_class()
    try:
        return config(**values)
    except InputError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        raise _settings_error(recipe, config, error) from error


def _check_kept(recipe: Recipe, given: Any, kept: Any) -> None:
    """Say how many rows the trainer dropped because nothing of their answer fits `max_length`."""
    if not (hasattr(given, "__len__") and hasattr(kept, "__len__")) or recipe.training.get("packing"):
        return
    dropped, limit = len(given) - len(kept), recipe.training.get("max_length", "the default")
    if not len(kept):
        raise InputError("max_length", f"{limit} leaves nothing of any answer", "raise it, or shorten the prompts")
    if dropped and os.environ.get("RANK", "0") == "0":
        print(f"note: max_length {limit} leaves nothing of {dropped} of {len(given)} answers: dropped", file=sys.stderr)


def _settings_error(recipe: Recipe, config: Any, error: Exception) -> InputError:
    """What a configuration or a trainer says of its settings, under the name of the key it speaks of."""
    message = " ".join(str(error).split())
    given = {item.name: recipe.training[item.name] for item in fields(config) if item.name in recipe.training}
    named = [name for name in given if name in message]
    quoted = [name for name, value in given.items() if any(f"'{item}'" in message for item in as_list(value))]
    where = max(named or quoted, key=len, default="trainer")
    return InputError(where, f"{recipe.training.get(where, recipe.own.trainer)!r} cannot be used", message)


def with_defaults(config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of a configuration class: those given, and the defaults of the others."""
    defaults = {
        item.name: item.default if item.default_factory is MISSING else item.default_factory()
        for item in fields(config)
    }
    return defaults | dict(values)


def peft_config(recipe: Recipe) -> Any:
    """The PEFT configuration of `peft:` or of TRL's `use_peft`/`lora_*` keys, or None."""
    from trl import ModelConfig, get_peft_config

    given = recipe.own.peft
    if given is None:
        return get_peft_config(ModelConfig(**recipe.model))
    if recipe.model.get("use_peft"):
        raise InputError("peft", "given together with use_peft", "keep one of them")
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, TaskType

    known = {item.value: PEFT_TYPE_TO_CONFIG_MAPPING[item] for item in PeftType if item in PEFT_TYPE_TO_CONFIG_MAPPING}
    name = str(given.get("peft_type", "")).upper()
    if name not in known:
        raise InputError("peft.peft_type", f"unknown method {given.get('peft_type')!r}", f"one of {', '.join(known)}")
    names = {item.name for item in fields(known[name])}
    for key in given:
        if key not in names:
            from difflib import get_close_matches

            near = get_close_matches(key, names, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"the fields of {known[name].__name__} are known"
            raise InputError(f"peft.{key}", "unknown key", remedy)
    values = {"task_type": TaskType.CAUSAL_LM} | {key: value for key, value in given.items() if key != "peft_type"}
    try:
        return known[name](**values)
    except (ValueError, TypeError) as error:
        raise InputError("peft", " ".join(str(error).split()), f"correct the fields of {name}") from None


def metric_function(name: str) -> Metric:
    """A built-in task metric, or the function that `module:function` names."""
    if name in TASK_METRICS:
        return TASK_METRICS[name]
    if ":" not in name:
        known = ", ".join(TASK_METRICS)
        raise InputError("task_metric", f"unknown metric {name!r}", f"give {known} or module:function")
    return load_function(name, "task_metric")


def _task_metric(recipe: Recipe, evaluation: Any, trainer: Any) -> TaskMetricCallback:
    spec = recipe.own.task_metric
    assert spec is not None
    rows = islice(evaluation, spec.limit)
    reference = recipe.method.reference
    questions = [question(trainer.processing_class, row["prompt"], row[reference]) for row in rows]
    return TaskMetricCallback(trainer, questions, metric_function(spec.function), spec.max_new_tokens, spec.stop_at)
