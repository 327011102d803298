"""What a process of a run sets up for itself."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from tokencredit.cluster.worker import prepare_deepspeed


def test_deepspeed_finds_the_programs_of_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the interpreter was called by its path, and a second time adds nothing."""
    monkeypatch.setenv("PATH", os.pathsep.join(["/usr/bin", "/bin"]))
    for _ in range(2):
        prepare_deepspeed(on_cpu=False)
        assert os.environ["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/usr/bin", "/bin"]
    assert shutil.which("ninja") == str(Path(sys.executable).with_name("ninja"))
