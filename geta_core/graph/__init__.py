"""QADG: capture, labels, op rules, zero analysis and groups."""

from geta_core.graph.capture import Capture, ExampleInputs, capture
from geta_core.graph.groups import Group, GroupGraph, Member, PruneSlot
from geta_core.graph.rules.base import register_rule

__all__ = ["Capture", "ExampleInputs", "Group", "GroupGraph", "Member", "PruneSlot", "capture", "register_rule"]
