"""`tokencredit probe`: which problems, how each model is asked, and what its probe looks like."""

from collections.abc import Callable, Sequence
from typing import Any

from tokencredit.analysis.models import load_tokenizer
from tokencredit.analysis.probe_models import Probed, ProbeSettings, probe_model, with_keys
from tokencredit.errors import InputError
from tokencredit.recipes.build import with_defaults
from tokencredit.recipes.evaluation import documents, labelled, own_recipe, prompts_by
from tokencredit.recipes.files import read_recipe
from tokencredit.recipes.schema import Recipe, parse_recipe


def probe_models(
    models: Sequence[str],
    problems: str,
    settings: ProbeSettings,
    *,
    split: str | None = None,
    config: str | None = None,
    recipe: str | None = None,
    given: dict[str, Any] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Probed]:
    """Probe saved models on problems with known answers.

    A model is asked as the recipe in its run folder asks; template, delimiter and answer column are those of that
    recipe if it trains with SPAE.

    Args:
        models: Folders or hub names, each as `name=path` or alone; those of one name are an arm's training seeds.
        problems: A file, a folder, a built-in or a hub name.
        settings: Of the probe.
        split: Of the problems.
        config: Of the problems.
        recipe: File or built-in name of a recipe that counts for all models instead of their own.
        given: What was asked for on the command line: it counts before any recipe.
        progress: Called with a line on what is being done.

    Raises:
        InputError: Anything of it cannot be used.
    """
    named = labelled(models)
    if len(set(named)) < len(named):
        raise InputError("MODEL", "a model is given twice, and cannot differ from itself", "give every run its folder")
    asked = None if recipe is None else parse_recipe(read_recipe(recipe, []))
    dataset, _ = documents(problems, split, config, settings.limit)
    given = dict(given or {})
    if "probe_template" in given:
        given["probe_template_column"] = None  # one template for all rows
    plans = []
    for label, model in named:
        load_tokenizer(model)  # a misspelt folder is told of before anything runs
        found = (None, asked) if asked is not None else own_recipe(model, set(dataset.column_names))
        own = found[1] if found is not None else None
        plans.append((label, model, prompts_by(dataset, own), with_keys(settings, _keys(own) | given)))
    rows: list[dict[str, Any]] = [dict(row) for row in dataset]
    return [probe_model(label, model, prompts, rows, keys, progress=progress) for label, model, prompts, keys in plans]


def _keys(recipe: Recipe | None) -> dict[str, Any]:
    """What a recipe of SPAE says about the probe, its defaults among it."""
    if recipe is None or recipe.own.trainer != "spae":
        return {}
    return with_defaults(recipe.method.config_class(), recipe.training)
