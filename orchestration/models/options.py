"""Options of a factory, read from its typed signature, and the check of given values against them.

No torch here: `geta run --help` reads the families' options, and a wrong option is found before anything is built.
"""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from geta_core.errors import closest


@dataclass(frozen=True)
class Bound:
    """Range of a number: low <= value, and value < high (low excluded too where `open_low`)."""

    low: float
    high: float = math.inf
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Return whether the value lies in the range; NaN never does."""
        return (value > self.low if self.open_low else value >= self.low) and value < self.high

    def __str__(self) -> str:
        text = f"{'>' if self.open_low else '>='} {self.low:g}"
        return text if self.high == math.inf else f"{text} and < {self.high:g}"


Count = Annotated[int, Bound(1)]
"""A whole number of at least 1."""

Scale = Annotated[float, Bound(0.0, open_low=True)]
"""A finite positive number."""

Share = Annotated[float, Bound(0.0, 1.0)]
"""A probability or fraction, 1 excluded."""


class _FitError(Exception):
    """A value does not fit its annotation; the text says what must hold."""


@dataclass(frozen=True)
class Option:
    """One option of a factory.

    Attributes:
        name: keyword of the factory.
        annotation: the type it is declared with; `typing.Any` where there is none.
        default: its default, or `inspect.Parameter.empty` where a value is required.
    """

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether the factory has no default for it."""
        return self.default is inspect.Parameter.empty

    def __str__(self) -> str:
        text = f"{self.name}: {describe(self.annotation)}"
        return text if self.required else f"{text} = {self.default!r}"


@dataclass(frozen=True)
class Signature:
    """All options of a factory; `open` when it takes any further keyword (`**options`)."""

    options: Mapping[str, Option]
    open: bool


def read_signature(factory: Callable[..., object]) -> Signature:
    """Read the options of a factory; annotations that cannot be resolved count as `Any`."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return Signature({}, open=True)  # Compiled callables may have no signature; they judge the options themselves.
    try:
        hints = typing.get_type_hints(
            factory.__init__ if isinstance(factory, type) else factory,  # type: ignore[misc]
            include_extras=True,
        )
    except (NameError, TypeError, AttributeError):
        hints = {}  # A factory of the user's may name types that exist for its type checker alone.
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    options = {p.name: Option(p.name, hints.get(p.name, Any), p.default) for p in parameters if p.kind in keywords}
    return Signature(options, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters))


def fit_options(model: str, signature: Signature, given: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """Compare values with a signature.

    Args:
        model: name for the messages.
        signature: what the factory takes.
        given: values, as YAML or the command line has them (a list serves as a tuple, a whole number as a float).

    Returns:
        The values converted to the declared types, and one sentence per fault (unknown, missing, or of a wrong type).
    """
    values: dict[str, object] = {}
    faults: list[str] = []
    for name, value in given.items():
        option = signature.options.get(name)
        if option is None and not signature.open:
            faults.append(f"model.{name} is not an option of {model!r}{closest(name, signature.options)}")
            continue
        try:
            values[name] = value if option is None else _fit(value, option.annotation)
        except _FitError as error:
            faults.append(f"model.{name} of {model!r} must be {error}, got {value!r}")
    for option in signature.options.values():
        if option.required and option.name not in given:
            faults.append(f"model.{option.name} of {model!r} is required: {describe(option.annotation)}")
    return values, faults


def describe(annotation: Any) -> str:
    """Return a type in words that a user of the command line understands."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        bounds = [str(extra) for extra in arguments[1:] if isinstance(extra, Bound)]
        return " ".join([describe(arguments[0]), *bounds])
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (tuple, list):
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            return f"a list of {len(arguments)} values ({', '.join(map(describe, arguments))})"
        return f"a list, each {describe(arguments[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(annotation) or str(getattr(annotation, "__name__", annotation))


def _fit(value: object, annotation: Any) -> object:
    """Return the value in the declared type, or raise `_FitError`. Types this cannot judge let everything through."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        fitted = _fit_or(value, arguments[0], annotation)
        if any(isinstance(b, Bound) and isinstance(fitted, int | float) and not b.holds(fitted) for b in arguments[1:]):
            raise _FitError(describe(annotation))
        return fitted
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in arguments):
            raise _FitError(describe(annotation))
        return value
    if origin in (tuple, list):
        return _fit_sequence(value, annotation)
    if origin in (typing.Union, types.UnionType):
        return _fit_union(value, annotation)
    return _fit_plain(value, annotation)


def _fit_or(value: object, inner: Any, whole: Any) -> object:
    try:
        return _fit(value, inner)
    except _FitError as error:
        raise _FitError(describe(whole)) from error


def _fit_sequence(value: object, annotation: Any) -> object:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if not isinstance(value, list | tuple):
        raise _FitError(describe(annotation))
    if origin is list or (len(arguments) == 2 and arguments[1] is Ellipsis):
        arguments = (arguments[0],) * len(value)
    if len(value) != len(arguments):
        raise _FitError(describe(annotation))
    fitted = [_fit_or(item, argument, annotation) for item, argument in zip(value, arguments, strict=True)]
    return fitted if origin is list else tuple(fitted)


def _fit_union(value: object, annotation: Any) -> object:
    for argument in typing.get_args(annotation):
        try:
            return _fit(value, argument)
        except _FitError:
            continue
    raise _FitError(describe(annotation))


def _fit_plain(value: object, annotation: Any) -> object:
    # bool is a subclass of int, but `width=true` is a slip.
    fits: dict[object, bool] = {
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
        bool: isinstance(value, bool),
        str: isinstance(value, str),
        type(None): value is None,
    }
    if not fits.get(annotation, True):
        raise _FitError(describe(annotation))
    return float(value) if annotation is float and isinstance(value, int) else value
