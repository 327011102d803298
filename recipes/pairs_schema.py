"""The keys of a pairs recipe: TRL's and Hugging Face's names where they have one, plus the few that are ours."""

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tokencredit.data.negatives import STRATEGY_MIX
from tokencredit.data.records import DEFAULT_FIELDS, RecordFields
from tokencredit.errors import InputError
from tokencredit.recipes.files import read_recipe
from tokencredit.recipes.schema import validated

RECORD_F1 = "record_f1"


class FieldNames(BaseModel):
    """The names under which a record holds its parts."""

    model_config = ConfigDict(extra="forbid")

    label: str = DEFAULT_FIELDS.label
    sublabel: str = DEFAULT_FIELDS.sublabel
    span: str = DEFAULT_FIELDS.span


class PairsRecipe(BaseModel):
    """A checked pairs recipe."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    source: Literal["confusions", "samples"] = Field(alias="from")
    """What the rejected answers are: gold answers rewritten by measured confusions, or the worst of several samples."""
    output_file: str
    overwrite: bool = False
    model_name_or_path: str | None = None
    dataset_name: str
    dataset_config: str | None = None
    dataset_train_split: str = "train"
    """The documents that get pairs."""
    dataset_test_split: str | None = None
    """The documents on which confusions are counted, and whose names belong to `ontology: data`."""
    prompt_template: str | list[dict[str, str]] | None = None
    completion_column: str | None = None
    text_column: str = "text"
    """The column with the document itself, of which every span is a piece."""
    fields: FieldNames = FieldNames()
    expert_pairs: str | None = None
    """A file with `prompt`, `chosen` and `rejected` whose pairs come after those that are made."""
    max_new_tokens: int = Field(default=256, ge=1)
    batch_size: int = Field(default=16, ge=1)
    seed: int = 42

    confusion: str = "measured"
    """`measured`: names are confused as the model does; `uniform`: all alike; or a file of counts that was written
    beside pairs. Only the first needs a model."""
    ontology: str | dict[str, Any] = "data"
    """`data`: what occurs in the gold records; a JSON or YAML file; or label → sub-labels."""
    mix: dict[str, float] = dict(STRATEGY_MIX)
    negatives_per_example: int = Field(default=1, ge=1)
    span_perturbation: float = Field(default=0.0, ge=0, le=1)

    num_samples: int = Field(default=4, ge=2)
    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    score_function: str = RECORD_F1
    """`record_f1`, or `module:function` called as `fn(predictions, references) -> list[float]`."""

    @property
    def record_fields(self) -> RecordFields:
        """The records' keys."""
        return RecordFields(**self.fields.model_dump())

    @property
    def measures(self) -> bool:
        """Whether a model's confusions are counted."""
        return self.source == "confusions" and self.confusion == "measured"

    @property
    def confusion_table(self) -> Path | None:
        """The file that the counts are read from, if they are."""
        named = self.source == "confusions" and self.confusion not in ("measured", "uniform")
        return Path(self.confusion) if named else None

    @property
    def test_split(self) -> str | None:
        """The second split, where it is read: to count on, or, with counts that are there, for the names in it."""
        for_names = self.confusion_table is not None and self.ontology == "data"
        return self.dataset_test_split if self.measures or for_names else None

    @property
    def generates(self) -> bool:
        """Whether a model has to answer anything."""
        return self.measures or self.source == "samples"

    def flat(self) -> dict[str, Any]:
        """The recipe as the mapping that `parse_pairs_recipe` reads back."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


# What does nothing with the other kind of pairs; the splits, the columns and the model describe both.
_ONLY = {
    "confusions": ("confusion", "ontology", "mix", "negatives_per_example", "span_perturbation"),
    "samples": ("num_samples", "temperature", "top_p", "score_function"),
}


def read_pairs_recipe(name: str, overrides: list[str]) -> PairsRecipe:
    """Read and check a pairs recipe.

    Args:
        name: Path of a YAML file, or the name of a built-in recipe.
        overrides: `key=value` items.

    Raises:
        InputError: As `read_recipe` and `parse_pairs_recipe`.
    """
    return parse_pairs_recipe(read_recipe(name, overrides))


def parse_pairs_recipe(layer: dict[str, Any]) -> PairsRecipe:
    """Check every key of a merged pairs recipe.

    Args:
        layer: What `read_recipe` returned.

    Returns:
        The recipe.

    Raises:
        InputError: Naming the first field that is missing, unknown, has the wrong type or an impossible value, or
            has no effect together with the others.
    """
    if "trainer" in layer:
        raise InputError("trainer", "this is a recipe for training", "run it with `tokencredit train`")
    for key, remedy in _REQUIRED.items():
        if layer.get(key) is None:
            raise InputError(key, "is missing", remedy)
    given = {key: value for key, value in layer.items() if value is not None}
    recipe = validated(PairsRecipe, given, (PairsRecipe, FieldNames))
    _check_mix(recipe.mix)
    for source, keys in _ONLY.items():
        for key in keys:
            if source != recipe.source and key in recipe.model_fields_set:
                raise InputError(key, f"has no effect with from: {recipe.source}", f"remove it, or set from: {source}")
    if recipe.generates and recipe.model_name_or_path is None:
        remedy = "name a folder or a hub model" + (", or set confusion: uniform" if recipe.measures else "")
        raise InputError("model_name_or_path", "is missing", remedy)
    if recipe.measures and recipe.dataset_test_split is None:
        remedy = "name the split on which the model's confusions are counted, e.g. validation"
        raise InputError("dataset_test_split", "is missing", remedy)
    return recipe


_REQUIRED = {
    "from": "choose confusions or samples",
    "output_file": "name the file to write, e.g. output_file: pairs.jsonl",
    "dataset_name": "name a file, a folder, a built-in or a hub dataset",
}


def _check_mix(mix: dict[str, float]) -> None:
    for name, share in mix.items():
        if name not in STRATEGY_MIX:
            remedy = "set span_perturbation" if name == "span" else f"give shares of {', '.join(STRATEGY_MIX)}"
            raise InputError("mix", f"unknown strategy {name!r}", remedy)
        if not 0 <= share < math.inf:
            raise InputError("mix", f"{share} for {name}", "give a number of 0 or more")
    if not any(mix.values()):
        raise InputError("mix", "no strategy has a share", f"give one of {', '.join(STRATEGY_MIX)} a positive share")
