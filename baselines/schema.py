"""Checks plain values (from YAML or a command line) against type hints, and names every fault at once."""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from geta_core.errors import closest

REQUIRED: Any = MISSING


@dataclass(frozen=True)
class Bounds:
    """Interval that a number must lie in; used as ``Annotated[int, Bounds(1)]``."""

    low: float | None = None
    high: float | None = None
    below: bool = False
    """Whether the number must stay below ``high`` instead of reaching it."""
    above: bool = False
    """Whether the number must exceed ``low`` instead of reaching it."""

    def hold(self, value: float) -> bool:
        """Whether the value lies inside (a NaN never does)."""
        low_ok = self.low is None or (value > self.low if self.above else value >= self.low)
        high_ok = self.high is None or (value < self.high if self.below else value <= self.high)
        return low_ok and high_ok and value == value

    def __str__(self) -> str:
        parts = []
        if self.low is not None:
            parts.append(f"{'>' if self.above else '>='} {self.low:g}")
        if self.high is not None:
            parts.append(f"{'<' if self.below else '<='} {self.high:g}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Option:
    """One key that a class or function takes."""

    name: str
    annotation: Any
    default: Any
    """``REQUIRED`` where there is none."""
    doc: str


class _MismatchError(Exception):
    """A value does not fit; the text says what must hold."""


def options_of(target: Callable[..., Any]) -> dict[str, Option]:
    """Return the keys a dataclass or function takes by keyword, in order, with their types, defaults and texts."""
    texts = field_texts(target) if inspect.isclass(target) else {}
    hints = _hints(target)
    found = {}
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY):
            continue
        default = _default(target, parameter)
        annotation = hints.get(parameter.name, Any)
        found[parameter.name] = Option(parameter.name, annotation, default, texts.get(parameter.name, ""))
    return found


def takes_any(target: Callable[..., Any]) -> bool:
    """Whether a function takes arbitrary keywords."""
    return any(each.kind is each.VAR_KEYWORD for each in inspect.signature(target).parameters.values())


def check_options(
    target: Callable[..., Any], values: Mapping[str, Any], prefix: str, faults: list[str], only: Sequence[str] = ()
) -> dict[str, Any]:
    """Check a mapping of values against what ``target`` takes.

    Args:
        target: dataclass or function.
        values: plain values by key.
        prefix: how the keys are called in messages, such as ``"method."``.
        faults: every fault found is appended here.
        only: when given, the keys that a user may set; the others belong to the caller.

    Returns:
        The converted values of the keys without a fault, the defaults of absent keys not included.
    """
    known = {name: option for name, option in options_of(target).items() if not only or name in only}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key in known:
            before = len(faults)
            converted = check_value(value, known[key].annotation, prefix + key, faults)
            if len(faults) == before:
                checked[key] = converted
        elif takes_any(target):
            checked[key] = value
        else:
            faults.append(f"unknown key {prefix}{key}{_closest_key(prefix, key, known)}")
    for name, option in known.items():
        if option.default is REQUIRED and name not in values:
            faults.append(f"{prefix}{name} must be given ({describe(option.annotation)})")
    return checked


def check_value(value: Any, annotation: Any, key: str, faults: list[str]) -> Any:
    """Return the value converted to the annotated type, or append one fault that says what must hold."""
    try:
        return _convert(value, annotation)
    except _MismatchError as mismatch:
        faults.append(f"{key} must be {mismatch}, but got {_show(value)}")
        return value


def plain(value: Any) -> Any:
    """Return a value in terms of what YAML and JSON hold (tuples become lists)."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def describe(annotation: Any) -> str:
    """Say in words what a value of this type is."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = " and ".join(str(each) for each in arguments[1:] if isinstance(each, Bounds))
        return f"{describe(arguments[0])} {bounds}".rstrip()
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(each) for each in arguments))
    if origin is Literal:
        return "one of " + ", ".join(str(each) for each in arguments)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"a list, each {describe(arguments[0])}"
        kinds = {describe(each) for each in arguments}
        return f"a list of {len(arguments)}, each {kinds.pop()}" if len(kinds) == 1 else f"a list of {len(arguments)}"
    if origin is list:
        return f"a list, each {describe(arguments[0])}"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    words |= {dict: "a mapping", Any: "anything"}
    return words.get(origin or annotation, str(annotation))


def field_texts(owner: type[Any]) -> Mapping[str, str]:
    """Return the docstring lines that stand under the fields of a dataclass, inherited ones included."""
    return _texts_of(cast(Hashable, owner))


@cache  # a sweep checks thousands of configurations, and reading sources is most of a check
def _texts_of(owner: Hashable) -> Mapping[str, str]:
    texts: dict[str, str] = {}
    for each in reversed(cast(type[Any], owner).__mro__):
        if not is_dataclass(each):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError, SyntaxError):  # made at run time: there is no source to read
            continue
        body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
        for first, second in itertools.pairwise(body):
            if isinstance(first, ast.AnnAssign) and isinstance(first.target, ast.Name):
                text = _text(second)
                if text:
                    texts[first.target.id] = " ".join(text.split())
    return texts


def _text(node: ast.stmt) -> str:
    constant = node.value if isinstance(node, ast.Expr) else None
    return constant.value if isinstance(constant, ast.Constant) and isinstance(constant.value, str) else ""


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    owner = target if not inspect.isclass(target) or is_dataclass(target) else target.__init__
    try:
        return get_type_hints(owner, include_extras=True)
    except NameError:  # a user's module may import names for type checkers only: then nothing is checked by type
        return {}


def _default(target: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    if is_dataclass(target):
        for each in fields(target):
            if each.name == parameter.name and each.default_factory is not MISSING:
                return each.default_factory()
    return REQUIRED if parameter.default is parameter.empty else parameter.default


def _closest_key(prefix: str, key: str, known: Mapping[str, Option]) -> str:
    return closest(prefix + key, [prefix + name for name in known]) if known else " (it takes no keys)"


def _show(value: Any) -> str:
    return "null" if value is None else repr(value)


def _convert(value: Any, annotation: Any) -> Any:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return value
    if origin is Annotated:
        converted = _convert(value, arguments[0])
        for bounds in arguments[1:]:
            if isinstance(bounds, Bounds) and isinstance(converted, (int, float)) and not bounds.hold(converted):
                raise _MismatchError(describe(annotation))
        return converted
    if origin in (Union, types.UnionType):
        return _convert_union(value, annotation, arguments)
    if origin is Literal:
        if value in arguments:
            return value
        hint = closest(value, [str(each) for each in arguments]) if isinstance(value, str) else ""
        raise _MismatchError(describe(annotation) + (hint if "did you mean" in hint else ""))
    if origin in (tuple, list):
        return _convert_sequence(value, annotation, origin, arguments)
    return _convert_scalar(value, origin or annotation, describe(annotation))


def _convert_union(value: Any, annotation: Any, members: Sequence[Any]) -> Any:
    # An exact type wins before any conversion: 1 stays a whole number where both whole and broken ones are allowed.
    exact = [each for each in members if _bare(each) is type(value)]
    for member in [*exact, *members]:
        try:
            return _convert(value, member)
        except _MismatchError:
            continue
    raise _MismatchError(describe(annotation))


def _bare(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    return get_origin(annotation) or annotation


def _convert_sequence(value: Any, annotation: Any, origin: Any, members: Sequence[Any]) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _MismatchError(describe(annotation))
    if origin is tuple and not (len(members) == 2 and members[1] is Ellipsis):
        if len(value) != len(members):
            raise _MismatchError(describe(annotation))
        kinds: Sequence[Any] = members
    else:
        kinds = [members[0]] * len(value)
    try:
        return origin(_convert(each, kind) for each, kind in zip(value, kinds, strict=True))
    except _MismatchError as mismatch:
        raise _MismatchError(describe(annotation)) from mismatch


def _convert_scalar(value: Any, kind: Any, words: str) -> Any:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and isinstance(value, str):
        try:  # YAML 1.1 reads 1e-4 (without a dot) as text
            return float(value)
        except ValueError:
            raise _MismatchError(words) from None
    if kind is float and number:
        return float(value)
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind is str and number:
        return str(value)
    if kind in (bool, str, dict, type(None)) and isinstance(value, kind):
        return value
    if kind not in (bool, int, float, str, dict, type(None)):  # a type of the user's own: theirs to check
        return value
    raise _MismatchError(words)
