"""MACs by torch's own counter, which runs the model and knows nothing of graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def flop_counter_macs(model: nn.Module, *inputs: Any, **named: Any) -> float:
    """Half the floating-point operations per example (first dimension of the first input), in eval mode.

    The fused attention kernels of the CPU and the fused layer of nn.TransformerEncoder are unknown to the counter, so
    that the plain forms run instead; they make the same products.
    """
    batch = (*inputs, *named.values())[0].shape[0]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.eval()(*inputs, **named)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() / 2 / batch
