"""The files to copy: read by the tools that will read them, as far as these are here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.curves import TOLERANCE, Line, losses
from tests.cluster.ray_nodes import SETTINGS, free_port, processes_with
from tokencredit.recipes.files import read_recipe
from tokencredit.recipes.schema import parse_recipe

FILES = Path(__file__).parents[2] / "cluster" / "files"
SBATCH = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "two", "SLURM_CPUS_PER_TASK": "1"}


def recipe_of(command: str, folder: Path) -> Any:
    """The recipe that a `tokencredit train` command in a file would run."""
    (folder / "my.yaml").write_text("trainer: sft\nmodel_name_or_path: org/model\ndataset_name: us_addresses\n")
    words = shlex.split(command)
    assert words[:2] == ["tokencredit", "train"]
    return parse_recipe(read_recipe(str(folder / "my.yaml"), words[3:]))


def test_ray_up() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((FILES / "ray-up.yaml").read_text())
    validate_config(prepare_config(config))
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = config[commands][-1]
        assert subprocess.run(["bash", "-n", "-c", start]).returncode == 0
        words = shlex.split(start.rpartition(";")[2])
        check_ray_start(words)


def check_ray_start(words: list[str]) -> None:
    """Whether `ray start` knows all options of a command."""
    from ray.scripts.scripts import start

    assert words[:2] == ["ray", "start"]
    known = {option for parameter in start.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words[2:]} <= known


def test_kuberay_job(tmp_path: Path) -> None:
    job = yaml.safe_load((FILES / "kuberay-rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    launch = recipe_of(job["spec"]["entrypoint"], tmp_path).own.launch
    cluster = job["spec"]["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], workers)]
    gpus = int(pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert launch.num_processes == workers["replicas"] * gpus
    assert launch.ray.address == "auto"
    assert cluster["rayVersion"] == version("ray")
    for pod in pods:
        (container,) = pod["containers"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["image"].endswith(f":{version('tokencredit')}")


@pytest.fixture
def two_hosts(tmp_path: Path) -> Iterator[dict[str, str]]:
    """SLURM's commands for two hosts that are addresses of this machine."""
    scripts = {
        "scontrol": '[ "$1 $2" = "show hostnames" ] && printf "127.0.0.4\\n127.0.0.5\\n"',
        "srun": """
        case "$*" in *"--cpus-per-task=1 "*) ;; *) exit 9 ;; esac
        for word; do case "$word" in
            --nodelist=*) host="${word#*=}" ;;
            --*) ;;
            *) break ;;
        esac; shift; done
        [ "$1" = hostname ] && exec echo "$host"
        port=$((PORT + ${host##*.}))
        [ "$1 $2" = "ray start" ] && set -- "$@" --temp-dir="$FOLDER/$host" --dashboard-agent-listen-port=$port
        exec "$@"
        """,
    }
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{script}\n")
        (folder / name).chmod(0o755)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    short = Path(tempfile.mkdtemp(prefix="tc-", dir="/tmp"))  # sockets have short names only
    plain = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    yield plain | SBATCH | {"PATH": path, "FOLDER": str(short), "PORT": str(free_port())}
    shutil.rmtree(short)


@pytest.mark.distributed
def test_slurm_script(
    two_hosts: dict[str, str],
    short_recipes: dict[str, dict[str, Any]],
    curves: dict[str, list[Line]],
    tmp_path: Path,
) -> None:
    """Its own lines, with real Ray on two addresses; only SLURM is played by three small scripts."""
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(short_recipes["sft"] | {"output_dir": "run"}))
    command = ["bash", str(FILES / "slurm.sh"), "my.yaml", "launch=ddp", "per_device_train_batch_size=4"]
    done = subprocess.run(
        [*command, "launch.num_processes=2", "launch.ray.placement=STRICT_SPREAD"],
        cwd=tmp_path,
        env=two_hosts,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    expected = [line["loss"] for line in curves["sft"]]
    assert losses(tmp_path / "run") == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    assert processes_with(two_hosts["FOLDER"]) == [], "the cluster ends with the job"


def test_slurm_script_is_plain_bash() -> None:
    script = (FILES / "slurm.sh").read_text()
    assert subprocess.run(["bash", "-n", str(FILES / "slurm.sh")]).returncode == 0
    options = re.findall(r"^#SBATCH --([a-z-]+)=", script, flags=re.MULTILINE)
    assert {"nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node"} <= set(options)
