"""SPAE: TokenGRPO whose credit comes from a probe after each step of a response."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from trl.models import unwrap_model_for_generation

from tokencredit.data.steps import Steps
from tokencredit.errors import InputError
from tokencredit.losses.advantages import whiten
from tokencredit.losses.spae import spae_credit, step_potential
from tokencredit.scoring import ProbeTask, draw_answers, probe_forwards, probe_steps
from tokencredit.scoring.shared_forward import refusal
from tokencredit.trainers.rollouts import Rollouts
from tokencredit.trainers.spae_config import SPAEConfig
from tokencredit.trainers.spae_tasks import TaskMaker, context_batches, continuations, until
from tokencredit.trainers.task_metric import stop_tokens
from tokencredit.trainers.token_grpo import TokenGRPOTrainer

_LOGGED_STEPS = 8
_TIMES = ("time/generate", "time/reward", "time/score", "time/train")


class SPAETrainer(TokenGRPOTrainer):
    """Step Potential Advantage Estimation (arXiv 2601.03823) on TRL's GRPO.

    In the published order [P]: rewards; groups whose rewards are all equal are dropped; the steps of what remains are
    probed with the weights that it was sampled with; `spae_credit`; `whiten` over all tokens of the generation batch.
    With `alpha=0` and `xi=0` it is REINFORCE++-baseline. Differences from the paper, whose training code is not
    released: docs/spae.md.

    Args:
        model: As TRL takes it.
        reward_funcs: As `TokenGRPOTrainer` takes them.
        args: The configuration.
        **kwargs: As TRL takes them.

    Raises:
        InputError: As `TokenGRPOTrainer`; the tokenizer can never end a step, or the data lacks answers.
    """

    _name = "SPAE"
    _tag_names = ["trl", "grpo", "spae", "tokencredit"]  # noqa: RUF012  (as in the base class)
    _paper = {  # noqa: RUF012
        "title": "Step Potential Advantage Estimation",
        "id": "2601.03823",
    }

    def __init__(self, model: Any, reward_funcs: Any = None, args: SPAEConfig | None = None, **kwargs: Any) -> None:
        if not isinstance(args, SPAEConfig):
            raise InputError("args", f"is {type(args).__name__}", "give an SPAEConfig")
        super().__init__(model, reward_funcs, args, **kwargs)
        self._credit = [self._spae]
        self._maker = TaskMaker(self._tokenizer, args)
        self._maker.check("training", self.train_dataset)
        self._maker.check("evaluation", self.eval_dataset)
        plugin = self.accelerator.state.deepspeed_plugin
        self._sharded = self.is_fsdp_enabled or (plugin is not None and plugin.zero_stage == 3)
        reason = refusal(self.model, self.model.config.get_text_config()) if self._sharded else None
        if reason is not None:
            problem = f"a probe of sharded parameters has to compute each response once, and cannot: {reason}"
            raise InputError("model_name_or_path", problem, "use ZeRO-2 or DDP, or a model of another family")
        self._prompts: list[list[int]] = []
        self._probe_seconds = 0.0

    def _rollouts(self, out: dict[str, Any]) -> Rollouts:
        masks = out["prompt_mask"].bool()
        self._prompts = [ids[mask].tolist() for ids, mask in zip(out["prompt_ids"], masks, strict=True)]
        return super()._rollouts(out)

    def _spae(self, rollouts: Rollouts, advantages: Tensor) -> Tensor:
        """The credit function that stands in the place of a recipe's."""
        begun = time.perf_counter()
        steps, tasks = self._maker.make(rollouts, self._prompts)
        if self.args.probe_mode == "sampled" and self.args.use_conf:  # nothing else is made of these answers
            tasks = draw_answers(
                tasks,
                self._answers_of_the_model,
                self._tokenizer,
                num_samples=self.args.probe_num_samples,
                closing=self.args.probe_closing,
            )
        probed = self._probe(tasks)
        if self.model.training:
            self._probe_seconds += time.perf_counter() - begun

        given = _tensors(steps, probed, rollouts.ids)
        if self.args.shuffle_potentials:
            generator = torch.Generator().manual_seed(self.args.seed + 1000 * self.state.global_step + rollouts.first)
            given |= dealt_out(given["acc"], given["conf"], given["step_mask"], generator)
        if not self.args.use_conf:
            given["conf"] = torch.ones_like(given["conf"])
        given = {name: value.to(rollouts.ids.device) for name, value in given.items()}
        outcome = rollouts.relative_rewards()
        settings = {name: getattr(self.args, name) for name in ("alpha", "saturation", "positive_only")}
        shared: dict[str, Any] = {**given, "mask": rollouts.mask, "reduce": rollouts.reduce, **settings}
        penalised = spae_credit(outcome, **shared, xi=0.0)
        credit = spae_credit(outcome, **shared, xi=self.args.xi)
        self._log_probe(rollouts, given, outcome[:, None] - penalised, credit - penalised)
        return whiten(credit, rollouts.mask, reduce=rollouts.reduce)

    def _probe(self, tasks: Sequence[ProbeTask]) -> list[tuple[Tensor, Tensor]]:
        rows = self.args.probe_chunk_rows
        forwards = None
        if self._sharded:
            count = float(probe_forwards(self.model, tasks, chunk_rows=rows))
            needed = torch.tensor(count, device=self.accelerator.device)
            forwards = int(self._all_reduce(needed, "max"))
        return probe_steps(self.model, tasks, chunk_rows=rows, forwards=forwards)

    def _answers_of_the_model(self, contexts: list[list[int]]) -> list[list[int]]:
        """Beginnings of answers, by what generates the rollouts."""
        temperature, length = self.args.probe_temperature, self.args.probe_max_tokens
        if self.args.use_vllm:
            return self._answers_of_vllm(contexts, temperature, length)
        rounds = torch.tensor(float(len(context_batches(contexts))), device=self.accelerator.device)
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            gather_deepspeed3_params=self.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as model:
            training = model.training
            model.eval()
            try:
                return continuations(
                    model,
                    self._tokenizer,
                    contexts,
                    temperature=temperature,
                    max_new_tokens=length,
                    seed=self.args.seed + 1000 * self.state.global_step + self.accelerator.process_index,
                    rounds=int(self._all_reduce(rounds, "max")),
                )
            finally:
                model.train(training)

    def _answers_of_vllm(self, contexts: list[list[int]], temperature: float, length: int) -> list[list[int]]:
        engine: Any = self.vllm_generation
        changed: dict[str, Any] = {"temperature": temperature, "max_completion_length": length}
        changed |= {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        # What a recipe says of rollouts would count before all of these.
        changed |= {"generation_kwargs": {}, "structured_outputs_regex": None}
        before = {name: getattr(engine, name) for name in changed}
        # TRL takes a process's answers from those of all as if each had asked for as many.
        count = torch.tensor(float(max(1, len(contexts))), device=self.accelerator.device)
        spare = int(self._all_reduce(count, "max")) - len(contexts)
        asked = [*contexts, *[[self._tokenizer.eos_token_id]] * spare]
        try:
            vars(engine).update(changed)
            _, written, _, _ = engine.generate(prompts=asked, images=None, num_generations=1)
        finally:
            vars(engine).update(before)
        stops = stop_tokens(self.model, self._tokenizer)
        return [until(ids, stops) for ids in written[: len(contexts)]]

    def _log_probe(self, rollouts: Rollouts, given: dict[str, Tensor], penalty: Tensor, shaping: Tensor) -> None:
        """Means over all processes."""
        real, live = given["step_mask"].bool(), rollouts.mask.any(dim=1)
        phi = step_potential(given["acc"], given["conf"])
        high = (phi > self.args.saturation) & real
        first = torch.zeros(_LOGGED_STEPS, 2, device=phi.device)
        for step in range(min(_LOGGED_STEPS, phi.shape[1])):
            first[step] = torch.stack([phi[real[:, step], step].sum(), real[:, step].sum()])
        used = rollouts.mask.bool()
        rest = [
            (phi[real].sum(), real.sum()),
            (high.any(dim=1).sum(), live.sum()),
            (high.sum(), real.sum()),
            (real.sum(), live.sum()),
            (penalty[used].abs().sum(), used.sum()),
            (shaping[used].abs().sum(), used.sum()),
        ]
        sums = torch.stack([torch.stack([a.float(), b.float()]) for a, b in rest])
        totals = rollouts.reduce(torch.cat([sums, first])).tolist()
        names = ["potential", "saturated_responses", "saturated_steps", "steps", "penalty", "shaping"]
        names += [f"potential/step_{step + 1}" for step in range(_LOGGED_STEPS)]
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, (total, count) in zip(names, totals, strict=True):
            if count:
                metrics[f"spae/{name}"].append(total / count)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, with the time of the probe."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self._step % self.current_gradient_accumulation_steps == 0:
            metrics = self._metrics["train"]
            whole = sum(metrics[name][-1] for name in _TIMES)
            metrics["time/probe"].append(self._probe_seconds)
            metrics["spae/probe_share"].append(self._probe_seconds / max(whole, 1e-9))
            self._probe_seconds = 0.0
        return loss


def _tensors(steps: Sequence[Steps], probed: Sequence[tuple[Tensor, Tensor]], ids: Tensor) -> dict[str, Tensor]:
    """What `spae_credit` takes: `step_ids` `[B, T]`, and `acc`, `conf` and `step_mask` `[B, K]`."""
    width = max((len(found.ends) for found in steps), default=0)
    acc, conf, mask = (torch.zeros(len(steps), width) for _ in range(3))
    step_ids = torch.full(ids.shape, -1, dtype=torch.long)
    for row, (found, (a, c)) in enumerate(zip(steps, probed, strict=True)):
        count = len(found.ends)
        acc[row, :count], conf[row, :count], mask[row, :count] = a, c, 1
        step_ids[row, : found.thinking] = torch.tensor(found.step_ids(found.thinking), dtype=torch.long)
    return {"step_ids": step_ids, "acc": acc, "conf": conf, "step_mask": mask}


def dealt_out(acc: Tensor, conf: Tensor, step_mask: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The control: of each step's number the potentials of the responses that have it, in another order.

    Args:
        acc: Acc `[B, K]`.
        conf: Conf `[B, K]`.
        step_mask: 1 where a response has that step `[B, K]`.
        generator: Of the order.

    Returns:
        `acc` and `conf`; what stands together stays together.
    """
    acc, conf = acc.clone(), conf.clone()
    for step in range(acc.shape[1]):
        rows = step_mask[:, step].bool().nonzero()[:, 0]
        order = rows[torch.randperm(len(rows), generator=generator)]
        acc[rows, step], conf[rows, step] = acc[order, step], conf[order, step]
    return {"acc": acc, "conf": conf}
