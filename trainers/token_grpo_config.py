"""The configuration of TokenGRPO: TRL's GRPO, the credit and token-weight hooks, and the reward pool."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig

from tokencredit.errors import InputError
from tokencredit.trainers.credit import CREDIT, TOKEN_WEIGHTS, load_hooks
from tokencredit.trainers.sharing import as_choice, check_choice

NOT_COLUMNS = ("prompt", "completion", "completion_ids")
"""Columns of the data that are not among those of rollouts, which have what was generated under these names."""

_PER_SEQUENCE = {
    "loss_type": (
        "vespo",
        "it weighs a sequence by the sign of its one advantage",
        "choose dapo, grpo, bnpo, dr_grpo, cispo, sapo or luspo",
    ),
    "use_liger_kernel": (True, "it replaces the model's code that per-token numbers are read from", "remove it"),
}


@dataclass
class TokenGRPOConfig(GRPOConfig):
    """TRL's `GRPOConfig`, and

    Args:
        credit: From rollouts to advantages: names of `tokencredit.trainers.credit.CREDIT` or `module:function`, as
            `tokencredit.trainers.credit.load_hooks` takes them, applied in order; None keeps TRL's advantages.
        token_weight: Multiplies advantages at every update: names of `TOKEN_WEIGHTS` or `module:function`; the products
            of several.
        reward_funcs: What `RewardPool` takes, or a mapping of the fields of `RewardFunction`, or a list of those.
        reward_pool: Keyword arguments of `RewardPool`.
        mask_dead_groups: Groups in which all known rewards are equal, and rows without any, take no part in the loss
            nor in token counts. Off, their tokens are counted as TRL counts them.
        refill_dead_groups: How often at most the dead groups of a generation batch are replaced by groups of other
            prompts, drawn by a sampler of its own, before what is still dead is masked.
        share_prefixes: Whether a micro-batch goes through the model as a tree of its distinct prefixes (the prompt of a
            group once), before training and in it; see `tokencredit.trainers.sharing.PairSettings`. It changes cost,
            never numbers (rounding aside), unless dropout is on: shared tokens then have the same noise.
        max_skipped_steps: Stop when more steps than this were skipped because a loss or an advantage was not finite.
        token_samples_steps: Write token-level samples every so many steps; None writes none.
        num_token_samples: Responses in each of them.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "reward_pool"]  # noqa: RUF012  (as in the base class)

    credit: Any = field(default=None, metadata={"help": "From rollouts to one advantage per token."})
    token_weight: Any = field(default=None, metadata={"help": "Multiplies advantages at every update."})
    reward_funcs: Any = field(default=None, metadata={"help": "Reward functions."})
    reward_pool: dict[str, Any] | None = field(default=None, metadata={"help": "Deadlines and workers of rewards."})
    mask_dead_groups: bool = field(default=True, metadata={"help": "Leave out groups whose rewards are all equal."})
    refill_dead_groups: int = field(default=0, metadata={"help": "Rounds of other prompts for dead groups."})
    share_prefixes: str = field(
        default="auto", metadata={"help": "Compute common prefixes once.", "choices": ["auto", "on", "off"]}
    )
    max_skipped_steps: int = field(default=3, metadata={"help": "How many steps may be skipped as not finite."})
    token_samples_steps: int | None = field(default=100, metadata={"help": "Steps between token-level samples."})
    num_token_samples: int = field(default=8, metadata={"help": "Responses in a token-level sample."})

    def __post_init__(self) -> None:
        self.share_prefixes = as_choice(self.share_prefixes)
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.refuse(vars(self))
        self._save_on_boundary()

    @classmethod
    def refuse(cls, values: Mapping[str, Any]) -> None:
        """Check fields, without making a configuration: that would start the accelerator.

        Raises:
            InputError: Naming the field that cannot be used, and why.
        """
        for name, (value, reason, remedy) in _PER_SEQUENCE.items():
            if values[name] == value:
                raise InputError(name, f"{value!r} does not go with one advantage per token: {reason}", remedy)
        if values["off_policy_mask_threshold"] is not None:
            problem = "it drops whole sequences by the sign of their one advantage, and here every token has its own"
            raise InputError("off_policy_mask_threshold", problem, "remove it")
        if values["enable_jit_checkpoint"]:
            problem = "it saves wherever a signal falls, also between two generations"
            raise InputError("enable_jit_checkpoint", problem, "remove it; the newest checkpoint is resumed from")
        for name in ("max_skipped_steps", "refill_dead_groups", "num_token_samples"):
            if values[name] < 0:
                raise InputError(name, f"{values[name]!r} is negative", "give 0 or more")
        every = values["token_samples_steps"]
        if every is not None and every < 1:
            raise InputError("token_samples_steps", f"{every!r} is too small", "give 1 or more, or leave it empty")
        check_choice(values["share_prefixes"])
        load_hooks(values["credit"], CREDIT, "credit", leading=2)
        load_hooks(values["token_weight"], TOKEN_WEIGHTS, "token_weight", leading=4)

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps from one point at which a step begins with new rollouts to the next one."""
        assert self.steps_per_generation is not None
        batches = self.steps_per_generation * self.num_iterations
        return math.lcm(batches, self.gradient_accumulation_steps) // self.gradient_accumulation_steps

    def _save_on_boundary(self) -> None:
        """A checkpoint does not hold rollouts: one taken between two generations could not be resumed exactly."""
        every = self.steps_per_rollout
        if every == 1:
            return
        # Evaluations that choose the best checkpoint have to fall on checkpoints.
        choosing = self.eval_strategy == "steps" and (self.save_strategy == "best" or self.load_best_model_at_end)
        if choosing:
            self._move("eval_steps", every, every)
        if self.save_strategy == "steps":
            self._move("save_steps", every, math.lcm(every, int(self.eval_steps or 1)) if choosing else every)

    def _move(self, name: str, every: int, multiple: int) -> None:
        given = getattr(self, name)
        if given < 1:
            problem = f"a share of the steps need not be a multiple of the {every} steps per generation"
            raise InputError(name, problem, f"give a number of steps, a multiple of {every}")
        moved = math.ceil(given / multiple) * multiple
        if moved != given and self.process_index == 0:
            text = "%s: %g moved to %d: checkpoints are taken where new rollouts begin, every %d steps"
            logging.getLogger("tokencredit").warning(text, name, given, moved, every)
        setattr(self, name, moved)
