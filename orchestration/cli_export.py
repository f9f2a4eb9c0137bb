"""``geta export``: a finished run's model for other runtimes, compared with the model that was trained."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestration.console import USER_ERROR, Parser, complain, guarded, write
from orchestration.finished import Finished

if TYPE_CHECKING:
    from torch import nn

    from geta_core.artifact.reader import Opened
    from geta_core.export.runtime import Agreement

AGREE = 0.995
"""Share of the test split on which both must give the same answer."""
DISAGREE = 1
"""Exit code when they do not."""


def main(arguments: Sequence[str]) -> int:
    """Export a compressed model.

    Args:
        arguments: of the command line.

    Returns:
        0; 1 if an exported model disagrees with the original; 2 for bad input.
    """
    parser = Parser(
        "geta export",
        description="Write a run's compressed model as ONNX (whole-number weights) or as a program of aten operations, "
        "and compare it with the original on the run's test split.",
    )
    parser.add_argument("directory", help="a run directory, or an artifact (then nothing is compared)")
    parser.add_argument("--onnx", metavar="FILE", help="needs the extra geta[onnx]")
    parser.add_argument("--pt2", metavar="FILE", help="torch.export.load reads it where geta is not installed")
    parser.add_argument("--int8", action="store_true", help="no INT4 tensors in the ONNX file: larger, often faster")
    parser.add_argument(
        "--fold",
        action="store_true",
        help="multiply batch norms into the convolutions before them: integer kernels take the whole layer, which is "
        "faster, but round its bias",
    )
    parser.add_argument("--no-check", action="store_true", help="do not compare")
    given = parser.parse_args(arguments)
    return guarded(lambda: _export(given))


def _export(given: argparse.Namespace) -> int:
    faults = [] if given.onnx or given.pt2 else ["name at least one file: --onnx FILE or --pt2 FILE"]
    for path in filter(None, (given.onnx, given.pt2)):
        if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
            faults.append(f"must be a file in a folder that exists, but got {path!r}")
    for fault in faults:
        complain(fault)
    if faults:
        return USER_ERROR
    from geta_core.artifact.reader import open_artifact
    from geta_core.export import export_onnx, export_pt2

    place = Finished(Path(given.directory))
    opened = open_artifact(place.artifact)
    files = {}
    if given.onnx:
        export_onnx(opened.model, opened.weights, opened.inputs(), given.onnx, int4=not given.int8, fold=given.fold)
        files["onnx"] = Path(given.onnx)
        _audit(given.onnx, opened)
    if given.pt2:
        export_pt2(opened.model, opened.inputs(), given.pt2)
        files["pt2"] = Path(given.pt2)
    agreed = True
    for kind, path in files.items():
        found = _compare(kind, path, opened, place) if place.is_run and not given.no_check else None
        write(f"{path}: {path.stat().st_size:,} bytes" + (f"; {_text(found)}" if found is not None else ""))
        if found is not None and found.top1 < AGREE:
            agreed = False
            hint = "; leave out --fold, or train longer" if given.fold and kind == "onnx" else ""
            complain(f"{path} must give the same answer on at least {AGREE:.1%} of the test examples{hint}")
    return 0 if agreed else DISAGREE


def _audit(path: str, opened: Opened) -> None:
    from geta_core.artifact.audit import audit_onnx

    audit_onnx(path, opened.folder)


def _text(found: Agreement) -> str:
    return (
        f"the same answer as the original on {found.agree:,} of {found.examples:,} test examples ({found.top1:.2%}), "
        f"largest difference {found.max_error:.3g} of outputs up to {found.largest:.3g}"
    )


def _compare(kind: str, path: Path, opened: Opened, place: Finished) -> Agreement | None:
    """Run both models on the run's test split; None where onnxruntime is missing."""
    from geta_core.export.runtime import MISSING, OnnxModule, SideBySide, have_onnxruntime

    if kind == "onnx" and not have_onnxruntime():
        write(f"{path}: not compared with the original: {MISSING}")
        return None
    both = SideBySide(opened.model, OnnxModule(path) if kind == "onnx" else _program(path))
    place.task().evaluate(both, "test")
    return both.agreement


def _program(path: Path) -> nn.Module:
    import torch

    return torch.export.load(path).module()
