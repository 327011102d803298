"""When TokenGRPO may save: a checkpoint holds no rollouts, so it has to lie where new ones begin."""

import logging
import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_LOG = logging.getLogger("tokencredit")


class SaveOnBoundary(TrainerCallback):
    """Puts checkpoints off until the rollouts in use have been used up, whatever asked for them.

    Where evaluations choose the best checkpoint they are put off too, so that what is saved is what was evaluated. The
    last checkpoint of a run stays where it ends. Steps that a configuration names are moved before (`TokenGRPOConfig`).

    Args:
        trainer: A `TokenGRPOTrainer`.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.put_off: set[str] = set()
        self.said = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called before the first step, with the state of the checkpoint."""
        every, epoch = self.trainer.args.steps_per_rollout, state.epoch or 0.0
        # A pass over the data ends with a generation, also where its last step is a short one.
        between = state.global_step % every and not math.isclose(epoch, round(epoch))
        if between and state.is_world_process_zero:
            text = "resumed at step %d, between two generations (every %d steps): rollouts are made anew, earlier"
            _LOG.warning(text, state.global_step, every)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called after every optimiser step."""
        self._move(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Called after every pass over the data."""
        self._move(args, state, control)

    def _move(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if control.should_training_stop:
            return
        batches = self.trainer.args.steps_per_generation * self.trainer.num_iterations
        boundary = self.trainer._step % batches == 0
        choosing = args.save_strategy == "best" or args.load_best_model_at_end
        for name in ("should_save", "should_evaluate") if choosing else ("should_save",):
            wanted = getattr(control, name) or name in self.put_off
            setattr(control, name, wanted and boundary)
            if wanted and not boundary:
                self.put_off.add(name)
                self._say(state)
            else:
                self.put_off.discard(name)

    def _say(self, state: TrainerState) -> None:
        if not self.said and state.is_world_process_zero:
            text = "step %d: checkpoints are put off to where new rollouts begin (said once)"
            _LOG.warning(text, state.global_step)
        self.said = True
