"""The folded graph as SVG text: one colour per family, hatching for what must stay, reasons as tooltips."""

from __future__ import annotations

import colorsys
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from geta_core.inspection.columns import Link, Part, split
from geta_core.inspection.layout import Layout, lay_out
from geta_core.inspection.records import Block, FamilyRecord, Inspection, Pin

GAP = (26.0, 30.0)
MARGIN, LEGEND_WIDTH, LINE, ENTRY = 24.0, 400.0, 15.0, 34.0
FONT = 'font-family="DejaVu Sans, Verdana, Arial, sans-serif"'
SIZES = {"title": 12.0, "text": 10.5, "chip": 9.5}
TIMES = chr(0xD7)
NARROW, BROAD = frozenset("fijlrt.,:;|!()[]' "), frozenset(f"mwMW@%→{TIMES}…")
LONGEST = 34
"""Characters of a title; a longer path loses its beginning."""
INK, SOFT, LINE_GREY = "#1f2328", "#57606a", "#8c959f"
GOLDEN_ANGLE = 0.381966
QUANTIZERS = {"weight": "W", "input": "A"}


@dataclass(frozen=True)
class _Colours:
    """Three tones of one hue."""

    fill: str
    strong: str


GREY = _Colours("#f3f4f6", "#8c959f")


def draw(inspection: Inspection) -> str:
    """The picture as the text of an SVG file, without anything from outside."""
    colours = {
        family.id: _hue(number)
        for number, family in enumerate(family for family in inspection.families if family.prunable)
    }
    boxes = [
        _Box(block, colours.get(-1 if block.family is None else block.family, GREY)) for block in inspection.blocks
    ]
    columns = [_Column(boxes, part) for part in split([box.size for box in boxes], inspection.edges)]
    head, body, left = MARGIN + 46, [], MARGIN
    for column in columns:
        body.append(f'<g transform="translate({left:.0f},{head:.0f})">{column.draw()}</g>')
        left += column.layout.width + 2 * MARGIN
    legend = _legend(inspection, colours)
    width = left + LEGEND_WIDTH + MARGIN
    height = head + max(len(legend) * ENTRY, *(column.layout.height for column in columns)) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" {FONT}>',
        _PATTERN,
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *_headline(inspection),
        *body,
        f'<g transform="translate({left:.0f},{head:.0f})">',
        *legend,
        "</g>",
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


class _Column:
    """The boxes of one column, with round marks where a line goes on in the next."""

    def __init__(self, boxes: Sequence[_Box], part: Part) -> None:
        self.boxes = [boxes[number] if isinstance(number, int) else _Mark(number, boxes) for number in part.items]
        self.edges = part.edges
        self.layout = lay_out([box.size for box in self.boxes], part.edges, GAP)

    def draw(self) -> str:
        """SVG with the origin at the upper left corner."""
        lines = [_edge(self.boxes, self.layout, edge) for edge in self.edges]
        return "\n".join([*lines, *(box.draw(self.layout.x[i], self.layout.y[i]) for i, box in enumerate(self.boxes))])


_PATTERN = (
    '<defs><pattern id="stays" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#eceef1"/><rect width="2" height="6" fill="#b6bdc6"/></pattern></defs>'
)


def _hue(number: int) -> _Colours:
    """Hues a golden angle apart, so that neighbours differ however many there are; lightness changes every round."""
    hue = (0.58 + number * GOLDEN_ANGLE) % 1.0
    dark = (0.40, 0.50, 0.32)[number % 3]
    return _Colours(_hex(hue, 0.93, 0.75), _hex(hue, dark, 0.70))


def _hex(hue: float, lightness: float, saturation: float) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, saturation))


def extent(text: str, style: str) -> float:
    """Width of a text in pixels, rather too much than too little: fonts differ, and nothing is measured here."""
    em = sum(0.43 if c in NARROW else 1.0 if c in BROAD else 0.76 if c.isupper() else 0.65 for c in text)
    return em * SIZES[style] * (1.1 if style == "title" else 1.0)


def _text(x: float, y: float, text: str, style: str, colour: str = INK, anchor: str = "start") -> str:
    weight = ' font-weight="bold"' if style == "title" else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{SIZES[style]}"{weight} fill="{colour}" '
        f'text-anchor="{anchor}">{escape(text)}</text>'
    )


def _cut(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else "…" + text[1 - longest :]


class _Box:
    """One block: lines of text, chips, and a bar that shows which share of its channels is free."""

    PAD, CHIP_HEIGHT, BAR, MOST = 10.0, 16.0, 6.0, 236.0

    def __init__(self, block: Block, colours: _Colours) -> None:
        self.block, self.colours = block, colours
        self.lines = self._lines()
        self.rows = self._rows([*(QUANTIZERS[kind] for kind in block.quantized), *block.chips])
        widest = max(extent(text, style) for text, style in self.lines)
        chips = max((sum(map(_chip_width, row)) - 4 for row in self.rows), default=0.0)
        self.width = max(widest, chips, 60.0) + 2 * self.PAD
        self.height = len(self.lines) * LINE + len(self.rows) * (self.CHIP_HEIGHT + 3) + 12 + self._bar()

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.width, self.height

    @property
    def carries(self) -> str:
        """Colour of the lines that leave the box."""
        return self.colours.strong if self.block.free else LINE_GREY

    def _bar(self) -> float:
        return self.BAR + 3 if self.block.channels and self.block.kind != "output" else 0.0

    def _lines(self) -> list[tuple[str, str]]:
        block = self.block
        shape = f" {TIMES} ".join(map(str, block.shape[1:]))
        if block.kind in ("input", "output"):
            name = block.operation if block.kind == "input" else "output"
            return [(name, "title"), *([(shape, "text")] if shape else [])]
        first = block.module if block.kind == "weight" and block.module else block.operation
        lines = [(_cut(first), "title")]
        if block.kind == "weight":
            lines.append((f"{block.operation} → {shape}", "text"))
        else:
            lines.append((_cut(f"{block.module or 'top level'} → {shape}", 38), "text"))
        if block.channels:
            owner = f"F{block.family}: " if block.family is not None else ""
            lines.append((f"{owner}{block.free} of {block.channels} channels free", "text"))
        return lines

    def _rows(self, chips: Sequence[str]) -> list[list[str]]:
        rows: list[list[str]] = []
        for chip in chips:
            if rows and sum(map(_chip_width, [*rows[-1], chip])) <= self.MOST:
                rows[-1].append(chip)
            else:
                rows.append([chip])
        return rows

    def draw(self, x: float, y: float) -> str:
        """SVG of the box whose upper edge has its middle at (x, y)."""
        block, left, round_ = self.block, x - self.width / 2, 12 if self.block.kind in ("input", "output") else 5
        stuck = block.channels > 0 and not block.free and block.kind != "output"
        fill, stroke = (
            ("#f3f4f6", LINE_GREY) if stuck or not block.channels else (self.colours.fill, self.colours.strong)
        )
        fill = "#ffffff" if block.kind in ("input", "output") else fill
        title = f"<title>{escape(self._tooltip())}</title>"
        parts = [
            f'<g class="box">{title}<rect x="{left:.1f}" y="{y:.1f}" width="{self.width:.1f}" '
            f'height="{self.height:.1f}" rx="{round_}" fill="{fill}" stroke="{stroke}" stroke-width="1.3"/>'
        ]
        if self._bar():
            parts += self._draw_bar(left + 6, y + self.height - self.BAR - 4)
        line = y + 5 + LINE - 4
        for text, style in self.lines:
            parts.append(_text(x, line, text, style, INK if style == "title" else SOFT, "middle"))
            line += LINE
        top = line - LINE + 8
        for row in self.rows:
            at = x - (sum(map(_chip_width, row)) - 4) / 2
            for chip in row:
                parts.append(_chip(at, top, chip, self.CHIP_HEIGHT, stroke))
                at += _chip_width(chip)
            top += self.CHIP_HEIGHT + 3
        return "".join(parts) + "</g>"

    def _draw_bar(self, left: float, top: float) -> list[str]:
        whole = self.width - 12
        free = whole * self.block.free / self.block.channels
        found = []
        for start, length, fill in ((0.0, free, self.colours.strong), (free, whole - free, "url(#stays)")):
            if length > 0:
                place = f'x="{left + start:.1f}" y="{top:.1f}" width="{length:.1f}" height="{self.BAR}"'
                found.append(f'<rect {place} fill="{fill}"/>')
        return found

    def _tooltip(self) -> str:
        block = self.block
        name = f"{block.module or 'top level'}: {block.operation}"
        stays = f"; {block.channels - block.free} of {block.channels} channels stay: the group {block.pinned}"
        return name + (stays if block.pinned and block.channels > block.free else "")


def _chip_width(chip: str) -> float:
    return extent(chip, "chip") + 12 + 4


def _chip(left: float, top: float, chip: str, height: float, stroke: str) -> str:
    width = _chip_width(chip) - 4
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}" rx="8" fill="#ffffff" '
        f'stroke="{stroke}" stroke-width="0.8"/>' + _text(left + width / 2, top + 11.5, chip, "chip", INK, "middle")
    )


class _Mark(_Box):
    """A round mark: the same letter stands where a line leaves a column and where it goes on."""

    def __init__(self, link: Link, boxes: Sequence[_Box]) -> None:
        super().__init__(boxes[link.source].block, boxes[link.source].colours)
        self.letter, self.width, self.height = chr(ord("A") + link.number % 26), 24.0, 24.0

    def draw(self, x: float, y: float) -> str:
        """SVG of the mark."""
        return (
            f'<g class="link"><circle cx="{x:.1f}" cy="{y + 12:.1f}" r="12" fill="#ffffff" stroke="{self.carries}" '
            f'stroke-width="1.8"/>{_text(x, y + 16.5, self.letter, "title", INK, "middle")}</g>'
        )


def _edge(boxes: Sequence[_Box], layout: Layout, edge: tuple[int, int]) -> str:
    """A line from box to box, straight through the bends and curved between them, in the colour of what it carries."""
    source, target = (boxes[end] for end in edge)
    bends = list(layout.bends[edge])
    start_x = _port(layout.x[edge[0]], source.width, bends[0][0] if bends else layout.x[edge[1]])
    end_x = _port(layout.x[edge[1]], target.width, bends[-1][0] if bends else layout.x[edge[0]])
    start = (start_x, layout.y[edge[0]] + source.height)
    points = [start, *bends, (end_x, layout.y[edge[1]])]
    path = f"M{start[0]:.1f},{start[1]:.1f}"
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        middle = (y0 + y1) / 2
        straight = abs(x0 - x1) < 0.5
        path += f"L{x1:.1f},{y1:.1f}" if straight else f"C{x0:.1f},{middle:.1f} {x1:.1f},{middle:.1f} {x1:.1f},{y1:.1f}"
    colour = source.carries
    x, y = points[-1]
    arrow = f'<path d="M{x - 3.5:.1f},{y - 6:.1f}L{x + 3.5:.1f},{y - 6:.1f}L{x:.1f},{y:.1f}Z" fill="{colour}"/>'
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>{arrow}'


def _port(centre: float, width: float, towards: float) -> float:
    """Where a line leaves or enters: straight below or above its other end as far as the box reaches."""
    reach = max(0.0, width / 2 - 12)
    return min(max(towards, centre - reach), centre + reach)


def _headline(inspection: Inspection) -> list[str]:
    totals = inspection.totals
    first = f"{totals.prunable_groups:,} of {totals.groups:,} groups can be removed"
    second = (
        f"{totals.prunable_parameters:,} of {totals.parameters:,} parameters belong to them; "
        f"{totals.macs:,.0f} MACs per example; {_proof(inspection)}"
    )
    return [_text(MARGIN, MARGIN + 8, first, "title"), _text(MARGIN, MARGIN + 26, second, "text", SOFT)]


def _proof(inspection: Inspection) -> str:
    holds = inspection.proof.holds
    return {None: "proof not tried", True: "zeroed = slimmed proved", False: "PROOF FAILS"}[holds]


def _legend(inspection: Inspection, colours: dict[int, _Colours]) -> list[str]:
    """One entry per family: colour, how many groups, what one of them saves, and where it starts."""
    first_group = {group.family: group for group in reversed(inspection.groups) if group.pinned is None}
    pins: dict[int, Pin] = {pin.family: pin for pin in reversed(inspection.pins)}
    parts = [_text(0, 8, "Families: groups made of the same tensors", "title")]
    for number, family in enumerate(inspection.families):
        pin, free = pins.get(family.id), first_group.get(family.id)
        text = f"F{family.id}: {_count(family)}" + (f", one saves {free.saved.parameters:,} parameters" if free else "")
        tip = "; ".join(filter(None, [", ".join(family.tensors[:12]), f"the others: {pin.reason}" if pin else ""]))
        second = pin.reason if pin is not None and free is None else family.tensors[0].rpartition("[")[0]
        top = 24.0 + number * ENTRY
        parts.append(
            f'<g class="family"><title>{escape(tip)}</title>{_swatch(top, colours.get(family.id))}'
            f"{_text(30, top + 9, text, 'text')}{_text(30, top + 22, _end(second, 64), 'chip', SOFT)}</g>"
        )
    top = 24.0 + len(inspection.families) * ENTRY
    parts += [_swatch(top, None), _text(30, top + 9, "channels that stay; the tooltip of the box says why", "text")]
    if inspection.sites:
        parts.append(_text(30, top + 9 + ENTRY * 0.75, "W, A: weight and input of the layer are quantized", "text"))
    return parts


def _swatch(top: float, colours: _Colours | None) -> str:
    fill = colours.strong if colours is not None else "url(#stays)"
    return f'<rect x="0" y="{top:.1f}" width="22" height="22" rx="4" fill="{fill}"/>'


def _count(family: FamilyRecord) -> str:
    if family.prunable == family.groups:
        return f"{family.groups:,} groups"
    return f"{family.prunable:,} of {family.groups:,} groups" if family.prunable else f"{family.groups:,} groups stay"


def _end(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
