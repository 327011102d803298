"""A pair loss by name: which tensors it wants, which settings it takes, and whether it returned what it must."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokencredit.data.functions import load_function
from tokencredit.errors import InputError

Returned = tuple[Tensor, dict[str, Tensor]]

TENSORS = tuple(
    name.format(side)
    for name in ("{}_logps", "ref_{}_logps", "{}_mask", "{}_weights", "{}_rewards")
    for side in ("chosen", "rejected")
)
"""Parameters of a pair loss that the trainer fills, `[B, T]` each."""


@dataclass(frozen=True)
class PairLoss:
    """A loss ready to be called.

    Args:
        function: Takes the tensors it names of `TENSORS` and its keywords.
        name: For messages.
        wanted: The tensors it names.
        keywords: What it is called with besides.
    """

    function: Callable[..., Returned]
    name: str
    wanted: tuple[str, ...]
    keywords: dict[str, Any]

    @property
    def wants_reference(self) -> bool:
        """Whether it uses the reference's log-probabilities."""
        return any(name.startswith("ref_") for name in self.wanted)

    @property
    def wants_weights(self) -> bool:
        """Whether it uses token weights."""
        return any(name.endswith("_weights") for name in self.wanted)

    @property
    def wants_rewards(self) -> bool:
        """Whether it uses token rewards."""
        return any(name.endswith("_rewards") for name in self.wanted)

    def __call__(self, tensors: Mapping[str, Tensor], pairs: int) -> Returned:
        """Loss `[B]` and metrics, `[B]` or per chosen token `[B, T]`.

        Args:
            tensors: All of `TENSORS`, those of a reference only where it is wanted.
            pairs: B.

        Raises:
            InputError: What the function returned is something else.
        """
        returned: Any = self.function(**{name: tensors[name] for name in self.wanted}, **self.keywords)
        if not (isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], dict)):
            raise InputError("loss", f"{self.name} returned {type(returned).__name__}", "return (loss [B], metrics)")
        losses, metrics = returned
        if not (isinstance(losses, Tensor) and losses.shape == (pairs,)):
            problem = f"{self.name} returned a loss of shape {list(getattr(losses, 'shape', []))} for {pairs} pairs"
            raise InputError("loss", problem, "return one number per pair")
        shapes = (pairs,), tuple(tensors["chosen_mask"].shape)
        for name, value in metrics.items():
            if not (isinstance(value, Tensor) and tuple(value.shape) in shapes):
                given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                problem = f"{self.name} returned the metric {name!r} of shape {given}"
                raise InputError("loss", problem, f"return tensors of shape {' or '.join(str([*s]) for s in shapes)}")
        return losses, {name: value.detach() for name, value in metrics.items()}


def pair_loss(given: str | Callable[..., Any], settings: Mapping[str, Any], more: Mapping[str, Any] | None) -> PairLoss:
    """Prepare a loss.

    Args:
        given: The function, or its name as `module:function`.
        settings: The trainer's settings; those that the function names are handed on.
        more: `loss_kwargs` of the configuration.

    Raises:
        InputError: It cannot be imported or read, a keyword is none of its settings or belongs to the trainer, or it
            needs one that nobody gives.
    """
    name = given if isinstance(given, str) else given.__name__
    function = load_function(given, "loss") if isinstance(given, str) else given
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise InputError("loss", f"{name} does not say its parameters", "wrap it in a function that does") from None
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.POSITIONAL_ONLY in kinds or inspect.Parameter.VAR_POSITIONAL in kinds:
        raise InputError("loss", f"{name} takes parameters without a name", "name them: they are given by name")
    anything = inspect.Parameter.VAR_KEYWORD in kinds
    for key in more or {}:
        if key in settings:
            raise InputError(f"loss_kwargs.{key}", "is a setting of the trainer", "write it beside loss_kwargs")
        if key in TENSORS or not (anything or key in parameters):
            own = [known for known in parameters if known not in TENSORS and known not in settings]
            raise InputError(f"loss_kwargs.{key}", f"is no setting of {name}", f"it takes {', '.join(own) or 'none'}")
    keywords = {key: value for key, value in settings.items() if anything or key in parameters} | dict(more or {})
    # Rewards have to be named: there is no neutral value that stands for those that nobody gave.
    wanted = tuple(t for t in TENSORS if t in parameters or (anything and not t.endswith("_rewards")))
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if required and key not in wanted and key not in keywords:
            raise InputError("loss", f"{name} needs {key!r}", "give it under loss_kwargs")
    return PairLoss(function, name, wanted, keywords)
