"""What every process of a run executes: `python -m tokencredit.cluster.worker recipe.yaml [--resume CHECKPOINT]`."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tokencredit.cluster.processes import die_with_parent, leave
from tokencredit.cluster.quiet import quieten
from tokencredit.errors import InputError
from tokencredit.recipes.build import build_trainer
from tokencredit.recipes.data import RecipeData, load_data
from tokencredit.recipes.files import load_yaml
from tokencredit.recipes.init_model import INITIAL_MODEL
from tokencredit.recipes.schema import Recipe, parse_recipe

INPUT_ERROR = 2
"""Exit code for wrong input."""


def run(recipe: Recipe, data: RecipeData, resume_from: str | None) -> None:
    """Train a resolved recipe in this process and save the model in the run folder."""
    if recipe.own.init is not None:
        recipe = recipe.with_model(model_name_or_path=str(Path(recipe.output_dir) / INITIAL_MODEL))
    if recipe.training.get("deepspeed"):
        prepare_deepspeed(on_cpu=bool(recipe.training.get("use_cpu")))
    trainer = build_trainer(recipe, data)
    trainer.train(resume_from_checkpoint=resume_from)
    trainer.save_model(recipe.output_dir)
    trainer.end()


def prepare_deepspeed(*, on_cpu: bool) -> None:
    """Let DeepSpeed find what it compiles with, and on CPU what it can communicate with."""
    # `ninja` lies beside the interpreter, and a command that was called by its path, from an environment that is not
    # activated, does not look there: another one would compile everything anew, or there is none.
    folder, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if folder not in path.split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([folder, path])
    if on_cpu:
        import deepspeed

        # The trainer would let DeepSpeed pick a communication library that is not built for CPU.
        deepspeed.init_distributed(dist_backend="gloo")


def main() -> None:
    """Entry point of a worker process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--resume")
    options: Any = parser.parse_args()
    die_with_parent()
    quieten()
    sys.path.append(os.getcwd())  # functions named in the recipe; installed packages come first
    try:
        recipe = parse_recipe(load_yaml(options.recipe))
        run(recipe, load_data(recipe), options.resume)
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        leave(INPUT_ERROR)
    leave(0)


if __name__ == "__main__":
    main()
