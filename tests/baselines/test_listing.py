"""Help texts and the page of methods name every method, with its paper and what it controls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from baselines.base import about
from baselines.listing import lines, page, words
from baselines.registry import METHODS
from baselines.search import OneOf, Real, Whole
from orchestration.cli_run import help_text
from sweeps.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"


def test_the_page_is_that_of_the_classes(golden: Callable[[Path, str], None]) -> None:
    golden(PAGE, page())


@pytest.mark.parametrize("name", METHODS.builtin)
def test_every_text_names_every_method(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = about(METHODS.resolve(name))
    assert f"| `{name}` | {said.paper} | {said.controls} |" in PAGE.read_text(encoding="utf-8")
    assert main(["methods", name]) == 0
    printed = capsys.readouterr().out
    assert f"controls {said.controls}" in printed and f"paper: {said.paper}" in printed
    assert all(f"{key} " in printed for key in said.search)
    helped = " ".join(help_text("geta run", []).split())
    assert f"{name}: {said.controls} ({said.paper})" in helped


class Silent:
    """A method of a user's own that says nothing about itself."""


def test_a_method_that_says_nothing_is_listed_too() -> None:
    assert lines(f"{__name__}:Silent") == []


def test_dimensions_are_said_in_words() -> None:
    assert words(Real(1e-4, 0.1, log=True)) == "0.0001 to 0.1 (log)"
    assert words(Whole(1, 20)) == "1 to 20"
    assert words(OneOf((True, None, "mse"))) == "one of true, null, mse"
