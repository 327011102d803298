"""What `tokencredit reward check` reads: reward functions, and the rows they are tried on."""

from pathlib import Path
from typing import Any

from tokencredit.data.loading import load_split
from tokencredit.errors import InputError
from tokencredit.recipes.files import DATA_SUFFIXES, read_recipe
from tokencredit.recipes.rewards_schema import RewardSections, parse_rewards

Row = dict[str, Any]


def read_check(
    file: str, overrides: list[str], *, rewards: list[str], data: str | None, limit: int | None
) -> tuple[RewardSections, list[Row]]:
    """Read what is to be checked.

    Args:
        file: A recipe, whose training keys are not looked at, with rows under `samples` unless there is `data`; or a
            data file.
        overrides: `key=value` items.
        rewards: Functions to use instead of the recipe's; needed for a data file.
        data: A data file.
        limit: How many rows to take.

    Raises:
        InputError: There are no functions or no rows, or a file cannot be read.
    """
    is_data = file.endswith(DATA_SUFFIXES)
    if is_data and data is not None:
        raise InputError("--data", f"{file!r} is data already", "give a recipe, or leave out --data")
    layer = {} if is_data else read_recipe(file, overrides)
    if is_data:
        for item in overrides:
            raise InputError("command line", f"{item!r} overrides nothing in a data file", "put it in a recipe")
    if rewards:
        layer |= {"reward_funcs": rewards, "reward_weights": None}
    elif is_data:
        raise InputError("--reward", "is missing", "name a built-in reward or module:function")
    sections = parse_rewards(layer)
    source = file if is_data else data
    rows = layer.get("samples") if source is None else _read_rows(source)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError("samples", "are missing", "list rows with `completion` under samples, or give --data FILE")
    return sections, rows[:limit]


def load_tokenizer(name: str | None) -> Any:
    """The tokenizer of a model, if one is named.

    Raises:
        InputError: There is none of that name.
    """
    if name is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError("--tokenizer", f"{name!r} cannot be loaded ({reason})", "give a model's folder") from None


def _read_rows(source: str) -> list[Row]:
    from datasets import disable_progress_bars

    disable_progress_bars()
    path = Path(source).expanduser()
    return [dict(row) for row in load_split(str(path.resolve()), "train")]
