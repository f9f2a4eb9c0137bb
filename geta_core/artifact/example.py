"""Shapes and types of a model's example inputs, so that an artifact can be exported again; values are not stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from geta_core.artifact.manifest import field
from geta_core.artifact.specs import decode_spec, encode_spec
from geta_core.errors import ArtifactError
from geta_core.graph import ExampleInputs

MOST_ELEMENTS = 2**28
"""Elements of an example that an artifact may ask for."""
_DTYPES = {name: kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)}
_NAMES = {kind: name for name, kind in _DTYPES.items()}


def example_spec(inputs: ExampleInputs) -> dict[str, Any]:
    """What a manifest says of the example.

    Raises:
        ArtifactError: if an input is neither a tensor nor a plain value.
    """
    leaves, spec = pytree.tree_flatten((inputs.args, inputs.kwargs))
    return {"nesting": encode_spec(spec), "leaves": [_leaf(leaf) for leaf in leaves]}


def _leaf(leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, Tensor):
        return {"shape": list(leaf.shape), "dtype": _NAMES[leaf.dtype]}
    if leaf is None or isinstance(leaf, (bool, int, float, str)):
        return {"value": leaf}
    raise ArtifactError(f"save: an input of the model is a {type(leaf).__name__}, which an artifact cannot hold")


def example_zeros(manifest: Mapping[str, Any]) -> ExampleInputs:
    """Zeros of the example's shapes.

    Raises:
        ArtifactError: if the manifest does not describe them, or asks for more than ``MOST_ELEMENTS``.
    """
    if "example" not in manifest:
        raise ArtifactError("load: the artifact does not say what inputs its model takes; save it again")
    described = field(manifest, "example", dict)
    leaves, total = [], 0
    for leaf in field(described, "leaves", list):
        if "value" in leaf:
            leaves.append(leaf["value"])
            continue
        shape, count = leaf.get("shape"), 1
        plain = isinstance(shape, list) and all(type(size) is int and 0 <= size <= MOST_ELEMENTS for size in shape)
        for size in shape if plain else ():
            count *= size
        total += count
        if not plain or leaf.get("dtype") not in _DTYPES or total > MOST_ELEMENTS:
            raise ArtifactError(f"load: the example of the artifact is not valid: {leaf!r:.80}")
        leaves.append(torch.zeros(shape, dtype=_DTYPES[leaf["dtype"]]))
    spec = decode_spec(described.get("nesting"))
    if spec.num_leaves != len(leaves):
        raise ArtifactError("load: the example of the artifact does not have the nesting that it states")
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return ExampleInputs(args, kwargs)
