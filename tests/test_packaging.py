"""The wheel, installed in a fresh environment, is the whole package."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tokencredit.analysis.page import SCRIPTS

ROOT = Path(__file__).parent.parent
IMPORT_ALL = """
import importlib, pkgutil, tokencredit
names = [m.name for m in pkgutil.walk_packages(tokencredit.__path__, "tokencredit.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(tokencredit.__file__, len(names))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # From a copy: what an earlier build left in the checkout would find its way into the wheel.
    left_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "runs", "__pycache__")
    copy = shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "copy", ignore=left_out)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_code_recipes_and_data_and_no_tests(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "tokencredit/py.typed",
        "tokencredit/recipes/sft/addresses.yaml",
        "tokencredit/recipes/sft/README.md",
        "tokencredit/data/us_addresses/train.jsonl",
        "tokencredit/data/us_addresses/README.md",
        "tokencredit/cluster/configs/zero3.json",
        "tokencredit/cluster/files/slurm.sh",
        "tokencredit/scoring/templates/general.yaml",
        "tokencredit/analysis/templates/page.html.j2",
        "tokencredit/analysis/templates/page.css",
        *(f"tokencredit/analysis/templates/{script}" for script in SCRIPTS),
    ):
        assert name in names
    assert not [name for name in names if "test" in name and not name.endswith("us_addresses/test.jsonl")]
    tops = {name.split("/")[0] for name in names}
    assert tops == {"tokencredit", next(top for top in tops if top.endswith(".dist-info"))}


@pytest.mark.slow
def test_fresh_environment_runs_the_builtin_recipe(wheel: Path, tmp_path: Path) -> None:
    """Dependencies come from the running environment; the package itself only from the wheel."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = next((home / "lib").glob("python3*")) / "site-packages"
    # A path file brings the dependencies but not the editable install: .pth files are not followed twice.
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    done = subprocess.run([python, "-c", IMPORT_ALL], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    location, count = done.stdout.split()[-2:]
    assert location == str(site / "tokencredit" / "__init__.py")
    assert int(count) > 30

    short = ["max_steps=2", "eval_steps=2", "save_steps=2", "task_metric.limit=2", "task_metric.max_new_tokens=4"]
    small = ["augment.copies=1", "dataset_train_split=train[:64]", "dataset_test_split=validation[:8]"]
    command = [python, "-m", "tokencredit", "train", "sft/addresses", *short, *small]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "sft-addresses"
    assert (run / "model.safetensors").is_file()
    assert (run / "checkpoint-2" / "manifest.json").is_file()
