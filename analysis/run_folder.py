"""A run folder as it lies on disk, read without the model and without the libraries that wrote it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tokencredit.errors import InputError

RECIPE = "recipe.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
SAMPLES = "token_samples"

Line = dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """What a run left behind; what it did not is None or empty.

    Args:
        path: The folder.
        recipe: The resolved recipe.
        environment: Versions, device and processes.
        metrics: The lines of `metrics.jsonl`, each with its `step`.
        samples: The lines of `token_samples/`, in order of their files; each has at least `tokens` and `step`, and its
            lists have one item per token.
    """

    path: Path
    recipe: dict[str, Any] | None
    environment: dict[str, Any] | None
    metrics: list[Line]
    samples: list[Line]

    @property
    def missing(self) -> list[str]:
        """One line for each part that is not there."""
        parts = {
            f"no {RECIPE}: the settings are not shown": self.recipe,
            f"no {ENVIRONMENT}: the versions are not shown": self.environment,
            f"no {METRICS}, or nothing in it yet: there are no curves": self.metrics,
            f"no {SAMPLES}/: there are no tokens to show (trainers of preference pairs write them every "
            "`token_samples_steps` steps)": self.samples,
        }
        return [text for text, part in parts.items() if not part]


def read_run(path: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        InputError: If it is no run folder, naming what is missing; or if a file in it cannot be read, naming the line.
    """
    if not path.is_dir():
        problem = "is a file" if path.exists() else "there is no such folder"
        raise InputError(str(path), problem, "give the folder of a run, the recipe's output_dir")
    if not any((path / part).exists() for part in (RECIPE, METRICS, SAMPLES)):
        problem = f"is not a run folder: it has no {RECIPE}, no {METRICS} and no {SAMPLES}/"
        raise InputError(str(path), problem, "give the folder of a run, the recipe's output_dir")
    return RunFolder(
        path=path,
        recipe=_recipe(path / RECIPE),
        environment=_environment(path / ENVIRONMENT),
        metrics=_metrics(path / METRICS),
        samples=[line for file in sorted((path / SAMPLES).glob("*.jsonl")) for line in _samples(file)],
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "restore the file or remove it") from None


def _recipe(path: Path) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise InputError(str(path), f"is not YAML ({error})", "restore the file or remove it") from None
    if found is not None and not isinstance(found, dict):
        raise InputError(str(path), "is not a mapping", "restore the file or remove it")
    return found


def _environment(path: Path) -> dict[str, Any] | None:
    text = _text(path)
    return json_object(path, 1, text) if text else None


def _lines(path: Path) -> list[tuple[str, Line]]:
    """(where, line) of a file of JSON lines."""
    # What follows the last newline of a run that is still going was not finished.
    complete = _text(path).split("\n")[:-1]
    return [(f"{path} line {n}", json_object(path, n, line)) for n, line in enumerate(complete, 1) if line]


def json_object(path: Path, number: int, text: str, remedy: str = "remove the line") -> Line:
    """The object of a line of a file.

    Raises:
        InputError: It is none, with `remedy`.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} line {number}", f"is not JSON ({error})", remedy) from None
    if not isinstance(found, dict):
        raise InputError(f"{path} line {number}", f"{text[:40]!r} is no object", remedy)
    return found


def _metrics(path: Path) -> list[Line]:
    found = _lines(path)
    for where, line in found:
        if not isinstance(line.get("step"), int):
            raise InputError(where, f"step is {line.get('step')!r}", "give each line the step it belongs to")
    return [line for _, line in found]


def _samples(path: Path) -> list[Line]:
    found = _lines(path)
    for where, line in found:
        tokens = line.get("tokens")
        if not (isinstance(tokens, list) and all(isinstance(token, str) for token in tokens)):
            raise InputError(where, "`tokens` is not a list of texts", "write the text of each token")
        if not isinstance(line.get("step"), int):
            raise InputError(where, f"step is {line.get('step')!r}", "give each line the step it belongs to")
        for name, values in line.items():
            if isinstance(values, list):
                _check_column(where, name, values, len(tokens))
    return [line for _, line in found]


def _check_column(where: str, name: str, values: list[Any], size: int) -> None:
    if len(values) != size:
        raise InputError(where, f"{name!r} has {len(values)} items for {size} tokens", "give one per token")
    kinds = {type(value) for value in values} - {type(None)}
    if not (kinds <= {int, float, bool} or kinds == {str}):
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise InputError(where, f"{name!r} holds {found}", "give numbers, or texts, or null")
