"""The command line: parse, call, print. Heavy imports happen inside the commands."""

import sys
from typing import Annotated

import typer

from tokencredit import (
    cross_commands,
    data_commands,
    probe_commands,
    reward_commands,
    run_commands,
    shift_commands,
)
from tokencredit.console import input_errors, out
from tokencredit.errors import InputError

app = typer.Typer(
    help="Fine-tune language models with credit assigned token by token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="The recipes that ship with the package.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
reward_app = typer.Typer(help="Verifiable rewards: what there is, and trying one out.", no_args_is_help=True)
app.add_typer(reward_app, name="reward")

app.command()(run_commands.train)
app.command()(run_commands.check)
app.command()(run_commands.submit)
app.command()(data_commands.pairs)
app.command("token-rewards")(data_commands.token_rewards)
app.command("eval")(data_commands.evaluate)
app.command()(data_commands.report)
app.command("cross-sample")(cross_commands.cross_sample)
app.command()(probe_commands.probe)
app.command()(shift_commands.shift)
app.command()(run_commands.merge)
app.command("import-gguf")(run_commands.import_gguf)
reward_app.command("list")(reward_commands.list_rewards)
reward_app.command("check")(reward_commands.check_reward)


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

    with input_errors():
        known = builtin_recipes()
        if name not in known:
            raise InputError("recipes show", f"no built-in recipe {name!r}", f"there are {', '.join(known)}")
        sys.stdout.write(known[name].read_text(encoding="utf-8"))


@app.command()
def env() -> None:
    """Versions of what is installed, and the devices."""
    import platform

    from tokencredit.cluster.plan import accelerator_count, cpu_count
    from tokencredit.recipes.versions import versions

    rows = {"python": platform.python_version(), "platform": platform.platform()} | versions()
    for name, value in rows.items():
        out.print(f"{name:14} {value}")
    out.print(f"{'accelerators':14} {accelerator_count() or 'none'}")
    out.print(f"{'cpu cores':14} {cpu_count()}")
