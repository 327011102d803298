"""The reward keys of a recipe, read alike by training and by `tokencredit reward check`."""

from dataclasses import fields
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tokencredit.errors import InputError
from tokencredit.recipes.schema import Recipe, validated
from tokencredit.rewards import RewardFunction
from tokencredit.rewards.functions import load, named


class RewardEntry(BaseModel):
    """One item of `reward_funcs`; a plain name stands for `{function: <name>}`."""

    model_config = ConfigDict(extra="forbid")

    function: str
    """A built-in name, or `module:function`."""
    name: str = ""
    """What metrics call it; by default the function's own name."""
    arguments: dict[str, Any] = {}
    columns: dict[str, str] = {}
    """Parameter → column, where the names differ."""
    adapter: str | None = None
    """`verl`, `openrlhf` or `reasoning_gym`."""
    batched: bool = False
    trusted: bool | None = None


class RewardPoolSettings(BaseModel):
    """The section `reward_pool`."""

    model_config = ConfigDict(extra="forbid")

    timeout: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    batch_timeout: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    workers: int | None = Field(default=None, ge=1)
    memory_gb: float = Field(default=8.0, gt=0, allow_inf_nan=False)
    alarm_share: float = Field(default=0.1, ge=0, le=1)
    stop_after: int = Field(default=3, ge=1)


class RewardSections(BaseModel):
    """The reward keys of a recipe."""

    model_config = ConfigDict(extra="forbid")

    reward_funcs: list[RewardEntry]
    reward_weights: list[float] | None = None
    """TRL's: one factor per function."""
    reward_pool: RewardPoolSettings = RewardPoolSettings()

    @property
    def functions(self) -> list[RewardFunction]:
        """What `RewardPool` takes."""
        return [RewardFunction(**entry.model_dump()) for entry in self.reward_funcs]


def parse_rewards(layer: dict[str, Any]) -> RewardSections:
    """Check the reward keys of a recipe; its other keys are not looked at.

    Args:
        layer: A recipe as a mapping.

    Raises:
        InputError: Naming the key that is missing, unknown or has an impossible value.
    """
    given = layer.get("reward_funcs")
    if not given:
        raise InputError("reward_funcs", "is missing", "name a built-in reward or module:function")
    items = given if isinstance(given, list) else [given]
    entries = [{"function": item} if isinstance(item, str) else item for item in items]
    keys = {"reward_funcs": entries, "reward_pool": layer.get("reward_pool") or {}}
    keys |= {"reward_weights": layer.get("reward_weights")}
    sections = validated(RewardSections, keys, (RewardSections, RewardEntry, RewardPoolSettings))
    weights = sections.reward_weights
    if weights is not None and len(weights) != len(sections.reward_funcs):
        problem = f"{len(weights)} weights for {len(sections.reward_funcs)} functions"
        raise InputError("reward_weights", problem, "give one per function")
    return sections


def check_rewards(recipe: Recipe) -> None:
    """Check the reward keys of a recipe whose trainer takes rewards, and that their functions are there.

    Raises:
        InputError: As `parse_rewards`, or a function cannot be found or refuses its arguments.
    """
    if "reward_funcs" in {item.name for item in fields(recipe.method.config_class())}:
        for spec in named(parse_rewards(recipe.training).functions):
            load(spec)
