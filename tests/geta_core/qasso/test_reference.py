"""The whole optimizer against an implementation of the paper in Python floats."""

from __future__ import annotations

import pytest
import torch

from geta_core.config import CompressionConfig
from geta_core.qasso import QASSO
from tests.geta_core.qasso.reference import Reference
from tests.geta_core.qasso.toy import backward, mlp, original, schedule

# Both sides do the same float64 arithmetic in another order, over 60 steps: a few ulp of the largest entry of a tensor,
# times the number of levels, at most 2^9, since the residual R is the difference of c/d and its neighbour.
TOLERANCE = 1e-12


def close(value: torch.Tensor, expected: object, what: str) -> None:
    wanted = torch.tensor(expected, dtype=torch.float64)
    worst = float((value.detach() - wanted).abs().max())
    assert worst <= TOLERANCE * max(1e-3, float(wanted.abs().max())), f"{what}: {worst}"


@pytest.mark.parametrize(
    ("activation_bits", "learn_exponent", "weight_bits"),
    [((4, 8), True, (4, 8)), (None, False, (3, 10)), (None, True, (2, 5))],
)
def test_sixty_steps_equal_the_paper(
    activation_bits: tuple[int, int] | None, learn_exponent: bool, weight_bits: tuple[int, int]
) -> None:
    config = CompressionConfig(
        sparsity=0.7,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        learn_exponent=learn_exponent,
        initial_bits=10,
    )
    lengths, periods = (4, 12, 36, 8), (4, 3)
    toy = mlp(config, torch.float64, seed=3)
    reference = Reference(mlp(config, torch.float64, seed=3), lengths, periods, (0.1, 1e-3))
    optimizer = QASSO(toy, torch.optim.SGD, schedule=schedule(*lengths, *periods), lr=0.1, lr_quant=1e-3)
    for step in range(60):
        optimizer.zero_grad()
        backward(toy, step)
        optimizer.step()
        reference.step()
        assert set(optimizer.pruned.nonzero().flatten().tolist()) == reference.pruned, step
        for layer, name in zip(reference.layers, ("0", "2", "4"), strict=True):
            module = toy.model.get_submodule(name)
            close(original(module), layer.rows, f"step {step}, weight {name}")
            close(module.bias, layer.bias, f"step {step}, bias {name}")  # type: ignore[arg-type]
        for site, (grid, _) in zip(toy.sites, reference._quantizers(), strict=True):
            for attribute in ("d", "q_m", "t"):
                if (wanted := getattr(grid, attribute)) is not None:
                    value = getattr(site.quantizer, attribute)
                    assert abs(value.item() - wanted) <= TOLERANCE * wanted, (step, site.name, attribute)
    assert len(reference.pruned) == int(0.7 * 18) == optimizer.pruned_groups()
    assert optimizer.finished
    if weight_bits == (2, 5):
        assert reference.loops > 0, "a narrow range must make the paper's loop turn"
    assert reference.cases == {(True, True), (True, False), (False, True), (False, False)}
