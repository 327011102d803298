"""Do a few tokens cause the difference between two models? One writes, the other takes over where a rule says so."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokencredit.analysis.cross_arms import Arm, Direction, calibrated, figures, settings_of
from tokencredit.analysis.cross_labels import Label, label_positions
from tokencredit.analysis.cross_result import CrossResult
from tokencredit.analysis.cross_rewards import Scorer
from tokencredit.analysis.cross_samples import PART, Sampler, decode_here, fingerprint, read_problems
from tokencredit.analysis.statistics import RESAMPLES
from tokencredit.errors import InputError
from tokencredit.rewards import RewardPool
from tokencredit.scoring.cross_decode import Decoding, Trace
from tokencredit.trainers.task_metric import stop_tokens

DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")


@dataclass(frozen=True)
class Sweep:
    """What is tried.

    Args:
        epsilon: Thresholds.
        rate: Shares of the tokens to flag; thresholds are calibrated to them.
        budget: How many flagged tokens of an answer are replaced at most, each tried with every threshold.
        directions: `forward`, `reverse` or both.
        pilot: Problems from which thresholds for rates are taken.
        labels: Label so many flagged positions by what comes of them; 0 labels none.
        resamples: Bootstrap resamples of the problems.

    Raises:
        InputError: Something is impossible.
    """

    epsilon: tuple[float, ...] = ()
    rate: tuple[float, ...] = ()
    budget: tuple[int, ...] = ()
    directions: tuple[Direction, ...] = DIRECTIONS
    pilot: int = 32
    labels: int = 0
    resamples: int = RESAMPLES

    def __post_init__(self) -> None:
        for rate in self.rate:
            if not 0 < rate < 1:
                raise InputError("rate", f"{rate} is no share of the tokens", "give a number between 0 and 1")
        for name, least in {"pilot": 1, "resamples": 1, "labels": 0}.items():
            if getattr(self, name) < least:
                raise InputError(name, f"{getattr(self, name)} is too few", f"give {least} or more")
        wrong = [item for item in self.directions if item not in DIRECTIONS]
        if wrong or not self.directions:
            raise InputError("directions", f"{wrong or 'none'}", f"give {' or '.join(DIRECTIONS)} or both")

    def check(self, base: Decoding) -> None:
        """Refuse a rule without a threshold before anything is loaded.

        Raises:
            InputError: There is none.
        """
        list(self.decodings(base, lambda rate: rate))

    def decodings(self, base: Decoding, calibrate: Callable[[float], float]) -> Iterator[tuple[Decoding, str]]:
        """Every threshold with every budget, and what it was asked for as."""
        thresholds: list[tuple[float | None, str]] = [(epsilon, f"ε {epsilon:g}") for epsilon in self.epsilon]
        thresholds += [(calibrate(rate), f"rate {rate:g}") for rate in self.rate]
        if not thresholds:
            thresholds = [(None, "")]
        for epsilon, asked in thresholds:
            for budget in self.budget or (None,):
                name = f"{asked} budget {budget}".strip() if budget is not None else asked
                yield replace(base, epsilon=epsilon, budget=budget), name


def cross_sample(
    primary: Any,
    intervention: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    epsilon: float | Sequence[float] = (),
    rate: float | Sequence[float] = (),
    budget: int | Sequence[int] | None = None,
    rule: str = "js",
    directions: Sequence[Direction] = DIRECTIONS,
    reward: RewardPool | None = None,
    reward_weights: Sequence[float] | None = None,
    samples: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    score_top_p: float | None = None,
    seed: int = 0,
    pilot: int = 32,
    labels: int = 0,
    resamples: int = RESAMPLES,
    batch_size: int = 32,
    folder: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> CrossResult:
    """Write answers in which one model's tokens are replaced by the other's where both differ, and score them.

    At each position S = 1{score > ε}: the token is the intervention's where S = 1, else the primary's, both on the
    mixed prefix ("Sparse but Critical", arXiv 2603.22446 [N]). `forward` starts from `primary`; `reverse` swaps the
    two. Beside every arm stands a control in which random positions are replaced at the arm's rate. All arms draw by
    the same random numbers. Thresholds that replace the same tokens are one arm.

    Args:
        primary: A causal language model, such as a base model.
        intervention: Another one with the same tokenizer, such as the tuned model.
        tokenizer: Their tokenizer.
        prompts: Texts, chat messages, or rows with `prompt` and the columns that the rewards take.
        epsilon: Thresholds ε, in the units of the rule.
        rate: Shares of the tokens to flag, in (0, 1), instead of thresholds or besides.
        budget: At most so many replaced tokens in an answer; several are tried each. `first_k` needs nothing else.
        rule: Name in `scoring.cross_rules.RULES`.
        directions: Which.
        reward: Scores the answers; None only counts tokens. Not closed here.
        reward_weights: One factor per function of it; 1 by default.
        samples: Answers to each prompt.
        max_new_tokens: Where an answer without end is cut.
        temperature: Of both models; 0 takes the most probable token.
        top_p: Both sample from so much of their distribution.
        score_top_p: Cut distributions to this before they are compared; 0.7 is the paper's [N], None compares them
            whole [O].
        seed: Of all numbers.
        pilot: Problems from which thresholds for rates are taken.
        labels: Label so many flagged positions; see `label_positions`.
        resamples: Bootstrap resamples of the problems.
        batch_size: Answers at a time.
        folder: Keep answers here in parts, and take those that are there. Rewards are computed anew.
        progress: Called with a line on what is being done.

    Returns:
        The arms with their figures and answers.

    Raises:
        InputError: A setting or prompt is impossible, or the models do not fit each other.
    """
    problems = read_problems(tokenizer, prompts)
    stops = sorted({*stop_tokens(primary, tokenizer), *stop_tokens(intervention, tokenizer)})
    base = Decoding(
        rule=rule,
        epsilon=math.inf,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        score_top_p=score_top_p,
        seed=seed,
        stop_ids=tuple(stops),
    )
    sweep = Sweep(_listed(epsilon), _listed(rate), _listed(budget), tuple(directions), pilot, labels, resamples)
    decode = decode_here(primary, intervention, batch_size)
    models = "" if folder is None else fingerprint(primary, intervention)
    part = max(PART, batch_size)
    sampler = Sampler(problems, samples, decode, models, folder, part, progress)
    return run_sweep(sampler, tokenizer, base, sweep, Scorer(tokenizer, problems, reward, reward_weights))


def run_sweep(sampler: Sampler, tokenizer: Any, base: Decoding, sweep: Sweep, scorer: Scorer) -> CrossResult:
    """All arms of a sweep, wherever the answers are made; the arguments are as for `cross_sample`."""
    sweep.check(base)
    if sweep.labels and scorer.pool is None:
        raise InputError("labels", "there is no reward that could tell answers apart", "give one")
    alone = replace(base, epsilon=math.inf, budget=None)
    ends = {swapped: sampler.run(alone, swapped=swapped, what=_name(swapped)) for swapped in (False, True)}
    arms: list[Arm] = []
    for direction in sweep.directions:
        swapped = direction == "reverse"
        start = len(arms)
        arms.append(Arm(direction, "primary", alone, ends[swapped], []))
        arms.append(Arm(direction, "intervention", replace(base, epsilon=-math.inf), _replaced(ends[not swapped]), []))
        pilot = min(sweep.pilot, len(sampler.problems))

        def calibrate(rate: float, swapped: bool = swapped, pilot: int = pilot) -> float:
            return calibrated(sampler, base, rate=rate, swapped=swapped, pilot=pilot)

        for decoding, asked in sweep.decodings(base, calibrate):
            traces = sampler.run(decoding, swapped=swapped, what=f"{direction}, {base.rule} {asked}")
            made = Arm(direction, "rule", decoding, traces, [asked])
            same = next((arm for arm in arms[start:] if arm.kind != "control" and arm.same_answers(made)), None)
            if same is not None:
                same.asked.append(asked)
                continue
            arms.append(made)
            if base.rule != "random":
                arms.append(_control(sampler, made, len(arms) - 1, swapped))
    scorer.score(arms)
    labels: list[Label] = []
    if sweep.labels:
        sampler.progress("labels")
        labels = label_positions(sampler, arms, scorer, limit=sweep.labels)
    settings = settings_of(base) | {
        "samples": sampler.samples,
        "problems": len(sampler.problems),
        "pilot": sweep.pilot if sweep.rate else None,
        "resamples": sweep.resamples,
        "rewards": scorer.names,
    }
    rows = figures(arms, resamples=sweep.resamples, seed=base.seed)
    return CrossResult(settings, rows, arms, list(sampler.problems), tokenizer, labels, scorer.notes())


def _control(sampler: Sampler, arm: Arm, place: int, swapped: bool) -> Arm:
    """Random positions at the rate at which an arm replaced."""
    decoding = replace(arm.decoding, rule="random", epsilon=1 - arm.share_used, budget=None, score_top_p=None)
    traces = sampler.run(decoding, swapped=swapped, what=f"{arm.direction}, control of {arm.asked[0]}")
    return Arm(arm.direction, "control", decoding, traces, [f"control of {arm.asked[0]}"], of=place)


def _replaced(ends: list[list[Trace]]) -> list[list[Trace]]:
    """What the other model writes alone, as answers in which every token was replaced."""
    return [
        [
            Trace(
                tokens=trace.tokens,
                primary=trace.intervention,
                intervention=trace.primary,
                scores=trace.scores,
                flagged=[True] * len(trace.tokens),
                used=[True] * len(trace.tokens),
                ended=trace.ended,
            )
            for trace in traces
        ]
        for traces in ends
    ]


def _name(swapped: bool) -> str:
    return "the intervention alone" if swapped else "the primary alone"


def _listed(given: Any) -> tuple[Any, ...]:
    if given is None:
        return ()
    return tuple(given) if isinstance(given, Sequence) else (given,)
