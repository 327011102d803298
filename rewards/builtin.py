"""The rewards that ship with the package."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from tokencredit.data.functions import load_function
from tokencredit.errors import InputError

EXTRA = "rewards"


@dataclass(frozen=True)
class Builtin:
    """A built-in reward.

    Args:
        title: One line about it.
        path: `module:function`.
        needs: The package it needs besides ours.
        checked: The function of its module that refuses what cannot run, called with where it stands and the arguments.
        cannot_hang: Whether it runs in the process that scores.
        only_in_workers: Why it may never run there, if it may not.
        bounded_by: Its argument that says after how many seconds it ends by itself.
    """

    title: str
    path: str
    needs: str | None = None
    checked: str | None = None
    cannot_hang: bool = False
    only_in_workers: str = ""
    bounded_by: str = ""

    @property
    def available(self) -> bool:
        """Whether the package it needs is installed."""
        return self.needs is None or find_spec(self.needs) is not None

    def load(self, where: str) -> Callable[..., Any]:
        """Import the function.

        Raises:
            InputError: The package it needs is missing.
        """
        if not self.available:
            problem = f"needs {self.needs}, which is not installed"
            raise InputError(where, problem, f"pip install 'tokencredit[{EXTRA}]'")
        return load_function(self.path, where)

    def check(self, where: str, arguments: dict[str, Any]) -> None:
        """Refuse arguments that cannot work.

        Raises:
            InputError: Naming the argument.
        """
        if self.checked:
            getattr(import_module(self.path.partition(":")[0]), self.checked)(where, arguments)


BUILTIN = {
    "math": Builtin(
        "answers equal as mathematics (Math-Verify); columns: answer",
        "tokencredit.rewards.math_answers:math",
        "math_verify",
    ),
    "json_records": Builtin(
        "JSON records: validity and field F1, wrong fields on their tokens; columns: records",
        "tokencredit.rewards.json_credit:json_records",
        checked="check",
        cannot_hang=True,
    ),
    "format": Builtin(
        "tags in their order, or a regular expression", "tokencredit.rewards.shape:format", checked="check_format"
    ),
    "length": Builtin(
        "distance from a target length, or DAPO's soft overlong penalty; columns: completion_ids",
        "tokencredit.rewards.shape:length",
        checked="check_length",
        cannot_hang=True,
    ),
    "code": Builtin(
        "Python programs against unit tests in a sandbox; columns: tests",
        "tokencredit.rewards.code:code",
        checked="check",
        only_in_workers="programs of a model are not run by the training process",
        bounded_by="seconds",
    ),
    "reasoning_gym": Builtin(
        "reasoning_gym:<task>, the answer scored by its task; columns: answer, metadata",
        "tokencredit.rewards.gym:reasoning_gym",
        "reasoning_gym",
        checked="check",
    ),
}


def split_name(name: Any) -> tuple[str | None, dict[str, Any]]:
    """`reasoning_gym:chain_sum` is the built-in `reasoning_gym` with `task: chain_sum`."""
    if not isinstance(name, str):
        return None, {}
    head, colon, task = name.partition(":")
    return (head, {"task": task}) if colon and head == "reasoning_gym" else (name, {})
