"""A recipe's training and evaluation data: loaded, mapped to TRL's columns, checked."""

import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokencredit.data.augment import augment
from tokencredit.data.loading import load_split
from tokencredit.data.serialise import to_json
from tokencredit.errors import InputError
from tokencredit.recipes.schema import OwnKeys, Recipe

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
    _refuse_unused(recipe)
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


def _refuse_unused(recipe: Recipe) -> None:
    """Keys of TRL's that would be taken and do nothing."""
    mixture = bool(recipe.data.get("datasets"))
    for key, belongs in (("streaming", mixture), ("test_split_size", mixture), ("dataset_streaming", not mixture)):
        if recipe.data.get(key) and not belongs:
            other = "a `datasets:` mixture" if not mixture else "`dataset_name`"
            raise InputError(key, f"{recipe.data[key]!r} has no effect here", f"it goes with {other}")
    if recipe.data.get("ignore_bias_buffers"):
        raise InputError("ignore_bias_buffers", "is not supported", "remove it")


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
    except Exception as error:  # Arrow and the readers raise whatever the content makes them raise
        cause = error.__cause__ or error
        raise InputError("datasets", (str(cause) or repr(cause)).splitlines()[0], "correct the mixture") from None
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
    _require(train, (own.augment.text_column, own.completion_column), "training", "augment")
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
    if next(iter(dataset), None) is None:
        raise InputError("dataset_name", f"the {name} data has no rows", "give data with at least one row")
    dataset = with_own_columns(recipe.own, name, dataset)
    columns = set(next(iter(dataset)))
    _check_columns(recipe, name, columns)
    if {"prompt", "completion"} <= columns and _text_field(recipe) in columns:
        # TRL's SFT would add the end-of-text token to that column instead of the completion, and a model that
        # never sees it never stops.
        dataset = dataset.remove_columns(_text_field(recipe))
        columns.remove(_text_field(recipe))
    check_types(name, dataset, {*_TEXT_COLUMNS, _text_field(recipe)} & columns)
    return dataset


def with_own_columns(own: OwnKeys, name: str, dataset: Any) -> Any:
    """The data with `prompt` and `completion` made as `prompt_template` and `completion_column` say, if they do.

    With a chat template, answers that are text become messages of the assistant.

    Args:
        own: The recipe's keys.
        name: What error messages call the data, e.g. `training`.
        dataset: At least one row.

    Raises:
        InputError: A column that these keys name is missing or has an empty cell, or the template is malformed.
    """
    if own.prompt_template is not None:
        _require(dataset, tuple(_template_columns(own.prompt_template)), name, "prompt_template")
        dataset = dataset.map(
            lambda row, index: {"prompt": _render(own.prompt_template, row, index)}, with_indices=True
        )
    if own.completion_column is not None:
        column, chat = own.completion_column, isinstance(own.prompt_template, list)
        _require(dataset, (column,), name, "completion_column")
        # Under the name of a column of lists, text would be taken apart into a list of letters.
        made = "_completion" if column == "completion" else "completion"
        dataset = dataset.map(
            lambda row, index: {made: _completion(_present(row, column, index), chat)}, with_indices=True
        )
        if made != "completion":
            dataset = dataset.remove_columns("completion").rename_column(made, "completion")
    if isinstance(own.prompt_template, list):
        dataset = dataset.map(_answers_as_messages)
    return dataset


_ANSWERS = ("completion", "chosen", "rejected")
_TEXT_COLUMNS = ("prompt", *_ANSWERS, "messages")


def _text_field(recipe: Recipe) -> str:
    return str(recipe.training.get("dataset_text_field", "text"))


def _check_columns(recipe: Recipe, name: str, columns: set[str]) -> None:
    accepted = [
        frozenset(_text_field(recipe) if column == "text" else column for column in option)
        for option in recipe.method.columns
    ]
    fits = [option for option in accepted if option <= columns]
    # A prompt makes TRL look for its completion, whatever else there is.
    half = recipe.own.trainer == "sft" and "prompt" in columns and "completion" not in columns
    if not fits or half:
        wanted = " or ".join("+".join(sorted(option)) for option in accepted)
        problem = f"the {name} data has columns {', '.join(sorted(columns))}"
        remedy = f"{recipe.own.trainer} needs {wanted}; prompt_template and completion_column can make them"
        raise InputError("dataset_name", problem, remedy)
    if "input_ids" in columns and len(fits) > 1:
        others = ", ".join(sorted({column for option in fits for column in option} - {"input_ids"}))
        problem = f"the {name} data has input_ids beside {others}, and TRL would use the ids alone"
        raise InputError("dataset_name", problem, "keep one of them")


def check_types(name: str, dataset: Any, columns: set[str]) -> None:
    """Look for text or chat messages in every row; of a streamed dataset only in the first.

    Args:
        name: What error messages call the data, e.g. `training`.
        dataset: At least one row.
        columns: Where to look.

    Raises:
        InputError: A cell holds something else.
    """
    rows = dataset.select_columns(sorted(columns)) if hasattr(dataset, "__len__") else [next(iter(dataset))]
    for index, row in enumerate(rows):
        for column in columns & set(row):
            value = row[column]
            if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(m, dict) for m in value)):
                problem = f"row {index} of the {name} data holds {value!r} in column {column!r}"
                raise InputError("dataset_name", problem, "give text, or a list of chat messages")


def _require(dataset: Any, names: tuple[str, ...], part: str, where: str) -> None:
    columns = set(next(iter(dataset)))
    for name in names:
        if name not in columns:
            known = ", ".join(sorted(columns))
            raise InputError(where, f"the {part} data has no column {name!r}", f"its columns are {known}")


def _template_columns(template: Any) -> set[str]:
    """The columns that a template speaks of."""
    if isinstance(template, list):
        return {column for message in template for text in message.values() for column in _template_columns(text)}
    try:
        names = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise InputError("prompt_template", f"{template!r} ({error})", "write {column}, and {{ }} for braces") from None
    return {name.partition(".")[0].partition("[")[0] for name in names}


def _render(template: Any, row: dict[str, Any], index: int) -> Any:
    if isinstance(template, list):
        return [{key: _render(text, row, index) for key, text in message.items()} for message in template]
    for column in _template_columns(template):
        _present(row, column, index)
    try:
        return template.format_map(row)
    except (KeyError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            "prompt_template", f"{template!r} in row {index} ({error!r})", "correct the template"
        ) from None


def _present(row: dict[str, Any], column: str, index: int) -> Any:
    if row[column] is None:
        raise InputError("dataset_name", f"row {index} has nothing in column {column!r}", "fill it, or drop the row")
    return row[column]


def _answers_as_messages(row: dict[str, Any]) -> dict[str, Any]:
    """Text that answers a chat prompt is what the assistant says: TRL takes messages on both sides or on none."""
    return {name: _completion(row[name], True) for name in _ANSWERS if isinstance(row.get(name), str)}


def _completion(value: Any, chat: bool) -> Any:
    text = value if isinstance(value, str) else to_json(value)
    return [{"role": "assistant", "content": text}] if chat else text
