"""The table of op rules. A rule says two things of an operation: how labels pass, and where zeros pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from geta_core.errors import GetaError, UnsupportedOpError
from geta_core.graph.capture import source_line, where
from geta_core.graph.labels import Layers

if TYPE_CHECKING:
    from geta_core.graph.dependency import Dependencies
    from geta_core.graph.zeros import Zeros

Value = Layers | list[Layers]
"""What flows along an edge: the layers of a tensor, or a list of them for operations with several results."""
LabelRule = Callable[["Dependencies", fx.Node], Value]
ZeroRule = Callable[["Zeros", fx.Node], Value]


@dataclass(frozen=True)
class Rule:
    """How one operation treats labels (what is removed together) and zeros (what is exactly zero with a group)."""

    labels: LabelRule
    zeros: ZeroRule


_RULES: dict[Any, Rule] = {}
_FACTORIES: set[Any] = set()


def add_factories(targets: Iterable[Any], rule: Rule) -> None:
    """Enter the rule of operations that make a value from nothing but a size."""
    targets = list(targets)
    _FACTORIES.update(targets)
    add(targets, rule)


def is_factory(target: Any) -> bool:
    """Whether an operation makes a value from nothing but a size."""
    return getattr(target, "overloadpacket", None) in _FACTORIES


def add(targets: Iterable[Any], rule: Rule) -> None:
    """Enter one rule for several operations (overloads or overload packets) and for their in-place forms."""
    for target in targets:
        _RULES[target] = rule
        in_place = getattr(torch.ops.aten, f"{target}_".removeprefix("aten."), None)
        if in_place is not None:
            _RULES[in_place] = rule


def argument(node: fx.Node, position: int, keyword: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(keyword, default)


def register_rule(op: Any, *, like: Any = None, labels: LabelRule | None = None, zeros: ZeroRule | None = None) -> None:
    """Teach the graph an operation, for example a custom op of your own.

    Args:
        op: an operator such as ``torch.ops.mylib.gate.default``.
        like: an operator whose rule applies as it stands, for example ``torch.ops.aten.relu.default`` for an
        element-wise op.
        labels: ``labels(ctx, node)`` returns the layers of the result; may call ``ctx.tie`` and ``ctx.pin``.
        zeros: ``zeros(ctx, node)`` returns, layer by layer, which group makes each element exactly zero; ``()``
        means none,
            which is always sound.

    Raises:
        GetaError: if neither ``like`` nor ``labels`` is given, or ``like`` has no rule.
    """
    if like is not None:
        rule = lookup(like)
        if rule is None:
            raise GetaError(f"register_rule: there is no rule for {like} that {op} could follow")
        _RULES[op] = rule
    elif labels is not None:
        _RULES[op] = Rule(labels, zeros or (lambda ctx, node: ()))
    else:
        raise GetaError("register_rule needs like=... or labels=...")


def lookup(target: Any) -> Rule | None:
    """The rule of an operation: its own, its packet's, or the element-wise rule where torch tags it as such."""
    if target in _RULES:
        return _RULES[target]
    packet = getattr(target, "overloadpacket", None)
    if packet in _RULES:
        return _RULES[packet]
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.pointwise in target.tags:
        return _RULES[torch.Tag.pointwise]
    return None


def rule_for(node: fx.Node) -> Rule:
    """The rule of a node.

    Raises:
        UnsupportedOpError: naming the op, the module path, the source line and how to register a rule.
    """
    rule = lookup(node.target)
    if rule is None:
        raise UnsupportedOpError(
            f"no dependency rule for {node.target} in {where(node)}, at {source_line(node)}; "
            f"register one: geta_core.register_rule({_spelled(node.target)}, like=<an op with the same dependencies>) "
            "or labels=<function(ctx, node)>"
        )
    return rule


def _spelled(target: Any) -> str:
    return f"torch.ops.{target}" if isinstance(target, torch._ops.OpOverload) else str(target)
