"""What is kept of token rewards survives a kill at any moment."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from tokencredit.errors import InputError
from tokencredit.scoring.reward_store import RewardStore, Row

KEYS = [bytes([number]) * 16 for number in range(6)]


def rows(*numbers: int) -> list[Row]:
    return [(KEYS[number], np.full(number + 1, number / 7, dtype=np.float32)) for number in numbers]


def check(store: RewardStore, *numbers: int) -> None:
    found = store.find(KEYS)
    assert set(found) == {KEYS[number] for number in numbers}
    for key, values in rows(*numbers):
        np.testing.assert_array_equal(found[key], values)


def killed(store: RewardStore, *batches: tuple[int, ...]) -> None:
    """Add batches in a process that is killed after the last of them."""
    child = os.fork()
    if child == 0:
        with store.writer() as writer:
            for batch in batches:
                writer.add(rows(*batch))
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_killed_process_leaves_its_batches(tmp_path: Path) -> None:
    store = RewardStore(tmp_path)
    killed(store, (0, 1), (2,))
    check(store, 0, 1, 2)
    killed(store, (3,))
    with store.writer() as writer:
        writer.add(rows(4))
    check(store, 0, 1, 2, 3, 4)
    assert [path.suffix for path in tmp_path.iterdir()] == [".parquet"]


def test_a_batch_that_was_half_written_is_left_out(tmp_path: Path) -> None:
    store = RewardStore(tmp_path)
    killed(store, (0, 1), (2,), (3, 4))
    (part,) = tmp_path.iterdir()
    content = part.read_bytes()
    for size in range(len(content) - 1, 0, -97):
        part.write_bytes(content[:size])
        found = set(store.find(KEYS))
        assert found in ({*KEYS[:5]}, {*KEYS[:3]}, {*KEYS[:2]}, set())
    assert not found, "the last cut left no whole batch"


def test_a_call_that_ends_meanwhile_takes_nothing_away(tmp_path: Path) -> None:
    store = RewardStore(tmp_path)
    with store.writer() as slow:
        slow.add(rows(0))
        with store.writer() as quick:
            quick.add(rows(1))
        slow.add(rows(2))
    check(store, 0, 1, 2)
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


def test_what_a_living_call_wrote_stays_its_own(tmp_path: Path) -> None:
    """It may be killed after another call has ended."""
    store = RewardStore(tmp_path)
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with store.writer() as writer:
            writer.add(rows(0, 1))
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            writer.add(rows(2))
            os.kill(os.getpid(), signal.SIGKILL)
    os.read(ready[0], 1)
    with store.writer() as writer:
        writer.add(rows(3))
    os.write(go[1], b"x")
    os.waitpid(child, 0)
    check(store, 0, 1, 2, 3)


def test_only_what_is_asked_for_is_found(tmp_path: Path) -> None:
    store = RewardStore(tmp_path)
    assert store.find(KEYS) == {}
    with store.writer() as writer:
        writer.add(rows(0, 1, 2))
    assert set(store.find(KEYS[1:2])) == {KEYS[1]}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read .*; remove it"):
        RewardStore(tmp_path).find(KEYS)
