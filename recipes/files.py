"""Recipe files: YAML with `defaults:` inheritance, command-line overrides, and paths made absolute.

A path written in a recipe file is relative to that file. In a recipe that ships with the package, and on
the command line, it is relative to the working directory.
"""

import re
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from tokencredit.errors import InputError

Layer = dict[str, Any]

RECIPE_FILE = "recipe.yaml"
"""Where a run folder keeps the recipe that made it."""

DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
FUNCTION_KEYS = ("loss", "task_metric", "token_weights")
"""Keys under which a recipe names functions."""

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_FILE_BUILDERS = {"json", "csv", "parquet", "text", "arrow"}


def builtin_recipes() -> dict[str, Path]:
    """The recipes that ship with the package, `name -> file`, e.g. `sft/addresses`."""
    root = Path(str(files("tokencredit.recipes"))).resolve()
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.glob("*/*.yaml"))}


def read_recipe(recipe: str, overrides: list[str]) -> Layer:
    """Read a recipe with everything it inherits and the overrides, all paths absolute.

    Args:
        recipe: Path of a YAML file, or the name of a built-in recipe.
        overrides: `key=value` items; a dot reaches into a mapping, the value is read as YAML.

    Returns:
        One mapping of recipe keys; `defaults` is gone.

    Raises:
        InputError: For a file that is missing, is not YAML or not a mapping, for a key given twice,
            for `defaults` that form a circle, and for an override that is not `key=value`.
    """
    builtin = builtin_recipes()
    path = Path(recipe).expanduser()
    if recipe in builtin and not path.is_file():
        path = builtin[recipe]
    elif not path.is_file():
        known = ", ".join(builtin)
        raise InputError("recipe", f"no file {recipe!r}", f"give the path of a YAML file or a built-in name ({known})")
    merged = _read_with_defaults(path.resolve(), ())
    for item in overrides:
        merged = merge(merged, absolute_paths(_override(item), Path.cwd()))
    return merged


def merge(base: Layer, top: Layer) -> Layer:
    """Lay `top` over `base`: mappings merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in top.items():
        both_mappings = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both_mappings else value
    return merged


def _read_with_defaults(path: Path, children: tuple[Path, ...]) -> Layer:
    if path in children:
        chain = " -> ".join(p.name for p in (*children, path))
        raise InputError("defaults", f"recipes inherit from each other in a circle ({chain})", "break the circle")
    layer = normalise(load_yaml(path))
    parent = layer.pop("defaults", None)
    base_dir = Path.cwd() if path in builtin_recipes().values() else path.parent
    layer = absolute_paths(layer, base_dir)
    if parent is None:
        return layer
    if not isinstance(parent, str):
        raise InputError("defaults", f"{parent!r} is not the name of a recipe", "give one path or built-in name")
    return merge(_read_with_defaults(_find_parent(parent, path), (*children, path)), layer)


def _find_parent(parent: str, child: Path) -> Path:
    beside = (child.parent / Path(parent).expanduser()).resolve()
    if beside.is_file():
        return beside
    builtin = builtin_recipes()
    if parent in builtin:
        return builtin[parent]
    raise InputError("defaults", f"no recipe {parent!r} beside {child.name}", f"built in are {', '.join(builtin)}")


def _override(item: str) -> Layer:
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise InputError("command line", f"{item!r} is not an override", "write key=value, e.g. learning_rate=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(key, f"{text!r} is not YAML ({_first_line(error)})", "quote the value") from None
    for part in reversed(key.strip().split(".")):
        value = {part: value}
    return normalise(value)


def normalise(layer: Layer) -> Layer:
    """Bring the short spellings into the one form the schema knows.

    `launch: zero2` means `launch: {strategy: zero2}`, and `launch: none` one process in the command itself whatever
    the base recipe says; `num_processes`, which TRL's command line takes at the top level, means
    `launch.num_processes`; `ray: auto` in the launch section means `ray: {address: auto}`, and `ray: none` no Ray;
    `task_metric: name` means `task_metric: {function: name}`.
    """
    layer = dict(layer)
    if "launch" in layer and not isinstance(layer["launch"], dict):
        # YAML reads a bare `none` as text but `null` and an empty value as nothing.
        one_process = layer["launch"] in (None, "none")
        one = {"strategy": "none", "num_processes": None, "ray": None}
        layer["launch"] = one if one_process else {"strategy": layer["launch"]}
    if "ray" in layer.get("launch", {}) and not isinstance(layer["launch"]["ray"], dict):
        address = layer["launch"]["ray"]
        layer["launch"] = layer["launch"] | {"ray": None if address in (None, "none") else {"address": address}}
    if isinstance(layer.get("task_metric"), str):
        layer["task_metric"] = {"function": layer["task_metric"]}
    if "num_processes" in layer:
        layer["launch"] = merge(layer.get("launch", {}), {"num_processes": layer.pop("num_processes")})
    return layer


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise InputError(f"{self.name} line {line}", f"key {key!r} is given twice", "keep one of them")
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Layer:
    """Read one YAML mapping; errors name the file and the line."""
    try:
        with path.open(encoding="utf-8") as stream:
            content = yaml.load(stream, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path} line {mark.line + 1}" if mark else str(path)
        raise InputError(where, f"not valid YAML ({_first_line(error)})", "correct the file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "give a readable UTF-8 YAML file") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(str(path), "not a mapping of keys to values", "write `key: value` lines, as in `recipes show`")
    return content


def _first_line(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def absolute_paths(layer: Layer, base: Path) -> Layer:
    """The layer with every path in it absolute, read relative to `base`."""
    layer = dict(layer)
    for key, resolve in _PATH_KEYS.items():
        if isinstance(layer.get(key), str):
            layer[key] = resolve(layer[key], base)
    if isinstance(layer.get("launch"), dict):
        layer["launch"] = _launch_paths(dict(layer["launch"]), base)
    if isinstance(layer.get("datasets"), list):
        layer["datasets"] = [_mixture_part(part, base) for part in layer["datasets"]]
    return layer


def local_paths(layer: Layer) -> list[tuple[str, Path]]:
    """What a resolved recipe reads from disk, each with the key that names it."""
    # A mapping holds settings, whose paths are not of files that are read.
    given = {key: layer[key] for key in _PATH_KEYS if key != "output_dir" and isinstance(layer.get(key), str)}
    for place, part in enumerate(layer.get("datasets") or []):
        given |= {f"datasets.{place}.{key}": part[key] for key in ("path", "data_files", "data_dir") if key in part}
    texts = [(key, text) for key, value in given.items() for text in _strings(value)]
    return [(key, Path(text)) for key, text in texts if Path(text).is_absolute()]


def named_functions(layer: Layer) -> list[tuple[str, str]]:
    """The functions that a recipe names as `module:function`, each with its key."""
    texts = [(key, text) for key in FUNCTION_KEYS for text in _strings(layer.get(key))]
    return [(key, text) for key, text in texts if _FUNCTION.fullmatch(text)]


def _strings(value: Any) -> Iterator[str]:
    """Every text in a nested value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _launch_paths(launch: Layer, base: Path) -> Layer:
    if str(launch.get("strategy", "")).endswith((".yaml", ".yml", ".json")):
        launch["strategy"] = _path(launch["strategy"], base)
    ray = launch.get("ray")
    if isinstance(ray, dict) and isinstance(ray.get("storage_path"), str):
        launch["ray"] = ray | {"storage_path": _path_or_uri(ray["storage_path"], base)}
    return launch


def _path(value: str, base: Path) -> str:
    return str((base / Path(value).expanduser()).resolve())


def _path_or_name(value: str, base: Path) -> str:
    """A hub name or a built-in stays as it is; what looks like a path or exists becomes absolute."""
    looks_local = value.startswith((".", "/", "~")) or value.endswith(DATA_SUFFIXES) or (base / value).exists()
    return _path(value, base) if looks_local else value


def _path_or_uri(value: str, base: Path) -> str:
    return value if "://" in value else _path(value, base)


def _path_or_templates(value: str, base: Path) -> str:
    return _path(value, base) if value.endswith((".yaml", ".yml")) else value


def _path_or_data(value: str, base: Path) -> str:
    return value if value == "data" else _path(value, base)


def _path_or_kind(value: str, base: Path) -> str:
    return value if value in ("measured", "uniform") else _path(value, base)


def _path_or_dict(value: str, base: Path) -> str:
    return value if value.lstrip().startswith("{") else _path(value, base)


_PATH_KEYS: dict[str, Callable[[str, Path], str]] = {
    "output_dir": _path,
    "resume_from_checkpoint": _path,
    "model_name_or_path": _path_or_name,
    "evaluator": _path_or_name,
    "templates": _path_or_templates,
    "chat_template_path": _path_or_name,
    "dataset_name": _path_or_name,
    "output_file": _path,
    "expert_pairs": _path,
    "ontology": _path_or_data,
    "confusion": _path_or_kind,
    "deepspeed": _path_or_dict,
    "fsdp_config": _path_or_dict,
    "accelerator_config": _path_or_dict,
}


def _mixture_part(part: Any, base: Path) -> Any:
    if not isinstance(part, dict):
        return part
    part = dict(part)
    local = part.get("path") in _FILE_BUILDERS
    if isinstance(part.get("path"), str) and not local:
        part["path"] = _path_or_name(part["path"], base)
    for key in ("data_files", "data_dir"):
        if local and key in part:
            part[key] = _map_strings(part[key], lambda text: _path(text, base))
    return part


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _map_strings(item, change) for key, item in value.items()}
    return value


def recipe_titles() -> Iterator[tuple[str, str]]:
    """`(name, first comment line)` of every built-in recipe."""
    for name, path in builtin_recipes().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        yield name, first.lstrip("# ") if first.startswith("#") else ""
