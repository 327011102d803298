"""The type checker sees the whole package: no error, and a planted one across rooms is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLANTED = """
import torch

from tokencredit.losses import dpo_loss
from tokencredit.scoring import sequence_logps

loss, metrics = dpo_loss(1, 2, 3)
wrong: str = sequence_logps(torch.nn.Linear(1, 1), [[1, 2]])
"""


def check(copy: Path, *targets: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    command += ["--cache-dir", str(ROOT / ".mypy_cache"), *targets]
    environment = os.environ | {"MYPYPATH": str(copy)}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_types(tmp_path: Path) -> None:
    copy = tmp_path / "types"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target"]
    subprocess.run([*install, str(copy), str(ROOT)], check=True, capture_output=True)
    clean = check(copy, "-p", "tokencredit")
    assert clean.returncode == 0, clean.stdout
    (copy / "planted.py").write_text(PLANTED)
    found = check(copy, "planted.py")
    assert found.returncode == 1
    assert 'planted.py:7: error: Missing positional arguments "ref_rejected_logps"' in found.stdout
    assert "planted.py:8: error: Incompatible types in assignment" in found.stdout
