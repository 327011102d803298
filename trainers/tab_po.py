"""TAB-PO on TRL's DPO trainer: token weights and the adaptive barrier.

What differs from the authors' release (arXiv 2603.00025): log-probabilities in float32; both sides of a pair
serialised by one function; weights at the offsets of parsed JSON values; differing tokens by alignment of ids.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tokencredit.errors import InputError
from tokencredit.losses import tab_po_loss
from tokencredit.trainers.annotate import WEIGHTS, first_row
from tokencredit.trainers.diagnostics import RATIOS
from tokencredit.trainers.preference import PreferenceConfig, PreferenceTrainer


@dataclass
class TABPOConfig(PreferenceConfig):
    """Configuration of `TABPOTrainer`: `PreferenceConfig`, TRL's `DPOConfig` among it, and

    Args:
        form: `weighted` (first version of the paper) [C] or `sum` (second) [N].
        beta: β; 0.5 [C] instead of DPO's 0.1.
        tau: τ, the probability below which a chosen token is lifted by the barrier; 0.66 [C].
        lam: λ, the weight of the barrier; by default 0.5 for `weighted` [C] and 1.5 for `sum` [O].
        barrier_scope: `all` response tokens may be lifted, or only the `weighted` ones [O].
        loss: Replaces `tab_po_loss`, and may name its settings (`beta`, `tau`, `lam`, `form`, `barrier_scope`).
        token_weights: For `weighted` only.
    """

    beta: float = field(default=0.5, metadata={"help": "How strongly the policy is held to the reference."})
    form: str = field(default="weighted", metadata={"help": "Version of the loss.", "choices": ["weighted", "sum"]})
    tau: float = field(default=0.66, metadata={"help": "Probability below which a chosen token is lifted."})
    lam: float | None = field(default=None, metadata={"help": "Weight of the barrier."})
    barrier_scope: str = field(
        default="all", metadata={"help": "Tokens that may be lifted.", "choices": ["all", "weighted"]}
    )

    default_loss = staticmethod(tab_po_loss)  # type: ignore[assignment]
    loss_settings = ("beta", "tau", "lam", "form", "barrier_scope")  # type: ignore[assignment]

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """As the base class does, and the settings of TAB-PO."""
        super().refuse(values)
        tau, lam, form, weights = (values[name] for name in ("tau", "lam", "form", "token_weights"))
        if not 0 < tau <= 1:
            raise InputError("tau", f"{tau} is no probability", "give 0 < tau <= 1")
        if lam is not None and not lam >= 0:
            raise InputError("lam", f"{lam} is negative", "give 0 or more")
        if form == "sum" and weights is not None:
            raise InputError("token_weights", "the sum form has no token weights", "remove them, or set form: weighted")
        if values["barrier_scope"] == "weighted" and form == "sum":
            raise InputError("barrier_scope", "'weighted' needs token weights", "set form: weighted, or scope: all")


class TABPOTrainer(PreferenceTrainer):
    """Trainer of Token-Adaptive Barrier Preference Optimization (arXiv 2603.00025); see `tab_po_loss`.

    Takes what `trl.DPOTrainer` takes, with a `TABPOConfig`. Without token weights every weight is one. Besides what
    `PreferenceTrainer` logs: `gated_fraction` and `barrier_to_preference` (the barrier's share of the gradient on the
    gated tokens over the preference's), overall and per token class.
    """

    _tag_names = ["trl", "tokencredit", "tab-po"]  # noqa: RUF012  (as in the base class)
    _name = "TAB-PO"
    _paper = {  # noqa: RUF012
        "title": "Token-Adaptive Barrier Preference Optimization",
        "id": "2603.00025",
    }

    config_class = TABPOConfig
    ratio_metrics: Mapping[str, tuple[str, str]] = {
        **RATIOS,
        "gated_fraction": ("loss.gated", "chosen_tokens"),
        "barrier_to_preference": ("loss.barrier_gradient", "loss.preference_gradient"),
    }

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        dataset = super()._prepare_dataset(dataset, processing_class, args, dataset_name)
        weighted = set(WEIGHTS) <= set(first_row(dataset))
        if args.form == "sum" and weighted:
            raise InputError("form", "'sum' has no token weights, and the data has them", "remove the columns")
        if args.barrier_scope == "weighted" and not weighted:
            raise InputError("barrier_scope", "'weighted' without token weights", "set token_weights, or scope: all")
        return dataset
