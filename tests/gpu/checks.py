"""The checks. Each raises AssertionError with what was found, or returns a line about it; none needs pytest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import geta_core as geta
from orchestration.world import World
from tests.benchmarks import steps
from tests.benchmarks.bounds import Row
from tests.benchmarks.memory import memory_rows
from tests.benchmarks.nets import NETS, Trainee, compression
from tests.geta_core.host_reads import HostReads
from tests.gpu.training import CONFIG, INNER, SCHEDULE, Training, no_waiting
from tests.gpu.workers import EARLY, together, train

CUDA = torch.device("cuda")
ROUNDS = 10
TOLERANCE = 1e-8


def optimizer_never_waits(inner: str) -> str:
    """No host-device synchronisation in optimizer.step(), in every stage and at every period boundary."""
    training = Training(CUDA, inner)
    training.steps(1)  # looks up where the parameters are
    stages = []
    for _ in range(SCHEDULE.total - 1):
        training.gradients()
        stages.append(training.optimizer.stage)
        with no_waiting(), HostReads() as mode:
            training.optimizer.step()
        copies = {name: count for name, count in mode.reads.items() if "copy" in name}
        assert not copies, f"step {len(stages)} ({stages[-1]}) copies to the host: {copies}"
    assert list(dict.fromkeys(stages)) == ["warmup", "projection", "joint", "cooldown"]
    assert training.prepared.zero_groups() == training.optimizer.target_groups > 0
    return f"{len(stages)} steps"


def training_step_never_waits() -> str:
    """No host-device synchronisation in the quantizers' forward and backward passes either."""
    training = Training(CUDA)
    training.steps(3)  # compiles the kernels
    with no_waiting():
        training.steps(5)
    return "5 whole steps"


def differences(first: Training, second: Training) -> dict[str, float]:
    """Return the largest difference of each parameter, relative to its largest value (at least 1)."""
    others = dict(second.model.named_parameters())
    found = {}
    for name, value in first.model.named_parameters():
        a, b = value.detach().cpu(), others[name].detach().cpu()
        found[name] = float((a - b).abs().max() / a.abs().max().clamp(min=1.0))
    return found


def same_on_both(inner: str, other: torch.device = CUDA) -> str:
    """In float64, after 50 steps through all stages, CPU and GPU have the same masks and the same parameters."""
    pair = [Training(device, inner, torch.float64, batch=4) for device in (torch.device("cpu"), other)]
    # Sums run in another order on the other device; on the CPU the memory order does the same.
    for number in range(SCHEDULE.total):
        for training in pair:
            training.steps(1)
        masks = [training.optimizer.pruned.cpu() for training in pair]
        assert torch.equal(*masks), f"the masks differ after step {number + 1}"
    largest = max(differences(*pair).items(), key=lambda item: item[1])
    assert largest[1] <= TOLERANCE, f"{largest[0]} differs by {largest[1]:.3g}, more than {TOLERANCE:g}"
    bits = [training.optimizer.fixed_bits() for training in pair]
    assert all(torch.equal(bits[0][name].cpu(), bits[1][name].cpu()) for name in bits[0]), "the bits differ"
    return f"largest difference {largest[1]:.2g} ({largest[0]}), {int(masks[0].sum())} groups pruned"


def bf16_channels_last(device: torch.device = CUDA) -> str:
    """A whole run with bf16 autocast and channels_last keeps every promise, and finish proves the smaller model."""
    training = Training(device, channels_last=True, autocast=torch.bfloat16)
    training.steps(SCHEDULE.total)
    losses = torch.stack(training.losses)
    assert bool(torch.isfinite(losses).all()), f"losses {losses.tolist()}"
    assert training.prepared.zero_groups() == training.optimizer.target_groups > 0
    assert CONFIG.weight_bits is not None
    low, high = CONFIG.weight_bits
    for name, bits in training.optimizer.fixed_bits().items():
        inside = bool(((bits >= low) & (bits <= high)).all())
        assert inside, f"{name} has {bits.tolist()} bits, outside [{low}, {high}]"
    weight: Tensor = next(p for p in training.model.parameters() if p.dim() == 4 and p.shape[1] > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last), "the weights are no longer channels_last"
    report = geta.finish(training.prepared).report
    assert report.removed == training.optimizer.target_groups
    return f"loss {float(losses[0]):.2f} to {float(losses[-1]):.2f}, float64 difference {report.max_error64:.1g}"


def _judged(rows: list[Row]) -> str:
    text = "; ".join(
        f"{row.net} {row.text} {row.value.median:.3f} <= {row.bound:g}"
        for row in rows
        if row.value is not None and row.bound is not None
    )
    missed = [row for row in rows if row.verdict == "FAIL"]
    assert not missed, f"{len(missed)} bounds are missed: {text}"
    return text


def quantized_step_times() -> str:
    """A step of VGG7 with quantized weights and inputs takes at most the bounds' share more than a float step."""
    net = NETS["vgg7"]
    rows, _ = steps.quantized_rows(net, steps.trainees(net, CUDA), ("auto",), ROUNDS)
    return _judged(rows)


def qasso_step_times(name: str) -> str:
    """A step with QASSO takes at most 5 % more than one with the plain optimizer on the same quantized model."""
    net = NETS[name]
    trainee = Trainee(net, CUDA, compression(activations=net.activations, learned=True))
    return _judged(steps.qasso_rows(net, trainee, ROUNDS))


def memory(name: str) -> str:
    """A step with quantized weights and inputs needs at most the bounds' share more memory than a float step."""
    net = NETS[name]
    plain, quantized = (steps.variant(net, variant, CUDA) for variant in ("float", "wa_fixed"))
    for trainee in (plain, quantized):
        trainee.forward_backward()  # compiles the kernels
    recomputing = steps.variant(net, "wa_fixed", CUDA, recompute=True)
    recomputing.forward_backward()
    return _judged(memory_rows(net, plain, quantized, recomputing))


def several_workers(backend: str, sync: bool, devices: int) -> str:
    """Two workers with half a batch each have the masks and bits of one, and its weights after 5 steps."""
    one = train(World(), CUDA, sync)
    with tempfile.TemporaryDirectory() as folder:
        workers = together(Path(folder), backend, sync, devices)
    largest = 0.0
    for rank, found in enumerate(workers):
        same = all(torch.equal(a, b) for a, b in zip(one["masks"], found["masks"], strict=True))
        assert same, f"worker {rank} has other masks than one worker alone"
        assert all(torch.equal(one["bits"][name].cpu(), found["bits"][name].cpu()) for name in one["bits"]), "bits"
        largest = max(
            largest, *(float((found["early"][name] - value).abs().max()) for name, value in one["early"].items())
        )
    assert largest <= 1e-9, f"weights differ by {largest:.3g} after {EARLY} steps"
    return f"{backend}, {devices} GPUs: largest difference after {EARLY} steps {largest:.2g}"


CHECKS: Mapping[str, Callable[[], str]] = {
    **{f"optimizer never waits, {inner}": partial(optimizer_never_waits, inner) for inner in INNER},
    "training step never waits": training_step_never_waits,
    **{f"same on CPU and GPU, {inner}": partial(same_on_both, inner) for inner in INNER},
    "bf16 and channels_last": bf16_channels_last,
    "quantized step times": quantized_step_times,
    **{f"QASSO step times, {name}": partial(qasso_step_times, name) for name in NETS},
    **{f"memory, {name}": partial(memory, name) for name in ("vgg7", "encoder")},
    "two workers share a GPU": partial(several_workers, "gloo", False, 1),
    "two workers share a GPU, SyncBatchNorm": partial(several_workers, "gloo", True, 1),
}
if torch.cuda.device_count() > 1:  # NCCL wants a GPU for each worker
    CHECKS = {
        **CHECKS,
        "two GPUs, NCCL": partial(several_workers, "cpu:gloo,cuda:nccl", False, 2),
        "two GPUs, NCCL, SyncBatchNorm": partial(several_workers, "cpu:gloo,cuda:nccl", True, 2),
    }
