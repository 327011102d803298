r"""Math-Verify: pairs of answers with the verdict they should get, its known failures by name, and bombs."""

import time
from typing import Any

import pytest

from tokencredit.rewards import RewardFunction, RewardPool
from tokencredit.rewards.math_answers import math

PAIRS = {
    "fractions": [
        (r"\boxed{\frac{1}{2}}", r"1/2", 1),
        (r"\boxed{0.5}", r"\frac{1}{2}", 1),
        (r"\boxed{\dfrac12}", r"\frac{1}{2}", 1),
        (r"\boxed{\tfrac{2}{4}}", r"1/2", 1),
        (r"The answer is 1/2.", r"0.5", 1),
        (r"\boxed{1/3}", r"0.33", 0),
        (r"\boxed{-\frac{3}{4}}", r"-0.75", 1),
        (r"\boxed{\frac{-3}{4}}", r"-\frac34", 1),
        (r"\boxed{1\frac{1}{2}}", r"1.5", 1),
        (r"\boxed{2/3}", r"3/2", 0),
    ],
    "percentages": [
        (r"\boxed{50\%}", r"50", 1),
        (r"\boxed{50\%}", r"0.5", 1),
        (r"\boxed{0.5}", r"50\%", 1),
        (r"\boxed{12.5\%}", r"\frac{1}{8}", 1),
        (r"\boxed{5\%}", r"0.5", 0),
    ],
    "sets": [
        (r"\boxed{\{1,2,3\}}", r"\{3,2,1\}", 1),
        (r"\boxed{1,2,3}", r"\{1,2,3\}", 1),
        (r"\boxed{\{1,2\}}", r"\{1,2,3\}", 0),
        (r"\boxed{x=1 \text{ or } x=2}", r"\{1,2\}", 1),
        (r"\boxed{\{1,2\}\cup\{3\}}", r"\{1,2,3\}", 1),
        (r"\boxed{\emptyset}", r"\{\}", 1),
    ],
    "intervals": [
        (r"\boxed{[0,1)}", r"[0,1)", 1),
        (r"\boxed{[0,1]}", r"[0,1)", 0),
        (r"\boxed{(-\infty,2)\cup(3,\infty)}", r"(-\infty,2)\cup(3,\infty)", 1),
        (r"\boxed{(0,1)}", r"(0,2)", 0),
        (r"\boxed{\left[0,1\right)}", r"[0,1)", 1),
    ],
    "units": [
        (r"\boxed{5\text{ cm}}", r"5", 1),
        (r"\boxed{5\,\mathrm{cm}}", r"5", 1),
        (r"\boxed{\$18}", r"18", 1),
        (r"The total is $18.", r"18", 1),
        (r"The total is \$18.", r"\$18", 1),
        (r"\$3 and then \$15: $3 + 15 = 18$", r"$\$18$", 1),
        (r"\$1,234.50", r"1234.5", 1),
        (r"$\boxed{\begin{pmatrix}1\\$2\end{pmatrix}}$", r"18", 0),
        (r"\boxed{18\text{ dollars}}", r"18", 1),
        (r"\boxed{90^\circ}", r"90", 1),
        (r"\boxed{60\text{ km/h}}", r"60", 1),
        (r"\boxed{3\text{ hours}}", r"3", 1),
    ],
    "numbers": [
        (r"\boxed{1,000}", r"1000", 1),
        (r"\boxed{1{,}000}", r"1000", 1),
        (r"\boxed{10^3}", r"1000", 1),
        (r"\boxed{1.5\times10^3}", r"1500", 1),
        (r"1,234,567", r"1234567", 1),
    ],
    "roots": [
        (r"\boxed{\sqrt{8}}", r"2\sqrt{2}", 1),
        (r"\boxed{\sqrt8}", r"2\sqrt2", 1),
        (r"\boxed{2^{1/2}}", r"\sqrt{2}", 1),
        (r"\boxed{\sqrt[3]{27}}", r"3", 1),
        (r"\boxed{1.414}", r"\sqrt{2}", 0),
        (r"\boxed{\pi}", r"3.14159", 0),
        (r"\boxed{2\pi r}", r"2r\pi", 1),
        (r"\boxed{\frac{\pi}{2}}", r"\pi/2", 1),
    ],
    "algebra": [
        (r"\boxed{(x+1)^2}", r"x^2+2x+1", 1),
        (r"\boxed{x^2-1}", r"(x-1)(x+1)", 1),
        (r"\boxed{2x+3}", r"3+2x", 1),
        (r"\boxed{y=2x+1}", r"y=2x+1", 1),
        (r"\boxed{2x+1}", r"y=2x+1", 1),
        (r"\boxed{x=5}", r"5", 1),
        (r"\boxed{5}", r"x=5", 1),
        (r"\boxed{x+y}", r"x-y", 0),
    ],
    "tuples and matrices": [
        (r"\boxed{(1,2)}", r"(1,2)", 1),
        (r"\boxed{(2,1)}", r"(1,2)", 0),
        (r"\boxed{(1, 2, 3)}", r"(1,2,3)", 1),
        (r"\boxed{\begin{pmatrix}1&2\\3&4\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 1),
        (r"\boxed{\begin{pmatrix}1&2\\3&5\end{pmatrix}}", r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", 0),
    ],
    "functions and symbols": [
        (r"\boxed{3+4i}", r"4i+3", 1),
        (r"\boxed{3-4i}", r"3+4i", 0),
        (r"\boxed{\log_2 8}", r"3", 1),
        (r"\boxed{5!}", r"120", 1),
        (r"\boxed{\binom{5}{2}}", r"10", 1),
        (r"\boxed{\text{A}}", r"A", 1),
        (r"\boxed{B}", r"A", 0),
        (r"\boxed{\infty}", r"\infty", 1),
    ],
    "texts": [
        (r"\boxed{\sin(\pi/6)}", r"1/2", 1),
        (r"First \boxed{4}, then \boxed{3}.", r"4", 0),
        (r"First \boxed{3}, then \boxed{4}.", r"4", 1),
        (r"$x$ is $\boxed{\frac{1}{2}}$; no, $\boxed{\{2, 3\}}$. $5$", r"\{2,3\}", 1),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$", r"\{1,2,3\}", 1),
        (r"\boxed{4}, or in full \boxed{4", r"4", 1),
        (r"so 3 + 4 = 7", r"7", 1),
        (r"no idea", r"7", 0),
        (r"", r"7", 0),
        (r"$x = 7$", r"7", 1),
        (r"\[ x = \frac{7}{1} \]", r"7", 1),
        (r"\boxed{07}", r"7", 1),
        (r"\boxed{7.0}", r"7", 1),
        (r"\boxed{-0}", r"0", 1),
        (r"\boxed{12:30}", r"12:30", 1),
        (r"\boxed{\text{yes}}", r"yes", 1),
        (r"\boxed{x^{2}y}", r"yx^2", 1),
        (r"\boxed{a\cdot b}", r"ba", 1),
        (r"\boxed{|x|}", r"\left|x\right|", 1),
        (r"\boxed{3:4}", r"\frac34", 1),
    ],
}
"""Answer, gold answer, verdict."""

KNOWN_FAILURES = [
    (r"\boxed{0\le x<1}", r"[0,1)", 1, "an inequality is no interval"),
    (r"\boxed{x>2}", r"(2,\infty)", 1, "an inequality is no interval"),
    (r"\boxed{5\text{ cm}}", r"5\text{ m}", 0, "units are dropped, not compared"),
    (r"\boxed{1e3}", r"1000", 1, "scientific notation as programs write it"),
    (r"\boxed{e^{i\pi}}", r"-1", 1, "complex exponentials are not evaluated"),
    (r"\boxed{0.\overline{3}}", r"1/3", 1, "repeating decimals"),
]
"""Verdicts of Math-Verify 0.9 that are wrong: answer, gold answer, what would be right, why."""


@pytest.mark.parametrize("kind", PAIRS)
def test_verdicts(kind: str) -> None:
    for answer, gold, verdict in PAIRS[kind]:
        assert math([answer], [gold]) == [verdict], (answer, gold)


def test_there_are_enough_pairs() -> None:
    assert sum(map(len, PAIRS.values())) >= 60


@pytest.mark.parametrize(("answer", "gold", "right", "why"), KNOWN_FAILURES)
def test_known_failures_are_still_there(answer: str, gold: str, right: float, why: str) -> None:
    """One that is repaired belongs to the pairs above, and no longer into docs/rewards.md."""
    assert math([answer], [gold]) == [1 - right], why


def test_an_unreadable_gold_answer_abstains() -> None:
    assert math(["7", "7"], ["", "7"]) == [None, 1.0]
    assert math([[{"role": "assistant", "content": "$7$"}]], [7]) == [1.0], "a number as it stands in the data"


def test_what_math_verify_raises_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser or a comparison that fails says nothing about the answer."""
    for place in ("math_verify.parser.extract_target_from_pred", "math_verify.grader.sympy_expr_eq"):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_, **__: (_ for _ in ()).throw(ArithmeticError("inside")))
            pool = RewardPool([RewardFunction("math", trusted=True)])
            batch = pool.score([r"\boxed{7}"], answer=["7.0" if "grader" in place else "8.5"])
            assert batch.status == [["error"]], place
            assert batch.failures[0].kind == "ArithmeticError"


BOMBS = [
    r"\boxed{9^{9^{9^{9}}}}",
    r"\boxed{10^{10^{10}}}",
    r"\boxed{(10^{9})!}",
    r"\boxed{" + r"\sqrt{" * 300 + "2" + "}" * 301,
    r"\boxed{\int_0^1 x^{x^{x^{x}}} e^{\sin(x)^{\cos(x)}} dx}",
    r"\boxed{\sum_{n=1}^{10^{12}} \frac{1}{n^{3}}}",
    r"\boxed{(x+y+z+w)^{400}}",
    r"\boxed{" + "(" * 5000 + "}",
    "$" * 20_000,
    r"\boxed{" * 3000,
    "1" * 100_000,
]


def test_bombs_are_bounded(make_pool: Any) -> None:
    """Each ends by itself or at the deadline, and what comes after is scored."""
    pool = make_pool("math", timeout=1.0, batch_timeout=15, memory_gb=2)
    pool.score(["1"], answer=["1"])
    start = time.monotonic()
    batch = pool.score([*BOMBS, r"\boxed{7}"], answer=["(w+x+y+z)^{400}"] * len(BOMBS) + ["7"])
    assert time.monotonic() - start < 15 + 5
    assert set(batch.column("math")[:-1]) <= {0.0, 1.0, None}
    assert "timeout" in {status for (status,) in batch.status}, "or these are no bombs"
    pool.timeout = 10.0  # the first answer of a new process takes long on busy cores
    assert pool.score([r"\boxed{7}"] * 8, answer=["7"] * 8).values == [[1.0]] * 8


def test_unbounded_without_the_pool_is_what_it_is() -> None:
    """The time-out of Math-Verify is off: called from a thread it would raise, and here the pool is what bounds it."""
    import threading

    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(math([r"\boxed{\frac12}"], ["0.5"])))
    thread.start()
    thread.join()
    assert found == [[1.0]]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokencredit.rewards.builtin.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"reward math: needs math_verify, .*; pip install 'tokencredit\[rewards\]'"):
        RewardPool(["math"])
