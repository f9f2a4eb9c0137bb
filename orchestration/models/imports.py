"""Import of the user's own code by `package.module:function`, with every failure explained in one line."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from geta_core.errors import ConfigError, closest


def import_callable(path: str, key: str) -> Callable[..., Any]:
    """Import what `package.module:function` names.

    The current directory is searched too (last), so that the console script finds what `python -m` would find.

    Args:
        path: the module, a colon, and the function or class in it (dotted for one inside a class).
        key: configuration key for the messages, for example "model".

    Raises:
        ConfigError: the path has another form, the module cannot be imported, or it has no such callable.
    """
    module_name, _, attribute = path.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise ConfigError([f"{key}={path}: must have the form package.module:function"])
    found: Any = _import_module(module_name, path, key)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
            hint = closest(part, names) if names else ""
            raise ConfigError([f"{key}={path}: {module_name} has no {part!r}{hint}"])
        found = getattr(found, part)
    if not callable(found):
        raise ConfigError([f"{key}={path}: must be a function or a class, got {type(found).__name__}"])
    return found  # type: ignore[no-any-return]


def _import_module(name: str, path: str, key: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            text = f"no module {error.name!r}; install it, or start in the directory that holds it"
        else:
            text = f"importing {name} needs module {error.name!r}, which is not installed"
        raise ConfigError([f"{key}={path}: {text}"]) from error
    except Exception as error:
        raise ConfigError([f"{key}={path}: importing {name} failed: {one_line(error)}"]) from error


def one_line(error: BaseException) -> str:
    """Return the type and the message of an exception on one line, with the place where it was raised."""
    text = " ".join(str(error).split())
    place = ""
    trace = error.__traceback__
    while trace is not None:
        place = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
        trace = trace.tb_next
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
