"""A mapping from YAML → a dataclass, every key and type checked against its annotations."""

from __future__ import annotations

import contextlib
import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml

from radvlm_edge.errors import RecipeError

T = TypeVar("T")


def read_yaml(path: Path) -> Any:
    """A YAML file's content. Raises RecipeError, naming the file."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: recipe cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from error


def fill(kind: type[T], given: Any, where: str) -> T:
    """Build a dataclass, nested ones too. Raises RecipeError for unknown, missing and mistyped keys."""
    if not isinstance(given, dict):
        raise RecipeError(f"{where}: expected a mapping, found {given!r}")
    fields = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]
    wanted = typing.get_type_hints(kind)
    for key in given:
        if key not in fields:
            raise RecipeError(f"{where}: unknown key {key!r}; accepted are {', '.join(fields)}")
    for name, one in fields.items():
        unset = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
        if unset and name not in given:
            raise RecipeError(f"{where}: {name!r} is missing")
    return kind(**{key: _value(wanted[key], value, f"{where}, {key}") for key, value in given.items()})


def _value(wanted: Any, value: Any, where: str) -> Any:
    arguments = typing.get_args(wanted)
    if isinstance(wanted, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(one for one in arguments if one is not type(None)), value, where)
    if dataclasses.is_dataclass(wanted):
        return fill(typing.cast(type[Any], wanted), value, where)
    origin = typing.get_origin(wanted)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecipeError(f"{where}: a list is needed, found {value!r}")
        return tuple(_value(arguments[0], one, where) for one in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise RecipeError(f"{where}: a mapping is needed, found {value!r}")
        return {str(key): _value(arguments[1], one, f"{where}, {key}") for key, one in value.items()}
    if wanted is float and isinstance(value, str):
        with contextlib.suppress(ValueError):  # 1e-5 is a number in YAML 1.2, text in 1.1, which PyYAML reads
            value = float(value)
    accepted = (int, float) if wanted is float else (wanted,)
    if not isinstance(value, accepted) or (isinstance(value, bool) and wanted is not bool):
        raise RecipeError(f"{where} is {value!r}; {wanted.__name__} is needed")
    return float(value) if wanted is float else value
