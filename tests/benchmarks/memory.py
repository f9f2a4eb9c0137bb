"""Memory of a training step: what is held for the backward pass, and the peak of the whole step.

Both are read from the allocator: on the CPU from the events of torch.profiler, on CUDA from the allocator's counters.
Hooks on saved tensors would not do: a layer that recomputes has hooks of its own, which hide outer ones.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from tests.benchmarks.bounds import Row, row
from tests.benchmarks.clock import Spread
from tests.benchmarks.nets import Net, Trainee

FORWARD = "benchmark: forward"


def step_memory(trainee: Trainee, state_per_parameter: int) -> tuple[int, int]:
    """Run one forward and backward pass; return (bytes that are held for the backward pass, bytes at the peak).

    The peak counts parameters, buffers and the optimizer's state as well.

    Args:
        trainee: what to run; its gradients are dropped before.
        state_per_parameter: tensors of a parameter's size in the optimizer's state.
    """
    trainee.model.zero_grad(set_to_none=True)
    parameters, buffers = list(trainee.model.parameters()), list(trainee.model.buffers())
    lasting = _bytes(parameters) * (1 + state_per_parameter) + _bytes(buffers)
    held, peak = _on_cuda(trainee) if trainee.device.type == "cuda" else _on_cpu(trainee)
    return held, lasting + peak


def _bytes(tensors: list[nn.Parameter] | list[torch.Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def _on_cpu(trainee: Trainee) -> tuple[int, int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        with record_function(FORWARD):
            loss = trainee.loss()
        loss.backward()
    held = next(event.cpu_memory_usage for event in profiler.events() if event.name == FORWARD)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    levels = [event["args"]["Total Allocated"] for event in memory]
    # The profiler goes on counting where an earlier session stopped.
    return held, max(levels) - (levels[0] - memory[0]["args"]["Bytes"])


def _on_cuda(trainee: Trainee) -> tuple[int, int]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss = trainee.loss()
    held = torch.cuda.memory_allocated() - before
    loss.backward()
    torch.cuda.synchronize()
    return held, torch.cuda.max_memory_allocated() - before


def memory_rows(net: Net, plain: Trainee, quantized: Trainee, recomputing: Trainee) -> list[Row]:
    """Compare the memory of a step with quantized weights and inputs with that of a float step."""
    state = 1 if net.optimizer is torch.optim.SGD else 2
    trainees = {"float": plain, "wa": quantized, "wa_recompute": recomputing}
    found = {name: step_memory(trainee, state) for name, trainee in trainees.items()}
    rows = []
    for name, words in (("wa", ""), ("wa_recompute", ", recompute")):
        # The bound is on the peak; what is held explains it.
        for index, (key, what) in enumerate((("held", "held for the backward pass"), ("memory", "peak of the step"))):
            share = found[name][index] / found["float"][index]
            note = f"{found[name][index] / 2**20:.0f} against {found['float'][index] / 2**20:.0f} MiB"
            text = f"W+A{words} / float, {what}"
            value = Spread(share, share, share)
            rows.append(row(f"{key}/{name}", net.key, text, value, device=plain.device.type, note=note))
    return rows
