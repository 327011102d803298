"""The pool: values, order, logs, statuses; and what it refuses."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.rewards import reward_functions as functions
from tokencredit.errors import InputError
from tokencredit.rewards import Reward, RewardBatch, RewardFunction, RewardPool

MakePool = Callable[..., RewardPool]
TEXTS = [" ".join("x" * (i % 7)) for i in range(64)]
WORDS = [float(i % 7) for i in range(64)]


def test_values_come_in_the_order_of_the_batch(make_pool: MakePool) -> None:
    batched = RewardFunction("tests.rewards.reward_functions:count_words", name="batched", batched=True)
    trusted = RewardFunction(functions.count_words, name="trusted", trusted=True)
    pool = make_pool("tests.rewards.reward_functions:count_words", functions.slowly, batched, trusted)
    batch = pool.score(TEXTS, prompts=TEXTS)
    assert batch.names == ["count_words", "slowly", "batched", "trusted"]
    assert batch.values == [[words, 1.0, words, words] for words in WORDS]
    assert batch.status == [["ok"] * 4] * 64
    assert batch.rewards[1][0] == Reward(score=1.0)
    assert all(0 <= seconds < 0.5 for row in batch.seconds for seconds in row)
    assert batch.failures == []
    assert batch.metrics()["rewards/batched/mean"] == sum(WORDS) / 64
    assert pool.score([]).values == []


def test_functions_run_elsewhere_unless_trusted(make_pool: MakePool) -> None:
    trusted = RewardFunction(functions.process_id, name="here", trusted=True)
    there, here = make_pool(functions.process_id, trusted).score(["x"]).values[0]
    assert here == os.getpid() != there


def test_a_batch_needed_whole(make_pool: MakePool) -> None:
    batch = make_pool(RewardFunction(functions.rank, batched=True)).score(["x", "xxx", "xx", ""])
    assert batch.column("rank") == [0.25, 0.75, 0.5, 0.0]


def test_logs_are_replayed_in_order(make_pool: MakePool) -> None:
    """As if the function had been called here, once; with None for samples that logged nothing."""
    extra: dict[str, list[Any]] = {}
    metrics: list[tuple[str, float]] = []
    batched = RewardFunction(functions.logs, name="batched", batched=True)
    pool = make_pool(functions.logs, functions.logs_and_obeys, batched)

    def log_extra(column: str, values: list[Any]) -> None:
        extra.setdefault(column, []).append(values)

    texts = ["a", "quiet", "raise", "dddd"]
    batch = pool.score(texts, log_extra=log_extra, log_metric=lambda name, value: metrics.append((name, value)))
    assert extra["upper"] == [["A", None, "RAISE", "DDDD"], ["A", "QUIET", "RAISE", "DDDD"]]
    assert extra["seen"] == [["a", "quiet", "raise", "dddd"]]
    assert metrics == [("length", 1.0), ("length", 5.0), ("length", 4.0), ("length", 15 / 4)]
    assert batch.status[2] == ["ok", "error", "ok"]
    pool.score(texts)  # nobody listens


def test_logged_columns_have_one_value_per_completion(make_pool: MakePool) -> None:
    seen: dict[str, list[Any]] = {}
    pool = make_pool(RewardFunction(functions.logs_one_value, batched=True))
    pool.score(["a", "b", "c"], log_extra=lambda column, values: seen.update({column: values}))
    assert seen == {"few": ["first", None, None], "many": ["a", "b", "c"]}


def test_what_cannot_travel_is_an_error_of_its_sample(make_pool: MakePool) -> None:
    pool = make_pool(functions.logs_what_cannot_travel, functions.count_words)
    batch = pool.score(["x"], answer=[lambda: None])
    assert batch.status == [["error", "error"]]
    assert "what it logged cannot be sent" in batch.failures[0].detail
    assert "a column cannot be sent" in batch.failures[1].detail
    assert pool.score(["x"]).status == [["error", "ok"]]
    answers = ["x"] * 40 + [lambda: None] + ["x"] * 40
    statuses = [status for _, status in pool.score(["x"] * 81, answer=answers).status]
    assert [i for i, status in enumerate(statuses) if status != "ok"] == [40], "also where calls travel together"


def test_columns_go_where_they_are_asked_for(make_pool: MakePool) -> None:
    seen: dict[str, list[Any]] = {}
    renamed = RewardFunction(functions.with_answer, columns={"answer": "gold"})
    pool = make_pool(renamed, functions.with_state, functions.columns_seen)
    batch = pool.score(
        ["a", "b"],
        prompts=["p", "q"],
        completion_ids=[[1], [2]],
        gold=["a", "x"],
        trainer_state={"step": 3},
        log_extra=lambda column, values: seen.update({column: values}),
    )
    assert batch.values == [[1.0, 3.0, 0.0], [0.0, 3.0, 0.0]]
    assert seen["columns"] == [["completion_ids", "gold", "log_metric", "prompts"]] * 2
    with pytest.raises(InputError, match="reward with_answer: the data has no column 'gold'; its columns are answer"):
        pool.score(["a"], answer=["a"], trainer_state=None)
    with pytest.raises(InputError, match="column 'gold': 1 values for 2 completions"):
        pool.score(["a", "b"], gold=["a"], trainer_state=None)


@pytest.mark.parametrize(
    ("text", "status", "kind", "detail"),
    [
        ("none", "abstain", None, ""),
        ("raise", "error", "ArithmeticError", "no such sum"),
        ("sys.exit", "error", "SystemExit", "sys.exit(3)"),
        ("nan", "error", "RewardError", "not finite"),
        ("text", "error", "RewardError", "where a number should be"),
    ],
)
@pytest.mark.parametrize("trusted", [False, True])
def test_what_a_function_says_is_told_apart(
    make_pool: MakePool, text: str, status: str, kind: str | None, detail: str, trusted: bool
) -> None:
    batch = make_pool(RewardFunction(functions.obey, trusted=trusted)).score(["fine", text])
    assert batch.status == [["ok"], [status]]
    assert batch.values == [[1.0], [None]]
    assert [failure.kind for failure in batch.failures] == ([kind] if kind else [])
    assert all(detail in failure.detail and failure.row == 1 for failure in batch.failures)
    metrics = batch.metrics()
    assert metrics["rewards/obey/mean"] == 1.0, "what has no value takes no part in the mean"
    assert metrics["rewards/obey/abstain"] + metrics["rewards/obey/error"] == 0.5


def test_a_traceback_begins_in_the_users_function(make_pool: MakePool) -> None:
    (failure,) = make_pool(functions.obey).score(["raise"]).failures
    first = failure.detail.splitlines()[1]
    assert "reward_functions.py" in first
    assert "in obey" in first


@pytest.mark.parametrize("trusted", [False, True])
def test_whatever_is_returned_or_raised_stays_with_its_sample(make_pool: MakePool, trusted: bool) -> None:
    bad = ["{'tokens': 5}", "10**400", "cancel", "panic", "{'tokens': [1e308, 1e308]}", "Stubborn()"]
    pool = make_pool(RewardFunction(functions.evaluate, trusted=trusted))
    for _ in range(2):  # one call to a task, and then several
        batch = pool.score(["1.0"] * 40 + bad + ["1.0"] * 40)
        assert [row for row, (status,) in enumerate(batch.status) if status != "ok"] == list(range(40, 46))
        assert {status for (status,) in batch.status[40:46]} == {"error"}


def test_a_column_that_cannot_be_read_in_a_worker_is_an_error_of_its_row(make_pool: MakePool) -> None:
    pool = make_pool(functions.count_words)
    for _ in range(2):
        values = pool.score(["x"] * 41, answer=["x"] * 40 + [functions.Unreadable()]).values
        assert values == [[1.0]] * 40 + [[None]]


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas"])
def test_columns_may_be_arrays(make_pool: MakePool, kind: str) -> None:
    """A row gets its own value, and not all of them."""
    import pandas
    import torch

    make: Any = {"numpy": np.array, "torch": torch.tensor, "pandas": pandas.Series}[kind]
    pool = make_pool(functions.answer_itself)
    assert pool.score(["x"] * 3, answer=make([1.0, 2.0, 3.0])).values == [[1.0], [2.0], [3.0]]
    with pytest.raises(InputError, match="column 'answer': 2 values for 3 completions"):
        pool.score(["x"] * 3, answer=make([1.0, 2.0]))


def test_closed_while_another_thread_scores(make_pool: MakePool) -> None:
    pool = make_pool(functions.naps, timeout=30, batch_timeout=60)
    pool.score(["0"])
    found: list[Any] = []

    def score() -> None:
        try:
            found.append(pool.score(["30"] * 4))
        except InputError as error:
            found.append(str(error))

    thread = threading.Thread(target=score)
    thread.start()
    time.sleep(0.5)
    start = time.monotonic()
    pool.close()
    thread.join(10)
    assert time.monotonic() - start < 10
    assert found == ["RewardPool: it was closed while it scored; close it after its last batch"]
    assert pool.score(["0"]).status == [["ok"]], "another batch starts new workers"


def test_too_few_rewards_are_an_error(make_pool: MakePool) -> None:
    batch = make_pool(RewardFunction(functions.too_few, batched=True)).score(["x", "y"])
    assert batch.status == [["error"], ["error"]]
    assert "0 rewards for 2 completions" in batch.failures[0].detail


def test_metrics_by_hand() -> None:
    batch = RewardPool([RewardFunction(functions.count_words, trusted=True)]).score(["x", "x x", "x x x", ""])
    metrics = batch.metrics()
    assert metrics["rewards/count_words/mean"] == 1.5
    assert metrics["rewards/count_words/std"] == pytest.approx((5 / 3) ** 0.5), "(2.25 + .25 + .25 + 2.25) / 3"
    assert set(metrics) == {
        f"rewards/count_words/{name}" for name in ("mean", "std", "timeout", "error", "abstain", "seconds_p95")
    }


def test_weights_are_trls() -> None:
    """Its weighted nansum; NaN where no function had a value."""
    batch = RewardBatch(["a", "b"], values=[[1.0, 2.0], [None, 2.0], [0.0, None], [None, None]])
    assert batch.combined() == [3.0, 2.0, 0.0, None]
    assert batch.combined([0.5, -1.0]) == [-1.5, -2.0, 0.0, None]


def test_alarm_and_first_failures_are_logged_once(make_pool: MakePool, caplog: pytest.LogCaptureFixture) -> None:
    pool = make_pool(functions.obey, alarm_share=0.25)
    with caplog.at_level(logging.WARNING, "tokencredit"):
        pool.score(["fine"] * 4)
        assert caplog.messages == []
        pool.score(["fine", "raise", "nan", "nan", "fine"])
        pool.score(["raise", "nan", "fine"])
    first, second, alarm = caplog.messages
    assert first.startswith("reward obey, sample 1: error (ArithmeticError)\nTraceback")
    assert second.startswith("reward obey, sample 2: error (RewardError)")
    assert alarm.startswith("reward obey failed on 60% of a batch; slowest: obey[")


def test_stops_when_batches_fail_whole(make_pool: MakePool) -> None:
    pool = make_pool(functions.obey, functions.count_words, stop_after=2)
    pool.score(["raise", "nan"])
    pool.score(["raise", "none"])  # an abstention is no failure
    pool.score(["raise", "raise"])
    problem = r"reward obey: it failed on every sample of 2 batches in a row \(ArithmeticError: .*no such sum\)"
    with pytest.raises(InputError, match=problem):
        pool.score(["raise"])


def test_from_a_thread_that_ends_and_from_several(make_pool: MakePool) -> None:
    """Workers end with the thread that started them; that must not be one of the caller's."""
    pool, found = None, []

    def first() -> None:
        nonlocal pool
        pool = make_pool(functions.process_id, workers=1)
        found.append(pool.score(["x"]).values)

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    assert pool is not None
    threads = [threading.Thread(target=lambda: found.append(pool.score(["x"]).values)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [found[0]] * 4, "one and the same worker"


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        ("maths", {}, "reward maths: no built-in reward 'maths'; did you mean 'math'?"),
        ("nowhere:function", {}, "reward function: 'nowhere:function' cannot be imported (ModuleNotFoundError"),
        (lambda completions: [0.0], {}, "define it at the top of a module, or mark it `trusted`"),
        (RewardFunction(functions.with_answer, columns={"answr": "gold"}), {}, "no 'answr'; did you mean 'answer'?"),
        (RewardFunction(functions.with_state, arguments={"sate": 1}), {}, "takes no 'sate'; it takes completions"),
        (RewardFunction(functions.obey, adapter="verl2"), {}, "unknown adapter 'verl2'; there are verl, openrlhf"),
        (functions.obey, {"timeout": 0}, "timeout: 0 is not a positive number"),
        (functions.obey, {"batch_timeout": float("inf")}, "batch_timeout: inf is not a positive number"),
        (functions.obey, {"workers": 0}, "workers: 0 is too few"),
    ],
)
def test_refused_at_once(function: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        RewardPool([function], **settings)
    assert message in str(caught.value)


def test_two_of_one_name_and_none_are_refused() -> None:
    with pytest.raises(InputError, match="two are named 'obey'"):
        RewardPool([functions.obey, functions.obey])
    with pytest.raises(InputError, match="no reward function"):
        RewardPool([])


SCRIPT = """
import os, sys, time
import torch

from tokencredit.rewards import RewardPool
from tests.rewards.reward_functions import environment


def mine(completions, **columns):
    return [float(len(completion)) for completion in completions]


if __name__ == "__main__":
    seen = {}
    with RewardPool([environment], workers=1) as pool:
        pool.score(["x"], log_extra=lambda column, values: seen.update({column: values[0]}))
    names = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "RAY_JOB_ID", "HF_TOKEN")
    kept = [name for name in names if name in seen["environment"]]
    print(kept, repr(seen["environment"]["CUDA_VISIBLE_DEVICES"]), "torch" in seen["modules"])
    with RewardPool([mine], workers=1) as pool:
        print(pool.score(["xxx"]).values)
"""


@pytest.mark.slow
def test_workers_know_nothing_of_the_trainer(tmp_path: Path) -> None:
    """No rank, no accelerator, no torch though the script imports it; a function of the script itself works."""
    (tmp_path / "script.py").write_text(SCRIPT)
    rank = {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "head", "RAY_JOB_ID": "7", "HF_TOKEN": "secret"}
    environment = os.environ | rank | {"CUDA_VISIBLE_DEVICES": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["['HF_TOKEN'] '' False", "[[3.0]]"], done.stderr


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    """Each worker runs it again; none may start workers in turn, for ever."""
    script = "from tokencredit.rewards import RewardPool\ndef mine(completions):\n    return [1.0]\n"
    script += "print(RewardPool([mine], workers=1).score(['x']).values)\n"
    (tmp_path / "script.py").write_text(script)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert "reward mine: it cannot be loaded in a worker" in done.stderr
    assert "put what a script does under `if __name__ == '__main__':`" in done.stderr


PROGRAM = """
from functools import partial

from tokencredit.rewards import RewardPool

from .part import factor


def mine(completions, times):
    return [float(times * factor) for _ in completions]


if __name__ == "__main__":
    with RewardPool([partial(mine, times=2)], workers=1) as pool:
        print(pool.score(["x"]).values)
"""


@pytest.mark.parametrize("module", ["program.run", "program"])
def test_a_part_of_a_function_of_a_program_that_is_started_as_a_module(module: str, tmp_path: Path) -> None:
    (tmp_path / "program").mkdir()
    for name, content in {"__init__": "", "part": "factor = 3", "run": PROGRAM, "__main__": PROGRAM}.items():
        (tmp_path / "program" / f"{name}.py").write_text(content)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", module]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "[[6.0]]\n", done.stderr


def test_a_session_has_no_functions_to_send() -> None:
    session = "from tokencredit.rewards import RewardPool\ndef mine(completions):\n    return [1.0]\nRewardPool([mine])"
    done = subprocess.run([sys.executable, "-c", session], capture_output=True, text=True, timeout=60)
    assert "reward mine: it is defined in an interactive session; put it into a module, or mark it" in done.stderr


@pytest.mark.parametrize(("end", "words"), [("os._exit(3)", "exit code 3"), ("os.kill(os.getpid(), 9)", "SIGKILL")])
def test_a_module_that_ends_its_worker(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, words: str
) -> None:
    """Said in one line, and not tried for ever."""
    name = f"ends_its_worker_{len(words)}"
    lines = ("import os", f"if 'TOKENCREDIT_REWARD_WORKER' in os.environ: {end}", "def mine(completions): return [1.0]")
    (tmp_path / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    pool = make_pool(functions.count_words, f"{name}:mine")
    start = time.monotonic()
    message = rf"reward mine: it cannot be loaded in a worker \(it ends when the module is imported: .*{words}"
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            pool.score(["x"])
    assert time.monotonic() - start < 60


def test_a_module_that_only_this_process_finds(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused when the first batch comes, rather than an error of each sample."""
    module = ModuleType("only_here")
    exec("def mine(completions): return [1.0]", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(
        InputError, match=r"reward mine: it cannot be loaded in a worker \(ModuleNotFoundError: No module"
    ):
        make_pool(module.mine).score(["x"])
