"""Step times: QASSO against the plain optimizer, quantized against float."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

import geta_core as geta
from geta_core.quantize import get_kernel, set_kernel
from tests.benchmarks.bounds import STAGES, Row, row
from tests.benchmarks.clock import Clock, Spread, ratio, take_turns
from tests.benchmarks.nets import Net, Trainee, compression

VARIANTS = ("w_learned", "wa_fixed", "wa_learned")
WORDS = {
    "w_learned": "quantized W (t learned) / float",
    "wa_fixed": "quantized W+A, t fixed / float",
    "wa_learned": "quantized W+A, t learned / float",
}


@contextmanager
def kernel(name: str) -> Iterator[None]:
    """Choose the quantizers' code inside the context."""
    before = get_kernel()
    set_kernel(name)  # type: ignore[arg-type]
    try:
        yield
    finally:
        set_kernel(before)


def variant(net: Net, name: str, device: torch.device, *, recompute: bool = False) -> Trainee:
    """Return the net in one of the compared variants, or in floating point for the name "float"."""
    if name == "float":
        return Trainee(net, device)
    config = compression(activations=name.startswith("wa"), learned=name.endswith("learned"), recompute=recompute)
    return Trainee(net, device, config)


def trainees(net: Net, device: torch.device) -> dict[str, Trainee]:
    """Return the net in floating point and in every compared variant."""
    return {name: variant(net, name, device) for name in ("float", *VARIANTS)}


def quantized_rows(
    net: Net, models: dict[str, Trainee], kernels: tuple[str, ...], rounds: int
) -> tuple[list[Row], dict[str, Spread]]:
    """Compare whole steps of the quantized models with the float step.

    Returns:
        The rows, and the ratios by variant and kernel.
    """
    device = models["float"].device
    clock = Clock(device)
    optimizers = {name: trainee.plain_optimizer(net) for name, trainee in models.items()}

    def stepper(name: str, code: str) -> Callable[[], float]:
        def step() -> None:
            models[name].forward_backward()
            optimizers[name].step()

        def timed() -> float:
            with kernel(code):
                return clock.seconds(step)

        return timed

    actions = {"float": stepper("float", "auto")}
    actions |= {f"{name}/{code}": stepper(name, code) for code in kernels for name in VARIANTS}
    measured = take_turns(actions, rounds)
    ratios = {name: ratio(times, measured["float"]) for name, times in measured.items() if name != "float"}
    note = f"float step {Spread.of(measured['float']).median:.3g} s"
    rows = []
    for code in kernels:
        for name in VARIANTS:
            what, text = f"{name}/{code}", f"{WORDS[name]}, {code}"
            rows.append(row(what, net.key, text, ratios[what], device=device.type, note=note))
    return rows, ratios


def qasso_rows(net: Net, trainee: Trainee, rounds: int) -> list[Row]:
    """Compare steps with QASSO, in each stage, with steps of the plain optimizer on the same quantized model."""
    assert trainee.prepared is not None
    schedule = geta.Schedule(
        warmup=rounds + 1,
        projection=rounds + 1,
        joint=rounds + 2,
        cooldown=rounds + 1,
        projection_periods=2,
        pruning_periods=1,
    )
    qasso = geta.QASSO(trainee.prepared, net.optimizer, schedule=schedule, lr_quant=1e-6, **net.keywords)
    plain = trainee.plain_optimizer(net)
    device = trainee.device
    measure = _phases if device.type == "cpu" else _blocks
    rows = []
    for stage, (fraction, seconds) in measure(trainee, qasso, plain).items():
        note = f"optimizer {seconds[1] * 1e3:.3g} ms against {seconds[0] * 1e3:.3g} ms"
        text = f"QASSO / plain {net.optimizer.__name__}, {stage}"
        rows.append(row(f"qasso/{stage}", net.key, text, fraction, device=device.type, note=note))
    return rows


Measured = dict[str, tuple[Spread, tuple[float, float]]]


def _phases(trainee: Trainee, qasso: geta.QASSO, plain: torch.optim.Optimizer) -> Measured:
    """Time forward and backward once for both, and the two optimizers one after the other on the same gradients.

    Forward and backward are the same code on the same model for both, so that only the optimizers' times differ; the
    noise of the long part stays out of the ratio. The first step of a stage is left out: it is a warm-up, or chooses
    the groups of a period, which comes once in hundreds of steps.
    """
    clock = Clock(trainee.device)
    passes: list[float] = []
    times: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    starts: dict[str, float] = {}
    for number in range(qasso.schedule.total):
        passes.append(clock.seconds(trainee.forward_backward))
        stage: str = qasso.stage
        if number % 2:
            ours, theirs = clock.seconds(qasso.step), clock.seconds(plain.step)
        else:
            theirs, ours = clock.seconds(plain.step), clock.seconds(qasso.step)
        if stage in starts:
            times[stage].append((theirs, ours))
        else:
            starts[stage] = ours
    common = Spread.of(passes[1:]).median
    result: Measured = {}
    for stage, pairs in times.items():
        middle = Spread.of([theirs for theirs, _ in pairs]).median, Spread.of([ours for _, ours in pairs]).median
        result[stage] = ratio([common + ours for _, ours in pairs], [common + theirs for theirs, _ in pairs]), middle
    begin = starts["joint"]
    theirs = Spread.of([theirs for theirs, _ in times["joint"]]).median
    result["first step of a period"] = Spread.of([(common + begin) / (common + theirs)]), (theirs, begin)
    return result


def _blocks(trainee: Trainee, qasso: geta.QASSO, plain: torch.optim.Optimizer) -> Measured:
    """Time whole steps, for devices that work while the host goes on: one step of each kind in turns."""
    clock = Clock(trainee.device)

    def step(optimizer: torch.optim.Optimizer) -> float:
        def action() -> None:
            trainee.forward_backward()
            optimizer.step()

        return clock.seconds(action)

    times: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    for _ in range(qasso.schedule.total):
        stage: str = qasso.stage
        theirs = step(plain)
        times[stage].append((theirs, step(qasso)))
    result: Measured = {}
    for stage, pairs in times.items():
        counted = pairs[1:]
        middle = Spread.of([theirs for theirs, _ in counted]).median, Spread.of([ours for _, ours in counted]).median
        result[stage] = ratio([ours for _, ours in counted], [theirs for theirs, _ in counted]), middle
    return result
