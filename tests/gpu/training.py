"""A small training with QASSO on any device, for the checks of this folder; needs torch alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import geta_core as geta
from orchestration.models.registry import build, example_inputs

INNER: Mapping[str, tuple[type[torch.optim.Optimizer], Mapping[str, Any]]] = {
    "sgd": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}),
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 1e-2}),
}
# The gradient of d is a saw tooth of slope 1/d in the weights. With 16 bits at the start or a larger learning rate of d
# it multiplies differences in the last bit by up to a thousand per step, on one device too (with another order of
# summation), so that nothing could be compared after 15 steps.
LR_QUANT = 1e-5
CONFIG = geta.CompressionConfig(
    sparsity=0.5, weight_bits=(4, 6), activation_bits=(4, 6), initial_bits=8, learn_activation_exponent=True
)
# Every kind of period boundary occurs: two periods of bits, four of pruning.
SCHEDULE = geta.Schedule(warmup=10, projection=10, joint=20, cooldown=10, projection_periods=2, pruning_periods=4)


@dataclass
class Training:
    """ResNet20 with quantized weights and inputs under QASSO on random images.

    Args:
        device: where.
        inner: name of the inner optimizer.
        dtype: of parameters and images.
        channels_last: memory order of the convolutions.
        autocast: type of the mixed precision, None for none.
        batch: images per step.
    """

    device: torch.device
    inner: str = "sgd"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    autocast: torch.dtype | None = None
    batch: int = 16
    losses: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        model = build("resnet20").to(self.dtype)
        # Prepared on the CPU and moved then, so that every device starts from the same bits.
        (images,) = example_inputs("resnet20", 2 * self.batch)
        self.prepared = geta.prepare(model, images[:8].to(self.dtype), CONFIG)
        self.model = self.prepared.model
        self.model.to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        self.images = images.to(device=self.device, dtype=self.dtype, memory_format=layout)
        self.targets = torch.arange(2 * self.batch, device=self.device) % 10
        kind, keywords = INNER[self.inner]
        self.optimizer = geta.QASSO(self.prepared, kind, schedule=SCHEDULE, lr_quant=LR_QUANT, **keywords)
        self.model.train()

    def gradients(self) -> None:
        """Compute the gradients of the next batch: one half of the images, then the other."""
        half = slice(0, self.batch) if self.optimizer.clock % 2 else slice(self.batch, None)
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            loss = F.cross_entropy(self.model(self.images[half]), self.targets[half])
        loss.backward()
        self.losses.append(loss.detach())

    def steps(self, count: int) -> None:
        """Do whole training steps."""
        for _ in range(count):
            self.gradients()
            self.optimizer.step()


@contextmanager
def no_waiting() -> Iterator[None]:
    """Make CUDA raise an error where the host waits for the device."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
