"""MACs, BOPs, bits and bytes, counted in one place."""

from geta_core.accounting.cost import FLOAT_BITS, Account, Layer, average_bits, bops, macs
from geta_core.accounting.measure import Measurement, measurement

__all__ = ["FLOAT_BITS", "Account", "Layer", "Measurement", "average_bits", "bops", "macs", "measurement"]
