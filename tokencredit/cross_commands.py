"""The command that lets two models write together."""

import contextlib
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokencredit import model_options as options
from tokencredit.cluster.processes import raise_on_sigterm
from tokencredit.console import err, input_errors, out
from tokencredit.errors import InputError

if TYPE_CHECKING:
    from tokencredit.analysis.cross_models import Opened
    from tokencredit.analysis.page import Table


def cross_sample(
    primary: Annotated[str, typer.Argument(help="The model that writes: a folder or a hub name.")],
    intervention: Annotated[str, typer.Argument(help="The model whose tokens take the place of the other's.")],
    prompts: Annotated[
        str, typer.Option(help="A file, folder, built-in or hub name with `prompt` and what rewards take.")
    ],
    reward: Annotated[
        list[str] | None, typer.Option(help="A name, module:function, or a YAML file with reward_funcs.")
    ] = None,
    epsilon: Annotated[list[float] | None, typer.Option(help="Threshold of the rule's score; several sweep.")] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Share of the tokens to flag instead; several.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="Replace at most so many tokens an answer.")] = None,
    rule: Annotated[str, typer.Option(help="js, kl, tv, entropy, delta_logp, rank, random or first_k.")] = "js",
    direction: Annotated[str, typer.Option(help="forward, reverse (the models swapped) or both.")] = "both",
    num_samples: options.NumSamples = 1,
    split: options.Split = None,
    config: options.Config = None,
    limit: options.Limit = None,
    max_new_tokens: options.MaxNewTokens = 256,
    temperature: options.Temperature = 1.0,
    top_p: Annotated[float, typer.Option(help="Both sample from so much of their distribution.")] = 1.0,
    score_top_p: Annotated[
        float | None, typer.Option(help="Cut both to this before they are compared; the paper has 0.7.")
    ] = None,
    seed: options.Seed = 0,
    pilot: Annotated[int, typer.Option(help="Prompts from which thresholds for rates are taken.")] = 32,
    labels: Annotated[int, typer.Option(help="Label so many flagged positions by what comes of them.")] = 0,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the prompts.")] = 10_000,
    batch_size: options.BatchSize = 64,
    dtype: options.Dtype = "auto",
    ray: options.RayAddress = None,
    output: options.Output = Path("cross_sample"),
) -> None:
    """Replace one model's tokens by another's where they differ, and see how much of the gap between them that closes.

    The same command goes on where it was interrupted.
    """
    with input_errors(), contextlib.ExitStack() as stack:
        status = stack.enter_context(err.status("loading the libraries"))
        from tokencredit.analysis.cross_models import check_room
        from tokencredit.analysis.cross_rewards import Scorer
        from tokencredit.analysis.cross_samples import PART, Sampler, read_problems
        from tokencredit.analysis.cross_sampling import DIRECTIONS, Sweep, run_sweep
        from tokencredit.analysis.model_pair import check_dtype, shared_tokenizer
        from tokencredit.cluster.quiet import quieten
        from tokencredit.recipes.evaluation import documents
        from tokencredit.scoring.cross_decode import Decoding

        quieten()
        raise_on_sigterm()
        directions: Any = DIRECTIONS if direction == "both" else (direction,)
        sweep = Sweep(
            epsilon=tuple(epsilon or ()),
            rate=tuple(rate or ()),
            budget=tuple(budget or ()),
            directions=directions,
            pilot=pilot,
            labels=labels,
            resamples=resamples,
        )
        decoding = Decoding(rule, math.inf, None, max_new_tokens, temperature, top_p, score_top_p, seed)
        sweep.check(decoding)
        check_dtype(dtype)
        pool, weights = stack.enter_context(_rewards(reward or []))
        names = (primary, intervention)
        tokenizer = shared_tokenizer(*names)
        rows: Any = documents(prompts, split, config, limit, called="--prompts")[0]
        problems = read_problems(tokenizer, [dict(row) for row in rows])
        check_room(names, problems, max_new_tokens)
        part = max(PART, batch_size)
        status.update("loading the models")
        opened = stack.enter_context(
            _opened(names, tokenizer, batch_size, dtype, ray, -(-len(problems) * num_samples // part))
        )
        folder = output / "parts"
        sampler = Sampler(problems, num_samples, opened.decode, opened.fingerprint, folder, part, status.update)
        decoding = replace(decoding, stop_ids=opened.stop_ids)
        result = run_sweep(sampler, tokenizer, decoding, sweep, Scorer(tokenizer, problems, pool, weights))
        result.settings = {"primary": primary, "intervention": intervention, "prompts": prompts} | result.settings
        files = result.write(output, f"{Path(primary).name} × {Path(intervention).name}")
        status.stop()
        for note in result.notes:
            err.print(f"note: {note}", markup=False)
        *found, settings = result.tables()
        for table in (settings, *found):
            out.print(_shown(table))
        for file in files:
            out.print(f"written to {file}", markup=False)


@contextlib.contextmanager
def _opened(
    names: tuple[str, str], tokenizer: Any, batch_size: int, dtype: str, ray: str | None, parts: int
) -> "Iterator[Opened]":
    """The models, here or on a cluster that is left afterwards."""
    from tokencredit.analysis.cross_models import open_here

    if ray is None:
        yield open_here(names, tokenizer, batch_size, dtype)
        return
    from tokencredit.cluster.cross_ray import open_on_ray
    from tokencredit.cluster.ray_cluster import called_ray, check_address, cluster, require_ray

    with called_ray():
        require_ray()
        check_address(ray)
        with cluster(ray):
            yield open_on_ray(names, batch_size, parts, dtype)


@contextlib.contextmanager
def _rewards(given: list[str]) -> Iterator[tuple[Any, list[float] | None]]:
    """A pool of the rewards that are named, and their weights; None without any."""
    from tokencredit.recipes.files import read_recipe
    from tokencredit.recipes.rewards_schema import parse_rewards
    from tokencredit.rewards import RewardPool

    if not given:
        yield None, None
        return
    files = [name for name in given if name.endswith((".yaml", ".yml"))]
    if files and len(given) > 1:
        raise InputError("--reward", f"{files[0]!r} says all rewards", "list the others in it")
    sections = parse_rewards(read_recipe(files[0], []) if files else {"reward_funcs": given})
    settings = sections.reward_pool.model_dump() | {"stop_after": sys.maxsize}
    with RewardPool(sections.functions, **settings) as pool:
        yield pool, sections.reward_weights


def _shown(table: "Table") -> Any:
    from rich.table import Table as Rich
    from rich.text import Text

    grid = Rich(title=table.title, title_justify="left", box=None, show_header=bool(table.head))
    for column in zip(*([table.head] if table.head else []), *table.rows, strict=True):
        # A terminal that is narrower breaks the lines, which is better than breaking every cell.
        grid.add_column(column[0] if table.head else "", min_width=max(map(len, column)))
    for row in table.rows:
        grid.add_row(*map(Text, row))
    return grid
