"""Options of commands that load two models and let them respond."""

from pathlib import Path
from typing import Annotated

import typer

Base = Annotated[str, typer.Argument(metavar="BASE", help="Folder or hub name of the model that was tuned.")]
Prompts = Annotated[str | None, typer.Option(help="Data with prompts: a file, a folder, a built-in or a hub name.")]
Split = Annotated[str | None, typer.Option(help="Of the data; default: test, and train of a single file.")]
Config = Annotated[str | None, typer.Option(help="Configuration of the data.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take the first so many prompts.")]
PromptRecipe = Annotated[
    str | None, typer.Option("--recipe", help="Ask as this recipe does, not as the tuned model's.")
]
Dtype = Annotated[str, typer.Option(help="Precision of the models: auto, float32, bfloat16 or float16.")]
MaxNewTokens = Annotated[int, typer.Option(help="Where a response without end is cut.")]
Temperature = Annotated[float, typer.Option(help="Of the responses; 0 takes the most likely token.")]
NumSamples = Annotated[int, typer.Option(help="Responses per prompt.")]
BatchSize = Annotated[int, typer.Option(help="Prompts at a time.")]
Seed = Annotated[int, typer.Option(help="Of the responses.")]
Output = Annotated[Path, typer.Option(help="Folder of table and report; what is finished there is taken again.")]
Format = Annotated[str, typer.Option("--format", help="Of the report: html, md, or none.")]
OpenPage = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]
RayAddress = Annotated[str | None, typer.Option("--ray", help="Score on this Ray cluster: local, auto or host:port.")]
