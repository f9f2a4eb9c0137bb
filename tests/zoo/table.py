"""The table of the zoo: docs/architectures.md from the records of one run."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

Record = dict[str, Any]
SECTIONS = {
    "torchvision": "torchvision: every classification family, segmentation, detection up to the suppression of boxes",
    "timm": "timm: one model per architecture module",
    "transformers": "transformers: one model per model type",
    "case": "Graph cases",
    "net": "Diffusion, super-resolution, detection",
}
NORMS = ("enters a LayerNorm", "enters a GroupNorm", "enters a reduction (aten.mean", "enters the statistics")
"""Beginnings of the reasons why a normalization pins a group; many are written out, as a mean of squares."""
LARGE = 0.9
"""Share of the parameters that can be pruned in a convolutional family which no normalization pins."""
IDLE = "not run"
"""The stage of a family without a record."""
PACKAGES = ("torch", "torchvision", "timm", "transformers")
TEXT = """# Architectures

What geta does with {count} families of networks, each built small, with random weights, from its own package. The
table is written by `make zoo` (`python -m tests.zoo --out docs/architectures.md`); nothing in it is typed by hand.

{summary}

## What was done to each family

1. The model is built and prepared in float64, without quantizers and with quantizers on weights and layer inputs
   (W+A).
2. {share} % of its prunable groups, drawn at random (seed 0; each family of groups keeps one), are set to zero. The
   outputs must change by more than {visible:g}.
3. `finish` removes them, and proves for two batch sizes, in eval and in train mode, that the slimmed model computes
   what the zeroed one computes: to {exact:g} in float64, relative to the largest output (at least 1).
4. The test compares both once more for a batch of five, and for a second sequence length where the model has one
   and its own class could be cut (a graph holds the length of the example).
5. The slimmed W+A model is saved and loaded: every parameter bit for bit, the outputs of the module bit for bit,
   those of the loaded graph to {exact:g}.
6. A training step of the slimmed model, float and W+A: loss and gradients finite, parameters changed.

`passed` means all of this. `refused` means that geta ended with a clear error, or that every group is pinned.
`FAILED` is everything else: a traceback, a difference, no answer within {timeout} s of CPU time.

## Columns

- **ops**: different operations in the captured graph that depend on the input; **nodes**: calls in that graph.
- **groups**: smallest structures that can be removed, without those that are pinned; **pinned**: those that are.
- **prunable**: share of the elements of the parameters which the graph reads that belong to at least one group that
  is not pinned.
- **layers**: weights of two or more dimensions inside repeated blocks (a number in their name) of which at least
  one dimension can be pruned, of all of them. For a transformer that is each projection of each attention and each
  MLP: a head that cannot be removed would leave its projections out.
- **heads+widths**: dimensions of those weights that are heads or widths (below), of which every index can be pruned,
  of all of them: what is to be full in a transformer. A dimension that is prunable in part does not count as covered.
- **capture**, **grouping**: seconds of CPU time for torch.export, and for labels, zeros and groups.
- **cut**: `module` if the model's own class was cut, `graph` if the result is a graph module, for float / W+A.
- **error**: largest difference found in float64.

## Heads and widths

Every dimension of a weight inside a repeated block counts as a head or a width, and has to be prunable in every index,
in at least two groups, unless the graph shows that it is something else (`tests/zoo/inner.py`, which looks at
operations and labels, never at names, and not at what can be pruned):

- **stream**: it shares the channels of a residual stream, x in x + f(x), where f ends in a weight that reads what was
  made of x: downsampling, patch embeddings, projections from stream to stream, modulations of a stream;
- **written by no weight**: it reads what comes from the inputs; **output**: it is what the model returns;
- **window**: positions of a convolution's kernel; **rows of a table**: what an index looks up; **positions**: places of
  a sequence or an image;
- **choice of experts**: a router's, chosen by value;
- **within a head**: what all heads share, each of which goes as a whole; **summed over in a product of activations**:
  inside of an only head, or the state of a recurrence;
- **on the way to heads**: what only weights read that make heads (a reduction of the keys' positions, a low rank);
- **after the last residual stream**, **before the first residual stream** (written by convolutions alone), **between
  convolutions** with windows: necks, classifiers, stems.

Dimensions that keep two products of activations apart, as heads do, count as heads whatever else holds for them.
"""


def document(records: Sequence[Record], *, exact: float, share: float, visible: float, timeout: int) -> str:
    """The whole file."""
    parts = [
        TEXT.format(
            count=len(records),
            summary=_summary(records),
            exact=exact,
            share=round(100 * share),
            visible=visible,
            timeout=timeout,
        ),
        _environment(records),
        _failures(records),
        _idle(records),
        _uncovered(records),
        _unreached(records),
        _reasons(records),
    ]
    for source, title in SECTIONS.items():
        rows = [
            record for record in records if record["family"].partition("/")[0] == source and record["stage"] != IDLE
        ]
        if rows:
            parts.append(f"## {title}\n\n{_table(rows)}")
    return "\n".join(part.rstrip() + "\n" for part in parts if part)


def _summary(records: Sequence[Record]) -> str:
    counts = Counter(record["verdict"] for record in records)
    idle = sum(record["stage"] == IDLE for record in records)
    passed = [record for record in records if record["verdict"] == "passed"]
    lines = [
        f"**{counts['passed']} of {len(records)} passed** ({counts['passed'] / len(records):.1%}), "
        f"{counts['refused']} were refused with a clear error, {counts['FAILED'] - idle} failed, {idle} were not run; "
        f"{sum(record['seconds'] for record in records):.0f} s of CPU time."
    ]
    if passed:
        worst = max(record["error64"] for record in passed)
        own = sum(all(record["native"].values()) for record in passed)
        lines.append(
            f"Largest difference between zeroed and slimmed model in float64: {worst:.2g}. "
            f"In {own} of the families that passed, the model's own class was cut, float and quantized."
        )
    lines += _unpinned([record for record in passed if record["kind"] == "cnn"])
    for kind, name in (("cnn", "convolutional families"), ("transformer", "families with attention")):
        rows = [record for record in passed if record["kind"] == kind]
        if rows:
            shares = sorted(_share(record) for record in rows)
            full = sum(record["layers"] == record["reached"] for record in rows)
            lines.append(
                f"Of {len(rows)} {name} that passed, {full} have every layer of their blocks prunable; "
                f"median prunable share {shares[len(shares) // 2]:.0%}."
            )
    return "\n".join(lines + _heads_and_widths(passed, len(records)))


def _heads_and_widths(passed: Sequence[Record], families: int) -> list[str]:
    """How many families with attention have every head and every width of an MLP prunable, and which do not."""
    known = [record for record in passed if record["kind"] == "transformer" and "inner" in record]
    if not known:
        return []
    less = [record for record in known if record["covered"] < record["inner"] or not record["inner"]]
    names = ", ".join(f"{record['family']} ({record['covered']}/{record['inner']})" for record in less)
    whole = len(passed) - len(less)
    return [
        f"Of {len(known)} families with attention that passed, {len(known) - len(less)} have every head and MLP width "
        f"prunable" + (f"; not so {names}." if less else "."),
        f"**Where that counts as part of passing, {whole} of {families} passed ({whole / families:.1%}).**",
    ]


def _uncovered(records: Iterable[Record]) -> str:
    rows = [record for record in records if record["verdict"] == "passed" and record.get("uncovered")]
    if not rows:
        return ""
    lines = [
        "## Heads and widths that cannot be pruned",
        "",
        "In families that passed, by the rule above. Where all indices of a dimension go together, there is one group",
        "that could only be removed with the whole layer, so that nothing of it can be pruned.",
        "",
        "| family | kind | heads and widths | which | why |",
        "|---|---|---|---|---|",
    ]
    for record in rows:
        names = list(record["uncovered"])
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        why = "; ".join(sorted({reason for reasons in record["uncovered"].values() for reason in reasons}))
        count, which = f"{len(names)} of {record['inner']}", f"`{'`, `'.join(names[:4])}`{more}"
        lines.append(f"| {record['family']} | {record['kind']} | {count} | {which} | {_cell(why)} |")
    return "\n".join(lines)


def _unpinned(records: Sequence[Record]) -> list[str]:
    """Convolutional families that no normalization pins, by their prunable share."""
    free = [record for record in records if not any(reason.startswith(NORMS) for reason in record["pins"])]
    if not free:
        return []
    less = [f"{record['family']} ({_share(record):.0%})" for record in free if _share(record) < LARGE]
    return [
        f"Of {len(free)} convolutional families that passed and have no group pinned by a normalization, "
        f"{len(free) - len(less)} can lose {LARGE:.0%} of their parameters or more"
        + (f"; not so {', '.join(less)}." if less else ".")
    ]


def _environment(records: Sequence[Record]) -> str:
    commits = Counter(record.get("commit", "-") for record in records if record["stage"] != IDLE)
    code = ", ".join(f"`{commit}` ({count} families)" for commit, count in commits.most_common())
    python = platform.python_version()
    packages = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return (
        f"## Environment\n\nCommits {code}, where + means with changes that are not committed; "
        f"Python {python}, {packages}; {platform.machine()}, one thread per family."
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _failures(records: Iterable[Record]) -> str:
    rows = [record for record in records if record["verdict"] != "passed" and record["stage"] != IDLE]
    if not rows:
        return ""
    lines = ["## What does not pass", "", "| family | verdict | step | reason |", "|---|---|---|---|"]
    for record in rows:
        lines.append(f"| {record['family']} | {record['verdict']} | {record['stage']} | {_cell(record['reason'])} |")
    return "\n".join(lines)


def _idle(records: Iterable[Record]) -> str:
    names = [record["family"] for record in records if record["stage"] == IDLE]
    return f"## Not run\n\n`make zoo ARGS=--resume` runs them: {', '.join(names)}." if names else ""


def _unreached(records: Iterable[Record]) -> str:
    rows = [record for record in records if record["verdict"] == "passed" and record["unreached"]]
    if not rows:
        return ""
    lines = [
        "## Layers that cannot be pruned",
        "",
        "Weights inside repeated blocks without any prunable dimension, in families that passed, and why: what holds",
        "for at least one dimension of one of them. A normalization that reduces over a dimension changes when an",
        "index of it goes, zero or not; what a weight takes from the inputs or gives to the outputs has to stay, as",
        "have the positions of its window.",
        "",
        "| family | layers | which | why |",
        "|---|---|---|---|",
    ]
    for record in rows:
        names, count = list(record["unreached"]), len(record["unreached"])
        more = f" and {count - 4} more" if count > 4 else ""
        given = record["unreached"].values() if isinstance(record["unreached"], dict) else ()
        why = "; ".join(sorted({reason for reasons in given for reason in reasons}))
        which = f"`{'`, `'.join(names[:4])}`{more}"
        lines.append(f"| {record['family']} | {count} of {record['layers']} | {which} | {_cell(why)} |")
    return "\n".join(lines)


def _reasons(records: Iterable[Record]) -> str:
    groups: Counter[str] = Counter()
    families: Counter[str] = Counter()
    for record in records:
        groups.update(record["pins"])
        families.update(record["pins"].keys())
    if not groups:
        return ""
    lines = ["## Why groups are pinned", "", "| reason | families | groups |", "|---|---:|---:|"]
    for reason, count in families.most_common():
        lines.append(f"| {_cell(reason)} | {count} | {groups[reason]} |")
    return "\n".join(lines)


def _table(rows: Iterable[Record]) -> str:
    lines = [
        "| family | ops | nodes | groups | pinned | prunable | layers | heads+widths | capture | grouping | cut "
        "| error | verdict |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---|",
    ]
    for record in rows:
        cut = " / ".join("module" if native else "graph" for native in record["native"].values())
        cells = [
            record["family"].partition("/")[2],
            len(record["ops"]),
            record["nodes"],
            record["groups"],
            sum(record["pins"].values()),
            f"{_share(record):.0%}",
            f"{record['reached']}/{record['layers']}",
            f"{record['covered']}/{record['inner']}" if "inner" in record else "-",
            f"{record['capture_s']:.2f}",
            f"{record['grouping_s']:.2f}",
            cut or "-",
            f"{record['error64']:.1g}",
            record["verdict"],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _share(record: Record) -> float:
    return record["prunable"] / record["parameters"] if record["parameters"] else 0.0


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:400]
