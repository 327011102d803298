"""What workers say, and how it is told where the command runs."""

import socket
from pathlib import Path

import pytest
import yaml

from tokencredit.cluster.ray_train import _reasons
from tokencredit.cluster.ray_worker import Desk, _check_shared
from tokencredit.errors import InputError


def test_the_first_failure_is_told_once() -> None:
    desk = Desk()
    assert desk.begin() == 1
    desk.say("stdout", "step 1\n")
    desk.fail(1, "RuntimeError: out of memory\n")
    desk.fail(0, "RuntimeError: connection closed by peer\n")
    news = desk.take()
    assert news.lines == [("stdout", "step 1\n"), ("stderr", "worker 1 failed:\nRuntimeError: out of memory\n")]
    assert news.failed
    assert desk.take().lines == []
    assert desk.begin() == 2
    assert not desk.take().failed


def test_a_refusal_stays() -> None:
    desk = Desk()
    first, second = InputError("loss", "is wrong", "mend it"), InputError("seed", "is wrong", "mend it")
    desk.refuse(first)
    desk.refuse(second)
    desk.take()
    assert desk.take().refusal is first


def test_workers_that_were_lost_are_named() -> None:
    from ray.exceptions import RayActorError
    from ray.train import WorkerGroupError

    failed = RuntimeError("connection closed by peer")
    both = WorkerGroupError("", {1: RayActorError(error_msg="The actor died.\nMore."), 0: failed})
    assert _reasons(both, told=True) == ["worker 1 was lost: The actor died."]
    one = WorkerGroupError("", {0: failed})
    assert _reasons(one, told=True) == []
    assert _reasons(one, told=False) == ["worker 0 was lost: connection closed by peer"]
    assert _reasons(ValueError("other"), told=True) == ["ValueError: other\n"]


def test_run_folder_of_another_machine(tmp_path: Path) -> None:
    recipe = {"trainer": "sft", "output_dir": str(tmp_path)}
    says = f"output_dir: '{tmp_path}' on {socket.gethostname()} is not the folder that the command has written to; name"
    for written in (None, {"trainer": "dpo", "output_dir": str(tmp_path), "beta": 1}):
        if written:
            (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written))
        with pytest.raises(InputError, match=says):
            _check_shared(recipe)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _check_shared(recipe)
