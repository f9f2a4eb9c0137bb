"""Models: plain torch, one file per family, built by name or by `package.module:function`."""

from __future__ import annotations

from orchestration.models.registry import ModelEntry, available, build, build_small, example_inputs, find, register

__all__ = ["ModelEntry", "available", "build", "build_small", "example_inputs", "find", "register"]
