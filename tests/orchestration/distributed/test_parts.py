"""What several workers are made of, each alone: shares, fingerprints, counted requeues, settings."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from geta_core.errors import ConfigError, GetaError
from geta_core.qasso.schedule import Schedule
from orchestration.agreement import fingerprint
from orchestration.compose import compose
from orchestration.launchers.base import LaunchFolder
from orchestration.launchers.processes import MARK, end_marked, kill_session, marked
from orchestration.launchers.ray import _Tail
from orchestration.launchers.requeue import Requeues, saved_step
from orchestration.owner import process_lives
from orchestration.parallel import cut, refuse_sharded
from orchestration.rundir import RunDirectory
from orchestration.signals import StopFile, StoppedError
from orchestration.tasks.base import Part
from orchestration.world import LOOPBACK, World, interface_of


@given(st.integers(0, 200), st.integers(1, 9))
def test_parts_cover_everything_once(count: int, size: int) -> None:
    parts = [list(range(*Part(rank, size).bounds(count))) for rank in range(size)]
    assert [number for part in parts for number in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_batch_is_cut_by_rows() -> None:
    batch = {"x": torch.arange(12).view(6, 2), "y": [torch.arange(6), torch.tensor(3.0), "name"]}
    pieces = [cut(batch, Part(rank, 3)) for rank in range(3)]
    assert torch.equal(torch.cat([piece["x"] for piece in pieces]), batch["x"])  # type: ignore[arg-type]
    assert all(piece["y"][1] == 3 and piece["y"][2] == "name" for piece in pieces)
    with pytest.raises(GetaError, match="6 examples cannot be shared evenly by 4 workers"):
        cut(batch, Part(0, 4))
    with pytest.raises(GetaError, match=r"its tensors have \[2, 6\] rows"):
        cut((torch.zeros(6), torch.zeros(2)), Part(0, 2))


def test_fingerprints_see_every_bit() -> None:
    base = {"a": torch.tensor([1.0, 2.0]), "b": [None, 3, True]}
    same = {"a": torch.tensor([1.0, 2.0]), "b": [None, 3, True]}
    assert fingerprint([base]) == fingerprint([same])
    next_number = torch.nextafter(torch.tensor([1.0, 2.0]), torch.tensor(9.0))
    others = [{**base, "a": next_number}, {**base, "a": base["a"].double()}, {**base, "b": [None, 3, False]}]
    others += [{**base, "a": base["a"].view(2, 1)}, {**base, "b": [3, None, True]}]  # type: ignore[attr-defined]
    assert len({fingerprint([each]) for each in [base, *others]}) == 6
    assert fingerprint([torch.tensor(2.0, dtype=torch.bfloat16)]) != fingerprint([torch.tensor(2.0)])


def test_boundaries_of_a_schedule() -> None:
    schedule = Schedule(warmup=2, projection=5, joint=6, cooldown=3, projection_periods=2, pruning_periods=3)
    ends = [step for step in range(schedule.total) if schedule.boundary(step)]
    bits = [schedule.max_bits(step, 16, 8) for step in range(schedule.total)]
    falls = [step for step in range(2, 6) if bits[step] != bits[step + 1]]
    assert ends == [1, *falls, 6, 8, 10, 12, 15]


def test_one_worker_alone_exchanges_with_itself() -> None:
    world, tensor = World(), torch.ones(2)
    world.average_([tensor])
    world.share_([tensor])
    assert world.leads and world.largest([3, -1]) == [3, -1] and world.collect(b"x") == [b"x"]
    assert world.tell("text") == "text" and torch.equal(world.total(tensor), torch.ones(2))
    with world.leader_first():
        world.follow_leader()
    world.close()
    assert not torch.distributed.is_initialized()


@pytest.mark.needs("proc")
def test_the_interface_of_an_address() -> None:
    assert interface_of(LOOPBACK) == "lo"
    assert interface_of("192.0.2.1") is None, "reserved for documentation (RFC 5737): no machine has it"


def test_requeues_are_counted_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "attempts.json"
    requeues = Requeues(path, "job-1", limit=2)
    requeues.ended(0, 7, "killed")
    Requeues(path, "job-1", limit=2).ended(7, 14, "killed")  # another process of the same job
    with pytest.raises(GetaError, match=r"started again 2 times, as often as allowed, and ended at step 21.*killed"):
        Requeues(path, "job-1", limit=2).ended(14, 21, "killed")
    assert [each["ended"] for each in json.loads(path.read_text())["attempts"]] == [7, 14, 21]
    assert Requeues(path, "job-2", limit=2).attempts == [], "a new launch starts a new count"


def test_a_run_without_progress_is_not_started_for_ever(tmp_path: Path) -> None:
    requeues = Requeues(tmp_path / "attempts.json", "job", limit=100)
    requeues.ended(0, 7, "time limit")
    requeues.ended(7, 7, "time limit")
    requeues.ended(7, 7, "Ray did not come up", tried=False)
    with pytest.raises(GetaError, match=r"no progress in 2 attempts: each ended at step 7, where it began.*time limit"):
        requeues.ended(7, 7, "time limit")


def test_the_step_of_the_newest_checkpoint(tmp_path: Path) -> None:
    assert saved_step(tmp_path / "absent") == 0
    for name in ("step-000000007.json", "step-000000014.json", "step-000000021.pt"):
        (tmp_path / name).touch()
    assert saved_step(tmp_path) == 14, "a state without its manifest is an interrupted write"


def test_ends_are_told_through_the_run_directory(tmp_path: Path) -> None:
    folder = LaunchFolder(RunDirectory(tmp_path / "run"))
    folder.open()
    folder.raise_end()
    for error, kind in (
        (ConfigError(["a", "b"]), ConfigError),
        (GetaError("c"), GetaError),
        (StoppedError("d", 15), StoppedError),
    ):
        folder.tell_end(1, error)
        with pytest.raises(kind) as caught:
            folder.raise_end()
        assert str(caught.value) == str(error) and type(caught.value) is kind
        assert getattr(caught.value, "signal_number", None) == getattr(error, "signal_number", None)
    stop = StopFile(folder.stop, every=0)
    assert not stop
    folder.ask_to_stop(10)
    assert stop.heard() == 10
    folder.open()
    assert not StopFile(folder.stop) and not list(folder.path.glob("outcome*"))
    assert StopFile(folder.stop, every=100).heard() == 0
    folder.remove_if_alone()
    assert not (tmp_path / "run").exists()


@pytest.mark.needs("proc")
def test_marked_processes_are_found_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.launchers.processes.GRACE", 0.5)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    stubborn, other = (
        subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, MARK: mark}, stdout=subprocess.PIPE, start_new_session=True
        )
        for mark in ("launch-a", "launch-ab")
    )
    try:
        for process in (stubborn, other):
            assert process.stdout is not None
            process.stdout.readline()
        assert marked("launch-a") == [stubborn.pid]
        assert end_marked("launch-a") == 1
        assert stubborn.wait(5) == -9 and other.poll() is None
    finally:
        for process in (stubborn, other):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.needs("proc")
def test_what_is_left_of_a_session_is_ended() -> None:
    code = (
        "import subprocess, sys;"
        "print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdout=subprocess.DEVNULL).pid)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as first:
        assert first.stdout is not None
        left = int(first.stdout.readline())
        time.sleep(0.2)  # it has ended, but was not waited for: the id is still its own
        kill_session(first.pid)
        assert process_lives(left, time.time())
    kill_session(first.pid)
    until = time.monotonic() + 5
    while process_lives(left, time.time()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not process_lives(left, time.time())


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        (["launcher.workers=2"], "launcher.workers=2 needs launcher=ray"),
        (["launcher.address=auto"], "launcher.address needs launcher=ray"),
        (["launcher=ray", "launcher.strategy=fsdp"], "launcher.strategy=fsdp is not supported: groups, masks"),
        (["launcher=ray", "launcher.strategy=ddq"], "launcher.strategy must be ddp, but got 'ddq'"),
        (["launcher=ray", "launcher.sync_batchnorm=true"], "launcher.sync_batchnorm needs GPUs"),
        (["launcher=ray", "launcher.gpus_per_worker=1.5"], "launcher.gpus_per_worker must be at most 1"),
        (["launcher=ray", "launcher.workers=0"], "launcher.workers must be a whole number >= 1"),
        (["launcher=rai"], "unknown launcher 'rai' (did you mean 'ray'?)"),
    ],
)
def test_settings_that_cannot_be(values: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([*values, "optimizer.lr=-1"])
    assert any(fault in each for each in caught.value.faults), caught.value.faults
    assert any("optimizer.lr" in each for each in caught.value.faults), "faults are named together"


def test_the_launcher_does_not_decide_the_result() -> None:
    one, many = (compose(["task=digits", *more]) for more in ([], ["launcher=ray", "launcher.workers=2"]))
    assert one.digest() == many.digest()


def test_a_sharded_model_is_refused(tmp_path: Path) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.Linear(4, 4)
        refuse_sharded(model)
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(GetaError, match="FSDP and tensor parallelism are not supported"):
            refuse_sharded(model)
    finally:
        torch.distributed.destroy_process_group()


def test_stop_files_are_not_read_in_every_step(tmp_path: Path) -> None:
    stop = StopFile(tmp_path / "stop", every=0.2)
    assert not stop
    (tmp_path / "stop").write_text("15")
    assert not stop, "it has just looked"
    time.sleep(0.25)
    assert stop.heard() == 15


def test_a_log_is_shown_once_and_never_to_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "worker-0.log"
    tail = _Tail(path)
    path.write_text("step 1\n")
    for _ in range(2):
        tail.copy()
    assert capsys.readouterr().err == "step 1\n"
    with path.open("a", buffering=1) as log, contextlib.redirect_stderr(log):
        log.write("step 2\n")
        for _ in range(3):
            tail.copy()
    assert path.read_text() == "step 1\nstep 2\n"
