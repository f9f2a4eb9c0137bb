"""The end of a run: finish the model, save it, and measure what was saved."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

import geta_core as geta
from orchestration.assemble import CALIBRATION_BATCHES, build_model
from orchestration.evaluate import evaluate, latency_ms
from orchestration.loop import Surroundings
from orchestration.pictures import draw
from orchestration.result import RunResult
from orchestration.rundir import RunDirectory
from orchestration.state import Session
from orchestration.weights import save_weights


def conclude(
    session: Session, place: RunDirectory, around: Surroundings, started: float, about: Mapping[str, Any]
) -> tuple[RunResult, list[Path]]:
    """Compress the trained model, save the artifact, and measure the model that the artifact gives back.

    Args:
        session: after its last step.
        place: receives artifact and pictures.
        around: journal and progress.
        started: ``time.perf_counter()`` at the start of the attempt.
        about: the attempt's record.

    Returns:
        The result, and the files that trackers get.
    """
    began = time.perf_counter()
    around.progress.say("finishing: zero groups are removed, bits fixed, the result compared with the trained model")
    if session.norms is not None:
        session.norms.restore_()
    # First what is known of the trained model: finishing may change it.
    metrics = {f"trained/val/{key}": value for key, value in evaluate(session, "val").items()}
    if not session.prepared.sites:
        save_weights(session.prepared.model, place.weights)
    compressed = session.method.finish(session.prepared, session.task.calibration_batches(CALIBRATION_BATCHES))
    compressed.save(place.artifact)
    model = geta.load(place.artifact).to(session.compute.device)
    for split in ("val", "test"):
        metrics |= {f"{split}/{key}": value for key, value in evaluate(session, split, model).items()}
    result = describe(session, place, compressed, model, metrics, about)
    now = time.perf_counter()
    seconds = {"train": session.seconds, "finish": now - began, "total": now - started}
    result = replace(result, seconds={key: round(value, 3) for key, value in seconds.items()})
    position = (session.step, session.epoch)
    latency = {"final/latency_ms": result.latency_ms, **result.latencies()}
    around.record(around.journal.append("final", position, session.stage, result.numbers(), latency))
    pictures = draw(result, around.journal.lines(), place.pictures)
    files = [*pictures, place.resolved, place.environment, around.journal.path]
    return result, [*files, place.artifact] if session.config.tracker.log_artifact else files


def describe(
    session: Session,
    place: RunDirectory,
    compressed: geta.Compressed,
    model: nn.Module,
    metrics: Mapping[str, float],
    about: Mapping[str, Any],
) -> RunResult:
    """Collect the numbers of a finished run."""
    config, report = session.config, compressed.report
    example = session.task.example_inputs()
    dense = session.compute.place(build_model(config, session.task))
    return RunResult(
        directory=str(place.path),
        digest=config.digest(),
        task=config.task.name,
        model=config.model.name,
        method=config.method.name,
        seed=config.run.seed,
        steps=session.total_steps,
        epochs=session.epoch,
        device=session.compute.name(),
        precision=config.run.precision,
        metrics=dict(metrics),
        group_sparsity=report.group_sparsity,
        weight_bits=report.weight_bits,
        activation_bits=report.activation_bits,
        relative_bops=report.relative_bops,
        relative_sparse_bops=report.relative_sparse_bops,
        parameters=report.parameters,
        macs=report.macs,
        bytes=report.bytes,
        dense={
            "parameters": report.dense.parameters,
            "macs": report.dense.macs,
            "bytes": report.dense.bytes,
            "latency_ms": latency_ms(dense, example, session.compute),
        },
        latency_ms=latency_ms(model, example, session.compute),
        native=report.native,
        max_error64=report.max_error64,
        layers=layer_rows(session, compressed),
        seconds={},
        environment=dict(about),
        latency=runtime_latency(dense, compressed) if config.run.latency else {},
    )


def runtime_latency(dense: nn.Module, compressed: geta.Compressed) -> dict[str, Any]:
    """Return the times of dense, slimmed and integer model in onnxruntime, or why there are none."""
    from geta_core.export.latencies import latencies
    from geta_core.export.runtime import MISSING, have_onnxruntime

    if not have_onnxruntime():
        return {"missing": MISSING}
    try:
        found = latencies(dense, compressed.model, compressed.weights, compressed.inputs)
    except geta.GetaError as error:
        return {"missing": str(error)}
    return {model: {str(batch): timing.as_dict() for batch, timing in own.items()} for model, own in found.items()}


def layer_rows(session: Session, compressed: geta.Compressed) -> list[dict[str, Any]]:
    """Return one row per layer of the account, with its output channels before and after."""
    shapes = {name: tuple(parameter.shape) for name, parameter in compressed.model.named_parameters()}
    return [
        {
            "name": row.name,
            "macs": row.macs,
            "weight_bits": row.weight_bits,
            "input_bits": row.input_bits,
            "density": row.density,
            "channels": shapes[row.name][0] if row.name in shapes else 0,
            "dense_channels": session.dense_shapes[row.name][0] if row.name in session.dense_shapes else 0,
        }
        for row in compressed.report.layers
    ]
