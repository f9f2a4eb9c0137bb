"""``geta models``, ``geta tasks`` and ``geta methods``."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.schema import REQUIRED, describe
from orchestration.console import Parser, guarded, write


def models(arguments: Sequence[str]) -> int:
    """List the models."""
    return _list("model", "geta models", arguments)


def tasks(arguments: Sequence[str]) -> int:
    """List the tasks."""
    return _list("task", "geta tasks", arguments)


def methods(arguments: Sequence[str]) -> int:
    """List the methods."""
    return _list("method", "geta methods", arguments)


def _list(group: str, program: str, arguments: Sequence[str]) -> int:
    parser = Parser(program, description=f"List what {group}=NAME can be, with its keys.")
    parser.add_argument("name", nargs="*", help="only these")
    given = parser.parse_args(arguments)

    def show() -> int:
        from baselines.listing import lines
        from orchestration.config import choice_names, choice_options

        for name in given.name or choice_names(group):
            write(f"{group}={name}")
            for line in lines(name) if group == "method" else []:
                write(f"    {line}")
            for option in choice_options(group, name).values():
                default = "(must be given)" if option.default is REQUIRED else f"= {option.default!r}"
                write(f"    {group}.{option.name} {default}   {option.doc or describe(option.annotation)}")
        return 0

    return guarded(show)
