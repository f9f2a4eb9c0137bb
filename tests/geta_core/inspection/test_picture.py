"""The picture: well-formed, complete, and without anything on top of anything else."""

from __future__ import annotations

import dataclasses
import itertools
import random
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression
from torch import Tensor, nn

import geta_core as geta
from geta_core.inspection.columns import Link, split
from geta_core.inspection.layout import isotonic, lay_out
from orchestration.models import build_small, example_inputs
from tests.geta_core.graph.nets import token_net, tokens
from tests.structure.sources import ROOT

SVG = "{http://www.w3.org/2000/svg}"
MODELS = ("resnet20", "seresnet18", "vit", "unet")


@cache
def inspected(name: str) -> geta.Inspection:
    torch.manual_seed(0)
    return geta.inspect(build_small(name), example_inputs(name, small=True)[0], prove=False)


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_in_the_legend_and_every_box_in_the_picture(name: str) -> None:
    found = inspected(name)
    root = ElementTree.fromstring(found.svg())
    legend = [each for each in root.iter(f"{SVG}g") if each.get("class") == "family"]
    heads = ["".join(each.find(f"{SVG}text").itertext()) for each in legend]  # type: ignore[union-attr]
    assert [head.partition(":")[0] for head in heads] == [f"F{family.id}" for family in found.families]
    colours = [each.find(f"{SVG}rect").get("fill") for each in legend]  # type: ignore[union-attr]
    free = [colour for colour, family in zip(colours, found.families, strict=True) if family.prunable]
    assert len(set(free)) == len(free), "two families share a colour"
    boxes = [each for each in root.iter(f"{SVG}g") if each.get("class") == "box"]
    assert len(boxes) == len(found.blocks)
    texts = ["".join(each.itertext()) for each in boxes]
    for block in found.blocks:
        title = block.module if block.kind == "weight" else block.operation
        assert any(title in text for text in texts)
        if block.pinned is not None and block.kind == "weight":
            assert any(
                block.pinned in text and "url(#stays)" in _code(box) for text, box in zip(texts, boxes, strict=True)
            )


def _code(box: ElementTree.Element) -> str:
    return ElementTree.tostring(box, encoding="unicode")


@pytest.mark.parametrize("name", MODELS)
def test_boxes_do_not_overlap_and_lie_inside(name: str) -> None:
    root = ElementTree.fromstring(inspected(name).svg())
    frames = []
    for column in root.findall(f"{SVG}g"):
        dx, dy = (float(part) for part in column.get("transform", "")[10:-1].split(","))
        for box in column.iter(f"{SVG}g"):
            if box.get("class") == "box":
                rect = box.find(f"{SVG}rect")
                assert rect is not None
                x, y, w, h = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
                frames.append((x + dx, y + dy, x + dx + w, y + dy + h))
    width, height = (float(root.get(key, "")) for key in ("width", "height"))
    assert all(x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height for x0, y0, x1, y1 in frames)
    for a, b in itertools.combinations(frames, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_parts_with_one_way_in_and_out_are_one_box() -> None:
    class Norm(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    def body(net: nn.Module, y: Tensor) -> Tensor:
        left, right = net.a(net.norm(y)).chunk(2, -1)  # type: ignore[operator]
        turned = torch.cat([-left[..., 3:], left[..., :3]], -1)
        return y + net.b((left * 2 + turned * 3) * right.sigmoid())  # type: ignore[operator]

    net = token_net(body, a=nn.Linear(6, 12), b=nn.Linear(6, 6), norm=Norm())
    found = geta.inspect(net, tokens(), prove=False)
    rows = [(block.kind, block.module, block.operation, block.chips) for block in found.blocks]
    assert rows == [
        ("input", "", "x", ()),
        ("weight", "stem", "linear", ()),
        ("step", "norm", "Norm", ()),
        ("weight", "a", "linear", rows[3][3]),
        ("weight", "b", "linear", ()),
        ("join", "", "add", ()),
        ("weight", "head", "linear", ()),
        ("output", "", "output", ()),
    ]
    assert set(rows[3][3]) == {"neg", "cat", "mul", "add", "sigmoid"}
    assert found.edges == ((0, 1), (1, 2), (1, 5), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[tuple[float, float]], list[tuple[int, int]]]:
    """Up to 14 boxes, each but the first reading from some before it."""
    source = random.Random(draw(st.integers(0, 10_000)))
    count = draw(st.integers(1, 14))
    sizes = [(source.uniform(20, 200), source.uniform(15, 90)) for _ in range(count)]
    edges = {(source.randrange(b), b) for b in range(1, count) for _ in range(source.choice((1, 1, 2, 3)))}
    return sizes, sorted(edges)


@settings(max_examples=60)
@given(graphs())
def test_a_layout_keeps_distances_and_direction(graph: tuple[list[tuple[float, float]], list[tuple[int, int]]]) -> None:
    sizes, edges = graph
    layout = lay_out(sizes, edges, (10.0, 20.0))
    for a, b in edges:
        assert layout.y[b] >= layout.y[a] + sizes[a][1] + 20 - 1e-9
        points = layout.bends[a, b]
        assert all(y0 <= y1 for (_, y0), (_, y1) in itertools.pairwise(points))
    for a, b in itertools.combinations(range(len(sizes)), 2):
        apart = abs(layout.x[a] - layout.x[b]) >= (sizes[a][0] + sizes[b][0]) / 2 + 10 - 1e-6
        above = layout.y[a] + sizes[a][1] <= layout.y[b] + 1e-9 or layout.y[b] + sizes[b][1] <= layout.y[a] + 1e-9
        assert apart or above
    for box, (width, _) in enumerate(sizes):
        assert layout.x[box] - width / 2 >= -1e-6 and layout.x[box] + width / 2 <= layout.width + 1e-6
        # A line that passes a box keeps clear of it.
        for edge, points in layout.bends.items():
            for x, y in points:
                if box not in edge and layout.y[box] < y < layout.y[box] + sizes[box][1]:
                    assert abs(x - layout.x[box]) >= width / 2


@settings(max_examples=100)
@given(st.lists(st.tuples(st.floats(-100, 100), st.floats(0.01, 50)), min_size=1, max_size=20))
def test_isotonic_values_are_those_of_scikit_learn(wanted: list[tuple[float, float]]) -> None:
    values, weights = zip(*wanted, strict=True)
    expected = isotonic_regression(values, sample_weight=weights)
    assert isotonic(wanted) == pytest.approx(list(expected), abs=1e-6)


@settings(max_examples=60)
@given(graphs())
def test_columns_hold_every_box_and_every_edge(graph: tuple[list[tuple[float, float]], list[tuple[int, int]]]) -> None:
    """Following the letters from column to column gives the edges back."""
    sizes, edges = [(60.0, 60.0)] * len(graph[0]), graph[1]
    parts = split(sizes, edges)
    assert [item for part in parts for item in part.items if isinstance(item, int)] == list(range(len(sizes)))
    found = set()
    for part in parts:
        for a, b in part.edges:
            start, end = part.items[a], part.items[b]
            if not isinstance(end, Link):
                found.add((start.source if isinstance(start, Link) else start, end))
    assert found == set(edges)


def test_a_long_chain_is_cut_into_columns_of_like_length() -> None:
    parts = split([(150.0, 60.0)] * 40, [(i, i + 1) for i in range(39)])
    assert len(parts) > 2
    lengths = [sum(isinstance(item, int) for item in part.items) for part in parts]
    assert sum(lengths) == 40 and max(lengths) <= 2 * min(lengths)


def test_names_are_escaped_and_cut() -> None:
    found = inspected("unet")
    blocks = tuple(dataclasses.replace(block, module=f'a<b>&"{"x" * 60}.{block.module}') for block in found.blocks)
    root = ElementTree.fromstring(dataclasses.replace(found, blocks=blocks).svg())
    texts = ["".join(each.itertext()) for each in root.iter(f"{SVG}text")]
    assert any(text.startswith("…xxx") for text in texts) and max(map(len, texts)) < 110
    assert any('a<b>&"' in "".join(each.itertext()) for each in root.iter(f"{SVG}title"))


@pytest.mark.parametrize("name", ["resnet20", "llama_block"])
def test_the_committed_pictures_are_well_formed(name: str) -> None:
    text = (ROOT / "docs" / "pictures" / f"inspect_{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert "zeroed = slimmed proved" in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert float(root.get("width", "")) < 2000 and float(root.get("height", "")) < 1500
    assert Path(f"docs/pictures/inspect_{name}.svg").name in (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
