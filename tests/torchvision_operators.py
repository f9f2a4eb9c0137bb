"""Import torchvision also where its C library cannot be loaded, as with a wheel for CUDA beside a torch for the CPU.

Its Python code then still needs one operator to exist (it registers a fake kernel for it); the models use none.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

MISSING = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: list[object] = []


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing; defines the operators just before torchvision itself is found."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname == "torchvision" and not _library:
            sys.meta_path.remove(self)
            try:
                _define()
            finally:
                sys.meta_path.insert(0, self)
        return None


def install() -> None:
    """Define the missing operators when torchvision is first imported; nothing is imported now."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _define() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    for binary in sorted(Path(spec.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(binary))
            return
        except OSError:
            continue
    library = torch.library.Library("torchvision", "DEF")
    for schema in MISSING:
        library.define(schema)
    _library.append(library)
