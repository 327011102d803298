"""SPAE's probe: what a model would answer if it had to answer after each step of a response."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokencredit.errors import InputError
from tokencredit.scoring.branches import Branch, branch_forwards, branch_logps, check_branches, evaluating
from tokencredit.scoring.logps import check_ids, sequence_logps
from tokencredit.scoring.prefix_tree import PrefixTree, prefix_tree
from tokencredit.scoring.shared_forward import refusal, run_trees
from tokencredit.scoring.tree_batch import lay_out
from tokencredit.scoring.trl_compat import bare_model, fused_lm_head

TEMPLATE = "**Final Answer**\n\\boxed{"
"""What is put after a step [C]."""
CLOSING = "}"
"""What follows an answer."""

_OUTPUTS = ("log_probs", "entropy")
_SHORT = 256
"""Rows of a tree up to which several responses in one forward cost less than a forward for each: what a forward costs
besides its rows then outweighs that a tree's attention computes what its mask hides (`tests.benchmarks.probe`)."""

Generate = Callable[[list[list[int]]], list[list[int]]]
_Scored = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ProbeTask:
    """A response to be probed.

    Args:
        trunk: Ids of the prompt and the response.
        places: How many of them stand before the probe after each step `[K]`, ascending.
        template: Ids that are put there.
        answers: Ids of the right answer, in each of its spellings; at least one.
        samples: For each step the beginnings of answers that the model gave there, ids; None in mode `forced`.
    """

    trunk: Sequence[int]
    places: Sequence[int]
    template: Sequence[int]
    answers: Sequence[Sequence[int]]
    samples: Sequence[Sequence[Sequence[int]]] | None = None

    def branches(self) -> list[Branch]:
        """What follows the trunk at each place: every spelling of the answer, then the samples."""
        found: list[Branch] = []
        for step, place in enumerate(self.places):
            drawn = self.samples[step] if self.samples is not None else ()
            found += [(place, [*self.template, *ids]) for ids in (*self.answers, *drawn)]
        return found


def probe_steps(
    model: nn.Module, tasks: Sequence[ProbeTask], *, chunk_rows: int | None = None, forwards: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """How likely the right answer is after each step of each response, and how sure the model is of one.

    Acc = mean_j π(y*_j | context, y*_<j),   Conf = exp(− mean_j H(π(· | context, y*_<j)))

    "Step Potential Advantage Estimation", arXiv 2601.03823: the context is prompt, response up to the step, and
    template [C]; Acc [N]. Of several spellings that with the highest Acc counts, for both [O]. Conf at the positions of
    the right answer is our stand-in [O]; with `samples` it is the published mean over sampled answers n of
    exp(− mean entropy over the positions of n) [N/C]. At temperature 1, whatever the head's is.

    Without gradient, dropout or random numbers; the model is left as found. A response's trunk is computed once, and
    short responses run several in one forward.

    Args:
        model: A causal language model, plain or wrapped.
        tasks: The responses; one without a step costs nothing.
        chunk_rows: At most so many rows of branches in one forward, and four times as many of short responses; a longer
            trunk or branch runs alone. None is the model's hidden size, at least 256 and at most 4096: every row of a
            chunk is compared with all others, and up to there that costs little beside the layers [O].
        forwards: Run so many forwards, the last of them for nothing: where parameters are sharded over processes all
            have to run the largest `probe_forwards`.

    Returns:
        (Acc, Conf) of each response, float32 `[K]` in [0, 1].

    Raises:
        InputError: As `branch_logps`; or a response has no answer to look for.
    """
    vocabulary = bare_model(model).config.get_text_config().vocab_size
    for number, task in enumerate(tasks):
        if task.places and not (task.answers and all(map(len, task.answers))):
            raise InputError(f"tasks[{number}].answers", "hold no token", "give the right answer")
        if task.places:
            branches = task.branches()
            check_branches(task.trunk, branches, len(task.template))
            check_ids([list(task.trunk), *(list(tokens) for _, tokens in branches)], vocabulary)
    chunk_rows = chunk_rows or _chunk_rows(model)
    needed = probe_forwards(model, tasks, chunk_rows=chunk_rows)
    if forwards is not None and forwards < needed:
        raise InputError("forwards", f"{forwards} are too few", f"give {needed} or more")
    scores: list[_Scored] = [[] for _ in tasks]
    with torch.no_grad(), evaluating(model):
        for number, found in _short(model, tasks, chunk_rows, forwards is not None):
            scores[number] = found
        for number in _long(tasks):
            task = tasks[number]
            settings: Any = {"chunk_rows": chunk_rows, "unscored_tokens": len(task.template), "outputs": _OUTPUTS}
            scores[number] = branch_logps(model, task.trunk, task.branches(), **settings)  # type: ignore[assignment]
        for _ in range((forwards or needed) - needed):
            branch_logps(model, [0], [], forwards=1)
    return [_measured(task, found) for task, found in zip(tasks, scores, strict=True)]


def probe_forwards(model: nn.Module, tasks: Sequence[ProbeTask], *, chunk_rows: int | None = None) -> int:
    """How many forwards `probe_steps` runs."""
    chunk_rows = chunk_rows or _chunk_rows(model)
    long = sum(branch_forwards(tasks[number].branches(), chunk_rows=chunk_rows) for number in _long(tasks))
    return long + sum(1 for _ in _lines(tasks, chunk_rows))


def draw_answers(
    tasks: Sequence[ProbeTask],
    generate: Generate,
    tokenizer: Any,
    *,
    num_samples: int = 5,
    closing: str = CLOSING,
) -> list[ProbeTask]:
    """The tasks with answers that the model gives after each step, for the mode `sampled`.

    Args:
        tasks: The responses.
        generate: Continues each of several contexts, all in one call; called once, also without any.
        tokenizer: Decodes what was generated: what stands before the end of the answer counts.
        num_samples: N, 5 in the released code [C]; drawn at temperature 0.6, at most 10 tokens there, which is the
            generator's matter.
        closing: Ends an answer. A last token that holds some of the answer and the closing counts as part of it, and an
            answer without a token is left out of the mean [O].
    """
    contexts = [
        [*task.trunk[:place], *task.template] for task in tasks for place in task.places for _ in range(num_samples)
    ]
    written = iter(generate(contexts))
    found = []
    for task in tasks:
        drawn = [[next(written) for _ in range(num_samples)] for _ in task.places]
        cut = [[ids[: _answer_length(tokenizer, ids, closing)] for ids in step if ids] for step in drawn]
        found.append(replace(task, samples=cut))
    return found


def template_ids(tokenizer: Any, template: str) -> list[int]:
    """Ids of a template, as it is put behind a step."""
    return list(tokenizer(template, add_special_tokens=False)["input_ids"])


def answer_ids(tokenizer: Any, template: str, answer: str, *, closing: str = CLOSING) -> list[int]:
    """Ids of an answer as the model would write it after the template, whose ids are fixed.

    A last token that also holds the closing counts: after `\\frac{1}{2` a model writes `}}` where that is one token.
    Where template and answer would be joined by one token the answer is written by itself.

    Raises:
        InputError: The answer is empty, or its ids do not decode to it.
    """
    before, text = template_ids(tokenizer, template), answer.strip()
    if not text:
        raise InputError("answer", "is empty", "give the right answer, or drop the row")
    start = _decoded(tokenizer, before)
    whole = template_ids(tokenizer, template + text + closing)
    if whole[: len(before)] != before:
        whole = before + template_ids(tokenizer, text + closing)
    for count in range(1, len(whole) - len(before) + 1):
        if _decoded(tokenizer, whole[: len(before) + count]).startswith(start + text):
            return whole[len(before) : len(before) + count]
    problem = f"{text[:60]!r} does not come back from its tokens behind the template"
    raise InputError("answer", problem, "spell it as this tokenizer can")


def _chunk_rows(model: nn.Module) -> int:
    return min(4096, max(256, int(bare_model(model).config.get_text_config().hidden_size)))


def _long(tasks: Sequence[ProbeTask]) -> list[int]:
    return [number for number, task in enumerate(tasks) if task.places and _rows(task) > _SHORT]


def _rows(task: ProbeTask) -> int:
    """Rows of its tree, at most: what branches have in common is not looked for."""
    return int(task.places[-1]) + sum(len(tokens) for _, tokens in task.branches())


def _lines(tasks: Sequence[ProbeTask], chunk_rows: int) -> Iterator[list[int]]:
    """The short tasks of each forward, a line of the padded batch for each."""
    sizes = {number: _rows(task) for number, task in enumerate(tasks) if task.places and _rows(task) <= _SHORT}
    order = sorted(sizes, key=lambda number: -sizes[number])
    start = 0
    while start < len(order):
        stop = start + max(1, 4 * chunk_rows // sizes[order[start]])
        yield order[start:stop]
        start = stop


def _short(model: nn.Module, tasks: Sequence[ProbeTask], chunk_rows: int, exact: bool) -> Iterator[tuple[int, _Scored]]:
    """Score the answers of short tasks, each a tree with its trunk."""
    with fused_lm_head(model, outputs=_OUTPUTS) as base:
        for line in _lines(tasks, chunk_rows):
            reason = refusal(model, base.config.get_text_config())
            whole = {n: [[*tasks[n].trunk[:place], *ids] for place, ids in tasks[n].branches()] for n in line}
            if reason is not None and exact:
                raise InputError("forwards", f"the trunk cannot be shared: {reason}", "leave them out")
            if reason is not None:
                warnings.warn(f"the trunk is computed again for each branch: {reason}", stacklevel=3)
                for number in line:
                    found: Any = sequence_logps(model, whole[number], share_prefixes=False, outputs=_OUTPUTS)
                    yield number, _tails(tasks[number], found)
                continue
            trees = [prefix_tree(whole[number]) for number in line]
            for number, values in zip(line, _run(model, base, [tasks[n] for n in line], trees), strict=True):
                yield number, values


def _run(model: nn.Module, base: Any, tasks: Sequence[ProbeTask], trees: Sequence[PrefixTree]) -> Iterator[_Scored]:
    """One forward over trees: for each the numbers of its answers. The head computes no more than these."""
    lines = lay_out(trees)
    places, offset = [], 0
    for task, tree in zip(tasks, trees, strict=True):
        branches = task.branches()
        places.append(
            [own[len(task.template) - len(ids) :] + offset for own, (_, ids) in zip(tree.places, branches, strict=True)]
        )
        offset += len(tree.heads)
    wanted, inverse = np.unique(np.concatenate([own for rows in places for own in rows]), return_inverse=True)
    lines |= {name: lines[name][torch.from_numpy(wanted)] for name in ("heads", "labels")}
    output = run_trees(model, base, {name: value.to(base.device) for name, value in lines.items()})
    at = torch.from_numpy(inverse).to(base.device)
    logps, entropies = (getattr(output, name)[at] for name in _OUTPUTS)
    begin = 0
    for rows in places:
        ends = begin + np.cumsum([len(own) for own in rows])
        yield [
            (logps[end - len(own) : end], entropies[end - len(own) : end]) for own, end in zip(rows, ends, strict=True)
        ]
        begin = int(ends[-1])


def _tails(task: ProbeTask, scores: _Scored) -> _Scored:
    counts = [len(tokens) - len(task.template) for _, tokens in task.branches()]
    return [(logps[-n:], entropies[-n:]) for (logps, entropies), n in zip(scores, counts, strict=True)]


def _measured(task: ProbeTask, scores: _Scored) -> tuple[Tensor, Tensor]:
    """Acc and Conf of each step, from the numbers of its branches."""
    if not task.places:
        return torch.zeros(0), torch.zeros(0)
    # One copy from the device for all of a response.
    counts = [len(logps) for logps, _ in scores]
    whole = (torch.cat([pair[side] for pair in scores]).float().cpu() for side in (0, 1))
    logps, entropies = (torch.split(values, counts) for values in whole)
    likely = iter(float(values.exp().mean()) for values in logps)
    sure = iter(float((-values.mean()).exp()) for values in entropies)
    acc, conf = [], []
    for step in range(len(task.places)):
        # Of several spellings the likeliest.
        right, own = max((next(likely), next(sure)) for _ in task.answers)
        drawn = [] if task.samples is None else [(next(likely), next(sure)) for _ in task.samples[step]]
        acc.append(right)
        conf.append(own if task.samples is None else sum(c for _, c in drawn) / max(1, len(drawn)))
    return torch.tensor(acc).clamp(0, 1), torch.tensor(conf).clamp(0, 1)


def _answer_length(tokenizer: Any, ids: Sequence[int], closing: str) -> int:
    """How many tokens of what was written hold the answer, as in `answer_ids`: at least one."""
    before = ""
    for count in range(1, len(ids) + 1):
        text = _decoded(tokenizer, ids[:count])
        end = _answer_end(text, closing)
        if end is not None:
            return count if len(before) < end else max(1, count - 1)
        before = text
    return len(ids)


def _answer_end(text: str, closing: str) -> int | None:
    """Where the closing begins that ends an answer, braces paired."""
    if closing != "}":
        return text.find(closing) if closing in text else None
    depth = 0
    for place, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth < 0:
            return place
    return None


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
