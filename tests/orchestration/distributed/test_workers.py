"""One worker against two real processes over gloo: same masks, bits and weights; stops, resumes, mismatches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestration.checkpoint import CheckpointStore
from tests.orchestration.distributed.workers import STEPS, alone, configured, read_note, together

pytestmark = pytest.mark.timeout(900)

SAME = ("group_norm", "layer_norm", "frozen_batch_norm")
WEIGHTS = 1e-9
"""Largest difference of a weight after 5 steps: gradients are summed in another order, in float64."""
STOP, SPOIL, BURST = 13, 15, 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that two processes did together, and one alone; two starts of two processes serve all tests."""
    place = tmp_path_factory.mktemp("workers")
    first = {net: {"config": configured(place / net, net)} for net in SAME}
    first["stopped"] = {"config": configured(place / "cut", "group_norm"), "stop_after": STOP, "rank": 1}
    first["spoiled"] = {"config": configured(place / "spoiled", "group_norm"), "spoil_after": SPOIL, "rank": 1}
    first["burst"] = {"config": configured(place / "burst", "group_norm", task={"burst_at": BURST})}
    undivided = {"name": "tests.orchestration.distributed.nets:Undivided"}
    first["undivided"] = {"config": configured(place / "undivided", "group_norm", task=undivided)}
    first["to_one"] = {"config": configured(place / "to_one", "group_norm"), "stop_after": STOP}
    together(place, first)
    alone(place, {f"one_{net}": {"config": configured(place / f"one_{net}", net)} for net in SAME})
    alone(
        place,
        {
            "to_one_on": {"config": configured(place / "to_one", "group_norm")},
            "to_two": {"config": configured(place / "to_two", "group_norm"), "stop_after": STOP},
        },
    )
    together(
        place,
        {
            "stopped_on": {"config": configured(place / "cut", "group_norm")},
            "to_two_on": {"config": configured(place / "to_two", "group_norm")},
        },
    )
    return place


def same_decisions(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    """Fail unless two workers had the same masks and whole bits at the same periods."""
    assert [each["step"] for each in left] == [each["step"] for each in right]
    for a, b in zip(left, right, strict=True):
        for mask in ("pruned", "redundant"):
            assert torch.equal(a[mask], b[mask]), f"{mask} differ after step {a['step']}"
        assert a["bits"].keys() == b["bits"].keys()
        for site, bits in a["bits"].items():
            assert torch.equal(bits, b["bits"][site]), f"bits of {site} differ after step {a['step']}"


def last_state(folder: Path) -> dict[str, Any]:
    """Return the model of a run's last checkpoint."""
    restored = CheckpointStore(folder / "checkpoints").restore()
    assert restored is not None
    assert restored.state["step"] == STEPS
    return restored.state


@pytest.mark.parametrize("net", SAME)
def test_two_workers_decide_like_one(folder: Path, net: str) -> None:
    one, leader, follower = read_note(folder, f"one_{net}"), read_note(folder, net), read_note(folder, net, 1)
    assert (one["end"], leader["end"], follower["end"]) == ("done", "done", "followed")
    steps = [each["step"] for each in one["periods"]]
    assert len(steps) >= 8 and steps[-1] == STEPS, "all stages and periods are among them"
    assert bool(one["periods"][-1]["pruned"].any())
    for other in (leader, follower):
        same_decisions(one["periods"], other["periods"])
        difference = max(float((other["early"][name] - value).abs().max()) for name, value in one["early"].items())
        assert difference <= WEIGHTS, f"{net}: weights differ by {difference:.3g} after 5 steps"
    for name, value in leader["early"].items():
        assert torch.equal(value, follower["early"][name]), f"{name} differs between the workers"


@pytest.mark.parametrize("net", SAME)
def test_shared_evaluation_counts_every_example_once(folder: Path, net: str) -> None:
    lines = [
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in (f"one_{net}", net)
    ]
    assert len(lines[0]) == len(lines[1]) > 4
    for one, two in zip(*lines, strict=True):
        assert (one["kind"], one["step"]) == (two["kind"], two["step"])
        for key, value in one["metrics"].items():
            exact = key.endswith(("accuracy", "group_sparsity"))
            assert two["metrics"][key] == pytest.approx(value, rel=0 if exact else 1e-6, abs=1e-12), key


def test_a_task_that_cannot_divide_its_evaluation_is_evaluated_by_the_leader(folder: Path) -> None:
    assert read_note(folder, "undivided", 0)["end"] == "done"
    lines = [json.loads(line) for line in (folder / "undivided" / "metrics.jsonl").read_text().splitlines()]
    measured = [line["metrics"]["val/accuracy"] for line in lines if line["kind"] == "epoch"]
    divided = [json.loads(line) for line in (folder / "group_norm" / "metrics.jsonl").read_text().splitlines()]
    assert measured == [line["metrics"]["val/accuracy"] for line in divided if line["kind"] == "epoch"] != []


def test_a_mismatch_between_workers_stops_the_run(folder: Path) -> None:
    ends = [read_note(folder, "spoiled", rank)["end"] for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert ends[0].startswith("GetaError: all workers must hold the same pruning masks, but after step 16 they differ")
    assert "worker 0 against worker 1" in ends[0]
    assert not (folder / "spoiled" / "result.json").exists()


def test_a_loss_that_is_not_finite_on_one_worker_stops_all(folder: Path) -> None:
    ends = [read_note(folder, "burst", rank)["end"] for rank in (0, 1)]
    assert ends[0] == ends[1]
    assert f"the loss must stay finite, but did not at step {BURST}" in ends[0]


def test_all_workers_obey_a_request_that_one_of_them_heard(folder: Path) -> None:
    for rank in (0, 1):
        assert read_note(folder, "stopped", rank)["end"].startswith(f"StoppedError: stopped after step {STOP};")
    assert read_note(folder, "stopped_on")["end"] == "done"
    whole, resumed = last_state(folder / "group_norm"), last_state(folder / "cut")
    for name, value in whole["model"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, resumed["model"][name]), f"{name} differs after the resume"
    assert len(whole["random"]) == 2, "each worker's random numbers are kept"


@pytest.mark.parametrize(("before", "after"), [("to_one", "to_one_on"), ("to_two", "to_two_on")])
def test_a_run_goes_on_with_another_number_of_workers(folder: Path, before: str, after: str) -> None:
    assert read_note(folder, before)["end"].startswith("StoppedError")
    halves = read_note(folder, before)["periods"] + read_note(folder, after)["periods"]
    assert read_note(folder, after)["end"] == "done"
    same_decisions(read_note(folder, "one_group_norm")["periods"], halves)


def test_the_leader_alone_writes(folder: Path) -> None:
    attempts = json.loads((folder / "group_norm" / "environment.json").read_text())["attempts"]
    assert len(attempts) == 1
    steps = [json.loads(line)["step"] for line in (folder / "group_norm" / "metrics.jsonl").read_text().splitlines()]
    kinds = [json.loads(line)["kind"] for line in (folder / "group_norm" / "metrics.jsonl").read_text().splitlines()]
    assert len(set(zip(kinds, steps, strict=True))) == len(steps)
