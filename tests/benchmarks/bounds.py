"""What each number is held against: the project's bounds, and the ratio of the released GETA code where it is known.

The released code's ratios were taken with torch 2.13 on one CPU thread (medians of CPU seconds, about 10 % noise):
its quantized model with its optimizer against the float model with SGD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.benchmarks.clock import Spread

STAGES = ("warmup", "projection", "joint", "cooldown")

# (what, net) -> bound; "*" stands for every net.
CPU: Mapping[tuple[str, str], float] = {
    **{(f"qasso/{stage}", "*"): 1.15 for stage in STAGES},
    ("w_learned/eager", "resnet56"): 1.05,
    ("w_learned/eager", "encoder"): 1.3,
    ("wa_fixed/eager", "vgg7"): 1.3,
    ("wa_fixed/compiled", "vgg7"): 1.1,
    ("wa_learned/eager", "vgg7"): 1.5,
    ("wa_learned/compiled", "vgg7"): 1.2,
}
CUDA: Mapping[tuple[str, str], float] = {
    **{(f"qasso/{stage}", "*"): 1.05 for stage in STAGES},
    ("wa_fixed/auto", "vgg7"): 1.1,
    ("wa_learned/auto", "vgg7"): 1.15,
}
ANY: Mapping[tuple[str, str], float] = {
    ("memory/wa", "vgg7"): 1.35,
    ("memory/wa", "encoder"): 1.75,
    ("memory/wa_recompute", "vgg7"): 1.1,
    ("memory/wa_recompute", "encoder"): 1.4,
    ("capture", "resnet50"): 5.0,
    ("capture", "bert"): 5.0,
    ("capture/linear", "bert"): 1.2,
    ("start", "geta --help"): 0.5,
    ("start/local", "digits"): 5.0,
    ("start/ray", "digits"): 30.0,
    ("tracking", "*"): 0.01,
    ("study", "1,000 trials"): 0.05,
    ("study", "10,000 trials"): 0.1,
}
RELEASED: Mapping[tuple[str, str], str] = {
    **{(f"qasso/{stage}", "*"): "not separable" for stage in STAGES},
    ("whole/warmup", "vgg7"): "2.0",
    ("whole/projection", "vgg7"): "1.9",
    ("whole/joint", "vgg7"): "1.9",
    ("whole/cooldown", "vgg7"): "1.8",
    ("whole/warmup", "resnet56"): "1.2 to 1.4",
    ("whole/projection", "resnet56"): "1.03",
    ("whole/joint", "resnet56"): "1.10",
    ("whole/cooldown", "resnet56"): "1.10",
    ("whole/warmup", "encoder"): "1.99",
    ("whole/projection", "encoder"): "1.80",
    ("whole/joint", "encoder"): "2.43",
    ("whole/cooldown", "encoder"): "2.11",
    ("w_learned/eager", "resnet56"): "1.02 to 1.2",
    ("w_learned/eager", "encoder"): "1.8 to 2.4",
    **{(f"wa_{t}/{kernel}", "vgg7"): "2.1" for t in ("fixed", "learned") for kernel in ("eager", "compiled", "auto")},
    ("memory/wa", "vgg7"): "saves all inputs again",
    ("capture", "resnet56"): "1.7 s",
    ("capture", "bert2"): "1.1 s",
}


def _look_up(table: Mapping[tuple[str, str], float], what: str, net: str) -> float | None:
    return table.get((what, net), table.get((what, "*")))


def bound_of(what: str, net: str, device: str) -> float | None:
    """Return the bound of a number on a type of device, or None."""
    own = _look_up(CUDA if device == "cuda" else CPU, what, net)
    return _look_up(ANY, what, net) if own is None else own


def released(what: str, net: str) -> str:
    """Return the released code's number, or "-"."""
    return RELEASED.get((what, net), RELEASED.get((what, "*"), "-"))


@dataclass(frozen=True)
class Row:
    """One number of the report.

    Attributes:
        what: key of the bounds.
        net: what was measured.
        text: the same in words.
        value: median and quartiles; None where it could not be measured.
        unit: "x" for ratios, "s" for seconds, "share".
        note: why it is missing, or a detail.
        bound: the number that the median must not exceed; None for numbers that are only shown.
    """

    what: str
    net: str
    text: str
    value: Spread | None
    unit: str = "x"
    note: str = ""
    bound: float | None = None
    released: str = field(default="-")

    @property
    def verdict(self) -> str:
        """PASS or FAIL beside a bound, "not measured" without a value, else empty."""
        if self.value is None:
            return "not measured"
        if self.bound is None:
            return ""
        return "PASS" if self.value.median <= self.bound else "FAIL"


def row(what: str, net: str, text: str, value: Spread | None, *, device: str, unit: str = "x", note: str = "") -> Row:
    """Return a row with its bound and the released code's number looked up."""
    return Row(what, net, text, value, unit, note, bound_of(what, net, device), released(what, net))
