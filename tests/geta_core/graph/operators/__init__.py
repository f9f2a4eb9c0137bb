"""Every operation that has a rule, in small nets of random shapes, and a proof that trusts nothing of the engine's."""

from tests.geta_core.graph.operators.case import Case, Sizes
from tests.geta_core.graph.operators.linear import LINEAR
from tests.geta_core.graph.operators.moving import MOVING
from tests.geta_core.graph.operators.numbers import NUMBERS
from tests.geta_core.graph.operators.ordered import ORDERED

CASES: tuple[Case, ...] = (*LINEAR, *MOVING, *NUMBERS, *ORDERED)

__all__ = ["CASES", "Case", "Sizes"]
