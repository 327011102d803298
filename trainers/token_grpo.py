"""TokenGRPO: TRL's GRPO with one advantage per token, made by functions that a recipe names."""

import logging
from collections.abc import Callable, Sequence
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from trl import GRPOTrainer

from tokencredit.errors import InputError
from tokencredit.rewards import RewardBatch, RewardFunction, RewardPool
from tokencredit.trainers.credit import CREDIT, TOKEN_WEIGHTS, load_hooks
from tokencredit.trainers.grpo_parts import NonFinite, Stopwatch, regroup, write_rollouts
from tokencredit.trainers.grpo_refill import Refill
from tokencredit.trainers.grpo_saving import SaveOnBoundary
from tokencredit.trainers.rollouts import Rollouts, Scalars, token_values
from tokencredit.trainers.sharing import SharedForward, shared_pairs
from tokencredit.trainers.token_grpo_config import NOT_COLUMNS, TokenGRPOConfig

_GROUP, _SPOILT = "group_ids", "spoilt"
_IMAGES = (
    *("pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles"),
    *("image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)
"""What TRL's own pass over rollouts takes besides ids and masks."""


class TokenGRPOTrainer(GRPOTrainer):
    """TRL's GRPO trainer; rewards come from a `RewardPool`, advantages are `[B, T]`.

    Without `credit` and `token_weight` they are TRL's own, the same on every token of a row, and gradients are TRL's.

    Args:
        model: As TRL takes it.
        reward_funcs: What `RewardPool` takes, or such a pool; by default `args.reward_funcs`.
        args: The configuration.
        **kwargs: As TRL takes them.

    Raises:
        InputError: For reward models and environments that give rewards, neither of which a `RewardPool` runs, and for
            what the configuration refuses.
    """

    # TRL does not say what these are.
    args: Any
    model: Any
    num_generations_eval: Any
    _buffered_inputs: Any

    _name = "TokenGRPO"
    _tag_names = ["trl", "grpo", "tokencredit"]  # noqa: RUF012  (as in the base class)

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: TokenGRPOConfig | None = None, **kwargs: Any
    ) -> None:
        if args is None:
            raise InputError("args", "is missing", "give a TokenGRPOConfig")
        self._credit = load_hooks(args.credit, CREDIT, "credit", leading=2)
        self._token_weights = load_hooks(args.token_weight, TOKEN_WEIGHTS, "token_weight", leading=4)
        self.reward_pool = reward_pool(args.reward_funcs if reward_funcs is None else reward_funcs, args)
        self._time = Stopwatch()
        self._scored: dict[str, Any] = {}
        self._at_update: dict[str, Any] | None = None
        names: Any = [_stand_in(name) for name in self.reward_pool.names]
        super().__init__(model, names, args, **kwargs)
        if len(self.reward_funcs) != len(self.reward_pool.names):
            problem = "an environment gives rewards of its own, which would not go through the pool"
            raise InputError("environment_factory", problem, "give a reward function instead")
        self._sharing = shared_pairs(self)
        self._counted = torch.zeros(4, dtype=torch.float64)
        self._refill = Refill(self, args.refill_dead_groups) if args.refill_dead_groups else None
        self._non_finite = NonFinite(self, args.max_skipped_steps)
        self.add_callback(self._non_finite)
        self.add_callback(SaveOnBoundary(self))

    def _all_reduce(self, x: Tensor, op: str = "sum") -> Tensor:
        if self.accelerator.num_processes == 1:
            return x
        operation = {"sum": "SUM", "min": "MIN", "max": "MAX"}[op]
        found = x.clone()
        distributed.all_reduce(found, op=getattr(distributed.ReduceOp, operation))
        return found

    def _generate(self, prompts: list[Any]) -> Any:
        def generate(prompts: list[Any]) -> Any:
            with self._time.measure("generate"):
                return super(TokenGRPOTrainer, self)._generate(prompts)

        parts = list(generate(prompts))
        if self._refill is not None and self.model.training:
            batch = self._score_rewards(self._inputs, prompts, parts[3], parts[1])
            self._scored["batch"] = self._refill(prompts, parts, batch, generate)
        return tuple(parts)

    def _score_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], ids: Any, log_extra: Any = None
    ) -> RewardBatch:
        with self._time.measure("reward"):
            return self.reward_pool.score(
                completions,
                prompts=prompts,
                completion_ids=ids,
                trainer_state=self.state,
                log_extra=log_extra or self._log_completion_extra,
                log_metric=self._log_metric,
                **_columns(inputs),
            )

    def _gathered(self, batch: RewardBatch) -> Tensor:
        """The values of all processes `[N, F]`, and whether a token of the row has a value of its own."""
        values = [[torch.nan if value is None else value for value in row] for row in batch.values]
        marked = [[float(any(r is not None and (r.tokens or r.spans) for r in row))] for row in batch.rewards]
        local = torch.cat([torch.tensor(values), torch.tensor(marked)], dim=1).to(self.accelerator.device)
        everywhere: Tensor = self.accelerator.gather(local)
        return everywhere

    def _scalars(self, everywhere: Tensor) -> Scalars:
        size: Any = self.num_generations if self.model.training else self.num_generations_eval
        apart = self.args.multi_objective_aggregation == "normalize_then_sum"
        weights = self.reward_weights.to(everywhere.device)
        return Scalars(everywhere[:, :-1], weights, everywhere[:, -1] > 0, size, apart=apart)

    def _calculate_rewards(
        self, inputs: list[dict[str, Any]], prompts: list[Any], completions: list[Any], completion_ids_list: Any
    ) -> Tensor:
        batch = self._scored.get("batch") or self._score_rewards(inputs, prompts, completions, completion_ids_list)
        everywhere = self._gathered(batch)
        self._scored = {
            "prompts": prompts,
            "completions": completions,
            "columns": _columns(inputs),
            "token_ids": completion_ids_list,
            "rewards": batch.rewards,
            "everywhere": everywhere,
        }
        own = {name: value for name, value in batch.metrics().items() if not name.endswith(("/mean", "/std"))}
        shares = self.accelerator.gather(torch.tensor([list(own.values())], device=everywhere.device)).mean(0).tolist()
        for name, share in zip(own, shares, strict=True):
            self._metrics["train" if self.model.training else "eval"][name].append(share)
        found: Tensor = everywhere[:, :-1]
        return found

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        # TRL hands this very list to the rewards, and refilling changes it.
        self._inputs, self._scored = inputs, {}
        with self._time.measure("score", leaving_out=("generate", "reward")):
            out: dict[str, Any] = super()._generate_and_score_completions(inputs)
            rollouts = self._rollouts(out)
            plain = out["advantages"][:, None].expand(rollouts.ids.shape)
            advantages = reduce(lambda found, hook: hook(rollouts, found), self._credit, plain)
        self._check_shape(advantages, rollouts.ids)
        spoilt = self._all_reduce((~advantages.isfinite()).any().float(), "max") > 0
        if spoilt:
            self._non_finite.save(dict(out) | {"advantages": advantages.detach()}, "advantages")
            advantages = torch.zeros_like(plain)
        # Not of the attention, of which `completion_mask` is a part.
        out["tool_mask"] = rollouts.mask * (not spoilt)
        out["advantages"] = (advantages * rollouts.mask).detach().float()
        out["num_items_in_batch"] = self._all_reduce(out["tool_mask"].sum())
        out[_GROUP] = rollouts.group_ids
        out[_SPOILT] = torch.full_like(rollouts.group_ids, bool(spoilt))
        self._log_rollouts(rollouts, out)
        if not self.model.training:
            self._time.forget()  # evaluation stands between two steps, and is of neither
        return out

    def _check_shape(self, advantages: Any, ids: Tensor) -> None:
        shape = list(getattr(advantages, "shape", []))
        if shape != list(ids.shape):
            problem = f"advantages of shape {shape or type(advantages).__name__} came back for tokens {list(ids.shape)}"
            raise InputError("credit", problem, "return one number per token, [B, T]")

    def _rollouts(self, out: dict[str, Any]) -> Rollouts:
        """What credit functions get, of what TRL generated and the pool scored."""
        scored, training = self._scored, self.model.training
        ids, scalars = out["completion_ids"], self._scalars(scored["everywhere"])
        first = self.accelerator.process_index * len(ids)
        mask = out["completion_mask"] * out.get("tool_mask", 1)
        if training and self.args.mask_dead_groups:
            mask = mask * scalars.live[first : first + len(ids), None]
        return Rollouts(
            prompts=scored["prompts"],
            completions=scored["completions"],
            columns=scored["columns"],
            ids=ids,
            mask=mask,
            lengths=[len(sampled) for sampled in scored["token_ids"]],
            token_rewards=self._token_rewards(ids, scalars.weights.tolist()),
            scalars=scalars,
            names=self.reward_pool.names,
            first=first,
            reduce=self._all_reduce,
            score=partial(self._score, out),
            given_logps=out.get("old_per_token_logps"),
        )

    def _token_rewards(self, ids: Tensor, weights: list[float]) -> Tensor:
        found = torch.zeros(ids.shape)
        scored = self._scored
        rows = zip(scored["rewards"], scored["completions"], scored["token_ids"], strict=True)
        for row, (rewards, completion, sampled) in enumerate(rows):
            if any(reward is not None and (reward.tokens or reward.spans) for reward in rewards):
                try:
                    values = token_values(rewards, weights, completion, list(sampled), self._tokenizer)
                except InputError as error:  # of one odd answer, on one process: the others would wait for this one
                    self._say_once(f"{error}: tokens of such answers get no values (logged once)")
                    continue
                found[row, : len(values)] = torch.tensor(values)
        return found.to(ids.device)

    def _say_once(self, text: str) -> None:
        if not self._said:
            self._said = True
            logging.getLogger("tokencredit").warning(text)

    def _score(self, out: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of the rollouts, `[B, T]`."""
        ids = torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1)
        attention = torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1)
        size = self.args.per_device_train_batch_size
        with torch.no_grad():
            logps, entropies, _ = self._get_per_token_logps_and_entropies(
                self.model,
                ids,
                attention,
                out["completion_ids"].size(1),
                batch_size=size,
                compute_entropy=True,
                **{name: out[name] for name in _IMAGES if name in out},
            )
        return logps, entropies

    def _log_rollouts(self, rollouts: Rollouts, out: dict[str, Any]) -> None:
        mode = "train" if self.model.training else "eval"
        counts = torch.stack([out["tool_mask"].sum(), out["completion_mask"].sum()]).double()
        used, sampled = self._all_reduce(counts).tolist()
        self._metrics[mode]["live_groups"].append(rollouts.scalars.live_groups().float().mean().item())
        self._metrics[mode]["live_tokens"].append(used / max(1.0, sampled))
        every, step = self.args.token_samples_steps, self.state.global_step
        due = every is not None and step // every != self._last_sample // every
        if mode == "train" and due and self.is_world_process_zero():
            run, count = Path(str(self.args.output_dir)), self.args.num_token_samples
            write_rollouts(run, step, rollouts, out["advantages"], self._tokenizer, count)
        if mode == "train" and due:
            self._last_sample = step

    _last_sample = -1
    _said = False

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before and "num_images" not in inputs:
            self._buffered_inputs = regroup(self._buffered_inputs, _GROUP)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        # A copy: TRL uses its buffered inputs for several updates.
        self._at_update = dict(inputs)
        try:
            loss: Tensor = super()._compute_loss(model, self._at_update)  # type: ignore[no-untyped-call]
        finally:
            self._at_update = None
        if not self.model.training:
            return loss
        reason = "advantages" if inputs[_SPOILT].any() else "loss"
        bad = self._all_reduce((~loss.detach().isfinite()).float(), "max") > 0
        if bad:
            self._non_finite.save(inputs, reason)
        if bad or reason == "advantages":
            self._non_finite.mark()
        return loss

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        shared = model if self._sharing is None else SharedForward(model, self._sharing, self._count)
        found = super()._get_per_token_logps_and_entropies(shared, *args, **kwargs)
        inputs = self._at_update
        if inputs is not None and self._token_weights:
            logps, entropies = found[0].detach(), found[1].detach()
            old = inputs.get("old_per_token_logps")
            log_ratio = torch.zeros_like(logps) if old is None else logps - old
            settings = (log_ratio, entropies, inputs["tool_mask"], self.state.global_step)
            for weigh in self._token_weights:
                inputs["advantages"] = inputs["advantages"] * weigh(*settings).detach()
        return found

    def _count(self, counts: Tensor) -> None:
        if self.model.training:
            self._counted += torch.cat([counts, torch.ones_like(counts[:1])])

    def _log_sharing(self) -> None:
        """Of all forwards since the last optimiser step."""
        distinct, alone, used, batches = self._all_reduce(self._counted.to(self.accelerator.device)).tolist()
        self._counted.zero_()
        self._metrics["train"]["shared_prefix/token_ratio"].append(distinct / max(1.0, alone))
        self._metrics["train"]["shared_prefix/used"].append(used / max(1.0, batches))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)  # type: ignore[no-untyped-call]
        if self._refill is not None and self.args.should_save:
            self._refill.save(Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}")

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[no-untyped-call]
        if self._refill is not None and checkpoint is not None:
            self._refill.load(Path(checkpoint))

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, with its time."""
        with self._time.measure("train", leaving_out=("generate", "reward", "score")):
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[no-untyped-call]
        current: Any = self._buffered_inputs[(self._step - 1) % self.args.steps_per_generation]
        self._time.tokens += int(current["prompt_mask"].sum() + current["completion_mask"].sum())
        if self._step % self.current_gradient_accumulation_steps == 0:
            for name, value in self._time.drain(self.accelerator).items():
                self._metrics["train"][name].append(value)
            if self._sharing is not None:
                self._log_sharing()
        return loss


def reward_pool(given: Any, args: TokenGRPOConfig) -> RewardPool:
    """The pool that a recipe's `reward_funcs` and `reward_pool` describe.

    Raises:
        InputError: There is no function, or it is a reward model.
    """
    if isinstance(given, RewardPool):
        return given
    items = given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    if not items:
        raise InputError("reward_funcs", "is missing", "name a built-in reward or module:function")
    if any(isinstance(item, torch.nn.Module) for item in items):
        raise InputError("reward_funcs", "a model is no function", "call it in a function of your own, marked trusted")
    functions = [RewardFunction(**item) if isinstance(item, dict) else item for item in items]
    return RewardPool(functions, **(args.reward_pool or {}))


def _columns(inputs: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """What the data has besides prompts, a list per column."""
    return {key: [row[key] for row in inputs] for key in inputs[0] if key not in NOT_COLUMNS}


def _stand_in(name: str) -> Callable[..., Sequence[float]]:
    """What TRL takes the name of a reward from; the pool is what runs."""

    def function(**columns: Any) -> Sequence[float]:
        raise AssertionError("rewards come from the pool")

    function.__name__ = name
    return function
