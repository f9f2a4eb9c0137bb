"""Files and functions stay small enough to read."""

from __future__ import annotations

import ast

from tests.structure.sources import PACKAGES, sources

FILE_LINES, FUNCTION_LINES = 400, 50


def test_files_are_short() -> None:
    lengths = {str(source.path): source.text.count("\n") for source in sources(*PACKAGES, "tests")}
    long = {path: lines for path, lines in lengths.items() if lines > FILE_LINES}
    assert not long, f"more than {FILE_LINES} lines: {long}"


def test_functions_are_short() -> None:
    long = []
    for source in sources(*PACKAGES, "tests"):
        for node in ast.walk(source.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    long.append(f"{source.at(node)} {node.name}: {lines}")
    assert not long, f"more than {FUNCTION_LINES} lines:\n" + "\n".join(long)


def test_the_count_sees_long_functions() -> None:
    body = "def f():\n" + "    x = 1\n" * FUNCTION_LINES
    (function,) = ast.parse(body).body
    assert isinstance(function, ast.FunctionDef)
    assert (function.end_lineno or 0) - function.lineno + 1 == FUNCTION_LINES + 1
