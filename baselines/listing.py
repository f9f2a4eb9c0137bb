"""Every method with its paper and what it controls, for `geta methods`, `geta run --help` and docs/methods.md."""

from __future__ import annotations

from collections.abc import Iterator

from baselines.base import about
from baselines.matching import KEY, Matching
from baselines.registry import METHODS
from baselines.schema import describe, options_of
from baselines.search import Dimension, OneOf, Real

INTRODUCTION = """\
# Methods

`method=NAME` chooses one; all of them run in the same loop, on the same data, with the same step budget and accountant
(`baselines/base.py` has the contract, so that a method of your own is one more class: `method=package.module:Name`).
`geta methods NAME` prints the keys of one. Each file in `baselines/` begins with the paper, the equations that it
implements and what differs from the published method. Structured methods remove groups of the same dependency graph.

`method.match_bops=0.01`, or the directory of a finished run, makes a method meet a relative BOPs within 10 %: *search*
finds sparsity and bit widths on the accountant before training (bit widths stay as asked where some sparsity up to 0.9
will do) and corrects the number of groups when they are chosen; *itself* means that the method's own loss or final step
meets it; a method without such a knob refuses. What cannot be met is refused with the range that can.

Methods that compress a trained model (`ptq_only`, `obc`) train it first within the budget, or take `model.weights=`
with `method.train=false`. In `geta compare` every method starts from the weights of the dense run of its seed where
`dense` is compared too, one file for all (its SHA-256 stands in every result), and takes the same number of steps;
`ptq_only` and `obc` take none. The dense run's steps thus count for each alike. `start=scratch` draws random weights
instead. In their papers LSQ, CLIP-Q, ANNC and DJPQ fine-tune a trained model and QST-B trains from scratch; a row from
scratch beside rows from a trained model would have had fewer steps, so that all start alike.

`geta compare match=bops` gives every method with the knob the relative BOPs that GETA ended with on the same seed, and
lets it quantize what GETA quantizes. Where GETA's inputs are quantized, so are those of `qst_b`, `annc`, `clip_q` and
`parq`, whose papers quantize weights alone: with floating-point inputs nothing gets below 2 x 32 of 32 x 32 bits,
6.25 %. Where GETA leaves inputs in floating point (as on ResNet20 in its paper), every method does. Single bit widths
begin at GETA's averages, rounded up, so that a method that prunes as well divides the target between groups and bits
as GETA does, and one that cannot prune gets the nearest bit widths; methods that choose bit widths keep their bounds.
BOPs count the zeros inside kept weights like any number, for unstructured methods too: no such zero saves a
multiplication on dense arithmetic. What they would be without those zeros stands in `result.json` as
`relative_sparse_bops`. A trial that misses its target by more than 10 % never wins the tuning, and a row that does so
says *missed* and is not compared.

This page is generated from the classes; `python -m pytest tests/baselines/test_listing.py --update-golden` renews it.
"""


def lines(name: str) -> list[str]:
    """Return what a method is, in a few sentences; nothing for a method of the user's own that does not say."""
    said = about(METHODS.resolve(name))
    found = [f"controls {said.controls}"] * bool(said.controls) + [f"paper: {said.paper}"] * bool(said.paper)
    if said.search:
        space = ", ".join(f"{key} {words(dimension)}" for key, dimension in said.search.items())
        found.append(f"tuned over: {space}")
    return found


def summaries() -> Iterator[tuple[str, str]]:
    """Yield every name with what it controls and where it is published, in the order of the registry."""
    for name in dict.fromkeys([*METHODS.builtin, *METHODS.names()]):
        said = about(METHODS.resolve(name))
        yield name, f"{said.controls} ({said.paper})" if said.paper else said.controls


def page() -> str:
    """Return docs/methods.md: the built-in methods alone."""
    rows = ["| method | paper | controls | `match_bops` |", "|---|---|---|---|"]
    parts = []
    for name in METHODS.builtin:
        method = METHODS.resolve(name)
        said = about(method)
        rows.append(f"| `{name}` | {said.paper} | {said.controls} | {_matching(name)} |")
        searched = "; ".join(f"`{key}` {words(dimension)}" for key, dimension in said.search.items())
        parts += [f"## {name}", "", f"Tuned over: {searched or 'nothing'}.", ""]
        parts += ["| key | default | values | meaning |", "|---|---|---|---|"]
        for option in options_of(method).values():
            cells = (f"`method.{option.name}`", f"`{_plain(option.default)}`", describe(option.annotation), option.doc)
            parts.append("| " + " | ".join(cell.replace("|", "or") for cell in cells) + " |")
        parts.append("")
    return "\n".join([INTRODUCTION, *rows, "", *parts]).rstrip() + "\n"


def words(dimension: Dimension) -> str:
    """Say where a key is searched."""
    if isinstance(dimension, OneOf):
        return "one of " + ", ".join(_plain(value) for value in dimension.values)
    scale = " (log)" if isinstance(dimension, Real) and dimension.log else ""
    return f"{dimension.low:g} to {dimension.high:g}{scale}"


def _matching(name: str) -> str:
    method = METHODS.resolve(name)
    if KEY not in options_of(method):
        return "none"
    return "search" if isinstance(method, type) and issubclass(method, Matching) else "itself"


def _plain(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{', '.join(map(_plain, value))}]" if isinstance(value, (tuple, list)) else str(value)
