"""Checkpoints: whole or not there, checked when read, the last good one taken."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from geta_core.errors import ArtifactError
from orchestration.checkpoint import KEEP, CheckpointStore
from orchestration.files import atomic_file, write_json, write_text
from orchestration.meter import Meter
from orchestration.state import random_state, set_random_state


def state(number: int) -> dict[str, Any]:
    return {"step": number, "tensor": torch.full((100,), float(number)), "nested": [{"a": (1, "b", None, 2.5)}]}


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def forge(path: Path) -> None:
    """Put another object in the place, with a manifest that fits."""
    import hashlib
    import pickle

    data = pickle.dumps({"step": print})
    path.write_bytes(data)
    manifest = {"step": 30, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(manifest))


def test_the_newest_comes_back_and_few_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "made")
    assert store.restore() is None and store.last() is None
    for step in (10, 20, 30):
        store.save(state(step), step)
    restored = store.restore()
    assert restored is not None and restored.damaged == ()
    assert restored.state["step"] == 30 and torch.equal(restored.state["tensor"], state(30)["tensor"])
    assert restored.state["nested"] == [{"a": (1, "b", None, 2.5)}]
    assert len(list(store.folder.glob("*.pt"))) == len(list(store.folder.glob("*.json"))) == KEEP == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, "was altered"),
        (truncate, "is truncated"),
        (Path.unlink, "is missing"),
        (lambda path: path.with_suffix(".json").write_text("{"), "json is damaged"),
        (forge, "cannot be read"),
    ],
)
def test_a_damaged_one_is_named_and_the_one_before_is_used(tmp_path: Path, damage: Any, words: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(state(20), 20)
    newest = store.save(state(30), 30)
    damage(newest)
    restored = store.restore()
    assert restored is not None and restored.state["step"] == 20
    assert len(restored.damaged) == 1 and words in restored.damaged[0] and "step-000000030" in restored.damaged[0]
    damage(restored.path)
    if damage is forge:
        return
    with pytest.raises(ArtifactError, match="no usable checkpoint") as caught:
        store.restore()
    assert "step-000000030" in str(caught.value) and "step-000000020" in str(caught.value)


def test_what_a_killed_write_leaves_counts_for_nothing_and_is_cleared(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(state(10), 10)
    (tmp_path / "step-000000020.pt").write_bytes(b"complete, but its manifest was never written")
    (tmp_path / "step-000000030.pt.partial").write_bytes(b"half")
    restored = store.restore()
    assert restored is not None and restored.state["step"] == 10 and not restored.damaged
    store.save(state(20), 20)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"step-{step:09d}.{kind}" for step in (10, 20) for kind in ("pt", "json")
    }


def test_a_later_one_that_is_damaged_does_not_push_out_good_ones(tmp_path: Path) -> None:
    """After a step back, new checkpoints are older than the damaged one: they must be the ones that stay."""
    store = CheckpointStore(tmp_path)
    for step in (10, 20):
        store.save(state(step), step)
    flip_a_byte(store.save(state(30), 30))
    assert store.restore().state["step"] == 20  # type: ignore[union-attr]
    store.save(state(25), 25)
    restored = store.restore()
    assert restored is not None and restored.state["step"] == 25 and not restored.damaged


def test_files_are_replaced_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}


def test_random_generators_come_back_through_a_file(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save({"random": random_state()}, 1)

    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), *np.random.randn(3).tolist(), *torch.rand(3).tolist()]

    first = draw()
    restored = store.restore()
    assert restored is not None
    assert draw() != first
    set_random_state(restored.state["random"])
    assert draw() == first


def test_means_survive_a_checkpoint_bit_for_bit() -> None:
    values = torch.rand(20, dtype=torch.float32)
    whole, first, second = Meter(), Meter(), Meter()
    for value in values:
        whole.add({"loss": value})
    for value in values[:7]:
        first.add({"loss": value})
    second.load_state_dict(first.state_dict(), torch.device("cpu"))
    for value in values[7:]:
        second.add({"loss": value})
    assert whole.means() == second.means() == {"loss": pytest.approx(values.double().mean().item(), rel=1e-15)}
    whole.clear()
    assert whole.means() == {}
