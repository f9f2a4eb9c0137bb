"""Second derivatives of layers' squared output errors, accumulated over calibration inputs.

For a layer with output W X, the error ||W X - (W + D) X||^2 of a changed row is d^T (X X^T) d: the Gram matrix of the
columns is half the Hessian of every row (arXiv:2208.11580, section 3). Sums are kept in float64 and divided by the
number of samples, so that errors are means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from baselines.helpers.calling import call, evaluating
from baselines.helpers.matrix import MatrixLayer


@dataclass
class Gram:
    """Mean products of a layer's columns x, and of those with the columns z of the same layer in another model.

    Attributes:
        xx: E[x x^T], float64 [groups, columns, columns], once something was added.
        zx: E[z x^T], likewise; only where ``add`` got both.
        samples: number of columns.
    """

    layer: MatrixLayer
    samples: int = 0
    _xx: Tensor | None = field(default=None, repr=False)
    _zx: Tensor | None = field(default=None, repr=False)

    def add(self, x: Tensor, z: Tensor | None = None) -> None:
        """Take one batch of the layer's inputs into account.

        Args:
            x: input of the layer.
            z: input of the same layer in the other model, for the same batch.
        """
        others: Iterator[Tensor | None] = iter(self.layer.columns(z)) if z is not None else iter(lambda: None, 0)
        for own, other in zip(self.layer.columns(x), others, strict=False):
            self.samples += own.shape[-1]
            self._xx = _sum(self._xx, own, own)
            if other is not None:
                self._zx = _sum(self._zx, other, own)

    @property
    def empty(self) -> bool:
        """Whether nothing reached the layer."""
        return self._xx is None

    @property
    def xx(self) -> Tensor:
        """E[x x^T], float64 [groups, columns, columns]."""
        assert self._xx is not None, "nothing reached this layer"
        return self._xx / self.samples

    @property
    def zx(self) -> Tensor:
        """E[z x^T], float64 [groups, columns, columns]; E[x x^T] where there was no other model."""
        return self.xx if self._zx is None else self._zx / self.samples


def _sum(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    product = (left.double() @ right.double().mT) if left.is_cpu else (left @ right.mT).double()
    return product if total is None else total.add_(product)


def grams(
    model: nn.Module,
    layers: Mapping[nn.Module, MatrixLayer],
    batches: Sequence[Any],
    original: tuple[nn.Module, Mapping[nn.Module, nn.Module]] | None = None,
) -> dict[nn.Module, Gram]:
    """Return the products of some layers' inputs. Models run in evaluation mode and stay as they are.

    Args:
        model: what the layers belong to.
        layers: the layers, each with its view as a matrix.
        batches: inputs of the model.
        original: another model, and its module for each of the layers, whose inputs are z; None: there is no z.
    """
    found = {module: Gram(layer) for module, layer in layers.items()}
    with evaluating(model), _inputs_of(layers) as seen:
        if original is None:
            for batch in batches:
                call(model, batch)
                for module, gram in found.items():
                    for x in seen.pop(module, []):
                        gram.add(x)
            return found
        other, partner = original
        with evaluating(other), _inputs_of([partner[module] for module in layers]) as seen_there:
            for batch in batches:
                call(model, batch)
                call(other, batch)
                for module, gram in found.items():
                    pairs = zip(seen.pop(module, []), seen_there.pop(partner[module], []), strict=True)
                    for x, z in pairs:
                        gram.add(x, z)
    return found


@contextmanager
def _inputs_of(modules: Any) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """Collect the first input of every call of some modules, as they see it: after the hooks that quantize it."""
    seen: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else next(iter(kwargs.values()))
        seen.setdefault(module, []).append(value.detach())

    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def damped_inverse(gram: Tensor, damping: float) -> Tensor:
    """Return (H + damping * mean(diag H) I)^-1, and 1 / that mean on the diagonal of columns that are never used.

    Args:
        gram: H, symmetric, float64 [..., columns, columns].
        damping: share of the mean diagonal that is added, so that the inverse exists.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    unused = diagonal == 0
    mean = diagonal.sum(-1, keepdim=True) / (~unused).sum(-1, keepdim=True).clamp(min=1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))
    extra = torch.where(unused, mean, damping * mean)
    inverse: Tensor = torch.linalg.inv(gram + torch.diag_embed(extra))
    return inverse
