"""The command line: parse, call, print. Heavy imports happen inside the commands."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tokencredit.cluster.processes import Terminated, raise_on_sigterm
from tokencredit.errors import InputError

app = typer.Typer(
    help="Fine-tune language models with credit assigned token by token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The recipes that ship with the package.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def _input_errors() -> Iterator[None]:
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


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show what would run; write nothing.")] = False,
) -> None:
    """Train what a recipe says."""
    with _input_errors():
        from tokencredit.recipes.files import read_recipe

        layer = read_recipe(recipe, overrides or [])
        _set_environment(layer.get("env"))
        with err.status("checking the recipe"):
            from tokencredit.cluster.launch import launch, prepare
            from tokencredit.recipes.schema import parse_recipe

            raise_on_sigterm()
            checked, plan, found = prepare(parse_recipe(layer), dry_run=dry_run)
        for note in found.notes:
            err.print(f"note: {note}", markup=False)
        if dry_run:
            from tokencredit.cluster.report import describe

            out.print(describe(checked, plan, found), markup=False)
            return
        code = launch(checked, plan, found)
        if code:
            raise typer.Exit(code)
        from tokencredit.cluster.report import scores

        table = scores(checked)
        if table is not None:
            out.print(table)
        out.print(f"saved in {checked.output_dir}", markup=False)


def _set_environment(variables: object) -> None:
    if variables is None:
        return
    if not isinstance(variables, dict):
        raise InputError("env", f"{variables!r} is not a mapping", "write NAME: value lines")
    os.environ.update({str(name): str(value) for name, value in variables.items()})


@recipes_app.command("list")
def list_recipes() -> None:
    """Names and first lines of the built-in recipes."""
    from rich.table import Table

    from tokencredit.recipes.files import recipe_titles

    table = Table("recipe", "what it does", box=None)
    for name, title in recipe_titles():
        table.add_row(name, title)
    out.print(table)


@recipes_app.command("show")
def show_recipe(name: Annotated[str, typer.Argument(help="A name from `recipes list`.")]) -> None:
    """Print a built-in recipe, to be copied and changed."""
    from tokencredit.recipes.files import builtin_recipes

    with _input_errors():
        known = builtin_recipes()
        if name not in known:
            raise InputError("recipes show", f"no built-in recipe {name!r}", f"there are {', '.join(known)}")
        sys.stdout.write(known[name].read_text(encoding="utf-8"))


@app.command()
def env() -> None:
    """Versions of what is installed, and the devices."""
    import platform

    from tokencredit.cluster.plan import accelerator_count, cpu_count
    from tokencredit.recipes.build import versions

    rows = {"python": platform.python_version(), "platform": platform.platform()} | versions()
    for name, value in rows.items():
        out.print(f"{name:14} {value}")
    out.print(f"{'accelerators':14} {accelerator_count() or 'none'}")
    out.print(f"{'cpu cores':14} {cpu_count()}")


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="The folder of a LoRA run or checkpoint.")],
    output: Annotated[Path, typer.Argument(help="The folder of the plain model; it must not exist.")],
) -> None:
    """Merge a LoRA adapter into its base model and save a plain model.

    The merged model can be a reference model, which an adapter alone cannot.
    """
    with _input_errors():
        from tokencredit.recipes.merge import merge_adapter

        merge_adapter(adapter, output)
        out.print(f"saved in {output}", markup=False)
