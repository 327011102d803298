"""Logits of two models at the same positions to every measure of how far their next-token distributions are apart.

Nothing here holds more than a few rows of the vocabulary beside the logits, and small divergences keep most of their
digits, because the terms that are summed vanish where the models agree: of a JS of 1e-7 four, of 1e-9 two or three.
"""

import math

import torch
from torch import Tensor

from tokencredit.errors import InputError
from tokencredit.losses.divergence import MAX_JS, js_divergence

MODES = ("exact", "top_p", "top_k")

FIGURES = (
    "js",
    "js_lower",
    "js_upper",
    "kl_tuned_base",
    "kl_base_tuned",
    "half_jeffreys",
    "tv",
    "base_entropy",
    "tuned_entropy",
    "base_logp",
    "tuned_logp",
    "delta_logp",
    "tuned_top1_base_logp",
    "base_top1_tuned_logp",
)
"""float32, nats but for `tv`; in a mode that does not compute one it is missing."""

RANKS = ("tuned_top1_base_rank", "base_top1_tuned_rank", "top_overlap")
"""int32, 1 is the most likely; `top_overlap` counts the tokens that both lists hold."""

TOPS = (
    "base_top_ids",
    "base_top_logps",
    "base_top_tuned_logps",
    "tuned_top_ids",
    "tuned_top_logps",
    "tuned_top_base_logps",
)
"""`[T, n]`: the most likely tokens of a model, their log-probabilities, and those that the other one gives them."""

Measures = dict[str, Tensor]

# Rows that stay in a core's cache while a dozen passes go over them.
_CACHED_CELLS = 1 << 18
_NEAR = 1.0
_TANH = math.tanh(_NEAR / 2) ** 2
_WIDTH = 64


def check_mode(mode: str, top_p: float) -> None:
    """Refuse a mode that does not exist, and a share that is none."""
    if mode not in MODES:
        raise InputError("mode", f"{mode!r} is unknown", f"use one of {', '.join(MODES)}")
    if not 0 < top_p <= 1:
        raise InputError("top_p", f"{top_p} is no share", "use a number above 0, at most 1")


def measures(
    base: Tensor, tuned: Tensor, targets: Tensor, *, mode: str = "exact", top_p: float = 0.7, top_n: int = 10
) -> Measures:
    """Compare two models at N positions.

    With p of the base, q of the tuned model, d = ln q − ln p and t = tanh(d/2) = (q − p)/(q + p):

        JS            = ½ Σ (p + q) ψ(t),   ψ(t) = ½ (t d + ln(1 − t²))            ∈ [0, ln 2]
        half-Jeffreys = ½ Σ (q − p) d = ½ (KL(q ‖ p) + KL(p ‖ q))
        KL(q ‖ p), KL(p ‖ q) = half-Jeffreys ± ½ Σ (p + q)(d − 2t)
        TV            = ½ Σ |q − p|

    "Sparse but Critical", arXiv 2603.22446, measures JS [N]; the rest and the forms are ours [O], equal to the usual
    definitions [D]. Terms are float32; d is the difference of the logits, so that what both share costs no digits.

    Args:
        base: Logits `[N, V]`, any float type; overwritten when float32.
        tuned: Of the tuned model, same shape; overwritten when float32.
        targets: The token that follows, `[N]`.
        mode: `exact` compares whole vocabularies. `top_p` replaces `js` by the paper's, of distributions cut to their
            most likely tokens that together reach `top_p`, which can raise it [D]. `top_k` looks at the `top_n` most
            likely tokens of each alone and gives `js_lower` and `js_upper` instead (`js_bounds`).
        top_p: The paper's 0.7 [N].
        top_n: Most likely tokens that are returned.

    Returns:
        Name → `[N]` for `FIGURES` and `RANKS`, `[N, n]` for `TOPS` with n = min(top_n, V); in the mode `top_k` without
        what takes the whole vocabulary.
    """
    step = max(1, _CACHED_CELLS // base.size(1) if base.device.type == "cpu" else base.size(0))
    parts = []
    # Their pages are there once; new ones for each few rows would cost as much as the passes over them.
    work = [base.new_empty(min(step, base.size(0)), base.size(1), dtype=torch.float32) for _ in range(3)]
    for place in range(0, max(1, base.size(0)), step):
        a, b, target = (values[place : place + step] for values in (base, tuned, targets))
        paper = js_divergence(a, b, top_p=top_p) if mode == "top_p" else None
        room = tuple(buffer[: len(a)] for buffer in work)
        found = _rows(a.float(), b.float(), target, min(top_n, base.size(1)), room, whole=mode != "top_k")
        parts.append(found if paper is None else found | {"js": paper})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _rows(a: Tensor, b: Tensor, target: Tensor, top_n: int, room: tuple[Tensor, ...], *, whole: bool) -> Measures:
    log_p = torch.log_softmax(a, -1, out=room[0])
    log_q = torch.log_softmax(b, -1, out=room[1])
    found = _tops(log_p, log_q, top_n) | _targets(log_p, log_q, target)
    if not whole:
        names = ("base_top_ids", "base_top_logps", "tuned_top_ids", "tuned_top_logps")
        lower, upper = js_bounds(*(found[name] for name in names))
        return found | {"js_lower": lower, "js_upper": upper}
    shift = (b[:, :1] - log_q[:, :1]) - (a[:, :1] - log_p[:, :1])
    d = torch.sub(b, a, out=room[2]).sub_(shift)
    p, q = torch.exp(log_p, out=a), torch.exp(log_q, out=b)
    found |= {"base_entropy": -_dot(p, log_p), "tuned_entropy": -_dot(q, log_q)}
    s = p.add_(q)
    return found | _distances(s, d, log_p, log_q)


def _distances(s: Tensor, d: Tensor, t: Tensor, work: Tensor) -> Measures:
    """The measures from p + q and ln q − ln p; `t` and `work` are overwritten."""
    torch.tanh(torch.mul(d, 0.5, out=t), out=t)
    change = torch.mul(s, t, out=work)
    tv = change.abs().sum(-1) / 2
    jeffreys = _dot(change, d)
    skew = _dot(s, d) - 2 * change.sum(-1)
    # ½ Σ s ψ with ψ = ½ (t d + ln(1 − t²)), whose last term keeps its digits only while |d| is small.
    torch.log1p(torch.addcmul(t.new_zeros(()), t, t, value=-1, out=work).clamp_(min=-_TANH), out=work)
    js = (jeffreys + _dot(s, work)) / 4
    far = d.abs_().amax(-1) > _NEAR
    if far.any():
        js[far] += _dot(s[far], _beyond(d[far])) / 4
    return {
        "js": js.clamp(0.0, MAX_JS),
        "kl_tuned_base": ((jeffreys + skew) / 2).clamp(min=0),
        "kl_base_tuned": ((jeffreys - skew) / 2).clamp(min=0),
        "half_jeffreys": jeffreys / 2,
        "tv": tv.clamp(max=1.0),
    }


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Σ x y of each row. BLAS reads both once, where a product would be written first."""
    if x.device.type != "cpu" or not 0 < len(x) <= 64:
        return (x * y).sum(-1)
    return torch.stack([torch.dot(a, b) for a, b in zip(x, y, strict=True)])


def _beyond(x: Tensor) -> Tensor:
    """ln(1 − t²) less its value at |d| = 1 where |d| is above, else exactly 0; overwrites |d|."""
    x.clamp_(min=_NEAR)
    change = torch.log1p(torch.exp(-x)).sub_(math.log1p(math.exp(-_NEAR))).mul_(-2)
    return change.sub_(x.sub_(_NEAR))


def _targets(log_p: Tensor, log_q: Tensor, target: Tensor) -> Measures:
    base, tuned = (values.gather(1, target[:, None])[:, 0] for values in (log_p, log_q))
    return {"base_logp": base, "tuned_logp": tuned, "delta_logp": tuned - base}


def _tops(log_p: Tensor, log_q: Tensor, count: int) -> Measures:
    """The most likely tokens of both, where each stands with the other, and how many they share."""
    (base, base_ids), (tuned, tuned_ids) = _topk(log_p, count), _topk(log_q, count)
    base_tuned, tuned_base = log_q.gather(1, base_ids), log_p.gather(1, tuned_ids)
    # Where both name the same token first it has rank 1, without a look at the vocabulary.
    differ = base_ids[:, 0] != tuned_ids[:, 0]
    ranks = [torch.ones_like(base_ids[:, 0]) for _ in range(2)]
    if differ.any():
        for rank, values, first in zip(ranks, (log_p, log_q), (tuned_base, base_tuned), strict=True):
            rank[differ] = (values[differ] > first[differ, :1]).sum(-1) + 1
    return {
        "base_top_ids": base_ids,
        "base_top_logps": base,
        "base_top_tuned_logps": base_tuned,
        "tuned_top_ids": tuned_ids,
        "tuned_top_logps": tuned,
        "tuned_top_base_logps": tuned_base,
        "tuned_top1_base_logp": tuned_base[:, 0],
        "base_top1_tuned_logp": base_tuned[:, 0],
        "tuned_top1_base_rank": ranks[0],
        "base_top1_tuned_rank": ranks[1],
        "top_overlap": (base_ids[:, :, None] == tuned_ids[:, None, :]).sum((1, 2)),
    }


def _topk(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """As `topk`, on a CPU several times as fast: the largest lie in the groups with the largest maxima.

    Equal values are in the order of their ids.
    """
    rows, size = values.shape
    groups = size // _WIDTH
    if values.device.type != "cpu" or groups <= 2 * count:
        return _ordered(*values.topk(count))
    body = groups * _WIDTH
    # A group is every `groups`-th value: that way the maximum goes over whole vectors.
    best = values[:, :body].view(rows, _WIDTH, groups).amax(1).topk(count).indices
    inside = best[:, None, :] + torch.arange(_WIDTH)[None, :, None] * groups
    tail = torch.arange(body, size).expand(rows, -1)
    ids = torch.cat([inside.reshape(rows, -1), tail], 1)
    found = values.gather(1, ids).topk(count)
    return _ordered(found.values, ids.gather(1, found.indices))


def _ordered(values: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    by_id = ids.argsort(dim=-1)
    values, ids = values.gather(1, by_id), ids.gather(1, by_id)
    order = values.argsort(dim=-1, descending=True, stable=True)
    return values.gather(1, order), ids.gather(1, order)


def js_bounds(base_ids: Tensor, base_logps: Tensor, tuned_ids: Tensor, tuned_logps: Tensor) -> tuple[Tensor, Tensor]:
    """What the Jensen-Shannon divergence is at least and at most when only the most likely tokens are known [O].

    Tokens that both lists hold are compared as they are. What is left of both masses gives

    - at least: the divergence of two distributions that have it in one shared bucket (merging never raises JS);
    - at most: (r_p + r_q) ln 2 / 2, as if the rests r had no token in common.

    Args:
        base_ids: Token ids `[N, k]`, each once in its row.
        base_logps: Their log-probabilities.
        tuned_ids: Of the other model, `[N, k']`.
        tuned_logps: Their log-probabilities.

    Returns:
        Lower and upper bound, nats, float32 `[N]`.
    """
    same = base_ids[:, :, None] == tuned_ids[:, None, :]
    p, q = base_logps.double().exp(), tuned_logps.double().exp()
    known = same.any(-1)
    q_there = (same * q[:, None, :]).sum(-1)
    shared = _js_terms(p, q_there).where(known, 0.0).sum(-1)
    rest_p = (1 - p.where(known, 0.0).sum(-1)).clamp(min=0)
    rest_q = (1 - q_there.sum(-1)).clamp(min=0)
    lower, upper = shared + _js_terms(rest_p, rest_q), shared + (rest_p + rest_q) * math.log(2) / 2
    return lower.clamp(0.0, MAX_JS).float(), upper.clamp(0.0, MAX_JS).float()


def _js_terms(p: Tensor, q: Tensor) -> Tensor:
    """What tokens of probability p and q add to JS."""
    m = (p + q) / 2
    return ((torch.xlogy(p, p) + torch.xlogy(q, q)) / 2 - torch.xlogy(m, m)).clamp(min=0)
