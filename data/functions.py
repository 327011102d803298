"""Functions that a recipe names as `module:function`."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from tokencredit.errors import InputError


def load_function(dotted: str, where: str) -> Callable[..., Any]:
    """Import the function that `module:function` names.

    Args:
        dotted: The name; the module may lie in the working directory.
        where: The recipe key it stands under, for the message.

    Raises:
        InputError: There is no such module or function, or what the name stands for cannot be called.
    """
    module, _, name = str(dotted).partition(":")
    try:
        found: Any = getattr(import_module(module), name)
    except Exception as error:  # the module is the user's: it may fail in any way
        problem = f"{dotted!r} cannot be imported ({type(error).__name__}: {error})"
        raise InputError(where, problem, "write module:function, installed or in the working directory") from error
    if not callable(found):
        raise InputError(where, f"{dotted!r} is not a function", "name one")
    return found  # type: ignore[no-any-return]
