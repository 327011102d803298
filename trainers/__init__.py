"""TRL trainers with token credit, their callbacks, and the table that a recipe's `trainer:` picks from."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any


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
    """

    trainer: str
    config: str
    columns: tuple[frozenset[str], ...]
    reference: str

    def trainer_class(self) -> Any:
        """The trainer class."""
        return load_object(self.trainer)

    def config_class(self) -> Any:
        """The configuration dataclass."""
        return load_object(self.config)


METHODS: dict[str, Method] = {
    "sft": Method(
        trainer="trl:SFTTrainer",
        config="trl:SFTConfig",
        columns=(
            frozenset({"prompt", "completion"}),
            frozenset({"messages"}),
            frozenset({"text"}),
            frozenset({"input_ids"}),
        ),
        reference="completion",
    ),
    "dpo": Method(
        trainer="trl:DPOTrainer",
        config="trl:DPOConfig",
        columns=(frozenset({"chosen", "rejected"}),),
        reference="chosen",
    ),
}
"""A new trainer is one entry here."""
