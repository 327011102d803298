"""Common prefixes of a batch, computed once: the setting, the trees of a batch, and whether a run can."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokencredit.errors import InputError
from tokencredit.scoring.shared_forward import refusal, share_prefixes
from tokencredit.scoring.tree_batch import batch_trees
from tokencredit.scoring.trl_compat import bare_model
from tokencredit.trainers.settings import TokenWeighted

TREES = "prefix_trees"
_CHOICES = ("auto", "on", "off")
_IGNORED_LABEL = -100


@dataclass
class PairSettings(TokenWeighted):
    """Put before TRL's `DPOConfig`: `TokenWeighted`, and `share_prefixes`.

    Args:
        share_prefixes: Whether both responses of a pair, and pairs of one prompt, go through the model as a tree of
            their distinct prefixes. It changes cost, never numbers (rounding aside). `auto` does so for the batches in
            which it costs less, and pads with a warning where the model cannot; `on` always does so, and refuses such a
            model; `off` never does. Dropout, where TRL's `disable_dropout` is off, gives both responses the same noise
            on what they share.
    """

    share_prefixes: str = field(
        default="auto", metadata={"help": "Compute common prefixes of a pair once.", "choices": [*_CHOICES]}
    )

    def __post_init__(self) -> None:
        self.share_prefixes = as_choice(self.share_prefixes)
        super().__post_init__()

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """As the base class does, and an unknown `share_prefixes`."""
        super().refuse(values)
        check_choice(values["share_prefixes"])


def as_choice(given: Any) -> Any:
    """A value of `share_prefixes` as it was meant: YAML reads a bare `on` and `off` as booleans."""
    return {True: "on", False: "off"}.get(given, given)


def check_choice(value: Any) -> None:
    """Refuse an unknown value of `share_prefixes`."""
    if as_choice(value) not in _CHOICES:
        raise InputError("share_prefixes", f"unknown value {value!r}", f"choose one of {', '.join(_CHOICES)}")


@dataclass(frozen=True)
class SharedPairs:
    """Makes the trees of a padded batch.

    Args:
        hidden_size: Of the model; what attention costs is measured against it.
        always: Whether to lay out trees where they cost more than padding too.
        whole: Whether last tokens have rows, as the load of a model's experts counts them.
        multiple_of: Rows are padded to a multiple of it.
    """

    hidden_size: int
    always: bool
    whole: bool = False
    multiple_of: int | None = None

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`batch_trees` of a batch of TRL's pair collator."""
        return self.trees(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])

    def trees(self, input_ids: Tensor, attention_mask: Tensor, scored: Tensor) -> dict[str, Tensor]:
        """`batch_trees` of a padded batch, `[S, T]` each."""
        return batch_trees(
            input_ids,
            attention_mask,
            scored,
            hidden_size=self.hidden_size,
            always=self.always,
            whole=self.whole,
            multiple_of=self.multiple_of,
        )


class SharedForward:
    """A model that takes a padded batch of text, and runs it over trees where that is settled by `sharing`.

    A batch stays one forward, so that every process runs as many. What is more than text, such as images, stays padded.

    Args:
        model: With a fused head that takes `prefix_trees`, plain or wrapped.
        sharing: Makes the trees.
        count: Gets `counts` `[3]` of `batch_trees` at every call.
    """

    _TEXT = frozenset({"input_ids", "attention_mask", "labels", "fused_lm_head", "output_router_logits"})

    def __init__(self, model: Callable[..., Any], sharing: SharedPairs, count: Callable[[Tensor], None]) -> None:
        self.model, self.sharing, self.count = model, sharing, count

    def __call__(self, **inputs: Any) -> Any:
        """What the model returns for the batch."""
        if set(inputs) - self._TEXT:
            return self.model(**inputs)
        ids, device = inputs["input_ids"].cpu(), inputs["input_ids"].device
        trees = self.sharing.trees(ids, inputs["attention_mask"].cpu(), inputs["labels"].cpu() != _IGNORED_LABEL)
        self.count(trees["counts"])
        return self.model(**inputs, **{TREES: {name: value.to(device) for name, value in trees.items()}})


def shared_pairs(trainer: Any) -> SharedPairs | None:
    """Prepare the models of a trainer under construction for trees.

    Returns:
        What makes them, or None where pairs stay padded; a warning says why, unless the user asked for it.

    Raises:
        InputError: `share_prefixes` is on, and a model cannot.
    """
    wanted = trainer.args.share_prefixes
    if wanted == "off":
        return None
    models = [model for model in (trainer.model, trainer.ref_model) if model is not None]
    reason = _reason(trainer, models)
    if reason is not None:
        if wanted == "on":
            raise InputError("share_prefixes", f"common prefixes cannot be shared: {reason}", "set it to auto or off")
        if trainer.is_world_process_zero():
            logging.getLogger("tokencredit").warning("share_prefixes: every response is computed whole: %s", reason)
        return None
    for model in models:
        share_prefixes(model)
    config = bare_model(trainer.model).config.get_text_config()
    return SharedPairs(
        config.hidden_size,
        always=wanted == "on",
        whole=trainer.aux_loss_enabled,
        multiple_of=trainer.args.pad_to_multiple_of,
    )


def _reason(trainer: Any, models: list[Any]) -> str | None:
    if trainer.args.torch_compile:
        return "torch_compile would compile anew for each shape of the trees"
    reasons = (refusal(model, bare_model(model).config.get_text_config()) for model in models)
    return next((reason for reason in reasons if reason is not None), None)
