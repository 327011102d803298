"""A recipe's training and evaluation data: loaded, mapped to TRL's columns, checked."""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokencredit.data.augment import augment
from tokencredit.data.loading import load_split
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError
from tokencredit.recipes.schema import Recipe

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class RecipeData:
    """What a recipe trains on and, when it evaluates, what it evaluates on."""

    train: "Dataset"
    evaluation: "Dataset | None"


def load_data(recipe: Recipe) -> RecipeData:
    """Load and check a recipe's data.

    Raises:
        InputError: When the data is missing, malformed or empty, or lacks the columns that the trainer
            or the recipe's own keys name.
    """
    evaluates = recipe.training.get("eval_strategy", "no") != "no"
    if recipe.data.get("datasets"):
        train, evaluation = _mixture(recipe, evaluates)
    else:
        train = _named(recipe, recipe.data.get("dataset_train_split", "train"))
        evaluation = _named(recipe, recipe.data.get("dataset_test_split", "test")) if evaluates else None
    if recipe.own.augment is not None:
        train = _augmented(recipe, train)
    parts = {"training": train, "evaluation": evaluation}
    ready = {name: _ready(recipe, name, part) for name, part in parts.items() if part is not None}
    return RecipeData(ready["training"], ready.get("evaluation"))


def _named(recipe: Recipe, split: str) -> Any:
    name = recipe.data.get("dataset_name")
    if name is None:
        raise InputError("dataset_name", "is missing", "name a file, a folder, a built-in or a hub dataset")
    streaming = bool(recipe.data.get("dataset_streaming", False))
    return load_split(name, split, config=recipe.data.get("dataset_config"), streaming=streaming)


def _mixture(recipe: Recipe, evaluates: bool) -> tuple[Any, Any]:
    from trl import DatasetMixtureConfig, get_dataset

    if recipe.data.get("dataset_name"):
        raise InputError("datasets", "given together with `dataset_name`", "keep one of them")
    names = ("datasets", "streaming", "test_split_size")
    config = DatasetMixtureConfig(**{key: recipe.data[key] for key in names if key in recipe.data})
    try:
        mixed = get_dataset(config)
    except (ValueError, OSError, TypeError) as error:
        raise InputError("datasets", str(error).splitlines()[0], "correct the mixture") from None
    if evaluates and "test" not in mixed:
        raise InputError("datasets", "the mixture has no test part to evaluate on", "set test_split_size: 0.1")
    return mixed["train"], mixed.get("test")


def _augmented(recipe: Recipe, train: Any) -> Any:
    from datasets import Dataset

    own = recipe.own
    assert own.augment is not None
    if own.completion_column is None:
        raise InputError("augment", "needs labelled rows", "set completion_column to the column with the records")
    if not isinstance(train, Dataset):
        raise InputError("augment", "does not work on a streamed dataset", "set dataset_streaming: false")
    _require(train, (own.augment.text_column, own.completion_column), "training")
    rows = augment(
        list(train),
        copies=own.augment.copies,
        share=own.augment.share,
        seed=int(recipe.training.get("seed", 42)),
        text_column=own.augment.text_column,
        records_column=own.completion_column,
    )
    return Dataset.from_list(rows)


def _ready(recipe: Recipe, name: str, dataset: Any) -> Any:
    first = next(iter(dataset), None)
    if first is None:
        raise InputError("dataset_name", f"the {name} data has no rows", "give data with at least one row")
    own = recipe.own
    columns = set(first)
    if own.completion_column is not None:
        _require(dataset, (own.completion_column,), name)
    changes: list[Any] = []
    if own.prompt_template is not None:
        _render(own.prompt_template, first)
        changes.append(lambda row: {"prompt": _render(own.prompt_template, row)})
        columns.add("prompt")
    if own.completion_column is not None:
        chat = isinstance(own.prompt_template, list)
        changes.append(lambda row: {"completion": _completion(row[own.completion_column], chat)})
        columns.add("completion")
    accepted = recipe.method.columns
    if not any(wanted <= columns for wanted in accepted):
        wanted = " or ".join("+".join(sorted(option)) for option in accepted)
        problem = f"the {name} data has columns {', '.join(sorted(columns))}"
        remedy = f"{recipe.own.trainer} needs {wanted}; prompt_template and completion_column can make them"
        raise InputError("dataset_name", problem, remedy)
    for change in changes:
        dataset = dataset.map(change)
    text_field = recipe.training.get("dataset_text_field", "text")
    if {"prompt", "completion"} <= columns and text_field in columns:
        # TRL's SFT would add the end-of-text token to that column instead of the completion, and a model that
        # never sees it never stops.
        dataset = dataset.remove_columns(text_field)
    _check_types(name, next(iter(dataset)))
    return dataset


def _check_types(name: str, row: dict[str, Any]) -> None:
    for column in ("prompt", "completion", "chosen", "rejected", "text", "messages"):
        value = row.get(column, "")
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(m, dict) for m in value)):
            problem = f"the {name} data's column {column!r} holds {value!r}"
            raise InputError("dataset_name", problem, "give text, or a list of chat messages")


def _require(dataset: Any, names: tuple[str, ...], part: str) -> None:
    columns = set(next(iter(dataset)))
    for name in names:
        if name not in columns:
            known = ", ".join(sorted(columns))
            raise InputError("dataset_name", f"the {part} data has no column {name!r}", f"its columns are {known}")


def _render(template: Any, row: dict[str, Any]) -> Any:
    if isinstance(template, list):
        return [{key: _render(text, row) for key, text in message.items()} for message in template]
    try:
        return template.format_map(row)
    except KeyError as error:
        known = ", ".join(sorted(row))
        raise InputError("prompt_template", f"no column {error.args[0]!r}", f"the columns are {known}") from None
    except (ValueError, IndexError, AttributeError) as error:
        raise InputError("prompt_template", f"{template!r} ({error})", "write {column}, and {{ }} for braces") from None


def _completion(value: Any, chat: bool) -> Any:
    text = value if isinstance(value, str) else to_json(value)
    return [{"role": "assistant", "content": text}] if chat else text


def sample_rows(dataset: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """A few rows for a person to look at, the same ones each time."""
    rows = list(range(len(dataset)))
    picked = sorted(random.Random(seed).sample(rows, min(count, len(rows))))
    return [dataset[index] for index in picked]
