"""Checks an attention's options against the annotations of its constructor, because a config may contain any value."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LISTS = (Sequence, list, tuple)


NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string", NoneType: "null"}


def check_options(cls: type, options: Mapping[str, Any]) -> None:
    """Checks options against the constructor's annotations; the class checks everything else.

    Raises:
        ValueError: an option does not exist, is missing or has the wrong type; the message names it and what is allowed.
    """
    constructor: Any = getattr(cls, "__init__")  # noqa: B009 (mypy takes the plain form for an instance's)
    taken = options_of(cls)
    signature = inspect.signature(constructor).parameters.values()
    for parameter in signature:
        if parameter.name in taken and parameter.default is parameter.empty and parameter.name not in options:
            raise ValueError(f"{cls.__name__} needs the option {parameter.name!r}")
    free = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature)
    for name, value in options.items():
        if name not in taken and not free:
            raise ValueError(f"{cls.__name__} has no option {name!r}; its options are: {', '.join(taken)}")
        if isinstance(value, partial) and isinstance(value.func, type):
            check_options(value.func, value.keywords)
        elif not fits(value, taken.get(name, Any)):
            choices = choices_of(taken[name])
            expected = f"; choose from {', '.join(map(str, choices))}" if choices else f" must be {describe(taken[name])}"
            raise ValueError(f"{cls.__name__}: {name}={value!r}{expected}")


def defaults_of(cls: type) -> dict[str, Any]:
    """The defaults of the options of `place`, `build` and the constructor, also of base classes that get them."""
    found: dict[str, Any] = {}
    for method in ("place", "build", "__init__"):
        for function in (vars(base)[method] for base in cls.__mro__ if method in vars(base)):
            parameters = inspect.signature(getattr(function, "__func__", function)).parameters.values()
            for p in parameters:
                if p.default is not p.empty:
                    found.setdefault(p.name, p.default)
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                break
    return found


def options_of(cls: type) -> dict[str, Any]:
    """Names of the options of an attention, with their types."""
    constructor: Any = getattr(cls, "__init__")  # noqa: B009 (mypy takes the plain form for an instance's)
    taken = _parameters(constructor)
    for placing in ("place", "build"):
        taken |= _parameters(getattr(cls, placing, None))
    return taken


def _parameters(function: Any) -> dict[str, Any]:
    """Names of the options of a constructor or of `place`, with their types."""
    if function is None:
        return {}
    try:
        hints = get_type_hints(function)
    except Exception:  # a name that is imported only for the type checker
        hints = {}
    named = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    return {name: hints.get(name, Any) for name in named if name not in ("self", "site", "sites", "options")}


def choices_of(kind: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, also within a union or a list; empty for any other annotation."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(choice for part in get_args(kind) if get_origin(part) is not Callable for choice in choices_of(part))


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of an annotated type; true is no number."""
    origin = get_origin(kind)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if origin in (Union, UnionType):
        return any(fits(value, choice) for choice in get_args(kind))
    if origin in LISTS:
        item = get_args(kind)[0]
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        return get_origin(item) is Callable or all(fits(v, item) for v in value)  # the class reports a wrong item
    if origin is Callable:
        return callable(value)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in NAMES else True


def describe(kind: Any) -> str:
    """An annotated type in words."""
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return " or ".join(describe(choice) for choice in get_args(kind))
    if origin in LISTS:
        items = {int: "a list of integers", float: "a list of numbers", str: "a list of strings"}
        return items.get(get_args(kind)[0], "a list")
    return NAMES.get(kind, "a mapping with a _target_")
