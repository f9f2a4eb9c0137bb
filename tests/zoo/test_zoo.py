"""The zoo's own machinery: what it holds, and that it sees what is wrong."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geta_core as geta
from tests.zoo import check as checking
from tests.zoo.__main__ import check_all, known, run_one, write_table
from tests.zoo.check import Verdict, check
from tests.zoo.families import every
from tests.zoo.family import Family

LEAST = 190


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def rows(batch: int, length: int | None) -> Tensor:
    return torch.randn(batch, 4)


def family(build: Any = net, name: str = "net/test") -> Family:
    return Family(name, build, rows)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) if x.sum() > 0 else self.layers(-x)


def endless() -> nn.Module:
    while True:
        pass


def test_the_zoo_is_large() -> None:
    sources = Counter(name.partition("/")[0] for name in every())
    assert sum(sources.values()) >= LEAST
    assert sources["transformers"] >= 40
    assert sources["case"] >= 25


@pytest.mark.needs("timm", "torchvision")
def test_every_module_of_timm_is_there() -> None:
    import timm

    modules = {timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in timm.list_models()}
    assert {f"timm/{module}" for module in modules} <= every().keys()


@pytest.mark.needs("torchvision")
def test_every_classification_family_of_torchvision_is_there() -> None:
    import torchvision

    builders = map(torchvision.models.get_model_builder, torchvision.models.list_models(module=torchvision.models))
    modules = {builder.__module__.rpartition(".")[2] for builder in builders}
    assert {f"torchvision/{module}" for module in modules} <= every().keys()


def test_a_sound_family_passes() -> None:
    verdict = check(family())
    assert (verdict.verdict, verdict.stage, verdict.reason) == ("passed", "", "")
    assert (verdict.groups, verdict.families, verdict.removed) == (16, 2, 5)
    assert verdict.pins == {"reaches the model's output": 2}
    # Both hidden layers and the columns of the last one; its two biases stay.
    assert (verdict.parameters, verdict.prunable) == (40 + 72 + 18, 40 + 72 + 16)
    assert verdict.ops == ["aten.linear.default", "aten.relu.default"]
    assert verdict.native == {"float": True, "W+A": True}


def test_a_wrong_result_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    finish = geta.finish

    def altered(prepared: geta.Prepared) -> geta.Compressed:
        compressed = finish(prepared)
        with torch.no_grad():
            next(compressed.model.parameters()).mul_(1 + 1e-6)
        return compressed

    monkeypatch.setattr(checking.geta, "finish", altered)
    verdict = check(family())
    assert (verdict.verdict, verdict.stage) == ("FAILED", "float: compare")
    assert "zeroed and slimmed model differ by" in verdict.reason


def test_a_removal_without_effect_is_seen() -> None:
    def dead() -> nn.Module:
        model = net()
        model[4].register_forward_hook(lambda module, given, result: 0 * result)
        return model

    verdict = check(family(dead))
    assert (verdict.verdict, verdict.stage) == ("FAILED", "float: prune")
    assert "zeroing changes no output" in verdict.reason


def test_a_clear_error_is_a_refusal() -> None:
    verdict = check(family(Branching))
    assert (verdict.verdict, verdict.stage) == ("refused", "float: prepare")
    assert "torch.export cannot trace the model" in verdict.reason


def test_a_family_without_groups_does_not_pass() -> None:
    verdict = check(family(lambda: nn.Linear(4, 3)))
    assert verdict.verdict == "refused"
    assert verdict.reason == "NothingLeftError: every group is pinned: reaches the model's output"


def test_a_traceback_is_a_failure() -> None:
    verdict = check(family(lambda: nn.Linear(4, -3)))
    assert (verdict.verdict, verdict.stage) == ("FAILED", "float: build")
    assert verdict.reason.startswith("RuntimeError")


def test_a_process_that_hangs_or_dies_is_a_failure() -> None:
    hung, died = run_one(family(endless), 1), run_one(family(lambda: os._exit(3)), 60)
    assert (hung["verdict"], hung["reason"]) == ("FAILED", "no answer within 1 s of CPU time")
    assert (died["verdict"], died["reason"]) == ("FAILED", "ended with exit code 3")


def test_records_are_kept_one_by_one_and_make_a_table(tmp_path: Path) -> None:
    path = tmp_path / "zoo.jsonl"
    check_all([family(name="net/sound"), family(Branching, "net/branching")], path, 60)
    check_all([family(name="net/branching")], path, 60)
    records = known(path)
    assert {name: record["verdict"] for name, record in records.items()} == {
        "net/sound": "passed",
        "net/branching": "passed",
    }
    failed = Verdict("net/broken", "other", stage="float: finish", reason="a | b").json()
    write_table(tmp_path / "table.md", [*records.values(), failed])
    text = (tmp_path / "table.md").read_text()
    assert "**2 of 3 passed** (66.7%), 0 were refused with a clear error, 1 failed, 0 were not run" in text
    assert "| net/broken | FAILED | float: finish | a \\| b |" in text
    assert "| sound | 2 | 5 | 16 | 2 | 98% |" in text


def test_the_page_names_heads_and_widths_that_cannot_be_pruned(tmp_path: Path) -> None:
    """A family without any does not count as one with all; a record from before they were counted is left out."""
    pinned = {"layers.1.q.weight[0]": ["enters a softmax"]}
    full = Verdict("net/full", "transformer", "passed", inner=6, covered=6, native={"float": True}).json()
    less = Verdict("net/less", "transformer", "passed", inner=6, covered=5, uncovered=pinned).json()
    none = Verdict("net/none", "transformer", "passed").json()
    old = {name: value for name, value in full.items() if name not in {"inner", "covered", "uncovered", "outer"}}
    write_table(tmp_path / "table.md", [full, less, none, {**old, "family": "net/old"}])
    text = (tmp_path / "table.md").read_text()
    assert "Of 3 families with attention that passed, 1 have every head and MLP width prunable" in text
    assert "not so net/less (5/6), net/none (0/0)." in text
    assert "Where that counts as part of passing, 2 of 4 passed (50.0%)." in text
    assert "| net/less | transformer | 1 of 6 | `layers.1.q.weight[0]` | enters a softmax |" in text
    assert "| 6/6 |" in text.split("| full |")[1].splitlines()[0]
    assert "| - |" in text.split("| old |")[1].splitlines()[0]
