"""The nesting of a graph's inputs and outputs as plain JSON.

torch's own text form is not used: reading it back imports modules that the text names.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from typing import Any

from torch.utils import _pytree as pytree

from geta_core.errors import ArtifactError


def encode_spec(spec: pytree.TreeSpec) -> Any:
    """A nesting of tuples, lists and mappings with text keys; null stands for a tensor or number.

    Named tuples become tuples, and other mappings (such as the outputs of Hugging Face models) become dicts.

    Raises:
        ArtifactError: if a container has no plain form.
    """
    if spec.is_leaf():
        return None
    children = [encode_spec(child) for child in spec.children()]
    kind, context = spec.type, spec.context
    if kind in (tuple, namedtuple):
        return {"tuple": children}
    if kind is list:
        return {"list": children}
    mapping = isinstance(kind, type) and issubclass(kind, Mapping) and isinstance(context, (list, tuple))
    if mapping and len(context) == len(children) and all(isinstance(key, str) for key in context):
        return {"dict": [[key, child] for key, child in zip(context, children, strict=True)]}
    shown = getattr(kind, "__qualname__", kind)
    raise ArtifactError(
        f"save: the model takes or returns a {shown}, which an artifact cannot hold; use tensors, tuples, lists and "
        "dicts with text keys"
    )


def decode_spec(data: Any) -> pytree.TreeSpec:
    """Undo :func:`encode_spec`.

    Raises:
        ArtifactError: for anything that it does not write.
    """
    if data is None:
        return pytree.treespec_leaf()
    if isinstance(data, dict) and len(data) == 1:
        ((kind, content),) = data.items()
        if kind == "dict" and isinstance(content, list) and all(_is_pair(item) for item in content):
            keys = [key for key, _ in content]
            return pytree.TreeSpec(dict, keys, [decode_spec(child) for _, child in content])
        if kind in ("tuple", "list") and isinstance(content, list):
            return pytree.TreeSpec({"tuple": tuple, "list": list}[kind], None, [decode_spec(item) for item in content])
    raise ArtifactError("load: the manifest's nesting of inputs and outputs is not valid")


def _is_pair(item: Any) -> bool:
    return isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)
