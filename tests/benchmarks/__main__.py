"""``python -m tests.benchmarks``: every number that has a bound, in one run."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from geta_core.quantize.kernels import compiler_available
from tests.benchmarks import command, steps
from tests.benchmarks.bounds import STAGES, Row, row
from tests.benchmarks.capture import capture_rows
from tests.benchmarks.clock import Clock
from tests.benchmarks.memory import memory_rows
from tests.benchmarks.nets import NETS, Net, Trainee, compression
from tests.benchmarks.origin import origin
from tests.benchmarks.studies import study_rows

HEADINGS = ("net", "what", "median (quartiles)", "bound", "", "released code", "detail")
WIDTHS = (12, 46, 22, 6, 12, 22, 0)


def _line(cells: Sequence[str]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _value(number: Row) -> str:
    if number.value is None:
        return "-"
    if number.unit == "share":
        return f"{number.value.median:.3%}"
    text = f"{number.value.median:.2f}{' s' if number.unit == 's' else ''}"
    if number.value.low == number.value.high:
        return text
    return f"{text} ({number.value.low:.2f} to {number.value.high:.2f})"


def show(number: Row) -> None:
    """Print one row."""
    bound = "-" if number.bound is None else f"{number.bound:.0%}" if number.unit == "share" else f"{number.bound:g}"
    cells = (number.net, number.text, _value(number), bound, number.verdict, number.released, number.note)
    print(_line(cells), flush=True)


def net_rows(net: Net, device: torch.device, rounds: int) -> Iterator[Row]:
    """Measure one net: quantized against float, memory, QASSO against the plain optimizer, and both together."""
    models = steps.trainees(net, device)
    if device.type == "cuda":
        kernels: tuple[str, ...] = ("auto",)
    else:
        kernels = ("eager", "compiled") if compiler_available("cpu") else ("eager",)
    rows, ratios = steps.quantized_rows(net, models, kernels, rounds)
    yield from rows
    recomputing = steps.variant(net, "wa_fixed", device, recompute=True)
    yield from memory_rows(net, models["float"], models["wa_fixed"], recomputing)
    del models, recomputing
    trainee = Trainee(net, device, compression(activations=net.activations, learned=True))
    base = ratios[f"{'wa' if net.activations else 'w'}_learned/{kernels[0]}"]
    kind = "W+A" if net.activations else "W"
    for number in steps.qasso_rows(net, trainee, rounds):
        yield number
        stage = number.what.partition("/")[2]
        if stage in STAGES and number.value is not None:
            text = f"QASSO on {kind} / float, {stage}"
            note = "the two ratios multiplied"
            yield row(f"whole/{stage}", net.key, text, base.times(number.value), device=device.type, note=note)


def _step_seconds(device: torch.device) -> float:
    """Return the time of forward and backward of ResNet20 with quantized weights."""
    net = NETS["resnet20"]
    trainee = Trainee(net, device, compression(activations=False, learned=True))
    clock = Clock(device)
    return min(clock.seconds(trainee.forward_backward) for _ in range(3))


def _command_rows(device: torch.device) -> Iterator[Row]:
    yield command.help_row()
    yield command.local_row()
    yield command.ray_row()
    yield command.tracking_row(_step_seconds(device))


def _sections(
    names: Sequence[str], device: torch.device, rounds: int
) -> Iterator[tuple[str, Callable[[], Iterable[Row]]]]:
    for name in names:
        net = NETS[name]
        count = max(2, round(rounds * net.rounds))
        yield f"{net.title}; {count} rounds", partial(net_rows, net, device, count)
    yield "capture and groups", capture_rows
    yield "start-up and tracking", lambda: _command_rows(device)
    yield "studies", study_rows


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--nets", default=",".join(NETS), help=f"comma-separated, of {', '.join(NETS)}; or none")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each comparison (the encoder has half)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; with 1, CPU time is measured")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--nets-only", action="store_true", help="leave out capture, start-up, tracking and studies")
    arguments = parser.parse_args(given)
    arguments.nets = [] if arguments.nets == "none" else arguments.nets.split(",")
    unknown = [name for name in arguments.nets if name not in NETS]
    if unknown or arguments.rounds < 2:
        parser.error(f"unknown nets: {', '.join(unknown)}" if unknown else "--rounds must be at least 2")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Measure, print and record; return 1 if a bound is missed."""
    arguments = _arguments(given)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    about = origin(name)
    started = time.perf_counter()
    kind = Clock(device).kind
    print(f"torch {torch.__version__}, {name}, {arguments.threads} threads of {os.cpu_count()}, {kind} time")
    print(_line(HEADINGS))
    found: list[Row] = []
    for title, measure in _sections(arguments.nets, device, arguments.rounds):
        if arguments.nets_only and title.partition(" ")[0] not in NETS:
            continue
        print(f"-- {title}", flush=True)
        for number in measure():
            found.append(number)
            show(number)
    missed = [number for number in found if number.verdict == "FAIL"]
    judged = sum(number.bound is not None and number.value is not None for number in found)
    seconds = time.perf_counter() - started
    print(f"{judged - len(missed)} of {judged} bounds kept, {seconds:.0f} s")
    if arguments.json:
        rows = [{**asdict(number), "verdict": number.verdict} for number in found]
        record = {"environment": about, "rounds": arguments.rounds, "seconds": round(seconds, 1), "rows": rows}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
