"""Tables in pages that are made from records: between two comments that name the record.

<!-- records: docs/records/FILE.json -->
(the table; `geta check-records --write` rewrites it)
<!-- end of records -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from geta_core.errors import ArtifactError
from orchestration.result import RunResult
from sweeps.cells import bits_text, interval_text, mean_text, start_note
from sweeps.records import read_record, results_of
from sweeps.render import Sheet, render
from sweeps.statistics import Mean, paired_differences, resolution

BLOCK = re.compile(r"(?P<start><!-- records: (?P<file>\S+) -->\n)(?P<body>.*?)(?P<end><!-- end of records -->)", re.S)
Results = Mapping[str, Mapping[int, RunResult]]
LAUNCHERS = "study under several launchers"
"""Kind of the record that ``tests.sweeps.launchers`` writes."""
STUDY_NUMBERS = ("test/accuracy", "group_sparsity", "weight_bits", "activation_bits", "bytes")


def rewritten(text: str, root: Path) -> str:
    """Return a page with each of its tables made anew.

    Args:
        text: of the page.
        root: the folder that the records' paths start from.

    Raises:
        ArtifactError: when a record is missing or cannot be shown.
    """
    return BLOCK.sub(lambda found: found["start"] + table_of(root / found["file"]) + found["end"], text)


def table_of(path: Path) -> str:
    """Return a record's table in Markdown."""
    record = read_record(path)
    sheet = sheet_of(record)
    if sheet is None:
        raise ArtifactError(f"{path} must be the record of a comparison, an ablation or a table to be shown in a page")
    return "\n" + render(sheet, "markdown") + "\n"


def sheet_of(record: Mapping[str, Any]) -> Sheet | None:
    """Return a record as a table; None where it holds a single run."""
    kind = record.get("kind", "comparison" if "results" in record else None)
    if kind == LAUNCHERS:
        return launchers_sheet(record)
    results = results_of(record)
    if kind == "ablation":
        from sweeps.ablations import Ablation

        return Ablation.load(record["name"], record["base"]).sheet(results)
    if kind == "table":
        from sweeps.tables import Table

        return Table.load(record["name"], record["scale"]).sheet(results)
    return comparison_sheet(record, results) if kind == "comparison" else None


def launchers_sheet(record: Mapping[str, Any]) -> Sheet:
    """Return the settings of a study, whose trials several launchers ran: means over the seeds."""
    cells: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for trial in record["trials"]:
        cells.setdefault((trial["method"], trial["setting"]), []).append(trial)
    columns = ["method", "setting", "seeds", "val %", "test %", "groups removed %", "weight / input bits"]
    columns += ["rel. BOPs %", "bytes"]
    rows = []
    for (method, setting), own in sorted(cells.items()):
        done = [each for each in own if each["state"] == "complete"]
        if not done:
            rows.append([method, str(setting), f"0 of {len(own)}", *["-"] * (len(columns) - 3)])
            continue
        mean = {key: Mean.of([each[key] for each in done]).mean for key in STUDY_NUMBERS}
        val, bops = (Mean.of([100 * each["values"][place] for each in done]).mean for place in (0, 1))
        row = [method, str(setting), f"{len(done)} of {len(own)}", f"{val:.2f}", f"{100 * mean['test/accuracy']:.2f}"]
        row += [f"{100 * mean['group_sparsity']:.1f}", f"{mean['weight_bits']:.2f} / {mean['activation_bits']:.2f}"]
        rows.append([*row, f"{bops:.2f}", f"{mean['bytes']:,.0f}"])
    complete = sum(trial["state"] == "complete" for trial in record["trials"])
    title = f"{len(record['trials'])} trials, {complete} complete, under {', '.join(record['launchers'])}"
    notes = [f"numbers that differ between the launchers: {record['differences']}"]
    return Sheet(title, columns, rows, notes)


def comparison_sheet(record: Mapping[str, Any], results: Results) -> Sheet:
    """Return a comparison of methods as a table: the reference first, then the others as the record has them."""
    reference = record.get("reference", "geta")
    values = _compared(record, results)
    differences = paired_differences(values, reference) if reference in values else {}
    order = sorted(results, key=lambda cell: cell != reference)
    columns = ["method", "test accuracy %", "groups removed %", "weight / input bits", "rel. BOPs %", "bytes"]
    columns += [f"Δ accuracy to {reference}, points", "told apart"]
    rows = []
    for cell in order:
        own = list(results[cell].values())
        found = differences.get(cell)
        told = "" if found is None else ("no" if not found.decided else "better" if found.mean > 0 else "worse")
        told = "missed" if _missed(record, cell, results[cell]) else told
        cells = [cell, mean_text([100 * each.accuracy for each in own])]
        cells += [f"{Mean.of([100 * each.group_sparsity for each in own]).mean:.1f}", bits_text(own)]
        cells += [mean_text([100 * each.relative_bops for each in own])]
        cells += [f"{Mean.of([each.bytes for each in own]).mean:,.0f}", interval_text(found), told]
        rows.append(cells)
    return Sheet(f"{_title(results)}", columns, rows, list(_notes(record, results, reference)))


def _title(results: Results) -> str:
    tasks = sorted({each.task for own in results.values() for each in own.values()})
    models = sorted({each.model for own in results.values() for each in own.values()})
    seeds = sorted({len(own) for own in results.values()})
    steps = sorted({each.steps for own in results.values() for each in own.values()})
    counts = " or ".join(map(str, seeds))
    return f"{', '.join(models)} on {', '.join(tasks)}: {counts} seeds, {' or '.join(map(str, steps))} optimizer steps"


def _notes(record: Mapping[str, Any], results: Results, reference: str) -> Iterator[str]:
    yield "mean ± standard deviation over the seeds; differences paired by seed, with 95 % intervals"
    values = _compared(record, results)
    if reference in values:
        yield f"accuracy: {resolution(paired_differences(values, reference))}"
    start = start_note(results)
    if start is not None:
        yield start
    if record.get("trials", 1) > 1:
        yield f"every method was tuned with {record['trials']} trials on the validation split"
    if any(_missed(record, cell, own) for cell, own in results.items()):
        yield "missed: relative BOPs further than 10 % from those it was to meet; not compared"
    for method, reason in record.get("failures", {}).items():
        yield f"{method}: {reason}"


def _compared(record: Mapping[str, Any], results: Results) -> dict[str, dict[int, float]]:
    """Return the accuracies in points of all methods but those whose accuracy was had at another price."""
    met = {cell: own for cell, own in results.items() if not _missed(record, cell, own)}
    return {cell: {seed: 100 * each.accuracy for seed, each in own.items()} for cell, own in met.items()}


def _missed(record: Mapping[str, Any], cell: str, own: Mapping[int, RunResult]) -> bool:
    from baselines.matching import TOLERANCE

    targets = record.get("targets", {}).get(cell, {})
    return any(
        abs(own[int(seed)].relative_bops / target - 1) > TOLERANCE
        for seed, target in targets.items()
        if int(seed) in own
    )
