"""Where a run computes, and in which precision."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from geta_core.errors import ConfigError
from orchestration.config import RunSettings
from orchestration.tasks.base import Placement


@dataclass(frozen=True)
class Compute:
    """Device, precision and memory order of a run."""

    device: torch.device
    dtype: torch.dtype
    channels_last: bool

    @property
    def placement(self) -> Placement:
        """Where the task puts its batches."""
        return Placement(self.device, self.channels_last)

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of forward passes."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler; it does something for fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def place(self, model: nn.Module) -> nn.Module:
        """Move a model to the device, in place."""
        if not self.channels_last:
            return model.to(self.device)
        return model.to(self.device, memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]

    def wait(self) -> None:
        """Wait for the device to end what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def name(self) -> str:
        """Return the device's name for records."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def choose_compute(settings: RunSettings) -> Compute:
    """Turn the settings into a device that is there.

    Raises:
        ConfigError: when the device does not exist on this machine.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError([f"run.device must be auto, cpu, cuda or cuda:N, but got {settings.device!r}"]) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError([f"run.device must be auto, cpu, cuda or cuda:N, but got {settings.device!r}"])
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError([f"run.device={settings.device} is not on this machine, which has {count} CUDA devices"])
    dtypes = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    channels_last = device.type == "cuda" if settings.channels_last is None else settings.channels_last
    return Compute(device, dtypes[settings.precision], channels_last)


def set_up_process(settings: RunSettings) -> None:
    """Set seeds, threads and determinism for this process."""
    import random

    import numpy as np

    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    random.seed(settings.seed)
    np.random.seed(settings.seed % 2**32)
    torch.manual_seed(settings.seed)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
