"""One family from capture to artifact: what was found, and whether every proof holds."""

from __future__ import annotations

import copy
import re
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import geta_core as geta
import geta_core.prepared
from geta_core.graph import GroupGraph
from geta_core.graph.rules import base
from geta_core.slim.verify import unrounded
from tests.zoo.family import Family
from tests.zoo.inner import inner_dimensions

SHARE = 0.3
"""Share of the prunable groups that are removed."""
EXACT = 1e-10
"""Largest difference in float64 between zeroed and slimmed model, relative to the largest output (at least 1)."""
VISIBLE = 1e-6
"""Zeroing must change the outputs by more than this, otherwise the comparison would prove nothing."""
KINDS: dict[str, dict[str, Any]] = {
    "float": {"weight_bits": None},
    "W+A": {"weight_bits": (4, 8), "activation_bits": (4, 8), "initial_bits": 8},
}
LAST = list(KINDS)[-1]


class WrongError(Exception):
    """A proof of this file does not hold."""


class NothingLeftError(Exception):
    """There is nothing to remove."""


@dataclass
class Verdict:
    """Everything that is known of one family; what was not reached stays at its default."""

    family: str
    kind: str
    verdict: str = "FAILED"
    """``passed``; ``refused`` (a clear error of geta, or nothing to remove); ``FAILED`` (everything else)."""
    stage: str = ""
    """The step that was not passed."""
    reason: str = ""
    trace: str = ""
    ops: list[str] = field(default_factory=list)
    """Operations of the captured graph that depend on data."""
    rules: list[str] = field(default_factory=list)
    """Entries of the table of rules that they use: an operation, a family of overloads, or the element-wise ones."""
    nodes: int = 0
    parameters: int = 0
    """Elements of the parameters that the captured graph reads."""
    prunable: int = 0
    """Those that belong to at least one group which is not pinned."""
    groups: int = 0
    families: int = 0
    removed: int = 0
    layers: int = 0
    """Weights of two or more dimensions inside repeated blocks."""
    reached: int = 0
    """Those of which at least one dimension can be pruned."""
    unreached: dict[str, list[str]] = field(default_factory=dict)
    """The others, with the reasons of all of their dimensions."""
    inner: int = 0
    """Heads and widths: dimensions of weights inside repeated blocks that belong to no residual stream (see inner)."""
    covered: int = 0
    """Those of which every index can be pruned."""
    uncovered: dict[str, list[str]] = field(default_factory=dict)
    """The others, with the reasons."""
    outer: dict[str, int] = field(default_factory=dict)
    """Dimensions of those weights that are neither, by what they are."""
    pins: dict[str, int] = field(default_factory=dict)
    """Pinned groups by reason."""
    sites: int = 0
    unquantized: int = 0
    capture_s: float = 0.0
    grouping_s: float = 0.0
    native: dict[str, bool] = field(default_factory=dict)
    native_refusal: str = ""
    error64: float = 0.0
    """Largest difference found, by ``finish`` or here."""
    second_length: bool | None = None
    """Whether a second length was compared; None where the family has none."""
    seconds: float = 0.0

    def json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def check(family: Family) -> Verdict:
    """Run every step of one family; never raises."""
    verdict = Verdict(family.name, family.kind)
    start = time.process_time()
    try:
        with double_precision():
            for kind in KINDS:
                _check_kind(family, kind, verdict)
        verdict.verdict, verdict.stage = "passed", ""
    except Exception as error:  # noqa: BLE001 - whatever happens is the finding
        text = f"{type(error).__name__}: {str(error).strip()}"
        proof_fails = isinstance(error, geta.PruningError) and "must agree" in text
        told = isinstance(error, (geta.GetaError, NothingLeftError)) and not proof_fails
        verdict.verdict = "refused" if told else "FAILED"
        verdict.reason = short(text)
        verdict.trace = "".join(traceback.format_exception(error)[-6:])[-3000:]
    verdict.seconds = time.process_time() - start
    return verdict


def short(text: str) -> str:
    """An error on one line, without the place where the packages are installed and without whole graphs."""
    head = text.partition("def forward(")[0]
    return re.sub(r"[\w./~-]*/site-packages/", "", " ".join(head.split()))[:600]


@contextmanager
def double_precision() -> Iterator[None]:
    """Make float64 the type of new tensors too: some models make constants in their forward."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _check_kind(family: Family, kind: str, verdict: Verdict) -> None:
    verdict.stage = f"{kind}: build"
    model, inputs = family.model().double(), _double(family.example())
    verdict.stage = f"{kind}: prepare"
    config = geta.CompressionConfig(**{**family.config, **KINDS[kind]})
    with _timed(verdict if kind == "float" else None):
        prepared = geta.prepare(model, inputs, config)
    if kind == "float":
        _describe(prepared, verdict)
        _count_inner(prepared, verdict)
    else:
        verdict.sites, verdict.unquantized = len(prepared.sites), len(prepared.unquantized)
    verdict.stage = f"{kind}: prune"
    chosen = choose(prepared)
    verdict.removed = len(chosen)
    if not chosen:
        raise NothingLeftError(f"every group is pinned: {', '.join(verdict.pins)}")
    batch = rows(inputs, 5)
    dense = outputs(model, batch)
    prepared.zero_(chosen)
    if prepared.zero_groups() != len(chosen):
        raise WrongError(f"{len(chosen)} groups were zeroed, but {prepared.zero_groups()} are zero")
    if gap(dense, outputs(model, batch)) <= VISIBLE:
        raise WrongError("zeroing changes no output, so that the comparison proves nothing")
    verdict.stage = f"{kind}: finish"
    compressed = geta.finish(prepared)
    report = compressed.report
    verdict.native[kind] = report.native
    verdict.native_refusal = verdict.native_refusal or report.native_refusal
    verdict.error64 = max(verdict.error64, report.max_error64)
    verdict.stage = f"{kind}: compare"
    _compare(family, prepared, compressed, verdict)
    if kind == LAST:
        verdict.stage = f"{kind}: save and load"
        _roundtrip(family, compressed, batch)
    verdict.stage = f"{kind}: training step"
    _train(compressed.model, batch)


@contextmanager
def _timed(verdict: Verdict | None) -> Iterator[None]:
    """Measure capture and grouping inside ``prepare``."""

    def timing(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                if verdict is not None:
                    setattr(verdict, name, getattr(verdict, name) + time.process_time() - start)

        return call

    engine = geta_core.prepared
    with (
        mock.patch.object(engine, "capture", timing(engine.capture, "capture_s")),
        mock.patch.object(engine, "GroupGraph", timing(engine.GroupGraph, "grouping_s")),
    ):
        yield


def _describe(prepared: geta.Prepared, verdict: Verdict) -> None:
    graph = prepared.graph
    calls = [node for node in graph.capture.graph.nodes if node.op == "call_function"]
    verdict.nodes = len(calls)
    verdict.ops = sorted({str(node.target) for node in calls if node in graph.capture.data})
    verdict.rules = sorted({entry(node.target) for node in calls if node in graph.capture.data})
    verdict.groups = prepared.num_prunable
    verdict.families = int(prepared.family.max()) + 1 if prepared.num_prunable else 0
    for group in graph.groups:
        if group.pinned is not None:
            verdict.pins[plain(group.pinned)] = verdict.pins.get(plain(group.pinned), 0) + 1
    free: dict[str, list[tuple[int, Tensor]]] = {}
    for slot in graph.first.space.slots.values():
        if slot.name in graph.capture.parameters:
            free.setdefault(slot.name, []).append((slot.dim, graph.numbers(slot) >= 0))
    read = {
        graph.capture.names[node] for node in graph.capture.graph.nodes if node in graph.capture.names and node.users
    }
    for name in sorted(read & graph.capture.parameters):
        shape = graph.capture.tensors[name].shape
        kept = {dim: int((~flags).sum()) for dim, flags in free.get(name, [])}
        rest = 1
        for dim, size in enumerate(shape):
            rest *= kept.get(dim, size)
        verdict.parameters += shape.numel()
        verdict.prunable += shape.numel() - rest
        if len(shape) > 1 and min(shape) > 1 and re.search(r"\.\d+\.", f".{name}"):
            verdict.layers += 1
            if rest == shape.numel():
                verdict.unreached[name] = _why(graph, name)
            else:
                verdict.reached += 1


def _count_inner(prepared: geta.Prepared, verdict: Verdict) -> None:
    found = inner_dimensions(prepared.graph, prepared.config.heads)
    verdict.inner, verdict.covered = len(found.covered) + len(found.missing), len(found.covered)
    verdict.uncovered = found.missing
    verdict.outer = dict(Counter(what for kinds in found.outer.values() for what in kinds))


def _why(graph: GroupGraph, name: str) -> list[str]:
    """Why no index of a tensor can be removed, without the places."""
    found: set[str] = set()
    for slot in graph.first.space.slots.values():
        if slot.name == name:
            parts = graph.component[slot.offset : slot.offset + slot.size].unique().tolist()
            found.update(plain(graph.reasons.get(part, "is not zeroed as a whole")) for part in parts)
    return sorted(found)


def entry(target: Any) -> str:
    """The entry of the table of rules that holds for an operation."""
    packet = getattr(target, "overloadpacket", None)
    own = next((key for key in (target, packet) if key in base._RULES), None)
    return str(own) if own is not None else "element-wise" if base.lookup(target) else "none"


def plain(reason: str) -> str:
    """A reason without the place."""
    return reason.partition(", at ")[0]


def choose(prepared: geta.Prepared, seed: int = 0) -> list[int]:
    """A random share of all groups; each family keeps one at least."""
    left = Counter(prepared.family.tolist())
    wanted = max(1, round(SHARE * prepared.num_prunable))
    chosen: list[int] = []
    for index in torch.randperm(prepared.num_prunable, generator=torch.Generator().manual_seed(seed)).tolist():
        family = int(prepared.family[index])
        if len(chosen) < wanted and left[family] > 1:
            left[family] -= 1
            chosen.append(index)
    return chosen


def _compare(family: Family, prepared: geta.Prepared, compressed: geta.Compressed, verdict: Verdict) -> None:
    """Another batch size, and another length where the model itself was cut."""
    zeroed, sites = copy.deepcopy((prepared.model, prepared.sites))
    for site in sites:
        site.quantizer.set_bits_(site.quantizer.bits().round())
    batches = [rows(_double(family.example()), 5)]
    if family.lengths is not None:
        verdict.second_length = compressed.report.native
        if compressed.report.native:
            batches.append(_double(family.example(3, second=True)))
    for batch in batches:
        error = gap(outputs(zeroed, batch), outputs(compressed.model, batch))
        if error > EXACT:  # a norm that computes in float32 by itself rounds sums over fewer channels otherwise
            with unrounded():
                error = gap(outputs(zeroed, batch), outputs(compressed.model, batch))
        verdict.error64 = max(verdict.error64, error)
        if error > EXACT:
            raise WrongError(f"zeroed and slimmed model differ by {error:.3g}")


def _roundtrip(family: Family, compressed: geta.Compressed, batch: Any) -> None:
    expected = outputs(compressed.model, batch)
    with tempfile.TemporaryDirectory() as folder:
        compressed.save(Path(folder))
        loaded = [geta.load(folder)]
        if compressed.report.native:
            loaded.append(geta.load(folder, family.model().double()))
    for model in loaded:
        _same_tensors(model, compressed.model)
        found = outputs(model, batch)
        if model is loaded[-1] and not all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)):
            raise WrongError(f"the loaded model's outputs differ by {gap(expected, found):.3g}")
        if gap(expected, found) > EXACT:
            raise WrongError(f"the loaded graph's outputs differ by {gap(expected, found):.3g}")


def _same_tensors(found: nn.Module, expected: nn.Module) -> None:
    want = dict(expected.named_parameters(remove_duplicate=False))
    got = dict(found.named_parameters(remove_duplicate=False))
    differing = sorted({*want} ^ {*got}) or [name for name in want if not torch.equal(want[name], got[name])]
    if differing:
        raise WrongError(f"loaded parameters differ from the saved ones: {', '.join(differing[:3])}")


def _train(model: nn.Module, batch: Any) -> None:
    model = copy.deepcopy(model).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    results = [leaf for leaf in _leaves(_call(model, batch)) if leaf.requires_grad]
    loss = torch.stack([leaf.abs().square().mean() for leaf in results]).sum()
    if not bool(loss.isfinite()):
        raise WrongError("the loss of the slimmed model is not finite")
    loss.backward()
    optimizer.step()
    if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters()):
        raise WrongError("a gradient of the slimmed model is not finite")
    if all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters()):
        raise WrongError("a training step changes no parameter")


def _double(inputs: Any) -> Any:
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t.double() if t.is_floating_point() else t, inputs)


def rows(inputs: Any, count: int) -> Any:
    """Repeat examples in turn."""
    return torch.utils._pytree.tree_map_only(Tensor, lambda t: t[torch.arange(count) % len(t)], inputs)


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def _leaves(result: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    """Every tensor that a copy of the model returns in eval mode."""
    with torch.no_grad():
        return _leaves(_call(copy.deepcopy(model).eval(), inputs))


def gap(left: list[Tensor], right: list[Tensor]) -> float:
    """Largest difference, relative to the largest element (at least 1); infinite where a value is not a number."""
    worst = 0.0
    if [a.shape for a in left] != [b.shape for b in right]:
        return float("inf")
    for a, b in zip(left, right, strict=True):
        if a.numel():
            scale = max(1.0, float(a.abs().max()))
            found = float((a - b).abs().max()) / scale if a.is_floating_point() else float((a != b).any())
            worst = max(worst, found if found == found else float("inf"))
    return worst
