"""Reward functions by name, dotted path or object, ready to be called."""

import asyncio
import inspect
import os
import pickle
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

from tokencredit.data.functions import load_function
from tokencredit.errors import InputError
from tokencredit.rewards.adapters import ADAPTERS
from tokencredit.rewards.builtin import BUILTIN, split_name

Function = Callable[..., Any]


@dataclass(frozen=True)
class RewardFunction:
    """One reward function and how it is called.

    Args:
        function: A built-in name, `module:function` (the module may lie in the working directory), or the function.
        name: What metrics and messages call it; by default the function's own name.
        arguments: Keyword arguments that every call gets.
        columns: Parameter of the function → the column it is filled from, where the names differ.
        adapter: The convention it follows if it is not ours: `verl`, `openrlhf` or `reasoning_gym`.
        batched: Call it once with the whole batch, under the deadline of the batch.
        trusted: Call it in this process, without a deadline. By default only built-ins that cannot hang are.
    """

    function: str | Function
    name: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    adapter: str | None = None
    batched: bool = False
    trusted: bool | None = None

    @property
    def in_process(self) -> bool:
        """Whether it runs in the process that scores."""
        if self.trusted is not None:
            return self.trusted
        return isinstance(self.function, str) and self.function in BUILTIN and BUILTIN[self.function].cannot_hang


@dataclass(frozen=True)
class Callee:
    """A reward function that was found, with what its signature says.

    Args:
        spec: How it was asked for.
        call: The function, its arguments bound.
        parameters: Names it takes, and whether each must be given.
        takes_all: Whether it takes any other column as well.
    """

    spec: RewardFunction
    call: Function
    parameters: Mapping[str, bool]
    takes_all: bool

    def check_columns(self, given: set[str]) -> None:
        """Refuse a batch without a column that the function cannot do without.

        Raises:
            InputError: Naming the column.
        """
        for parameter, required in self.parameters.items():
            column = self.spec.columns.get(parameter, parameter)
            if column not in {*given, *LOGGERS} and (required or parameter in self.spec.columns):
                known = ", ".join(sorted(given - {"completions"})) or "none"
                problem = f"the data has no column {column!r}"
                remedy = f"its columns are {known}; `columns: {{{parameter}: <column>}}` takes another"
                raise InputError(f"reward {self.spec.name}", problem, remedy)

    def relevant(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that a call needs, under their own names: what goes to another process."""
        wanted = {*self.parameters, *self.spec.columns.values(), "completions", "completion_ids"}
        return {
            name: value
            for name, value in columns.items()
            if name in wanted or (self.takes_all and isinstance(value, list))
        }

    def check_deadline(self, deadline: float) -> None:
        """Refuse one that does not leave a built-in the time that it gives what it runs.

        Raises:
            InputError: Naming the argument.
        """
        name = split_name(self.spec.function)[0]
        argument = BUILTIN[name].bounded_by if name in BUILTIN else ""
        parameter = inspect.signature(self.call).parameters.get(argument)
        seconds = parameter.default if parameter is not None else 0
        if seconds >= deadline:
            problem = f"{seconds:g} s are not less than the {deadline:g} s after which the pool kills it"
            raise InputError(
                f"reward {self.spec.name}.arguments.{argument}", problem, "lower it, or raise the deadline"
            )

    def pick(self, columns: Mapping[str, Any], loggers: Mapping[str, Function]) -> dict[str, Any]:
        """The keyword arguments of a call.

        What is no list with one item per completion goes only to a function that names it.
        """
        renamed = {parameter: columns[column] for parameter, column in self.spec.columns.items() if column in columns}
        if self.takes_all:
            rest = {
                name: value for name, value in columns.items() if isinstance(value, list) or name in self.parameters
            }
            return rest | dict(loggers) | renamed
        return {name: value for name, value in {**columns, **loggers}.items() if name in self.parameters} | renamed

    def __call__(self, kwargs: Mapping[str, Any]) -> Any:
        """Call it, to the end if it is `async`."""
        result = self.call(**kwargs)
        return asyncio.run(_awaited(result)) if inspect.isawaitable(result) else result


async def _awaited(result: Any) -> Any:
    return await result


LOGGERS = ("log_extra", "log_metric")


def named(functions: Sequence[str | Function | RewardFunction]) -> list[RewardFunction]:
    """Specifications with a name each, no two alike.

    Raises:
        InputError: There are none, or two would be counted under one name.
    """
    if isinstance(functions, str) or callable(functions) or isinstance(functions, RewardFunction):
        functions = [functions]
    if not functions:
        raise InputError("reward_funcs", "no reward function", "name at least one")
    specs = []
    for given in functions:
        spec = given if isinstance(given, RewardFunction) else RewardFunction(given)
        specs.append(spec if spec.name else replace(spec, name=_own_name(spec.function)))
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise InputError("reward_funcs", f"two are named {name!r}", "give each a `name`")
    return specs


def _own_name(function: str | Function) -> str:
    if isinstance(function, str):
        return function if split_name(function)[0] in BUILTIN else function.rpartition(":")[2]
    inner = function.func if isinstance(function, partial) else function
    return str(getattr(inner, "__name__", type(inner).__name__))


def load(spec: RewardFunction, *, check: bool = True) -> Callee:
    """Find a function and bind its arguments.

    Args:
        spec: What is asked for.
        check: Let a built-in refuse what it cannot do; once is enough.

    Raises:
        InputError: There is none of that name, a package it needs is missing, it does not take the arguments, or it
            refuses to run with them.
    """
    where = f"reward {spec.name or spec.function}"
    found, arguments = _find(spec, where)
    # A misspelt setting of ours would be taken for one of the columns that every built-in lets pass.
    strict = isinstance(spec.function, str) and split_name(spec.function)[0] in BUILTIN
    if arguments:
        _check_names(found, arguments, f"{where}.arguments", strict)
    if check:
        _check(spec, arguments)
    bound = partial(found, **arguments) if arguments else found
    if spec.adapter is not None:
        if spec.adapter not in ADAPTERS:
            problem = f"unknown adapter {spec.adapter!r}"
            raise InputError(f"{where}.adapter", problem, f"there are {', '.join(ADAPTERS)}")
        bound = ADAPTERS[spec.adapter](bound)
    parameters, takes_all = _signature(bound)
    _check_names(bound, spec.columns, f"{where}.columns", strict)
    free = {name: required for name, required in parameters.items() if name not in arguments}
    return Callee(spec, bound, free, takes_all)


def _check_names(function: Any, names: Mapping[str, Any], where: str, strict: bool) -> None:
    """Refuse names that are no parameters of a function; a strict check lets `**kwargs` take none."""
    parameters, takes_all = _signature(function)
    for name in names:
        if name not in parameters and (strict or not takes_all):
            near = get_close_matches(name, parameters, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(parameters) or 'nothing'}"
            raise InputError(where, f"the function takes no {name!r}", remedy)


def _find(spec: RewardFunction, where: str) -> tuple[Any, dict[str, Any]]:
    """What the specification names, and its arguments."""
    if not isinstance(spec.function, str):
        return spec.function, dict(spec.arguments)
    name, argument = split_name(spec.function)
    if name in BUILTIN:
        return BUILTIN[name].load(where), argument | dict(spec.arguments)
    if ":" not in spec.function:
        near = get_close_matches(spec.function, BUILTIN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"built in are {', '.join(BUILTIN)}"
        raise InputError(where, f"no built-in reward {spec.function!r}", f"{hint} Your own is module:function")
    import_from_working_directory()
    if spec.adapter == "reasoning_gym":
        module, _, attribute = spec.function.partition(":")
        try:
            return getattr(import_module(module), attribute), dict(spec.arguments)
        except Exception as error:  # the module is the user's: it may fail in any way
            problem = f"{spec.function!r} cannot be imported ({type(error).__name__}: {error})"
            raise InputError(where, problem, "write module:dataset") from error
    return load_function(spec.function, where), dict(spec.arguments)


def _check(spec: RewardFunction, arguments: dict[str, Any]) -> None:
    """Let a built-in refuse what it cannot do before anything runs."""
    name = split_name(spec.function)[0] if isinstance(spec.function, str) else None
    if name in BUILTIN:
        if spec.trusted and BUILTIN[name].only_in_workers:
            raise InputError(f"reward {spec.name}.trusted", BUILTIN[name].only_in_workers, "leave it out")
        BUILTIN[name].check(f"reward {spec.name}", arguments)


def _signature(function: Function) -> tuple[dict[str, bool], bool]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return {}, True
    kinds = inspect.Parameter
    parameters = {
        item.name: item.default is kinds.empty
        for item in signature.parameters.values()
        if item.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    }
    return parameters, any(item.kind is kinds.VAR_KEYWORD for item in signature.parameters.values())


def import_from_working_directory() -> None:
    """Let functions be found in the working directory; installed packages come first."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def pickled(specs: list[RewardFunction]) -> list[bytes]:
    """Specifications for other processes; nothing for those that run in this one.

    Raises:
        InputError: One cannot be sent.
    """
    found = []
    for spec in specs:
        try:
            found.append(pickle.dumps(spec) if not spec.in_process else b"")
        except Exception as error:
            problem = f"it cannot be sent to another process ({error})"
            remedy = "define it at the top of a module, or mark it `trusted` to run it in this process"
            raise InputError(f"reward {spec.name}", problem, remedy) from None
    return found


def main_script(specs: list[RewardFunction], sent: list[bytes]) -> tuple[str, bool] | None:
    """The main script, if something of it goes to workers, which then have to run it too.

    Returns:
        Its path, or its name if it was started with `python -m`, and whether it was.

    Raises:
        InputError: There is no script, but a session.
    """
    for spec, content in zip(specs, sent, strict=True):
        if b"__main__" in content:
            main = sys.modules["__main__"]
            if getattr(main, "__spec__", None) is not None:
                return str(main.__spec__.name), True  # type: ignore[union-attr]
            path = getattr(main, "__file__", None)
            if path is None or not os.path.isfile(path):
                remedy = "put it into a module, or mark it `trusted` to run it in this process"
                raise InputError(f"reward {spec.name}", "it is defined in an interactive session", remedy)
            return os.path.abspath(str(path)), False
    return None
