"""Recipe files: inheritance, overrides, and where relative paths start."""

from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from tokencredit.errors import InputError
from tokencredit.recipes.files import builtin_recipes, merge, read_recipe


def write(path: Path, **keys: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(keys))
    return path


def test_top_layer_wins_and_mappings_merge() -> None:
    base = {"a": 1, "launch": {"strategy": "ddp", "num_processes": 2}, "report_to": ["wandb"]}
    top = {"a": None, "launch": {"num_processes": 4}, "report_to": ["tensorboard"]}
    assert merge(base, top) == {
        "a": None,
        "launch": {"strategy": "ddp", "num_processes": 4},
        "report_to": ["tensorboard"],
    }
    assert base["launch"] == {"strategy": "ddp", "num_processes": 2}, "the layers themselves stay as they are"


def test_defaults_chain(tmp_path: Path) -> None:
    write(tmp_path / "base" / "grandparent.yaml", trainer="sft", seed=1, beta=1)
    write(tmp_path / "base" / "parent.yaml", defaults="grandparent.yaml", seed=2)
    child = write(tmp_path / "child.yaml", defaults="base/parent.yaml", max_steps=3)
    assert read_recipe(str(child), []) == {"trainer": "sft", "beta": 1, "seed": 2, "max_steps": 3}


def test_builtin_as_default(tmp_path: Path) -> None:
    child = write(tmp_path / "child.yaml", defaults="sft/addresses", output_dir="run", seed=5)
    recipe = read_recipe(str(child), [])
    assert recipe["seed"] == 5
    assert recipe["trainer"] == "sft"
    assert recipe["output_dir"] == str(tmp_path / "run")


def test_overrides_are_yaml_and_reach_into_mappings(tmp_path: Path) -> None:
    child = write(tmp_path / "child.yaml", trainer="sft", launch={"strategy": "ddp", "num_processes": 2})
    words = ["launch.num_processes=4", "learning_rate=3.0e-4", "report_to=[wandb, mlflow]", "peft.r=8", "run_name=a=b"]
    recipe = read_recipe(str(child), words)
    assert recipe == {
        "trainer": "sft",
        "launch": {"strategy": "ddp", "num_processes": 4},
        "learning_rate": 3e-4,
        "report_to": ["wandb", "mlflow"],
        "peft": {"r": 8},
        "run_name": "a=b",
    }


@pytest.mark.parametrize(
    ("given", "launch"),
    [
        ({"launch": "zero2"}, {"strategy": "zero2"}),
        ({"launch": None}, {"strategy": "none", "num_processes": None, "ray": None}),
        ({"launch": "none"}, {"strategy": "none", "num_processes": None, "ray": None}),
        ({"num_processes": 2}, {"num_processes": 2}),
        ({"launch": "ddp", "num_processes": 2}, {"strategy": "ddp", "num_processes": 2}),
    ],
)
def test_short_spellings_of_launch(tmp_path: Path, given: dict[str, object], launch: dict[str, object]) -> None:
    assert read_recipe(str(write(tmp_path / "r.yaml", **given)), [])["launch"] == launch
    words = [f"{key}={'' if value is None else value}" for key, value in given.items()]
    assert read_recipe(str(write(tmp_path / "empty.yaml", trainer="sft")), words)["launch"] == launch


@pytest.mark.parametrize(
    ("words", "ray"),
    [
        (["launch.ray=auto"], {"address": "auto"}),
        (["launch.ray=local", "launch.ray.max_failures=2"], {"address": "local", "max_failures": 2}),
        (["launch.ray=auto", "launch.ray=none"], None),
        (["launch.ray=auto", "launch.ray="], None),
    ],
)
def test_short_spellings_of_ray(tmp_path: Path, words: list[str], ray: object) -> None:
    base = write(tmp_path / "r.yaml", launch="zero2")
    assert read_recipe(str(base), words)["launch"] == {"strategy": "zero2", "ray": ray}


def test_storage_path_is_relative_to_the_recipe(tmp_path: Path) -> None:
    for written, absolute in (("state", str(tmp_path / "state")), ("s3://bucket/state", "s3://bucket/state")):
        base = write(tmp_path / "r.yaml", launch={"ray": {"address": "auto", "storage_path": written}})
        assert read_recipe(str(base), [])["launch"]["ray"]["storage_path"] == absolute


def test_one_process_over_a_recipe_with_two(tmp_path: Path) -> None:
    base = write(tmp_path / "r.yaml", launch="ddp", num_processes=2, task_metric="a:b")
    recipe = read_recipe(str(base), ["launch=none", "task_metric.max_new_tokens=4"])
    assert recipe["launch"] == {"strategy": "none", "num_processes": None, "ray": None}
    assert recipe["task_metric"] == {"function": "a:b", "max_new_tokens": 4}


def test_builtin_reached_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of a built-in recipe start at the working directory, also where the package lies behind a link."""
    (tmp_path / "link").symlink_to(Path(str(files("tokencredit.recipes"))))
    monkeypatch.setattr("tokencredit.recipes.files.files", lambda name: tmp_path / "link")
    monkeypatch.chdir(tmp_path)
    assert read_recipe("sft/addresses", [])["output_dir"] == str(tmp_path / "runs" / "sft-addresses")


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    recipe = read_recipe(
        str(
            write(
                tmp_path / "conf" / "r.yaml",
                output_dir="../runs/a",
                model_name_or_path="model",
                dataset_name="pairs.jsonl",
                launch="./cluster.yaml",
                deepspeed="zero.json",
                datasets=[{"path": "json", "data_files": {"train": "a.jsonl"}}, {"path": "org/data"}],
            )
        ),
        [],
    )
    conf = tmp_path / "conf"
    assert recipe["output_dir"] == str(tmp_path / "runs" / "a")
    assert recipe["model_name_or_path"] == str(conf / "model")
    assert recipe["dataset_name"] == str(conf / "pairs.jsonl")
    assert recipe["launch"] == {"strategy": str(conf / "cluster.yaml")}
    assert recipe["deepspeed"] == str(conf / "zero.json")
    assert recipe["datasets"] == [
        {"path": "json", "data_files": {"train": str(conf / "a.jsonl")}},
        {"path": "org/data"},
    ]


def test_names_stay_names(tmp_path: Path) -> None:
    recipe = read_recipe(
        str(write(tmp_path / "r.yaml", model_name_or_path="Qwen/Qwen3-0.6B", dataset_name="us_addresses")), []
    )
    assert recipe == {"model_name_or_path": "Qwen/Qwen3-0.6B", "dataset_name": "us_addresses"}


def test_inherited_paths_are_relative_to_the_file_they_stand_in(tmp_path: Path) -> None:
    write(tmp_path / "base" / "b.yaml", dataset_name="./data.jsonl")
    child = write(tmp_path / "child" / "c.yaml", defaults="../base/b.yaml", output_dir="run")
    recipe = read_recipe(str(child), [])
    assert recipe["dataset_name"] == str(tmp_path / "base" / "data.jsonl")
    assert recipe["output_dir"] == str(tmp_path / "child" / "run")


def test_paths_on_the_command_line_and_of_builtins_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    child = write(tmp_path / "conf" / "r.yaml", output_dir="a")
    assert read_recipe(str(child), ["output_dir=b"])["output_dir"] == str(tmp_path / "b")
    assert read_recipe("sft/addresses", [])["output_dir"] == str(tmp_path / "runs" / "sft-addresses")


def test_every_builtin_recipe_reads() -> None:
    assert set(builtin_recipes()) >= {"sft/addresses", "dpo/addresses"}
    for name in builtin_recipes():
        recipe, folder = read_recipe(name, []), name.partition("/")[0]
        # SPAE's folder has what it is compared with too.
        trainers = {folder, "token_grpo"} if folder == "spae" else {folder}
        assert ("from" in recipe) if folder == "pairs" else recipe["trainer"] in trainers


def test_yaml_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("a: 1\nb: {c: 1, c: 2}\n")
    with pytest.raises(InputError, match=r"r\.yaml line 2: key 'c' is given twice"):
        read_recipe(str(path), [])
    path.write_bytes(b"a: \xff\n")
    with pytest.raises(InputError, match="cannot be read"):
        read_recipe(str(path), [])
