"""Commands that make data, and those that look at what came out."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from tokencredit.cluster.processes import raise_on_sigterm
from tokencredit.console import err, input_errors, out, set_environment
from tokencredit.errors import InputError


def pairs(
    recipe: Annotated[str, typer.Argument(help="A pairs recipe file, or the name of a built-in one.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show what would run; write nothing.")] = False,
) -> None:
    """Make preference pairs from labelled data and a model, as a JSONL file that `train` takes."""
    with input_errors():
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
    with input_errors():
        from tokencredit.recipes.files import read_recipe

        # In this process, and without a run folder.
        layer = read_recipe(recipe, [*(overrides or []), "launch=none", "resume_from_checkpoint=null"])
        set_environment(layer.get("env"))
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
    with input_errors(), err.status("loading the libraries") as status:
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


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; curves of several are overlaid.")],
    output: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first folder.")] = None,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    terminal: Annotated[bool, typer.Option("--terminal", help="Show the tokens here and write nothing.")] = False,
    column: Annotated[str | None, typer.Option(help="What colours the tokens at first, e.g. weights.")] = None,
) -> None:
    """Show the curves, settings and sampled tokens of runs, as one HTML page that loads nothing."""
    with input_errors():
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
