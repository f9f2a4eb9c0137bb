"""Compressed models for other runtimes: ONNX with whole-number weights, and a program of aten operations."""

from geta_core.export.aten import export_pt2
from geta_core.export.onnx_file import export_onnx

__all__ = ["export_onnx", "export_pt2"]
