"""The engine decides by objects, ids and operators, never by what a module, parameter or class is called."""

from __future__ import annotations

import ast
import re

import pytest

from tests.structure.sources import Source, sources

# Identifiers that hold the name of something in a model.
NAME = re.compile(r"(?:^|_)(?:name|fqn|qualname|prefix|path)$")
# Identifiers that hold a mapping whose keys are names: membership in it is identity, not a match of substrings.
KEYED_BY_NAME = re.compile(r"(?:^|_)(?:by|per)_(?:name|fqn|path)$")
TESTS_OF_TEXT = {"startswith", "endswith", "find", "rfind", "index", "rindex", "count"}
REGEX = {"match", "search", "fullmatch", "findall", "finditer"}
CLASS_NAMES = {"__name__", "__qualname__"}


def _is_name(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return node.func.attr in {"lower", "upper", "casefold", "strip"} and _is_name(node.func.value)
    identifier = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return bool(NAME.search(identifier)) and not KEYED_BY_NAME.search(identifier)


def _is_class_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in CLASS_NAMES


def _matches_a_name(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        if any(map(_is_class_name, sides)):
            return True
        substring = any(isinstance(op, (ast.In, ast.NotIn)) for op in node.ops)
        return substring and any(map(_is_name, node.comparators))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        if node.func.attr in TESTS_OF_TEXT and (_is_name(node.func.value) or _is_class_name(node.func.value)):
            return True
        return node.func.attr in REGEX and any(map(_is_name, node.args))
    return False


def _findings(source: Source) -> list[str]:
    nodes = [node for node in ast.walk(source.tree) if _matches_a_name(node)]
    return [f"{source.at(node)}: {ast.unparse(node)}" for node in nodes if isinstance(node, ast.expr)]


def test_no_decision_depends_on_a_name() -> None:
    found = [line for source in sources("geta_core") for line in _findings(source)]
    assert not found, "decide by the object, its id or its operator:\n" + "\n".join(found)


@pytest.mark.parametrize(
    "code",
    [
        "'d_quant_wt' in p_name",
        "layer_name in p_name",
        "name.startswith('layer1')",
        "module.name.lower().endswith('bias')",
        "type(module).__name__ == 'Linear'",
        "op.__name__ in table",
        "re.search('bn', param_name)",
    ],
)
def test_the_check_finds(code: str) -> None:
    assert _matches_a_name(ast.parse(code, mode="eval").body)


@pytest.mark.parametrize(
    "code",
    [
        "name in names",
        "name in parameters",
        "name in sites_by_name",
        "name == other_name",
        "module is other",
        "name.rpartition('.')",
        "node.target in RULES",
        "kind == 'weight'",
        "name == 'auto'",
    ],
)
def test_the_check_allows(code: str) -> None:
    assert not _matches_a_name(ast.parse(code, mode="eval").body)
