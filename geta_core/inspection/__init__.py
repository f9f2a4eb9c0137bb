"""Preflight: what can be removed from a model, what cannot and why, and the proof, without changing the model."""

from geta_core.inspection.build import inspect
from geta_core.inspection.records import Inspection

__all__ = ["Inspection", "inspect"]
