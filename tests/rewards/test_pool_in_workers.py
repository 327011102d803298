"""The pool inside the processes of a training run: ranks of DDP, and workers of Ray."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

RANK = """
import os

import torch
import torch.distributed as dist

from tests.rewards.reward_functions import obey
from tokencredit.rewards import RewardPool

dist.init_process_group("gloo")
rank = dist.get_rank()
with RewardPool([obey], timeout=1, workers=1, batch_timeout=20) as pool:
    values = pool.score(["fine", "none", "raise"] if rank else ["spin", "fine", "fine"]).values
    flat = torch.tensor([float("nan") if value is None else value for (value,) in values])
    gathered = [torch.zeros(3) for _ in range(2)]
    dist.all_gather(gathered, flat)
if rank == 0:
    print([part.isnan().tolist() for part in gathered])
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_each_rank_has_its_own(tmp_path: Path) -> None:
    """A rank whose samples are stuck is waited for, and nobody's worker joins the group."""
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    command = [sys.executable, *launcher, "--rdzv-endpoint", "127.0.0.1:0", str(script)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["[[True, False, False], [False, True, True]]"], done.stderr


RAY = """
import ray

ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)


@ray.remote
class Trainer:
    def score(self):
        from tests.rewards.reward_functions import environment, obey
        from tokencredit.rewards import RewardPool

        seen = {}
        with RewardPool([obey, environment], timeout=1, workers=1, batch_timeout=20) as pool:
            batch = pool.score(["spin", "fine"], log_extra=lambda column, values: seen.update({column: values[1]}))
        rays = [name for name in seen["environment"] if name.startswith("RAY_")]
        return batch.status, rays, "ray" in seen["modules"]


print(ray.get(Trainer.remote().score.remote()))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.distributed
def test_in_a_worker_of_ray(tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(RAY)
    quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "driver.py"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | quiet, capture_output=True, text=True, timeout=120)
    expected = "([['timeout', 'ok'], ['ok', 'ok']], [], False)"
    assert done.stdout.splitlines()[-1:] == [expected], done.stderr
