"""The command that shows where two models differ."""

from pathlib import Path
from typing import Annotated

import typer

from tokencredit import model_options as options
from tokencredit.cluster.processes import raise_on_sigterm
from tokencredit.console import err, input_errors, out
from tokencredit.errors import InputError

FORMATS = ("html", "md", "none")


def shift(
    base: options.Base,
    tuned: Annotated[
        list[str], typer.Argument(metavar="TUNED...", help="Tuned models or LoRA folders, plain or name=path.")
    ],
    prompts: options.Prompts = None,
    trajectories: Annotated[
        Path | None, typer.Option(help="Responses as they are: JSONL, or a run folder's token samples.")
    ] = None,
    split: options.Split = None,
    config: options.Config = None,
    limit: options.Limit = None,
    recipe: options.PromptRecipe = None,
    lead: Annotated[str, typer.Option(help="Who responds to the prompts: tuned, base or both.")] = "tuned",
    same_responses: Annotated[
        bool, typer.Option("--same-responses", help="All models on the responses of the last: checkpoints of a run.")
    ] = False,
    num_samples: options.NumSamples = 1,
    temperature: options.Temperature = 1.0,
    max_new_tokens: options.MaxNewTokens = 256,
    batch_size: options.BatchSize = 32,
    seed: options.Seed = 0,
    mode: Annotated[str, typer.Option(help="exact, top_p (the paper's), or top_k (bounds).")] = "exact",
    top_p: Annotated[float, typer.Option(help="For the mode top_p.")] = 0.7,
    top_n: Annotated[int, typer.Option(min=1, help="Most likely tokens kept of both models.")] = 10,
    dtype: options.Dtype = "auto",
    ray: options.RayAddress = None,
    output: options.Output = Path("shift"),
    format_: options.Format = "html",
    open_page: options.OpenPage = False,
) -> None:
    """Show where models differ from their base, token by token: a table, figures and a report."""
    with input_errors(), err.status("loading the libraries") as status:
        if (prompts is None) == (trajectories is None):
            raise InputError("--prompts", "give either prompts or --trajectories", "e.g. --prompts us_addresses")
        if format_ not in FORMATS:
            raise InputError("--format", f"unknown {format_!r}", f"choose one of {', '.join(FORMATS)}")
        from tokencredit.analysis.model_pair import shared_tokenizer
        from tokencredit.analysis.scores import Settings
        from tokencredit.analysis.shift import Scoring
        from tokencredit.analysis.shift_run import Request, run
        from tokencredit.analysis.trajectories import Generation, read_trajectories
        from tokencredit.cluster.quiet import quieten
        from tokencredit.recipes.evaluation import labelled, prompts_of
        from tokencredit.scoring.measures import check_mode

        quieten()
        raise_on_sigterm()
        check_mode(mode, top_p)
        named = labelled(tuned)
        if len(dict(named)) < len(named):
            raise InputError("TUNED", "a name is given twice", "give each model a name of its own")
        tokenizer = [shared_tokenizer(base, path) for _, path in named][-1]
        given = (
            read_trajectories(trajectories, tokenizer)[:limit]
            if trajectories is not None
            else prompts_of(named[-1][1], Settings(str(prompts), split, config, limit), recipe=recipe)
        )
        request = Request(
            base=base,
            tuned=dict(named),
            given=given,
            folder=output,
            lead=lead,
            same_responses=same_responses,
            generation=Generation(num_samples, temperature, max_new_tokens, batch_size, seed),
            scoring=Scoring(mode, top_p, top_n),
            dtype=dtype,
        )
        scorer = None
        if ray is not None:
            from tokencredit.cluster.shift_ray import ray_scorer

            scorer = ray_scorer(ray)
        found = run(request, tokenizer, scorer=scorer, progress=status.update)
        status.stop()
        out.print(str(found.summary()), markup=False)
        for line in _reported(found, output, format_):
            out.print(line, markup=False)
        if open_page and format_ == "html":
            import webbrowser

            webbrowser.open((output / "report.html").resolve().as_uri())


def _reported(found: object, output: Path, format_: str) -> list[str]:
    from tokencredit.analysis.shift import TABLE, ShiftResult
    from tokencredit.analysis.whole_files import write_text

    assert isinstance(found, ShiftResult)
    lines = [f"table in {output / TABLE}"]
    if format_ == "html":
        lines.append(f"written to {found.to_html(output / 'report.html')}")
    elif format_ == "md":
        write_text(found.to_markdown(), output / "report.md")
        lines.append(f"written to {output / 'report.md'}")
    return lines
