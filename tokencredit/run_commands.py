"""Commands that run a recipe, and those around its models."""

from pathlib import Path
from typing import Annotated

import typer

from tokencredit.cluster.processes import Terminated, raise_on_sigterm
from tokencredit.console import err, input_errors, out, set_environment


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show what would run; write nothing.")] = False,
) -> None:
    """Train what a recipe says."""
    with input_errors():
        from tokencredit.recipes.files import read_recipe

        layer = read_recipe(recipe, overrides or [])
        set_environment(layer.get("env"))
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


def check(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
) -> None:
    """Check all that a run needs, here and on the nodes of its cluster; exit code 2 if anything is wrong."""
    with input_errors():
        from tokencredit.recipes.files import read_recipe

        layer = read_recipe(recipe, overrides or [])
        set_environment(layer.get("env"))
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


def submit(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of a built-in recipe.")],
    address: Annotated[str, typer.Option(help="The cluster's job server, e.g. http://head:8265.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Override keys.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, or NAME with its value here; for the job.")] = None,
    runtime_env: Annotated[Path | None, typer.Option(help="YAML with Ray's runtime environment, e.g. pip.")] = None,
) -> None:
    """Train what a recipe says on a Ray cluster: send it as a job, follow its log, end with its exit code."""
    with input_errors():
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


def merge(
    adapter: Annotated[Path, typer.Argument(help="The folder of a LoRA run or checkpoint.")],
    output: Annotated[Path, typer.Argument(help="The folder of the plain model; it must not exist.")],
) -> None:
    """Merge a LoRA adapter into its base model and save a plain model.

    The merged model can be a reference model, which an adapter alone cannot.
    """
    with input_errors():
        from tokencredit.cluster.quiet import quieten
        from tokencredit.recipes.merge import merge_adapter

        quieten()
        merge_adapter(adapter, output)
        out.print(f"saved in {output}", markup=False)


def import_gguf(
    file: Annotated[Path, typer.Argument(help="A GGUF file with a whole causal language model.")],
    output: Annotated[Path, typer.Argument(help="The folder of the model; it must not exist.")],
    dtype: Annotated[str, typer.Option(help="Precision to save in: bfloat16, float16 or float32.")] = "bfloat16",
) -> None:
    """Make a model folder of a GGUF file, for a recipe's model_name_or_path."""
    with input_errors():
        from tokencredit.cluster.quiet import quieten
        from tokencredit.recipes.gguf import import_gguf

        quieten()
        import_gguf(file, output, dtype)
        out.print(f"saved in {output}", markup=False)
