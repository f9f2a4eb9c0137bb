"""QASSO: the optimizer that prunes and quantizes while it trains (arXiv:2502.16638)."""

from geta_core.qasso.optimizer import QASSO
from geta_core.qasso.saliency import SaliencyWeights
from geta_core.qasso.schedule import Schedule
from geta_core.qasso.variants import VariedQASSO

__all__ = ["QASSO", "SaliencyWeights", "Schedule", "VariedQASSO"]
