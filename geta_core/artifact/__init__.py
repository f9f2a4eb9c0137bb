"""Saving and loading compressed models: safetensors and a JSON manifest, no pickle, no code."""

from geta_core.artifact.reader import load
from geta_core.artifact.writer import save

__all__ = ["load", "save"]
