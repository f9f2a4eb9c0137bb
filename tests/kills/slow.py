"""Digits that take their time: what is killed must meet a training, and sleeping costs the machine nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestration.tasks.digits import Digits


@dataclass(kw_only=True)
class SlowDigits(Digits):
    """Digits with a pause before each batch."""

    pause: float = 0.05
    """Seconds."""

    def train_batches(self, epoch: int, start_step: int = 0) -> Iterator[Any]:
        for batch in super().train_batches(epoch, start_step):
            time.sleep(self.pause)
            yield batch
