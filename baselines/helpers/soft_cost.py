"""The accountant's BOPs as a differentiable function of keep probabilities and bit widths.

BOPs = sum over layers of MACs x b_w x b_a (definition ``paper``), where each size that MACs are a product of is the
expected number of kept indices. At probabilities 0 and 1 and at the bit widths of the sites it is the accountant's own
number (a test says so); in between it is the product of expectations, exact where the sizes are independent.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

import geta_core as geta
from geta_core.accounting import FLOAT_BITS
from geta_core.graph.labels import varying
from geta_core.graph.sizes import shape_of


class SoftCost:
    """Relative BOPs of a prepared model.

    Args:
        prepared: before anything that renames its parameters.
        device: of the tensors that are returned.

    Attributes:
        macs: MACs per example of each counted layer of the dense model, [layers].
    """

    def __init__(self, prepared: geta.Prepared, device: torch.device) -> None:
        account = prepared.account
        products = [product for product in account.products if product.operand is not None]
        rows: dict[bytes, int] = {}
        sizes: list[Tensor] = []
        constant: list[int] = []
        self._factors: list[list[int]] = []
        for product in products:
            numbers = []
            for node, dim in product.sizes:
                counts, rest = _members(prepared, node, dim % len(shape_of(node)))
                key = counts.numpy().tobytes() + rest.to_bytes(8, "little")
                if key not in rows:
                    rows[key] = len(sizes)
                    sizes.append(counts)
                    constant.append(rest)
                numbers.append(rows[key])
            self._factors.append(numbers)
        longest = max(map(len, self._factors), default=0)
        # One more row, whose size is always 1, fills up layers with fewer dimensions.
        index = [[*numbers, *[len(sizes)] * (longest - len(numbers))] for numbers in self._factors]
        groups = prepared.num_prunable
        self._sizes = torch.stack([*sizes, torch.zeros(groups)]).to(device)
        self._constant = torch.tensor([*constant, 1.0], device=device)
        self._index = torch.tensor(index, dtype=torch.long, device=device).view(len(products), longest)
        names = {site.name: number for number, site in enumerate(prepared.sites)}
        last = len(names)
        self._weight = torch.tensor([names[p.weight_site.name] if p.weight_site else last for p in products])
        self._input = torch.tensor([names[p.input_site.name] if p.input_site else last for p in products])
        self._weight, self._input = self._weight.to(device), self._input.to(device)
        self._batch = account.batch
        self.macs = self.layer_macs(torch.ones(groups, device=device))
        self._dense = self.macs.sum() * FLOAT_BITS**2
        self._float = torch.full((1,), float(FLOAT_BITS), device=device)

    def layer_macs(self, keep: Tensor) -> Tensor:
        """Return the expected MACs of each counted layer, [layers]; ``keep`` is [groups] in [0, 1]."""
        sizes = self._constant + self._sizes @ keep
        return sizes[self._index].prod(1) / self._batch

    def relative_bops(self, keep: Tensor, bits: Tensor) -> Tensor:
        """Return BOPs over those of the dense float model, 0-dim.

        Args:
            keep: probability that each group stays, [groups].
            bits: bit width of each site (the mean over its channels), [sites].
        """
        widths = torch.cat([bits, self._float.to(bits.dtype)])
        return (self.layer_macs(keep) * widths[self._weight] * widths[self._input]).sum() / self._dense

    def layer_sums(self, values: Tensor) -> Tensor:
        """Return, for each layer, the sum of a value of its weight's site and its input's, [layers].

        Args:
            values: of each site, [sites]; what is not quantized counts ``FLOAT_BITS``.
        """
        padded = torch.cat([values, self._float.to(values.dtype)])
        return padded[self._weight] + padded[self._input]


def _members(prepared: geta.Prepared, node: torch.fx.Node, dim: int) -> tuple[Tensor, int]:
    """How many indices of a dimension each group decides, and how many are in no prunable group."""
    graph = prepared.graph
    size = int(shape_of(node)[dim])
    owner = torch.full((size,), -1, dtype=torch.long)
    for layer in cast(tuple[Tensor, ...], graph.first.values.get(node, ())):
        if dim not in varying(layer):
            continue
        flat = layer.movedim(dim, 0).reshape(size, -1)
        number = torch.where(flat >= 0, graph.number[graph.component[flat.clamp(min=0)]], torch.full_like(flat, -1))
        one = (number == number[:, :1]).all(1) & (number[:, 0] >= 0)
        owner = torch.where((owner < 0) & one, number[:, 0], owner)
    counts = torch.bincount(owner[owner >= 0], minlength=prepared.num_prunable).float()
    return counts, size - int((owner >= 0).sum())
