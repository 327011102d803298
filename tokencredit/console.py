"""What the commands print to, and how wrong input ends them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from tokencredit.cluster.processes import Terminated
from tokencredit.errors import InputError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def input_errors() -> Iterator[None]:
    """Turn wrong input into one line and exit code 2."""
    try:
        yield
    except InputError as error:
        err.print(f"error: {error}", style="bold red", markup=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        err.print("interrupted")
        raise typer.Exit(130) from None
    except Terminated:
        err.print("terminated")
        raise typer.Exit(143) from None


def set_environment(variables: object) -> None:
    """Set the variables of a recipe's `env` section."""
    if variables is None:
        return
    if not isinstance(variables, dict):
        raise InputError("env", f"{variables!r} is not a mapping", "write NAME: value lines")
    os.environ.update({str(name): str(value) for name, value in variables.items()})
