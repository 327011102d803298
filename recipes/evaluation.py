"""Models and data of an evaluation: each model is asked as the recipe that trained it asks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokencredit.analysis.evaluate import Candidate, evaluate
from tokencredit.analysis.models import load_tokenizer
from tokencredit.analysis.scores import Evaluation, Settings
from tokencredit.data.loading import load_split
from tokencredit.errors import InputError
from tokencredit.recipes.data import check_types, with_own_columns
from tokencredit.recipes.files import RECIPE_FILE, absolute_paths, read_recipe
from tokencredit.recipes.schema import Recipe, parse_recipe
from tokencredit.recipes.versions import versions
from tokencredit.trainers.task_metric import answer_text

if TYPE_CHECKING:
    from datasets import Dataset


def evaluate_models(
    models: Sequence[str],
    settings: Settings,
    *,
    recipe: str | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Evaluate saved models on labelled data.

    Prompt and gold answer are made by `prompt_template` and `completion_column` of the model's own recipe, which
    lies in its run folder. If that recipe does not make both from this data, as after preference tuning on pairs, the
    recipe of the model that the run began with counts.

    Args:
        models: Folders or hub names, each as `name=path` or alone, when the folder's name is the label. Those of one
            `name=` are runs of one arm, one for each training seed.
        settings: Of the evaluation; the data is a path, a built-in or a hub name.
        recipe: File or built-in name of a recipe that counts for all models instead of their own.
        progress: Called with a line on what is being done.

    Returns:
        The evaluation.

    Raises:
        InputError: Anything of it cannot be used; see also `tokencredit.analysis.evaluate.evaluate`.
    """
    named = labelled(models)
    given = None if recipe is None else (recipe, parse_recipe(read_recipe(recipe, [])))
    dataset, split = documents(settings.data, settings.split, settings.config, settings.limit)
    candidates = []
    for label, model in named:
        origin, own = given or own_recipe(model, set(dataset.column_names)) or (None, None)
        if own is None:
            load_tokenizer(model)  # a misspelt folder has no recipe: say so before the data is found lacking
        prompts, references = _questions(dataset, own)
        candidates.append(Candidate(label, model, prompts, references, origin))
    return evaluate(candidates, replace(settings, split=split), versions=versions(), progress=progress)


def prompts_of(model: str, settings: Settings, *, recipe: str | None = None) -> list[Any]:
    """The prompts of some data, as a model is asked: texts or chats.

    Args:
        model: Folder or hub name.
        settings: What names the data.
        recipe: File or built-in name of a recipe that makes the prompts, instead of the model's own.

    Raises:
        InputError: The data cannot be loaded, or no prompts can be made of it.
    """
    rows: Any = documents(settings.data, settings.split, settings.config, settings.limit, called="--prompts")[0]
    given = None if recipe is None else (recipe, parse_recipe(read_recipe(recipe, [])))
    found = given or (None if "prompt" in rows.column_names else own_recipe(model, set(rows.column_names)))
    return prompts_by(rows, found[1] if found is not None else None, called="--prompts")


def prompts_by(rows: Any, recipe: Recipe | None, *, called: str = "DATA") -> list[Any]:
    """The prompts that a recipe makes of data, which needs no answers for that.

    Args:
        rows: A dataset.
        recipe: With a `prompt_template`, or None: the data has its prompts.
        called: What error messages call the data.

    Raises:
        InputError: A column that the template names is missing or empty, or there is no `prompt`.
    """
    with called_data(called):
        if recipe is not None:
            rows = with_own_columns(recipe.own.model_copy(update={"completion_column": None}), "evaluation", rows)
        if "prompt" not in rows.column_names:
            problem = f"the columns are {', '.join(sorted(rows.column_names))}, and none is prompt"
            raise InputError(called, problem, "give a recipe with a prompt_template with --recipe")
        check_types("evaluation", rows, {"prompt"})
    return list(rows["prompt"])


def labelled(models: Sequence[str]) -> list[tuple[str, str]]:
    """Read `name=path` items.

    Args:
        models: As `evaluate_models` takes them. An existing folder with an equals sign in its name is a folder.

    Returns:
        Label and folder or hub name of each, in the order given.

    Raises:
        InputError: A label or a path is empty, or a label that was not written out is that of another model.
    """
    found: list[tuple[str, str]] = []
    unwritten: list[str] = []
    for item in models:
        label, equals, path = item.partition("=")
        if not equals or Path(item).is_dir():
            label, path = Path(item).resolve().name, item
            unwritten.append(label)
        if not label or not path:
            raise InputError("MODEL", f"{item!r} is no model", "write a folder, a hub name or name=path")
        found.append((label, str(Path(path).expanduser()) if path.startswith("~") else path))
    labels = [label for label, _ in found]
    # A name given twice means one arm; folders that happen to be called alike do not.
    twice = next((label for label in unwritten if labels.count(label) > 1), None)
    if twice is not None:
        remedy = "write name=path to tell them apart; one name= before several paths means training seeds of one arm"
        raise InputError("MODEL", f"two models are called {twice!r}", remedy)
    return found


def documents(
    data: str, split: str | None, config: str | None, limit: int | None, *, called: str = "DATA"
) -> tuple["Dataset", str]:
    """The rows to evaluate on, and the split they are from.

    Args:
        data: A file, a folder, a built-in or a hub name.
        split: By default `test`, and `train` of a single file.
        config: Of the data.
        limit: Take the first so many.
        called: What the command calls the data.

    Raises:
        InputError: There are none.
    """
    name = absolute_paths({"dataset_name": data}, Path.cwd())["dataset_name"]
    split = split or ("train" if Path(name).is_file() else "test")
    with called_data(called):
        dataset: Any = load_split(name, split, config=config)
    if limit is not None:
        dataset = dataset.select(range(min(limit, len(dataset))))
    if not len(dataset):
        raise InputError(called, f"{data!r} has no documents in split {split}", "give at least one")
    return dataset, split


@contextmanager
def called_data(called: str = "DATA") -> Iterator[None]:
    """Name the data as the command does and not by a recipe's key."""
    try:
        yield
    except InputError as error:
        if error.where != "dataset_name":
            raise
        raise InputError(called, error.problem, error.remedy) from None


def own_recipe(model: str, columns: set[str]) -> tuple[str, Recipe] | None:
    """The recipe that says how a model is asked, and its file."""
    seen: set[Path] = set()
    first: tuple[str, Recipe] | None = None
    while (file := _recipe_file(Path(model))) is not None and file not in seen:
        seen.add(file)
        recipe = parse_recipe(read_recipe(str(file), []))
        first = first or (str(file), recipe)
        if _asks(recipe, columns):
            return str(file), recipe
        model = str(recipe.model.get("model_name_or_path", ""))
    return first


def _asks(recipe: Recipe, columns: set[str]) -> bool:
    """Whether a recipe makes prompt and gold answer of data with these columns."""
    named = recipe.own.completion_column
    answers = {named} if named else {"completion", recipe.method.reference}
    return bool(recipe.own.prompt_template or "prompt" in columns) and bool(answers & columns)


def _recipe_file(folder: Path) -> Path | None:
    run = folder.resolve().parent if folder.resolve().name.startswith("checkpoint-") else folder
    return run / RECIPE_FILE if (run / RECIPE_FILE).is_file() else None


def _questions(dataset: "Dataset", recipe: Recipe | None) -> tuple[list[Any], list[str]]:
    """Prompts and gold answers."""
    rows: Any = dataset
    with called_data():
        if recipe is not None:
            rows = with_own_columns(recipe.own, "evaluation", rows)
        wanted = ("completion",) if recipe is None else (recipe.method.reference, "completion")
        answer = next((column for column in wanted if column in rows.column_names), None)
        if answer is None or "prompt" not in rows.column_names:
            problem = f"the columns are {', '.join(sorted(rows.column_names))}, not prompt and {wanted[0]}"
            remedy = "give a recipe that makes them with --recipe (prompt_template, completion_column)"
            raise InputError("DATA", problem, remedy)
        check_types("evaluation", rows, {"prompt", answer})
    return list(rows["prompt"]), [_gold(value, index, answer) for index, value in enumerate(rows[answer])]


def _gold(value: Any, index: int, column: str) -> str:
    if not isinstance(value, str) and not (value and "content" in value[-1]):
        problem = f"row {index} holds {value!r} in column {column!r}, neither text nor chat messages"
        raise InputError("DATA", problem, f"give a recipe with completion_column: {column} with --recipe")
    return answer_text(value)
