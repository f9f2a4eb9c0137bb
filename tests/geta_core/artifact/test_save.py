"""Where an artifact may be written, and that a failure leaves nothing behind."""

from __future__ import annotations

import copy
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import geta_core as geta
from geta_core.artifact.manifest import MANIFEST, TENSORS
from tests.geta_core.artifact.saved import copied, manifest_of
from tests.geta_core.compressing import batch, build, compressed_net

Saved = Callable[[str, str], Path]


def refused(compressed: geta.Compressed, target: Path | str, *words: str) -> None:
    with pytest.raises(geta.ArtifactError) as caught:
        compressed.save(target)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def everything(root: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))}


@pytest.fixture
def small() -> geta.Compressed:
    return compressed_net("vgg7", "WA")


def test_missing_parents_are_made(small: geta.Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small.save("runs/first/artifact")
    assert sorted(path.name for path in (tmp_path / "runs/first/artifact").iterdir()) == [MANIFEST, TENSORS]
    assert [path.name for path in (tmp_path / "runs/first").iterdir()] == ["artifact"]
    geta.load("runs/first/artifact")


def test_the_same_model_gives_the_same_bytes(saved: Saved, small: geta.Compressed, tmp_path: Path) -> None:
    small.save(tmp_path)
    assert list(everything(tmp_path).values()) == list(everything(saved("vgg7", "WA")).values())


def test_an_older_artifact_is_replaced_whole(saved: Saved, small: geta.Compressed, tmp_path: Path) -> None:
    target = copied(saved("vit", "W"), tmp_path / "artifact")
    link = tmp_path / "link"
    link.symlink_to(target)
    small.save(link)
    assert list(everything(target).values()) == list(everything(saved("vgg7", "WA")).values())
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "link"]


def test_a_damaged_artifact_is_replaced(small: geta.Compressed, tmp_path: Path) -> None:
    for name in (MANIFEST, TENSORS):
        (tmp_path / name).write_bytes(b"half")
    small.save(tmp_path)
    geta.load(tmp_path)


def test_a_directory_with_something_else_is_kept(saved: Saved, small: geta.Compressed, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / MANIFEST).write_text('{"name": "a web page"}', encoding="utf-8")
    more = copied(saved("vgg7", "WA"), tmp_path / "more")
    (more / "notes.txt").write_text("do not lose this", encoding="utf-8")
    before = everything(tmp_path)
    for target in (foreign, more, tmp_path):
        refused(small, target, str(target), "choose another directory")
    assert everything(tmp_path) == before


def test_a_file_in_the_way(small: geta.Compressed, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    before = everything(tmp_path)
    for target in (file, file / "artifact", file / "a" / "b"):
        refused(small, target, "cannot write", "Not a directory")
    assert everything(tmp_path) == before


def test_a_place_where_nobody_may_write(small: geta.Compressed) -> None:
    refused(small, "/proc/self/geta/artifact", "cannot write /proc/")


def test_a_full_disk(saved: Saved, small: geta.Compressed, tmp_path: Path) -> None:
    target = copied(saved("vit", "W"), tmp_path / "artifact")
    before = everything(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        refused(small, target, "cannot write", "File too large")
        refused(small, tmp_path / "new" / "artifact", "cannot write", "File too large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert everything(tmp_path) == before


def test_what_a_killed_writer_left_is_in_nobodys_way(small: geta.Compressed, tmp_path: Path) -> None:
    for end in ("tmp", "old"):
        (tmp_path / f".artifact.{os.getpid()}.{end}").mkdir()
        (tmp_path / f".artifact.{os.getpid()}.{end}" / TENSORS).write_bytes(b"half")
    small.save(tmp_path / "artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    geta.load(tmp_path / "artifact")


def test_a_model_that_was_trained_after_finish(small: geta.Compressed, tmp_path: Path) -> None:
    changed = copy.deepcopy(small)
    weight = next(iter(changed.weights))
    with torch.no_grad():
        changed.model.get_parameter(weight).mul_(1.01)
    refused(changed, tmp_path / "new" / "artifact", weight, "does not lie on its grid")
    with torch.no_grad():
        changed.model.get_parameter(weight).fill_(torch.nan)
    refused(changed, tmp_path / "new" / "artifact", weight, "does not lie on its grid")
    assert not list(tmp_path.iterdir())


def test_an_output_that_has_no_plain_form(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> dict[int, torch.Tensor]:
            return {3: self.layer(x)}

    config = geta.CompressionConfig(weight_bits=(4, 8))
    compressed = geta.finish(geta.prepare(Odd(), torch.randn(2, 4), config))
    refused(compressed, tmp_path / "new" / "artifact", "dict", "text keys")
    assert not list(tmp_path.iterdir())


def test_saving_changes_nothing(small: geta.Compressed, tmp_path: Path) -> None:
    for compressed in (small, compressed_net("fixed", "WA")):
        before = {name: value.clone() for name, value in compressed.model.state_dict().items()}
        modes = [module.training for module in compressed.model.modules()]
        modules = list(compressed.model.modules())
        compressed.save(tmp_path / "artifact")
        shutil.rmtree(tmp_path / "artifact")
        after = compressed.model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], value) for name, value in before.items())
        assert list(compressed.model.modules()) == modules
        assert [module.training for module in modules] == modes


def test_a_model_in_train_mode_is_saved_all_the_same(saved: Saved, tmp_path: Path) -> None:
    compressed = copy.deepcopy(compressed_net("resnet", "W"))
    compressed.model.train()
    compressed.save(tmp_path / "artifact")
    assert compressed.model.training
    assert manifest_of(tmp_path / "artifact")["graph"] == manifest_of(saved("resnet", "W"))["graph"]
    x = batch("resnet", 3)
    assert torch.equal(geta.load(tmp_path / "artifact")(x), geta.load(saved("resnet", "W"), build("resnet"))(x))
