"""The rooms and who may enter which."""

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What a room may import of the others: only what lies below it.
MAY_IMPORT = {
    "data": set(),
    "losses": set(),
    "scoring": {"losses"},
    "rewards": {"data"},
    "trainers": {"data", "losses", "scoring", "rewards"},
    "analysis": {"data", "losses", "scoring", "rewards", "trainers"},
    "recipes": {"data", "rewards", "trainers", "analysis"},
    "cluster": {"analysis", "data", "recipes", "scoring", "trainers"},
    "tokencredit": {"analysis", "cluster", "data", "recipes", "rewards", "scoring", "trainers"},
}
ROOMS = [name for name in MAY_IMPORT if name != "tokencredit"]


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_upward_imports(room: str) -> None:
    assert modules(room), "an empty room would prove nothing"
    own = {path.stem for path in modules("tokencredit")} if room == "tokencredit" else set()
    allowed = MAY_IMPORT[room] | {room, "errors"} | own
    for path in modules(room):
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("tokencredit.")}
        assert rooms <= allowed, f"{path} imports {sorted(rooms - allowed)}"


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("data", {"torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "ray"}),
        ("losses", {"transformers", "trl", "peft", "accelerate", "datasets", "deepspeed", "ray", "numpy"}),
    ],
)
def test_light_rooms(room: str, forbidden: set[str]) -> None:
    for path in modules(room):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & forbidden, f"{path} imports {tops & forbidden}"


def test_only_one_module_touches_private_names_of_trl() -> None:
    public = re.compile(r"trl(\.models)?\.[A-Z]\w+|trl\.(get_\w+)|trl\.models\.unwrap_model_for_generation")
    for path in (path for room in MAY_IMPORT for path in modules(room)):
        private = {name for name in imported(path) if name.split(".")[0] == "trl" and not public.fullmatch(name)}
        if path.name != "trl_compat.py":
            assert not private, f"{path} imports {private}"


def test_files_stay_small() -> None:
    for path in (path for room in MAY_IMPORT for path in modules(room)):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_packages_are_listed() -> None:
    """A folder with code that `pyproject.toml` does not list is missing from the wheel."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent for room in MAY_IMPORT for path in modules(room)}
    names = {
        "tokencredit" if folder.name == "tokencredit" else "tokencredit." + ".".join(folder.relative_to(ROOT).parts)
        for folder in folders
    }
    assert set(settings["packages"]) == set(settings["package-dir"]) == names
    for name, folder in settings["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), name


def test_no_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    home = re.compile(r"(?<![\w./-])/(?:work|root|home|Users)/[\w.-]+")
    for name in listed:
        path = ROOT / name
        if path.suffix in {".py", ".md", ".yaml", ".toml", ".json", ".txt", ""} and path.is_file():
            assert not home.search(path.read_text(encoding="utf-8")), name
