"""Commands that try rewards out."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from tokencredit.cluster.processes import raise_on_sigterm
from tokencredit.console import err, input_errors, out


def list_rewards() -> None:
    """The built-in rewards and the adapters."""
    from rich.table import Table

    from tokencredit.rewards.adapters import ADAPTERS
    from tokencredit.rewards.builtin import BUILTIN, EXTRA

    table = Table("reward", "what it does", box=None)
    for name, builtin in BUILTIN.items():
        missing = "" if builtin.available else f" (pip install 'tokencredit[{EXTRA}]')"
        table.add_row(name, builtin.title + missing)
    table.add_row("module:function", "your own, installed or in the working directory")
    table.add_row("", f"adapters for functions of other toolkits: {', '.join(ADAPTERS)}")
    out.print(table, markup=False)


def check_reward(
    file: Annotated[str, typer.Argument(help="A recipe with reward_funcs, or rows to score (.jsonl, .csv, .parquet).")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
    reward: Annotated[list[str] | None, typer.Option(help="Use this reward, a name or module:function.")] = None,
    data: Annotated[str | None, typer.Option(help="Rows with `completion`, where the recipe has no samples.")] = None,
    limit: Annotated[int | None, typer.Option(help="Score the first so many rows.")] = None,
    samples: Annotated[int, typer.Option(help="Show so many of them in full.")] = 8,
    tokenizer: Annotated[str | None, typer.Option(help="A model's folder: tokens instead of text.")] = None,
    column: Annotated[str | None, typer.Option(help="The reward that colours the text.")] = None,
) -> None:
    """Score completions as training would: values, pieces in colour, seconds per sample, failures."""
    with input_errors(), err.status("scoring") as status, _failures_not_logged():
        from tokencredit.analysis.reward_check import check_rewards, print_check
        from tokencredit.recipes.reward_check import load_tokenizer, read_check
        from tokencredit.rewards import RewardPool

        raise_on_sigterm()
        sections, rows = read_check(file, overrides or [], rewards=reward or [], data=data, limit=limit)
        settings = sections.reward_pool.model_dump() | {"stop_after": sys.maxsize}
        with RewardPool(sections.functions, **settings) as pool:
            checked = check_rewards(pool, rows, load_tokenizer(tokenizer), status.update)
        status.stop()
        print_check(checked, out, samples=samples, weights=sections.reward_weights, column=column)
        if checked.batch.failures:
            raise typer.Exit(1)


@contextlib.contextmanager
def _failures_not_logged() -> Iterator[None]:
    """They are shown."""
    logger = logging.getLogger("tokencredit")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
