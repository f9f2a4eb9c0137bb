"""The examples of ``docs/rules.md`` run as they stand there, and without their rules the operations are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import geta_core as geta
from geta_core.graph.rules import base, install_all
from tests.structure.sources import ROOT


def test_the_examples_of_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "rules.md").read_text(encoding="utf-8")
    like, rule, check = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    install_all()
    monkeypatch.setattr(base, "_RULES", dict(base._RULES))
    names: dict[str, Any] = {"__name__": "document"}
    definitions, *registrations = re.split(r"^(?=geta\.register_rule)", like + rule, flags=re.MULTILINE)
    assert len(registrations) == 2
    exec(compile(definitions, "docs/rules.md", "exec"), names)
    second = registrations[0].split("\n", 1)[1]
    exec(compile(second, "docs/rules.md", "exec"), names)
    model_code, _, _ = check.partition("found = ")
    exec(compile(model_code, "docs/rules.md", "exec"), names)

    def missing() -> list[str]:
        found = geta.inspect(names["Gated"](), torch.randn(2, 3, 8, 8))
        return [each.name for each in found.missing]

    assert missing() == ["mylib.hard_clip.default", "mylib.mirror_gate.default"]
    with pytest.raises(geta.UnsupportedOpError, match=r"register_rule\(torch\.ops\.mylib\."):
        geta.prepare(names["Gated"](), torch.randn(2, 3, 8, 8))
    exec(compile(registrations[0].split("\n", 1)[0], "docs/rules.md", "exec"), names)
    assert missing() == ["mylib.mirror_gate.default"]
    exec(compile(registrations[1], "docs/rules.md", "exec"), names)
    assert missing() == []
    exec(compile(check, "docs/rules.md", "exec"), names)
    assert names["found"].proof.removed > 0
    prepared = geta.prepare(names["Gated"](), torch.randn(2, 3, 8, 8), geta.CompressionConfig(weight_bits=None))
    for group in prepared.graph.groups:
        if group.pinned is None:
            where = {member.name: member.indices for member in group.members if member.dim == 0}
            assert where["gate.weight"] == (5 - where["stem.weight"][0],)
