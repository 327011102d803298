"""The keys of a recipe: TRL's and Hugging Face's own field names, plus the few that are ours.

Every key is checked where it enters: unknown keys name the nearest known one, wrong types and wrong
choices name the field, the value and what would be right.
"""

import difflib
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tokencredit.errors import InputError
from tokencredit.trainers import METHODS, Method

Section = TypeVar("Section", bound=BaseModel)

_SECRET = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class RayLaunch(_Section):
    """The Ray cluster whose workers are the processes of a run."""

    address: str
    """`local` for one of its own on this machine, `auto` for the one this machine belongs to, or its `host:port`."""
    resources_per_worker: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    """Laid over one CPU and, where there are any, one GPU."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Workers on few nodes or on many; the strict ones on one node, and each on its own."""
    max_failures: int = Field(default=0, ge=-1)
    """How often the workers are started again, from the newest complete checkpoint; -1 without end."""
    storage_path: str | None = None
    """Where Ray Train keeps its own state: a folder or the URI of a bucket. The run itself lies in `output_dir`."""


class Launch(_Section):
    """How the recipe becomes processes: a strategy and how many of them."""

    strategy: str = "none"
    """`none`, `ddp`, `zero1`, `zero2`, `zero3`, `fsdp`, or the path of an Accelerate configuration file."""
    num_processes: int | None = Field(default=None, ge=1)
    """Processes on this machine, or workers of Ray; by default one per accelerator."""
    ray: RayLaunch | None = None
    """Start them with Ray Train, on this machine or on a cluster."""


class TokenizerSpec(_Section):
    """A tokenizer built from the training data (`tokencredit.data.tokenizers`)."""

    kind: Literal["characters", "bpe"] = "characters"
    vocab_size: int | None = Field(default=None, ge=257)
    pieces: list[str] = []
    """Strings that stay one token each, e.g. the scaffolding of a JSON answer."""


class Init(_Section):
    """A model trained from scratch: an architecture from its configuration, and a tokenizer."""

    model_type: str
    config: dict[str, Any] = {}
    tokenizer: TokenizerSpec = TokenizerSpec()


class TaskMetric(_Section):
    """Greedy answers to the evaluation prompts, scored by a function, as `eval_<name>` of the trainer."""

    function: str
    """`json_records`, `boxed` or `module:function`, called as `fn(predictions, references) -> dict[str, float]`."""
    max_new_tokens: int = Field(default=256, ge=1)
    limit: int | None = Field(default=None, ge=1)
    """Score the first so many evaluation rows only."""
    stop_at: dict[str, float] = {}
    """End training at the first evaluation in which each of these figures is at least so high."""


class Augment(_Section):
    """Passes over labelled rows, a share of which has the letters of its spans replaced at random."""

    text_column: str = "text"
    copies: int = Field(default=1, ge=1)
    share: float = Field(default=0.5, ge=0, le=1)


class OwnKeys(_Section):
    """The recipe keys that TRL does not have."""

    trainer: str
    launch: Launch = Launch()
    init: Init | None = None
    peft: dict[str, Any] | None = None
    """`peft_type: <name>` and that PEFT configuration's own fields."""
    prompt_template: str | list[dict[str, str]] | None = None
    """Makes `prompt` from other columns: text with `{column}` in it, or a list of chat messages."""
    completion_column: str | None = None
    """The column that holds the answer; anything but text is written as JSON."""
    augment: Augment | None = None
    task_metric: TaskMetric | None = None
    total_train_batch_size: int | None = Field(default=None, ge=1)
    """Examples per optimiser step over all processes; sets `gradient_accumulation_steps`."""
    env: dict[str, str | int | float | bool] = {}
    """Environment variables set before anything is imported."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe.

    Args:
        own: The keys TRL does not have.
        training: Fields of the trainer's TRL configuration.
        model: Fields of TRL's `ModelConfig`.
        data: Fields of TRL's `ScriptArguments` and `DatasetMixtureConfig`.
    """

    own: OwnKeys
    training: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> Method:
        """The entry of `METHODS` that `trainer:` names."""
        return METHODS[self.own.trainer]

    @property
    def output_dir(self) -> str:
        """The run folder."""
        return str(self.training["output_dir"])

    def flat(self) -> dict[str, Any]:
        """The recipe as the mapping that `parse_recipe` reads back, without secrets.

        It is printed and written to disk. `hub_token` and environment variables named like a credential are left
        out; processes that need them inherit them.
        """
        own = self.own.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
        if "env" in own:
            own["env"] = {name: value for name, value in own["env"].items() if not is_secret(name)}
        training = {key: value for key, value in self.training.items() if key != "hub_token"}
        return own | self.model | self.data | training

    def with_training(self, **changes: Any) -> "Recipe":
        """A copy with other training fields."""
        return replace(self, training=self.training | changes)

    def with_model(self, **changes: Any) -> "Recipe":
        """A copy with other model fields."""
        return replace(self, model=self.model | changes)


def is_secret(variable: str) -> bool:
    """Whether an environment variable is named like a credential."""
    return bool(_SECRET.search(variable.upper()))


def without_secrets(uri: str) -> str:
    """An address without what may stand in it of credentials: the part before `@` and what follows `?`."""
    return re.sub(r"//[^/@]*@", "//", uri).partition("?")[0]


def parse_recipe(layer: dict[str, Any]) -> Recipe:
    """Check every key of a merged recipe.

    Raises:
        InputError: Naming the first field that is unknown, has the wrong type or an impossible value.
    """
    trainer = layer.get("trainer")
    if trainer not in METHODS:
        if trainer is None and "from" in layer:
            raise InputError("from", "this is a recipe for preference pairs", "run it with `tokencredit pairs`")
        given = "`trainer` is missing" if trainer is None else f"unknown trainer {trainer!r}"
        raise InputError("trainer", given, f"choose one of {', '.join(METHODS)}")
    groups = _trl_fields(trainer)
    own_names = set(OwnKeys.model_fields)
    values: dict[str, dict[str, Any]] = {name: {} for name in groups}
    for key, value in layer.items():
        if key in own_names:
            continue
        group = next((name for name, known in groups.items() if key in known), None)
        if group is None:
            raise _unknown_key(key, own_names.union(*groups.values()), trainer)
        values[group][key] = groups[group][key].check(value)
    if not values["training"].get("output_dir"):
        raise InputError("output_dir", "is missing", "name the folder of the run, e.g. output_dir: runs/first")
    # An empty section is the default one.
    own_values = {key: value for key, value in layer.items() if key in own_names and value is not None}
    own = validated(OwnKeys, own_values, _OWN_SECTIONS)
    return Recipe(own, values["training"], values["model"], values["data"])


def _unknown_key(key: str, known: set[str], trainer: str) -> InputError:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    remedy = f"did you mean {near[0]!r}?" if near else f"remove it, or see the fields of {METHODS[trainer].config}"
    return InputError(key, "unknown key", remedy)


def validated(model: type[Section], given: dict[str, Any], sections: tuple[type[BaseModel], ...]) -> Section:
    """Check a mapping against a model.

    Args:
        model: What the mapping has to be.
        given: Keys and values.
        sections: The model and everything nested in it, whose keys messages may speak of.

    Returns:
        The model.

    Raises:
        InputError: Naming the first key that is unknown or has an impossible value.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        known = [item.alias or name for section in sections for name, item in section.model_fields.items()]
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part in known or isinstance(part, int))
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else "remove it"
            name = ".".join(str(part) for part in first["loc"])
            raise InputError(name, "unknown key", remedy) from None
        raise InputError(where or str(first["loc"]), f"{first['input']!r} is wrong", first["msg"]) from None


_OWN_SECTIONS = (OwnKeys, Launch, RayLaunch, Init, TokenizerSpec, TaskMetric, Augment)


@dataclass(frozen=True)
class _FieldCheck:
    """One dataclass field of TRL's: its type, its choices and its default."""

    name: str
    hint: Any
    choices: tuple[Any, ...]

    def takes_list(self) -> bool:
        """Whether the field is a list and no plain text."""
        arms = typing.get_args(self.hint) or (self.hint,)
        arms = (self.hint,) if typing.get_origin(self.hint) is list else arms
        return str not in arms and any(typing.get_origin(arm) is list for arm in arms)

    def check(self, value: Any) -> Any:
        if self.name in _ALSO_BOOL and isinstance(value, bool):
            return value
        if value is False and "no" in self.choices:
            value = "no"  # YAML reads a bare `no` as false
        if isinstance(value, bool) and {"on", "off"} <= set(self.choices):
            value = "on" if value else "off"
        if isinstance(value, str) and self.takes_list():
            value = [value]  # `loss_type: sigmoid`, as TRL's command line takes it
        try:
            checked = TypeAdapter(self.hint).validate_python(value)
        except ValidationError as error:
            expected = getattr(self.hint, "__name__", None) or str(self.hint)
            problem = f"{value!r} is not {expected.replace('typing.', '')}"
            raise InputError(self.name, problem, error.errors()[0]["msg"]) from None
        if self.choices and checked is not None and not set(as_list(checked)) <= set(self.choices):
            raise InputError(
                self.name, f"unknown value {value!r}", f"choose one of {', '.join(map(str, self.choices))}"
            )
        if self.name in _AT_LEAST_ONE and checked is not None and checked < 1:
            raise InputError(self.name, f"{value!r} is too small", "give 1 or more")
        if self.name in _NOT_ZERO and checked == 0:
            raise InputError(self.name, "0 steps", "give 1 or more, or leave it out")
        if isinstance(checked, float) and not math.isfinite(checked):
            raise InputError(self.name, f"{value!r} is not finite", "give a number")
        if self.name == "learning_rate" and checked < 0:
            raise InputError(self.name, f"{value!r} is negative", "give 0 or more")
        if isinstance(value, int) and checked == value:
            return value  # a whole number stays one, also where TRL allows a share of the steps
        return checked.value if isinstance(checked, Enum) else checked


# Typed as text by Transformers, which takes `true` as well.
_ALSO_BOOL = {"resume_from_checkpoint", "fsdp"}
_NOT_ZERO = {"max_steps", "save_steps", "eval_steps"}
_AT_LEAST_ONE = {
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "max_length",
}


def as_list(value: Any) -> list[Any]:
    """The items of a list, or the one value; enumerations as their values."""
    return [item.value if isinstance(item, Enum) else item for item in (value if isinstance(value, list) else [value])]


@cache
def _trl_fields(trainer: str) -> dict[str, dict[str, _FieldCheck]]:
    from trl import DatasetMixtureConfig, ModelConfig, ScriptArguments

    return {
        "training": _field_checks(METHODS[trainer].config_class(), METHODS[trainer].choices),
        "model": _field_checks(ModelConfig),
        "data": _field_checks(ScriptArguments) | _field_checks(DatasetMixtureConfig),
    }


def _field_checks(config: Any, extra: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, _FieldCheck]:
    hints = typing.get_type_hints(config)
    checks = {}
    for item in fields(config):
        hint = hints[item.name]
        enums = [part for part in typing.get_args(hint) if isinstance(part, type) and issubclass(part, Enum)]
        choices = tuple(item.metadata.get("choices") or (member.value for enum in enums for member in enum))
        choices = choices or (extra or {}).get(item.name, ())
        if item.default is None and item.default is not MISSING and hint is not Any:
            hint = hint | None
        checks[item.name] = _FieldCheck(item.name, hint, choices)
    return checks
