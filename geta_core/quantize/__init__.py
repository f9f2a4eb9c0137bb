"""Learnable quantizers: formulas, kernels, the operator, the module, and how they are attached to a model."""

from geta_core.quantize.attach import attach, bake_, detach_input_, detach_weight_, quantizable_weights
from geta_core.quantize.attention import Attention, replace_attention_, restore_attention
from geta_core.quantize.calibrate import calibrate_
from geta_core.quantize.kernels import get_kernel, set_kernel
from geta_core.quantize.math import bit_width, decompose, levels, quantize, quantize_backward, step_for_bits
from geta_core.quantize.op import FakeQuantize, fake_quantize
from geta_core.quantize.quantizer import Quantizer
from geta_core.quantize.sites import QuantSite

__all__ = [
    "Attention",
    "FakeQuantize",
    "QuantSite",
    "Quantizer",
    "attach",
    "bake_",
    "bit_width",
    "calibrate_",
    "decompose",
    "detach_input_",
    "detach_weight_",
    "fake_quantize",
    "get_kernel",
    "levels",
    "quantizable_weights",
    "quantize",
    "quantize_backward",
    "replace_attention_",
    "restore_attention",
    "set_kernel",
    "step_for_bits",
]
