"""Deep copies of models without the warnings that torch's own classes cause."""

from __future__ import annotations

import copy
import warnings
from typing import TypeVar

Value = TypeVar("Value")


def copied(value: Value) -> Value:
    """Return a deep copy.

    Copying a graph module makes new objects of a class that torch marks as deprecated; whoever runs a model can do
    nothing about it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated", category=FutureWarning)
        return copy.deepcopy(value)
