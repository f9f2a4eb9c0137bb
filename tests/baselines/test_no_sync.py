"""A joint method's step never makes the host wait for the device, the one that fixes groups and bits excepted."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from baselines.bayesian_bits import BayesianBits
from baselines.clip_q import ClipQ
from baselines.djpq import Djpq, DjpqRestrict
from baselines.helpers.stepping import StagedOptimizer
from baselines.qst_b import QstB
from tests.baselines.nets import batches, start
from tests.geta_core.host_reads import HostReads

STEPS = 12
METHODS = [
    Djpq(match_bops=0.02, learn=0.5),
    DjpqRestrict(match_bops=0.02, learn=0.5),
    BayesianBits(match_bops=0.02, learn=0.5),
    QstB(warmup=0.2, ramp=0.3, activation_bits=8),
    ClipQ(warmup=0.2, ramp=0.3, activation_bits=8),
]


@pytest.mark.parametrize("method", METHODS)
def test_steps_read_nothing_back(method: Any) -> None:
    prepared, optimizer = start(method, STEPS)
    assert isinstance(optimizer, StagedOptimizer)
    reads, counters = [], []
    for images, labels in batches(STEPS):
        nn.functional.cross_entropy(prepared.model(images), labels).backward()
        # torch's Adam reads one counter per parameter, which it keeps on the host: those do not wait.
        counters.append(1 + (len(getattr(optimizer, "leaves", ())) if optimizer.learning else 0))
        with HostReads() as seen:
            optimizer.step()
        optimizer.zero_grad()
        reads.append(sum(seen.reads.values()))
        assert sum(seen.all.values()) > 20, "the step was watched"
    fixing = STEPS // 2 - 1
    assert reads[:fixing] == counters[:fixing]
    assert reads[fixing + 1 :] == counters[fixing + 1 :]
