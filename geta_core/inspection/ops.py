"""Every operation of a captured graph and the rule that treats it; those without a rule all at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, fx

from geta_core.config import CompressionConfig
from geta_core.errors import UnsupportedOpError
from geta_core.graph.capture import Capture, source_line
from geta_core.graph.dependency import Dependencies
from geta_core.graph.rules import install_all
from geta_core.graph.rules.base import _RULES, lookup
from geta_core.inspection.records import MissingOperation, Operation, Place, Treatment

OURS = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
"""Folders whose frames are not the user's source."""


def place(node: fx.Node) -> Place:
    """Module path, operation and the user's source line of a node."""
    return Place(module_of(node), spelled(node), source(node))


def module_of(node: fx.Node) -> str:
    """Path of the innermost module that made the node, "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return str(stack[-1][0]) if stack else ""


def spelled(node: fx.Node) -> str:
    """The operation as one would write it."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    return str(getattr(target, "__name__", target))


def source(node: fx.Node) -> str:
    """``file:line: code`` of the deepest frame outside torch and this package."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
    frames = [(head, code) for head, code in itertools.pairwise(lines) if _file(head)]
    own = [frame for frame in frames if not Path(_file(frame[0])).is_relative_to(OURS[0])]
    own = [frame for frame in own if not Path(_file(frame[0])).is_relative_to(OURS[1])] or frames
    if not own:
        return ""
    head, code = own[-1]
    number = head.split(", line ")[1].split(",")[0]
    return f"{_short(_file(head))}:{number}: {code}"


def _file(line: str) -> str:
    parts = line.split('"')
    return parts[1] if len(parts) == 3 and parts[0] == "File " and ", line " in parts[2] else ""


def _short(file: str) -> str:
    """Relative to the current directory where the file lies below it."""
    here = Path.cwd()
    return str(Path(file).relative_to(here)) if Path(file).is_relative_to(here) else file


def operations(captured: Capture, tracked: Iterable[fx.Node]) -> tuple[Operation, ...]:
    """The table of operations, the most frequent first."""
    reached = set(tracked)
    rows: dict[tuple[str, Treatment, str], int] = {}
    for node in captured.graph.nodes:
        if node.op == "call_function":
            key = (spelled(node), treatment(node, node in reached), _origin(node, node in reached))
            rows[key] = rows.get(key, 0) + 1
    ordered = sorted(rows.items(), key=lambda item: (-item[1], item[0]))
    return tuple(Operation(name, count, how, rule) for (name, how, rule), count in ordered)


def treatment(node: fx.Node, tracked: bool) -> Treatment:
    """How the node's operation is treated."""
    if not tracked:
        return "not needed"
    rule = lookup(node.target)
    if rule is None:
        return "missing"
    if node.target in _RULES:
        return "own rule"
    return "packet" if getattr(node.target, "overloadpacket", None) in _RULES else "element-wise"


def _origin(node: fx.Node, tracked: bool) -> str:
    rule = lookup(node.target) if tracked else None
    return f"{rule.labels.__module__}:{rule.labels.__qualname__}" if rule is not None else ""


class Survey(Dependencies):
    """The first pass, but it goes on where an operation cannot be treated and remembers what it met.

    Behind such an operation labels are unknown; there an operation counts as missing if it has no rule and a
    parameter index may reach it.
    """

    def __init__(self, capture: Capture, config: CompressionConfig) -> None:
        install_all()
        super().__init__(capture, config.heads, config.prune_normalized)
        self.refused: dict[fx.Node, str] = {}
        self.unknown: set[fx.Node] = set()

    def visit(self, node: fx.Node) -> None:
        """Apply the rule of one call, or note why there is none to apply."""
        behind = any(source in self.unknown for source in node.all_input_nodes)
        if behind or (self.tracked(node) and lookup(node.target) is None):
            self.values[node] = ()
            self.unknown.add(node)
            if isinstance(node.meta.get("val"), (Tensor, list, tuple)) and lookup(node.target) is None:
                self.refused[node] = "there is no rule for it"
            return
        try:
            super().visit(node)
        except UnsupportedOpError as error:
            self.values[node] = ()
            self.unknown.add(node)
            self.refused[node] = str(error)

    def reached(self) -> list[fx.Node]:
        """The calls that a parameter index reaches, or may reach."""
        return [node for node in self.values if node in self.unknown or self.tracked(node)]

    def missing(self) -> tuple[MissingOperation, ...]:
        """Every operation that was refused, with all places."""
        found: dict[tuple[str, str, str], list[Place]] = {}
        for node, why in self.refused.items():
            found.setdefault((spelled(node), why, _fix(node)), []).append(place(node))
        return tuple(MissingOperation(name, why, tuple(places), fix) for (name, why, fix), places in found.items())


def _fix(node: fx.Node) -> str:
    target = node.target
    if lookup(target) is not None:
        return ""
    if not isinstance(target, torch._ops.OpOverload):
        return f"write the forward without {spelled(node)}, at {source_line(node)}"
    return (
        f"geta.register_rule(torch.ops.{target}, like=<an op with the same dependencies>)  # or labels=..., zeros=..."
    )
