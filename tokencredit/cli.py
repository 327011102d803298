"""The command line: parse, call, print. Heavy imports happen inside the commands."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
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
reward_app = typer.Typer(help="Verifiable rewards: what there is, and trying one out.", no_args_is_help=True)
app.add_typer(reward_app, name="reward")

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


@app.command()
def check(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
) -> None:
    """Check all that a run needs, here and on the nodes of its cluster; exit code 2 if anything is wrong."""
    with _input_errors():
        from tokencredit.recipes.files import read_recipe

        layer = read_recipe(recipe, overrides or [])
        _set_environment(layer.get("env"))
        with err.status("checking the recipe"):
            from tokencredit.cluster.launch import examine
            from tokencredit.cluster.report import findings
            from tokencredit.recipes.schema import parse_recipe

            raise_on_sigterm()
            found = examine(parse_recipe(layer))
        for note in found.notes:
            err.print(f"note: {note}", markup=False)
        out.print(findings(found))
        for problem in found.problems():
            err.print(f"error: {problem}", style="bold red", markup=False)
        if found.problems():
            raise typer.Exit(2)


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    address: Annotated[str, typer.Option(help="The cluster's job server, e.g. http://head:8265.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, or NAME with its value here; for the job.")] = None,
    runtime_env: Annotated[Path | None, typer.Option(help="YAML with Ray's runtime environment, e.g. pip.")] = None,
) -> None:
    """Train what a recipe says on a Ray cluster: send it as a job, follow its log, end with its exit code."""
    with _input_errors():
        from tokencredit.recipes.files import read_recipe

        layer = read_recipe(recipe, overrides or [])
        with err.status("checking the recipe"):
            from tokencredit.cluster.quiet import quieten
            from tokencredit.cluster.ray_submit import left_out
            from tokencredit.cluster.ray_submit import submit as send
            from tokencredit.recipes.schema import parse_recipe

            quieten()
            raise_on_sigterm()
            checked = parse_recipe(layer)
        for name in left_out(checked):
            err.print(f"note: {name} is not sent; --env hands a variable to the job", markup=False)
        job = send(checked, address=address, variables=env or [], runtime_env=runtime_env)
        err.print(f"note: job {job.name}; `ray job stop {job.name} --address {address}` ends it", markup=False)
        try:
            code = job.follow()
        except (KeyboardInterrupt, Terminated):
            err.print(f"note: {job.name} goes on", markup=False)
            raise
        if code:
            raise typer.Exit(code)


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


@reward_app.command("list")
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


@reward_app.command("check")
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
    with _input_errors(), err.status("scoring") as status:
        import logging

        from tokencredit.analysis.reward_check import check_rewards, print_check
        from tokencredit.recipes.reward_check import load_tokenizer, read_check
        from tokencredit.rewards import RewardPool

        logging.getLogger("tokencredit").setLevel(logging.ERROR)  # failures are shown below
        raise_on_sigterm()
        sections, rows = read_check(file, overrides or [], rewards=reward or [], data=data, limit=limit)
        settings = sections.reward_pool.model_dump() | {"stop_after": sys.maxsize}
        with RewardPool(sections.functions, **settings) as pool:
            checked = check_rewards(pool, rows, load_tokenizer(tokenizer), status.update)
        status.stop()
        print_check(checked, out, samples=samples, weights=sections.reward_weights, column=column)
        if checked.batch.failures:
            raise typer.Exit(1)


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


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; curves of several are overlaid.")],
    output: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first folder.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    terminal: Annotated[bool, typer.Option("--terminal", help="Show the tokens here and write nothing.")] = False,
    column: Annotated[str | None, typer.Option(help="What colours the tokens at first, e.g. weights.")] = None,
) -> None:
    """Show the curves, settings and sampled tokens of runs, as one HTML page that loads nothing."""
    with _input_errors():
        from tokencredit.analysis.report import notes, read_runs, show_tokens, write_report

        if terminal and (output or open_page):
            raise InputError("--terminal", "writes no page", "leave out --output and --open")
        found = read_runs(runs)
        for note in notes(found):
            err.print(f"note: {note}", markup=False)
        if terminal:
            show_tokens(found, out, column)
            return
        path = write_report(found, output, column)
        out.print(f"written to {path}", markup=False)
        if open_page:
            import webbrowser

            webbrowser.open(path.resolve().as_uri())


@app.command()
def merge(
    adapter: Annotated[Path, typer.Argument(help="The folder of a LoRA run or checkpoint.")],
    output: Annotated[Path, typer.Argument(help="The folder of the plain model; it must not exist.")],
) -> None:
    """Merge a LoRA adapter into its base model and save a plain model.

    The merged model can be a reference model, which an adapter alone cannot.
    """
    with _input_errors():
        from tokencredit.cluster.quiet import quieten
        from tokencredit.recipes.merge import merge_adapter

        quieten()
        merge_adapter(adapter, output)
        out.print(f"saved in {output}", markup=False)


@app.command("import-gguf")
def import_gguf(
    file: Annotated[Path, typer.Argument(help="A GGUF file with a whole causal language model.")],
    output: Annotated[Path, typer.Argument(help="The folder of the model; it must not exist.")],
    dtype: Annotated[str, typer.Option(help="Precision to save in: bfloat16, float16 or float32.")] = "bfloat16",
) -> None:
    """Make a model folder of a GGUF file, for a recipe's model_name_or_path."""
    with _input_errors():
        from tokencredit.cluster.quiet import quieten
        from tokencredit.recipes.gguf import import_gguf

        quieten()
        import_gguf(file, output, dtype)
        out.print(f"saved in {output}", markup=False)


@app.command()
def pairs(
    recipe: Annotated[str, typer.Argument(help="A pairs recipe file, or the name of a built-in one.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show what would run; write nothing.")] = False,
) -> None:
    """Make preference pairs from labelled data and a model, as a JSONL file that `train` takes."""
    with _input_errors():
        with err.status("checking the recipe"):
            from tokencredit.cluster.launch import import_from_working_directory
            from tokencredit.cluster.quiet import quieten
            from tokencredit.recipes import pairs_report
            from tokencredit.recipes.pairs_build import make_and_save, prepare
            from tokencredit.recipes.pairs_schema import read_pairs_recipe

            quieten()
            import_from_working_directory()
            raise_on_sigterm()
            prepared = prepare(read_pairs_recipe(recipe, overrides or []), dry_run=dry_run)
        for note in prepared.notes:
            err.print(f"note: {note}", markup=False)
        if dry_run:
            out.print(pairs_report.describe(prepared), markup=False)
            return
        with err.status("making pairs"):
            made = make_and_save(prepared)
        for note in made.notes:
            err.print(f"note: {note}", markup=False)
        for part in pairs_report.result(made):
            out.print(part, markup=False)


@app.command("token-rewards")
def token_rewards(
    recipe: Annotated[str, typer.Argument(help="A recipe file with trainer: t_reg, or the name of a built-in one.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first so many training pairs.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write the pairs with their rewards to this Parquet file.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write a page with both answers of each pair, token by token.")
    ] = None,
    shuffle: Annotated[int | None, typer.Option(help="Control: shuffle each answer's rewards, by this seed.")] = None,
    from_dpo: Annotated[str | None, typer.Option(help="Ablation: the rewards that this tuned model implies.")] = None,
) -> None:
    """Compute the token rewards that a T-REG recipe trains with, keep them for it, and say what they look like."""
    with _input_errors():
        from tokencredit.recipes.files import read_recipe

        # In this process, and without a run folder.
        layer = read_recipe(recipe, [*(overrides or []), "launch=none", "resume_from_checkpoint=null"])
        _set_environment(layer.get("env"))
        with err.status("checking the recipe"), TemporaryDirectory() as folder:
            from tokencredit.cluster.launch import prepare
            from tokencredit.recipes import token_rewards as command

            raise_on_sigterm()
            command.check_files([output, html])
            checked, _, found = prepare(command.parsed(layer | {"output_dir": folder}))
        for note in found.notes:
            err.print(f"note: {note}", markup=False)
        made = command.reward(checked, found.data, limit=limit, shuffle=shuffle, from_dpo=from_dpo)
        for table in command.tables(made.figures):
            out.print(table)
        for line in command.write(made, output, html):
            out.print(line, markup=False)


@app.command("eval")
def evaluate(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Run folders or models, plain or name=path; one name for an arm's seeds."),
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder, a built-in or a hub name.")],
    split: Annotated[str | None, typer.Option(help="Default: test, and train of a single file.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the data.")] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first so many documents.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Ask all models as this recipe does, not as their own do.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where an answer without end is cut.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 32,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of the documents.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the resampling.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write everything to this JSON file.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the tables to this Markdown file.")] = None,
) -> None:
    """Score models on labelled records, with intervals and paired differences from the first."""
    with _input_errors(), err.status("loading the libraries") as status:
        from tokencredit.analysis import score_tables
        from tokencredit.analysis.scores import Settings
        from tokencredit.cluster.quiet import quieten
        from tokencredit.recipes.evaluation import evaluate_models

        quieten()
        score_tables.check_files(output, markdown)
        settings = Settings(
            data=data,
            split=split,
            config=config,
            limit=limit,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            seed=seed,
            resamples=resamples,
        )
        result = evaluate_models(models, settings, recipe=recipe, progress=status.update)
        score_tables.write(result, output, markdown)
        status.stop()
        for note in score_tables.notes(result):
            err.print(f"note: {note}", markup=False)
        for grid in score_tables.summary(result):
            out.print(grid.rich())
