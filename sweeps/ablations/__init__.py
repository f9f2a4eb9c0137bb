"""Ablations: a base and variants of it that differ in exactly one key each, as data."""

from sweeps.ablations.ablation import Ablation

__all__ = ["Ablation"]
