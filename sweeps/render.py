"""One table as text for a terminal, Markdown, LaTeX or HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Style = Literal["text", "markdown", "latex", "html"]
FORMATS: dict[str, str] = {"text": "simple", "markdown": "pipe", "latex": "latex_booktabs", "html": "html"}
# Letters outside ASCII that the tables use; the library escapes the rest.
LATEX = {"±": r"$\pm$", "→": r"$\to$", "Δ": r"$\Delta$"}


@dataclass(frozen=True)
class Sheet:
    """A table with what must be said beside it.

    Attributes:
        title: stands above.
        columns: headings.
        rows: cells as text; the first column is a name, the others are numbers.
        notes: one sentence each, below.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)


def render(sheet: Sheet, style: Style) -> str:
    """Return the table as text that ends with a line break."""
    from tabulate import tabulate

    align = ["left", *["right"] * (len(sheet.columns) - 1)]
    body = tabulate(
        [list(row) for row in sheet.rows],
        list(sheet.columns),
        FORMATS[style],
        disable_numparse=True,
        colalign=align,
        headersglobalalign="left" if style == "html" else None,
    )
    return _FRAMES[style](sheet, body)


def _text(sheet: Sheet, body: str) -> str:
    return "\n".join([sheet.title, "", body, "", *sheet.notes]).rstrip() + "\n"


def _markdown(sheet: Sheet, body: str) -> str:
    return "\n".join([f"**{sheet.title}**", "", body, "", *(f"- {note}" for note in sheet.notes)]).rstrip() + "\n"


def _latex(sheet: Sheet, body: str) -> str:
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escaped(sheet.title)}}}", body]
    lines += [rf"\par\footnotesize {_escaped(note)}" for note in sheet.notes]
    text = "\n".join([*lines, r"\end{table}"])
    for letter, command in LATEX.items():
        text = text.replace(letter, command)
    return text + "\n"


def _escaped(text: str) -> str:
    for letter in "&%$#_{}":
        text = text.replace(letter, "\\" + letter)
    return text.replace("<", r"\ensuremath{<}").replace(">", r"\ensuremath{>}")


def _html(sheet: Sheet, body: str) -> str:
    from html import escape

    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in sheet.notes)
    return f"<figure>\n<figcaption>{escape(sheet.title)}</figcaption>\n{body}\n{notes}</figure>\n"


_FRAMES = {"text": _text, "markdown": _markdown, "latex": _latex, "html": _html}
