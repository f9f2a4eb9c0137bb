"""The forward pre-hook that quantizes what enters a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def _is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


class QuantizeInput:
    """Forward pre-hook that runs the module's own ``input_quantizer``; it holds no tensor, so it may be copied.

    Args:
        names: keyword names of the inputs to quantize, in the order of the forward's parameters; a tensor given for
            several of them is quantized once and stays one tensor. Without names the first positional argument is
            quantized, or else the first tensor keyword. Integer tensors are left alone.
    """

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the quantized tensors in their places."""
        quantizer = module.input_quantizer
        assert isinstance(quantizer, nn.Module)
        positions, keys = self._chosen(args, kwargs)
        values = [args[i] for i in positions] + [kwargs[key] for key in keys]
        done: dict[int, Tensor] = {}
        for value in values:
            if _is_float(value) and id(value) not in done:
                done[id(value)] = quantizer(value)
        if not done:
            return args, kwargs
        new_args = tuple(done.get(id(a), a) if i in positions else a for i, a in enumerate(args))
        return new_args, {key: done.get(id(a), a) if key in keys else a for key, a in kwargs.items()}

    def _chosen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[range, list[str]]:
        if self.names:
            return range(min(len(self.names), len(args))), [name for name in self.names if name in kwargs]
        if args:
            return range(1), []
        return range(0), [key for key, value in kwargs.items() if isinstance(value, Tensor)][:1]
