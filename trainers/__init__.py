"""TRL trainers with token credit, their callbacks, and the table that a recipe's `trainer:` picks from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

_CLASSES = {
    "PreferenceConfig": "preference",
    "PreferenceTrainer": "preference",
    "SPAEConfig": "spae_config",
    "SPAETrainer": "spae",
    "TABPOConfig": "tab_po",
    "TABPOTrainer": "tab_po",
    "TREGConfig": "t_reg",
    "TREGTrainer": "t_reg",
    "TokenGRPOConfig": "token_grpo_config",
    "TokenGRPOTrainer": "token_grpo",
    "WeightedDPOConfig": "weighted",
    "WeightedDPOTrainer": "weighted",
    "WeightedSFTConfig": "weighted",
    "WeightedSFTTrainer": "weighted",
}
__all__ = [*_CLASSES]


def __getattr__(name: str) -> Any:
    """Import a class when it is asked for: the command line reads this module and needs no torch."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_CLASSES[name]}"), name)


def load_object(dotted: str) -> Any:
    """Import `module:name`."""
    module, _, name = dotted.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Method:
    """One value of `trainer:` in a recipe.

    Args:
        trainer: `module:name` of the trainer class; imported only when it is used.
        config: `module:name` of its configuration class, whose fields are the recipe's keys.
        columns: The sets of data columns it can train on; one of them must be present in full.
        reference: The column that holds the answer a task metric compares with.
        choices: Allowed values of fields whose configuration class does not say them.
    """

    trainer: str
    config: str
    columns: tuple[frozenset[str], ...]
    reference: str
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def trainer_class(self) -> Any:
        """The trainer class."""
        return load_object(self.trainer)

    def config_class(self) -> Any:
        """The configuration dataclass."""
        return load_object(self.config)


_PAIRS = (frozenset({"chosen", "rejected"}),)

_GRPO_CHOICES: Mapping[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo"),
    "scale_rewards": ("group", "batch", "none"),
}

METHODS: dict[str, Method] = {
    "sft": Method(
        trainer="tokencredit.trainers.weighted:WeightedSFTTrainer",
        config="tokencredit.trainers.weighted:WeightedSFTConfig",
        columns=(
            frozenset({"prompt", "completion"}),
            frozenset({"messages"}),
            frozenset({"text"}),
            frozenset({"input_ids"}),
        ),
        reference="completion",
    ),
    "dpo": Method(
        trainer="tokencredit.trainers.weighted:WeightedDPOTrainer",
        config="tokencredit.trainers.weighted:WeightedDPOConfig",
        columns=_PAIRS,
        reference="chosen",
        choices={
            "loss_type": (
                "sigmoid",
                "hinge",
                "ipo",
                "exo_pair",
                "nca_pair",
                "robust",
                "bco_pair",
                "sppo_hard",
                "aot",
                "aot_unpaired",
                "apo_zero",
                "apo_down",
                "discopop",
                "sft",
                "sigmoid_norm",
            )
        },
    ),
    "preference": Method(
        trainer="tokencredit.trainers.preference:PreferenceTrainer",
        config="tokencredit.trainers.preference:PreferenceConfig",
        columns=_PAIRS,
        reference="chosen",
    ),
    "tab_po": Method(
        trainer="tokencredit.trainers.tab_po:TABPOTrainer",
        config="tokencredit.trainers.tab_po:TABPOConfig",
        columns=_PAIRS,
        reference="chosen",
    ),
    "t_reg": Method(
        trainer="tokencredit.trainers.t_reg:TREGTrainer",
        config="tokencredit.trainers.t_reg:TREGConfig",
        columns=_PAIRS,
        reference="chosen",
    ),
    "token_grpo": Method(
        trainer="tokencredit.trainers.token_grpo:TokenGRPOTrainer",
        config="tokencredit.trainers.token_grpo_config:TokenGRPOConfig",
        columns=(frozenset({"prompt"}),),
        reference="completion",
        choices=_GRPO_CHOICES,
    ),
    "spae": Method(
        trainer="tokencredit.trainers.spae:SPAETrainer",
        config="tokencredit.trainers.spae_config:SPAEConfig",
        columns=(frozenset({"prompt"}),),
        reference="answer",
        choices=_GRPO_CHOICES,
    ),
}
"""A new trainer is one entry here."""
