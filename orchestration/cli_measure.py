"""``geta measure``: what a finished run's model costs, recounted from its files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geta_core.errors import ArtifactError
from orchestration.console import Parser, guarded, table, write
from orchestration.finished import Finished

if TYPE_CHECKING:
    from geta_core.accounting.latency import Timing
    from geta_core.artifact.audit import Audit

COLUMNS = ("layer", "operation", "MACs", "weights", "weight bits", "input bits", "BOPs", "relative BOPs", "bytes")


def main(arguments: Sequence[str]) -> int:
    """Audit a saved model and print its accounting."""
    parser = Parser(
        "geta measure",
        description="Recount a compressed model's bits and sizes from its files, fail where they are not what is "
        "stated, and print what it costs, layer by layer.",
    )
    parser.add_argument("directory", help="a run directory, or an artifact")
    parser.add_argument("--csv", metavar="FILE", help="also write the table of layers; - means standard output alone")
    parser.add_argument(
        "--latency", action="store_true", help="also time dense, slimmed and integer model in onnxruntime (geta[onnx])"
    )
    given = parser.parse_args(arguments)
    return guarded(lambda: _measure(Finished(Path(given.directory)), given.csv, given.latency))


def _measure(place: Finished, sheet: str | None, latency: bool) -> int:
    from geta_core.artifact.audit import audit
    from geta_core.artifact.manifest import field, read

    found = audit(place.artifact)
    report = field(read(place.artifact), "report", dict)
    try:
        rows = layer_rows(report, found)
        shown = [*_costs(report), *_sizes(found, report, sum({row[0]: row[-1] for row in rows}.values()))]
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"the report in {place.artifact} lacks something ({error})") from error
    if sheet == "-":
        write(_csv(rows).rstrip())
        return 0
    if sheet is not None:
        from orchestration.files import write_text

        write_text(Path(sheet), _csv(rows))
    table(str(place.artifact), COLUMNS, [_cells(row) for row in rows], texts=(1,))
    for line in shown:
        write(line)
    if sheet is not None:
        write(f"layers: {sheet}")
    if latency:
        _show_latency(place)
    return 0


def layer_rows(report: Mapping[str, Any], found: Audit) -> list[list[Any]]:
    """Return the values of ``COLUMNS`` for each layer of a report; 0 bytes where it has no weight of its own."""
    sizes = {tensor.name: tensor.bytes for tensor in found.tensors}
    dense = report["dense_macs"] * 32**2
    rows = []
    for row in report["layers"]:
        bops = row["macs"] * row["weight_bits"] * row["input_bits"]
        size = sizes.get(row["name"], 0) + sizes.get(f"{row['name']}.step", 0)
        bits = [row["weight_bits"], row["input_bits"]]
        rows.append([row["name"], row["op"], row["macs"], row["weights"], *bits, bops, bops / dense, size])
    return rows


def _cells(row: Sequence[Any]) -> list[str]:
    name, op, macs, weights, weight_bits, input_bits, bops, share, size = row
    numbers = [f"{macs:,.0f}", f"{weights:,}", f"{weight_bits:.2f}", f"{input_bits:.2f}", f"{bops:,.0f}"]
    return [name, op, *numbers, f"{share:.3%}", f"{size:,}"]


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue()


def _costs(report: Mapping[str, Any]) -> list[str]:
    layers = report["layers"]
    dense = report["dense_macs"] * 32**2
    everything = sum(row["macs"] * row["weight_bits"] * row["input_bits"] for row in layers)
    products = sum(row["macs"] for row in layers if not row["counted"])
    ratio = report["macs"] / report["dense_macs"]
    return [
        f"parameters {report['parameters']:,} (dense {report['dense_parameters']:,})",
        f"MACs {report['macs']:,.0f} (dense {report['dense_macs']:,.0f}), ratio {ratio:.4f}",
        f"relative BOPs {report['relative_bops']:.3%} of MACs x 32 x 32 of the dense float model (definition paper); "
        f"BOPs {report['relative_bops'] * dense:,.0f}, with products of activations {everything:,.0f} (all; "
        f"{products:,.0f} MACs more)",
        f"group sparsity {report['group_sparsity']:.2%}; weights {report['weight_bits']:.3f} bits, inputs "
        f"{report['activation_bits']:.3f} bits",
    ]


def _sizes(found: Audit, report: Mapping[str, Any], in_layers: int) -> list[str]:
    ratio = found.tensor_bytes / found.stated_bytes if found.stated_bytes else 1.0
    return [
        f"{report['bytes']:,} bytes of tensors ({in_layers:,} in the layers above, the rest biases, norms and other "
        f"tensors), {ratio:.4f} of what their stated bits ask for ({found.stated_bytes:,.0f}); header "
        f"{found.header_bytes:,}, graph {found.graph_bytes:,}, rest of the manifest {found.manifest_bytes:,}; in all "
        f"{found.total_bytes:,} bytes",
        "audit: bits and sizes of the files are those stated",
    ]


def _show_latency(place: Finished) -> None:
    from geta_core.export.runtime import MISSING, have_onnxruntime

    if not have_onnxruntime():
        write(f"latency: not measured: {MISSING}")
        return
    from geta_core.artifact.reader import open_artifact
    from geta_core.export.latencies import latencies

    opened = open_artifact(place.artifact)
    found = latencies(place.dense() if place.is_run else None, opened.model, opened.weights, opened.inputs())
    table("onnxruntime on the CPU, milliseconds per pass", *latency_table(found))


def latency_table(found: Mapping[str, Mapping[int, Timing]]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: medians with their quartiles."""
    batches = list(next(iter(found.values())))
    rows = [
        [name, *(f"{t.median * 1e3:.3f} ({t.low * 1e3:.3f} to {t.high * 1e3:.3f})" for t in own.values())]
        for name, own in found.items()
    ]
    return ["model", *(f"batch {batch}" for batch in batches)], rows
