"""T-REG on TRL's DPO trainer: token rewards that a model gives itself, regularising DPO or SimPO.

What differs from the paper (arXiv 2412.02685), whose body was not readable to us:
1. The wording of the contrastive prompts is ours, and there is a second pair of them for structured output.
2. No gradient flows through the weight w, unless asked for (`detach_weight`).
3. On SimPO the regulariser is divided by the length, as SimPO's reward is.
4. End-of-turn tokens get no reward.
5. Rewards are computed once for each response, before training, and kept.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch import Tensor

from tokencredit.errors import InputError
from tokencredit.losses import t_reg_loss
from tokencredit.scoring.contrastive import BATCH_TOKENS, load_templates
from tokencredit.scoring.trl_compat import prepare_deepspeed
from tokencredit.trainers.annotate import REWARDS, first_row
from tokencredit.trainers.diagnostics import ScoredPairs
from tokencredit.trainers.pair_loss import PairLoss
from tokencredit.trainers.preference import PreferenceConfig, PreferenceTrainer
from tokencredit.trainers.token_rewards import load_evaluator, with_token_rewards

_BETA = {"dpo": 0.01, "simpo": 10.0}
_REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")


@dataclass
class TREGConfig(PreferenceConfig):
    """Configuration of `TREGTrainer`: `PreferenceConfig`, TRL's `DPOConfig` among it, and

    Args:
        alpha: α, the strength of the regularisation; 0.1, 0.25 and 0.5 are published [N].
        base: The loss that is regularised, `dpo` or `simpo`; with `simpo` there is no reference model.
        beta: β; by default 0.01 for `dpo` and 10 for `simpo` [N].
        gamma: γ, SimPO's target margin in units of the rewards; γ/β of 0.3 to 0.5 is published [N].
        detach_weight: Whether no gradient flows through the weight w [O].
        templates: The contrastive prompts: `direct`, `general`, `steerable`, `structured`, or a YAML file.
        evaluator: The model that gives the rewards, a folder or hub name with the tokenizer of the trained model; by
            default the reference, which is the model that training begins with.
        reward_batch_tokens: At most so many padded tokens in one forward of the evaluator.
        loss: Replaces `t_reg_loss`, and may name its settings.
    """

    alpha: float = field(default=0.25, metadata={"help": "Strength of the regularisation."})
    base: str = field(default="dpo", metadata={"help": "Loss that is regularised.", "choices": ["dpo", "simpo"]})
    beta: float | None = field(default=None, metadata={"help": "0.01 for dpo and 10 for simpo by default."})  # type: ignore[assignment]
    gamma: float = field(default=0.0, metadata={"help": "SimPO's target margin."})
    detach_weight: bool = field(default=True, metadata={"help": "Whether the weight is a constant to the gradient."})
    templates: str = field(default="general", metadata={"help": "A built-in pair of prompts, or a YAML file."})
    evaluator: str | None = field(default=None, metadata={"help": "Model that gives the rewards."})
    reward_batch_tokens: int = field(default=BATCH_TOKENS, metadata={"help": "Padded tokens in one forward."})

    default_loss = staticmethod(t_reg_loss)  # type: ignore[assignment]
    loss_settings = ("beta", "alpha", "base", "gamma", "detach_weight")  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.beta is None:
            self.beta = _BETA.get(self.base)
        super().__post_init__()

    @classmethod
    def pair_loss(cls, values: Mapping[str, Any]) -> PairLoss:
        """As the base class does; without a reference for SimPO."""
        loss = super().pair_loss(values)
        if values["base"] == "dpo" or loss.function is not t_reg_loss:
            return loss
        wanted = tuple(name for name in loss.wanted if name not in _REFERENCE)
        return replace(loss, wanted=wanted, keywords=loss.keywords | dict.fromkeys(_REFERENCE))

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """As the base class does, and the settings of T-REG."""
        alpha, base, gamma = (values[name] for name in ("alpha", "base", "gamma"))
        if base not in _BETA:
            raise InputError("base", f"{base!r} is unknown", f"choose one of {', '.join(_BETA)}")
        if not alpha >= 0:
            raise InputError("alpha", f"{alpha} is negative", "give 0 or more")
        if base == "dpo" and gamma:
            raise InputError("gamma", f"{gamma} has no effect with base: dpo", "remove it, or set base: simpo")
        if values["reward_batch_tokens"] < 1:
            raise InputError("reward_batch_tokens", f"{values['reward_batch_tokens']} is too small", "give 1 or more")
        load_templates(values["templates"])
        super().refuse({**values, "beta": _BETA[base] if values["beta"] is None else values["beta"]})


class TREGTrainer(PreferenceTrainer):
    """Trainer of Token-level Reward Regularization (arXiv 2412.02685); see `t_reg_loss`.

    Takes what `trl.DPOTrainer` takes, with a `TREGConfig`. Rewards are the data's own columns `chosen_rewards` and
    `rejected_rewards` (one number per response token), or are computed before training by `contrastive_rewards` and
    kept. Besides what `PreferenceTrainer` logs: `weight`, `regulariser` and `alignment` of the loss; the alignment per
    token class; and `alignment_correlation`, Pearson's, overall and per class, between r̂_t and the policy's own
    r_θ(y_t) = β (ℓ_t − ℓ_t^ref), or (β/|y|) ℓ_t for SimPO.
    """

    _tag_names = ["trl", "tokencredit", "t-reg"]  # noqa: RUF012  (as in the base class)
    _name = "T-REG"
    _paper = {  # noqa: RUF012
        "title": "T-REG: Preference Optimization with Token-Level Reward Regularization",
        "id": "2412.02685",
    }

    config_class = TREGConfig
    correlation_metrics: Mapping[str, tuple[str, str]] = {"alignment": ("token_rewards", "implicit_rewards")}

    def __init__(self, model: Any, ref_model: Any = None, args: Any = None, **kwargs: Any) -> None:
        self._built = False
        super().__init__(model, ref_model, args, **kwargs)
        self._built = True
        evaluator = cache(self._evaluator)  # loaded where it is needed, once
        self.train_dataset: Any = self._computed(self.train_dataset, "train", evaluator)
        given: Any = self.eval_dataset
        if isinstance(given, dict):
            given = {name: self._computed(part, name, evaluator) for name, part in given.items()}
        elif given is not None:
            given = self._computed(given, "eval", evaluator)
        self.eval_dataset: Any = given

    def _with_rewards(self, dataset: Any, name: str) -> Any:
        if set(REWARDS) & set(first_row(dataset)):
            return super()._with_rewards(dataset, name)
        # While the trainer is being built there is no evaluator yet.
        return self._computed(dataset, name, self._evaluator) if self._built else dataset

    def _computed(self, dataset: Any, name: str, evaluator: Callable[[], tuple[Any, Any]]) -> Any:
        """The data with rewards."""
        if not self._loss.wants_rewards or set(REWARDS) & set(first_row(dataset)):
            return dataset
        if not isinstance(dataset, Dataset):
            remedy = f"load it whole, or give {' and '.join(REWARDS)}"
            raise InputError("dataset_streaming", "token rewards are computed before training", remedy)
        settings: Any = self.args
        model, tokenizer = evaluator()
        with self.accelerator.autocast(), nullcontext() if settings.evaluator else self._adapter_off():
            dataset = with_token_rewards(
                dataset,
                self._tokenizer,
                model,
                tokenizer,
                load_templates(settings.templates),
                batch_tokens=settings.reward_batch_tokens,
                precision=str(self.accelerator.mixed_precision),
                name=name,
            )
        self._prepared.add(dataset._fingerprint)
        return dataset

    def _evaluator(self) -> tuple[Any, Any]:
        """The model that gives the rewards, on its devices, and its tokenizer."""
        settings: Any = self.args
        if settings.evaluator is None:
            return self._initial_model(), self._tokenizer
        model, tokenizer = load_evaluator(settings.evaluator, settings)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(model, self.accelerator), tokenizer
        return model.to(self.accelerator.device), tokenizer

    def _initial_model(self) -> Any:
        """The reference, or the policy before its first step."""
        model: Any = self.model
        if (
            self.ref_model is None
            and self.state.global_step
            and not is_peft_model(self.accelerator.unwrap_model(model))
        ):
            problem = "the model that training began with is no longer in memory"
            raise InputError("evaluator", problem, "name it, or give this data at the start")
        return self._reference_engine() or self.ref_model or model

    def _token_values(self, scored: ScoredPairs, inputs: dict[str, Any]) -> dict[str, Tensor]:
        settings: Any = self.args
        given = inputs.get("token_rewards")
        rewards = torch.zeros_like(scored.logps) if given is None else given[:, 1:]
        if scored.ref_logps is None:
            implicit = scored.logps.detach() / scored.mask.sum(-1, keepdim=True).clamp(min=1)
        else:
            implicit = scored.logps.detach() - scored.ref_logps
        return {"token_rewards": rewards, "implicit_rewards": settings.beta * implicit}
