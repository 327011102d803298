"""What the configurations of trainers with token weights share: the field, and that fields are checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokencredit.data.weighters import from_recipe


@dataclass
class TokenWeighted:
    """Put before a configuration of TRL's: adds `token_weights`, and checks the fields of every object.

    Args:
        token_weights: What `tokencredit.data.weighters.from_recipe` takes.
    """

    token_weights: dict[str, Any] | None = field(default=None, metadata={"help": "Weights of response tokens."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]
        self.refuse(vars(self))

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """Check fields, without making a configuration: that would start the accelerator.

        Raises:
            InputError: Naming the field that cannot be used.
        """
        if values["token_weights"] is not None:
            from_recipe(values["token_weights"])
