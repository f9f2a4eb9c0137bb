"""Numbers on disk and in MLflow: written once, sent twice without harm, never in the way."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from geta_core.errors import ConfigError, GetaError
from orchestration.tracking import unfinished_trackers
from orchestration.tracking.base import TrackerSettings, uri_faults
from orchestration.tracking.copy import RunCopy
from orchestration.tracking.intent import Intent, is_settled, receipt
from orchestration.tracking.jsonl import JOURNAL, Journal, Tail
from orchestration.tracking.mlflow import MlflowTracker
from orchestration.tracking.store import open_store, sqlite_path
from orchestration.tracking.system import Sampler, gpu_metrics
from orchestration.tracking.views import BARS, TAG, set_view
from tests.orchestration.tracked import TAGS, copies, history, write_result, write_run, written


def test_a_journal_goes_on_where_the_checkpoint_was(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.open_at(0)
    journal.append("epoch", (10, 1), "warmup", {"loss": 2.0}, {"seconds": 1.0})
    offset = journal.offset()
    lost = journal.append("epoch", (20, 2), "joint", {"loss": 1.0}, {"seconds": 2.0})
    changed = journal.append("stage", (20, 2), "joint", {"loss": 0.9})
    with journal.path.open("a") as file:
        file.write('{"kind": "epoch", "st')  # killed in the middle of a line
    again = Journal(tmp_path)
    again.open_at(offset)
    assert [line.step for line in again.lines()] == [10]
    time.sleep(0.003)
    same = again.append("epoch", (20, 2), "joint", {"loss": 1.0}, {"seconds": 99.0})
    assert same == lost, "equal numbers keep the time they may have been sent with"
    other = again.append("stage", (20, 2), "joint", {"loss": 0.8})
    assert other.time > changed.time and other.metrics == {"loss": 0.8}
    # Killed again before the next checkpoint: the first times are still known.
    third = Journal(tmp_path)
    third.open_at(offset)
    assert third.append("epoch", (20, 2), "joint", {"loss": 1.0}) == lost
    third.close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl"}
    written = [json.loads(line) for line in third.path.read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in written] == [("epoch", 10), ("epoch", 20)]


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{database}", "geta")
    return database


@pytest.fixture
def store(empty_store: Path, tmp_path: Path) -> str:
    """A store of one's own: making its tables takes seconds, copying the file does not."""
    place = tmp_path / "store" / "mlflow.db"
    place.parent.mkdir()
    shutil.copy(empty_store, place)
    return f"sqlite:///{place}"


def test_the_tables_of_an_older_mlflow_are_brought_up_to_date_once(tmp_path: Path) -> None:
    from alembic.command import upgrade
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    database = tmp_path / "mlflow.db"
    config = _get_alembic_config(f"sqlite:///{database}")
    script = ScriptDirectory.from_config(config)
    before = script.get_revision(str(script.get_current_head()))
    assert before is not None
    Base.metadata.create_all(create_engine(f"sqlite:///{database}"))
    upgrade(config, str(before.down_revision))
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "insert into experiments (name, lifecycle_stage, artifact_location) values ('old', 'active', 'x')"
        )
    client, _ = open_store(f"sqlite:///{database}", "geta")
    assert client.get_experiment_by_name("old") is not None, "what was in it is kept"
    (copy,) = tmp_path.glob("mlflow.db.before-*")
    changed = database.stat().st_ino
    open_store(f"sqlite:///{database}", "geta")
    assert database.stat().st_ino == changed and list(tmp_path.glob("mlflow.db.before-*")) == [copy]


def test_a_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    tail = Tail(tmp_path / JOURNAL)
    assert tail.read() == []
    journal = Journal(tmp_path)
    first = journal.append("epoch", (1, 1), "joint", {"loss": 1.0})
    assert tail.read() == [first] and tail.read() == []
    second = journal.append("epoch", (2, 2), "joint", {"loss": 0.5})
    text = tail.path.read_bytes()
    tail.path.write_bytes(text[:-5])
    assert tail.read() == []
    tail.path.write_bytes(text)
    assert tail.read() == [second] and tail.count == 2


def test_a_copy_holds_the_run_once(tmp_path: Path, store: str) -> None:
    parameters = {f"key{number}": number for number in range(150)}
    folder = write_run(tmp_path / "run", store, 30, parameters=parameters, files=["pictures", "resolved.yaml"])
    (folder / "pictures").mkdir()
    (folder / "pictures" / "bits.png").write_bytes(b"p")
    (folder / "resolved.yaml").write_text("{}")
    copy = RunCopy(folder)
    copy.open()
    (run,) = copies(store)
    assert run.info.status == "RUNNING"
    assert copy.update() == 30 and copy.update() == 0
    # A second attempt resends everything, as it cannot know what arrived.
    for status in ("FAILED", "FINISHED"):
        again = RunCopy(folder)
        again.update()
        again.close(status)
        (run,) = copies(store)
        assert run.info.status == status
        for key in ("loss", "seconds"):
            assert history(store, run, key) == written(folder, key) and len(written(folder, key)) == 30
    assert run.data.params == {key: str(value) for key, value in parameters.items()}
    assert TAGS.items() <= run.data.tags.items() and run.data.tags["geta.stage"] == "joint"
    assert run.info.end_time == written(folder, "loss")[-1][1], "the end is that of the run, not of the copy"
    from mlflow.tracking import MlflowClient

    client = MlflowClient(store)
    assert {each.path for each in client.list_artifacts(run.info.run_id)} == {"pictures", "resolved.yaml"}
    assert [each.path for each in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/bits.png"]
    assert receipt(folder)["run_id"] == run.info.run_id


def test_closing_again_sends_nothing_unless_something_changed(tmp_path: Path, store: str) -> None:
    folder = write_run(tmp_path / "run", store)
    assert RunCopy(folder).close("KILLED") == 5
    assert RunCopy(folder).close("KILLED") == 0
    write_run(folder, store, 2)
    write_result(folder, 0, 0.5)
    assert RunCopy(folder).close("FINISHED") == 8, "seven lines and the result"
    assert RunCopy(folder).close("FINISHED") == 0
    (run,) = copies(store)
    assert history(store, run, "loss") == written(folder, "loss")


def test_a_copy_that_was_made_but_not_noted_is_found(tmp_path: Path, store: str) -> None:
    folder = write_run(tmp_path / "run", store, parameters={"a": 1})
    first = RunCopy(folder)
    first.connect()
    # Another process, after a kill between the creation and the parameters.
    with closing(sqlite3.connect(sqlite_path(store) or "")) as connection, connection as database:
        database.execute("delete from params")
    RunCopy(folder).close("KILLED")
    (run,) = copies(store)
    assert run.data.params == {"a": "1"}


def test_numbers_that_json_and_sql_cannot_hold(tmp_path: Path, store: str) -> None:
    folder = write_run(tmp_path / "run", store, 1)
    Journal(folder).append("final", (2, 2), "joint", {"final/accuracy": float("nan"), "loss": float("inf")})
    for _ in range(2):
        copy = RunCopy(folder)
        assert copy.update() == 2
        copy.close("FINISHED")
    (run,) = copies(store)
    (point,) = history(store, run, "final/accuracy")
    assert point[2] != point[2] and len(history(store, run, "loss")) == 2


def test_a_new_place_gets_a_copy_of_its_own(tmp_path: Path, store: str) -> None:
    folder = write_run(tmp_path / "run", store)
    RunCopy(folder).close("KILLED")
    before = Intent.read(folder)
    assert before is not None and is_settled(folder, before)
    assert Intent.of(TrackerSettings(uri=store), "run", before).token == before.token
    moved = Intent.of(TrackerSettings(uri=store, experiment="other"), "run", before)
    assert moved.token != before.token and not is_settled(folder, moved)


def test_a_damaged_intent_is_no_intent(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", None)
    for text in ("", "[]", '{"uri": null}'):
        (folder / "mlflow.json").write_text(text)
        assert Intent.read(folder) is None
        with pytest.raises(GetaError, match="does not say where its copy"):
            RunCopy(folder)


def test_processes_may_open_a_new_store_together(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    code = f"from orchestration.tracking.store import open_store; print(open_store({uri!r}, 'geta')[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)
    ]
    outputs = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len({out.split()[-1] for out, _ in outputs}) == 1


def test_a_store_that_was_killed_half_made_is_made_again(tmp_path: Path) -> None:
    """Killed in the middle of MLflow's migrations, a file could never be opened again."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    code = f"from orchestration.tracking.store import open_store; open_store({uri!r}, 'geta')"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    partial = tmp_path / "mlflow.db.partial"
    until = time.monotonic() + 200
    while not (partial.exists() and partial.stat().st_size > 100_000) and time.monotonic() < until:
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (tmp_path / "mlflow.db").exists() and partial.exists()
    client, _ = open_store(uri, "geta")
    assert client.get_experiment_by_name("geta") is not None and not partial.exists()


def test_sqlite_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sqlite_path("sqlite:////a/b%20c.db") == Path("/a/b c.db")
    assert sqlite_path("sqlite:///c.db") == tmp_path / "c.db"
    assert sqlite_path("http://127.0.0.1:5000") is None


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("http://me:secret@host:5000", "must not hold a password"),
        ("postgresql://geta:secret@host/db", "must not hold a password"),
        ("postgresql://host/db?user=geta&password=secret", "must not hold a password"),
        ("./mlruns", "must be http"),
        ("file:///mlruns", "must be http"),
        ("http://", "must name a host"),
        ("http://[::1", "is no address"),
    ],
)
def test_addresses_that_are_refused(uri: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TrackerSettings(uri=uri)
    assert words in str(caught.value) and "secret" not in str(caught.value)


def test_addresses_that_are_taken() -> None:
    for uri in (
        "http://127.0.0.1:5000",
        "https://me@host/mlflow",
        "sqlite:///a.db",
        "postgresql+psycopg://geta@host/db",
    ):
        assert uri_faults(uri) == []


def test_a_finished_run_knows_whether_its_copy_saw_the_end(tmp_path: Path, store: str) -> None:
    from orchestration.compose import compose

    config = compose([f"tracker.uri={store}"])
    folder = tmp_path / "run"
    assert unfinished_trackers(config, folder) == []
    write_run(folder, store)
    write_result(folder, 0, 0.5)
    assert len(unfinished_trackers(config, folder)) == 1
    RunCopy(folder).close("KILLED")
    assert len(unfinished_trackers(config, folder)) == 1
    RunCopy(folder).close("FINISHED")
    assert unfinished_trackers(config, folder) == []


def test_the_tracker_survives_its_own_process(tmp_path: Path, store: str, caplog: pytest.LogCaptureFixture) -> None:
    """The process that sends is killed in the middle: the next line starts another one, and nothing is lost."""
    folder = write_run(tmp_path / "run", store, 3)
    tracker = MlflowTracker(TrackerSettings(uri=store), "run", folder)
    tracker.start({"run.seed": 3}, TAGS)
    assert tracker._process is not None
    tracker._process.kill()
    tracker._process.wait()
    line = Journal(folder).append("epoch", (4, 4), "joint", {"loss": 0.1})
    tracker.send([line])
    write_result(folder, 0, 0.5)
    tracker.finish("FINISHED")
    (run,) = copies(store)
    assert run.info.status == "FINISHED" and len(history(store, run, "loss")) == 4 and not caplog.records


def test_samples_of_the_machine(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        sampler = Sampler(process.pid, tmp_path)
        sampler.sample_if_due()
        sampler.sample_if_due()  # not yet due again
        time.sleep(0.3)
        sampler.sample()
    finally:
        process.kill()
        process.wait()
    sampler.sample()
    first, second = Tail(tmp_path / "system.jsonl").read()
    assert (first.step, second.step) == (0, 1), "a process that is gone gives no sample"
    assert second.metrics["system/process_cpu_percentage"] > 0
    assert second.metrics["system/process_memory_megabytes"] > 1
    assert second.metrics["system/disk_available_megabytes"] > 1
    assert Sampler(process.pid, tmp_path)._count == 2, "the next attempt counts on"


def test_lines_of_nvidia_smi() -> None:
    assert gpu_metrics("0, 37, 1000\n1, [N/A], 0\n\nnonsense\n") == {
        "system/gpu_0_utilization_percentage": 37.0,
        "system/gpu_0_memory_usage_megabytes": 1048.576,
        "system/gpu_1_memory_usage_megabytes": 0.0,
    }


def test_what_a_run_ends_with_is_drawn_as_bars(tmp_path: Path, store: str) -> None:
    """MLflow draws a bar for each run where the only value is that of step 0."""
    folder = write_run(tmp_path / "run", store, 2)
    line = Journal(folder).append("final", (40, 2), "cooldown", {"final/test/accuracy": 0.9})
    RunCopy(folder).close("FINISHED")
    (run,) = copies(store)
    assert history(store, run, "final/test/accuracy") == [(0, line.time, 0.9)]
    assert [step for step, _, _ in history(store, run, "loss")] == [1, 2]


def test_the_view_names_metrics_that_runs_have(tmp_path: Path, store: str) -> None:
    folder = write_run(tmp_path / "run", store)
    result = write_result(folder, 0, 0.5)
    RunCopy(folder).close("FINISHED")
    client, experiment = open_store(store, "geta")
    state = json.loads(client.get_experiment(experiment).tags[TAG])
    known = {f"final/{name}" for name in BARS}
    assert known <= result.numbers().keys()
    for column in state["selectedColumns"][1:]:
        name = column.removeprefix("metrics.`").removesuffix("`")
        assert name.removesuffix("_ci95") in result.numbers()
    sections = {section["uuid"] for section in state["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == sections
    assert len({chart["uuid"] for chart in state["compareRunCharts"]}) == len(state["compareRunCharts"])


@pytest.mark.parametrize("faster", [True, False])
def test_a_run_whose_view_another_one_wrote_at_the_same_moment_goes_on(tmp_path: Path, faster: bool) -> None:
    """The store refuses the second of two equal rows; what it refuses for another reason is an error."""
    from mlflow.exceptions import MlflowException

    client, experiment = open_store(f"sqlite:///{tmp_path / 'mlflow.db'}", "raced")

    class Refused:
        """The store, in which another run is always a moment faster, or which is broken."""

        get_experiment = client.get_experiment

        def set_experiment_tag(self, *row: str) -> None:
            if faster:
                client.set_experiment_tag(*row)
            raise MlflowException("UNIQUE constraint failed: experiment_tags.key, experiment_tags.experiment_id")

    if faster:
        set_view(Refused(), experiment)
        assert TAG in client.get_experiment(experiment).tags
    else:
        with pytest.raises(MlflowException, match="UNIQUE"):
            set_view(Refused(), experiment)
