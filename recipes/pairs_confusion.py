"""The file of confusion counts that stands beside pairs: where it is, what it holds, and how it is read back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokencredit.data.loading import CONFUSION_SUFFIX
from tokencredit.data.negatives import Confusion, Ontology, Rows
from tokencredit.data.pairs import within
from tokencredit.errors import InputError
from tokencredit.recipes.pairs_schema import PairsRecipe

WHERE = "confusion"
MOST = 10**15
"""Counts beyond it are no counts; sums of them stay exact."""


def confusion_file(recipe: PairsRecipe) -> Path:
    """Where the confusion counts go."""
    return Path(recipe.output_file + CONFUSION_SUFFIX)


def confusion_record(recipe: PairsRecipe, confusion: Confusion, answers: int, invalid: int) -> dict[str, Any]:
    """What the file holds.

    Args:
        recipe: The recipe.
        confusion: The counts.
        answers: How many answers they are of.
        invalid: How many of these were not JSON with records.
    """
    keys = ("model_name_or_path", "dataset_name", "dataset_config", "dataset_test_split", "max_new_tokens", "seed")
    origin = {key: getattr(recipe, key) for key in keys}
    return {**confusion, **origin, "predictions": answers, "not_valid_json": invalid}


def read_confusion(path: Path) -> Confusion:
    """The counts of such a file.

    Raises:
        InputError: If there is no such file, or it does not hold gold name → predicted name → count.
    """
    if not path.is_file():
        remedy = "give measured, uniform, or a file of counts that `tokencredit pairs` wrote"
        raise InputError(WHERE, f"no file {str(path)!r}", remedy)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(WHERE, f"{str(path)!r} cannot be read ({error})", "correct the file") from None
    if not isinstance(found, dict):
        raise _wrong(path, "holds no mapping")
    return {"labels": _rows(path, found, "labels"), "sublabels": _rows(path, found, "sublabels")}


def _rows(path: Path, found: Mapping[str, Any], key: str) -> Rows:
    rows = found.get(key)
    if not isinstance(rows, dict):
        raise _wrong(path, f"has no mapping {key!r}")
    for gold, row in rows.items():
        if not isinstance(row, dict):
            raise _wrong(path, f"holds {str(row)[:80]!r} under {key}.{gold}")
        for name, count in row.items():
            if isinstance(count, bool) or not isinstance(count, int | float) or not 0 <= count <= MOST:
                raise _wrong(path, f"holds {str(count)[:80]} as count of {key}.{gold}.{name}")
    return rows


def _wrong(path: Path, problem: str) -> InputError:
    remedy = "write {labels: {gold: {predicted: count}}, sublabels: …}, as `tokencredit pairs` does"
    return InputError(WHERE, f"{str(path)!r} {problem}", remedy)


def check_read(confusion: Confusion, path: Path, ontology: Ontology) -> list[str]:
    """Lines for the user about counts from a file.

    Raises:
        InputError: If none of them can be used.
    """
    empty = without_counts(confusion, ontology)
    if len(empty) == 2:
        problem = f"no count of {str(path)!r} is between two names of the ontology"
        raise InputError(WHERE, problem, "name the counts of this data, or set confusion: uniform")
    return uniform_notes(empty)


def without_counts(confusion: Confusion, ontology: Ontology) -> list[str]:
    """Which of labels and sub-labels have no count between two names of the ontology."""
    usable = within(confusion, ontology)
    return [name for name, rows in (("label", usable["labels"]), ("sub-label", usable["sublabels"])) if not rows]


def uniform_notes(empty: list[str]) -> list[str]:
    """What happens to names without counts."""
    return [f"the model confused no {name}s: {name}s are confused uniformly" for name in empty]
