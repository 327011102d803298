"""Where two models' next-token distributions differ enough to hand a token over: a score per position, by name."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokencredit.errors import InputError
from tokencredit.losses.divergence import cut, js_divergence, nucleus


@dataclass(frozen=True)
class Position:
    """What a rule sees of one position in each of `B` sequences.

    Args:
        log_p: The primary's log-probabilities `[B, V]`, float32, after the temperature.
        log_q: The intervention's, same.
        tokens: What the primary would write here `[B]`.
        places: How many tokens stand before it in the answer `[B]`.
        uniforms: A number in [0, 1) that nothing else uses `[B]`.
        top_p: Cut both distributions to this share before they are compared; None compares them whole.
    """

    log_p: Tensor
    log_q: Tensor
    tokens: Tensor
    places: Tensor
    uniforms: Tensor
    top_p: float | None = None

    @property
    def compared(self) -> tuple[Tensor, Tensor]:
        """Both log-probabilities, cut to `top_p` and brought back to one."""
        if self.top_p is None:
            return self.log_p, self.log_q
        return cut(self.log_p, self.top_p), cut(self.log_q, self.top_p)


def _js(at: Position) -> Tensor:
    return js_divergence(*at.compared)


def _kl(at: Position) -> Tensor:
    p = at.log_p.exp()
    return torch.where(p > 0, p * (at.log_p - at.log_q), 0.0).sum(-1).clamp(min=0)


def _tv(at: Position) -> Tensor:
    log_p, log_q = at.compared
    return ((log_p.exp() - log_q.exp()).abs().sum(-1) / 2).clamp(max=1.0)


def _entropy(at: Position) -> Tensor:
    log_p = at.log_p if at.top_p is None else cut(at.log_p, at.top_p)
    return -torch.where(log_p > -torch.inf, log_p.exp() * log_p, 0.0).sum(-1)


def _delta_logp(at: Position) -> Tensor:
    own, other = (log_p.gather(-1, at.tokens[:, None])[:, 0] for log_p in (at.log_p, at.log_q))
    return own - other


def _rank(at: Position) -> Tensor:
    favoured = at.log_p.gather(-1, at.log_q.argmax(-1, keepdim=True))
    return (at.log_p > favoured).sum(-1).float()


def _random(at: Position) -> Tensor:
    return at.uniforms


def _first_k(at: Position) -> Tensor:
    return -at.places.float()


RULES: Mapping[str, Callable[[Position], Tensor]] = {
    "js": _js,
    "kl": _kl,
    "tv": _tv,
    "entropy": _entropy,
    "delta_logp": _delta_logp,
    "rank": _rank,
    "random": _random,
    "first_k": _first_k,
}
"""Name → score of a position `[B]`; a position is flagged where the score is above ε.

With p the primary's and q the intervention's distribution after the temperature, as in "Sparse but Critical", arXiv
2603.22446, whose rule is `js` [N]; what the others measure exactly is our choice [O]:

- `js`: JS(p ‖ q) in nats, 0 to ln 2; `tv`: ½ Σ |p − q|, 0 to 1; `entropy`: that of p in nats. These three are taken
  after the cut to `score_top_p`, if there is one.
- `kl`: KL(p ‖ q) in nats. `delta_logp`: log p − log q of the token that the primary would write, in nats: how much less
  the intervention thinks of it, negative where it thinks more.
- `rank`: how many tokens p holds for more probable than q's first choice, 0 where they agree.
- `random`: a uniform number, so that ε = 1 − r flags the share r. `first_k`: minus the position, counted from 0, so
  that ε = −k flags the first k.
"""

CUT = ("js", "tv", "entropy")
"""The rules for which the distributions may be cut."""


def score(rule: str, at: Position) -> Tensor:
    """The score of a position by a rule's name, float32 `[B]`."""
    return RULES[rule](at)


def check_rule(rule: str, score_top_p: float | None) -> None:
    """Refuse an unknown rule, and a cut that the rule does not take.

    Raises:
        InputError: Naming those there are.
    """
    if rule not in RULES:
        raise InputError("rule", f"no rule {rule!r}", f"there are {', '.join(RULES)}")
    if score_top_p is None:
        return
    check_top_p("score_top_p", score_top_p)
    if rule not in CUT:
        remedy = f"leave it out, or use {', '.join(CUT)}"
        raise InputError("score_top_p", f"{rule} compares whole distributions", remedy)


def check_top_p(name: str, value: float) -> None:
    """Refuse a share of probability that is none.

    Raises:
        InputError: Naming it.
    """
    if not 0 < value <= 1:
        raise InputError(name, f"{value} is no share of probability", "give a number above 0, up to 1")


def threshold_of(rule: str, *, epsilon: float | None, budget: int | None) -> float:
    """ε, which for `first_k` follows from the budget.

    Raises:
        InputError: There is none.
    """
    if epsilon is not None:
        if math.isnan(epsilon):
            raise InputError("epsilon", "is not a number", "give a number; inf never replaces, -inf always")
        return epsilon
    if rule == "first_k" and budget is not None:
        return -float(budget)
    raise InputError("epsilon", "is missing", "give a threshold or a rate")


def choose(log_p: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    """Sample by the inverse of the distribution function: the first token whose cumulated probability is above u.

    Two equal distributions give the same token for the same number; nearly equal ones nearly always.

    Args:
        log_p: Log-probabilities `[B, V]`, float32.
        uniforms: u in [0, 1), `[B]`.
        top_p: Sample from the `nucleus` only.

    Returns:
        Tokens `[B]`.
    """
    p = log_p.exp()
    if top_p < 1:
        p = torch.where(nucleus(p, top_p), p, 0.0)
    cumulated = p.cumsum(-1)
    total = cumulated[:, -1]
    # Rounding may bring u · total up to the total, above which there is no token.
    at = torch.minimum(uniforms.to(total) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulated, at[:, None], right=True)[:, 0]
