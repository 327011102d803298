"""The command that shows where responses reach their answer."""

from pathlib import Path
from typing import Annotated

import typer

from tokencredit.console import err, input_errors, out


def probe(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL... PROBLEMS", help="Models, plain or name=path (one name for an arm's seeds)."),
    ],
    split: Annotated[str | None, typer.Option(help="Default: test, and train of a single file.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration of the problems.")] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first so many problems.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Ask all models as this recipe does, and probe with its template and columns.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="What is put after a step; \\n is a line break.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column with the right answer.")] = None,
    mode: Annotated[str, typer.Option(help="forced; or sampled, which compares both.")] = "forced",
    num_samples: Annotated[int, typer.Option(help="Answers after each step in mode sampled.")] = 5,
    saturation: Annotated[float, typer.Option(help="Potential above which the answer counts as found.")] = 0.9,
    reflection: Annotated[str | None, typer.Option(help="Pattern of a step that looks back.")] = None,
    against: Annotated[list[str] | None, typer.Option(help="Compare with this model (repeatable).")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where a response without end is cut.")] = 256,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 64,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Of sampled answers and of the resampling.")] = 0,
    show: Annotated[int, typer.Option(help="Show so many responses of the first model here.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Write everything to this JSON file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page: curves, tables, tokens coloured by step.")] = None,
) -> None:
    """Probe the steps of models' responses: where the answer is there, and what is thought after that."""
    with input_errors(), err.status("loading the libraries") as status:
        from tokencredit.analysis import probe_report
        from tokencredit.analysis.probe import REFLECTION, checked_pattern
        from tokencredit.analysis.probe_models import ProbeSettings
        from tokencredit.analysis.terminal import show as show_tokens
        from tokencredit.cluster.quiet import quieten
        from tokencredit.errors import InputError
        from tokencredit.recipes.evaluation import labelled
        from tokencredit.recipes.probe import probe_models
        from tokencredit.recipes.token_rewards import check_files
        from tokencredit.recipes.versions import versions

        quieten()
        if len(models) < 2:
            raise InputError("PROBLEMS", "are missing", "give one or several models, and then the problems")
        check_files([output, html])
        pattern = checked_pattern(REFLECTION if reflection is None else reflection)
        if unknown := set(against or []) - {label for label, _ in labelled(models[:-1])}:
            raise InputError("--against", f"no model is called {min(unknown)!r}", "give the name of one")
        settings = ProbeSettings(
            mode=mode,
            limit=limit,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            saturation=saturation,
            num_samples=num_samples,
            seed=seed,
            resamples=resamples,
        )
        given = {
            "probe_template": None if template is None else template.replace("\\n", "\n"),
            "answer_column": answer_column,
        }
        *named, problems = models
        probed = probe_models(
            named,
            problems,
            settings,
            split=split,
            config=config,
            recipe=recipe,
            given={name: value for name, value in given.items() if value is not None},
            progress=status.update,
        )
        status.update("intervals")
        found = probe_report.figures(probed, pattern, against or [])
        said = probe_report.write_files(probed, found, versions(), output=output, html=html)
        status.stop()
        for grid in probe_report.tables(probed, found):
            out.print(grid.rich())
        if show:
            show_tokens(probe_report.view(probed[:1], show), out, None)
        for line in said:
            out.print(line, markup=False)
