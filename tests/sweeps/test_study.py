"""Studies with runs that end at once: order, budgets, samplers, repeatability, restarts, faults, the storage."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sweeps
from geta_core.errors import ConfigError, GetaError
from orchestration.owner import owned
from orchestration.signals import StoppedError, StopRequest
from orchestration.tracking.jsonl import JOURNAL, Journal
from sweeps.cli_sweep import main
from sweeps.studies.attempts import Attempt, Attempts, End
from sweeps.studies.settings import SweepSettings
from sweeps.studies.space import grid, ticks
from sweeps.studies.study import Study, StudyTrial
from tests.ports import own_port
from tests.sweeps.noop import NoopPool, coordinate, ledger, make

SPACE = {"method.sparsity": {"low": 0.2, "high": 0.8}, "optimizer.lr": {"low": 0.01, "high": 1.0, "log": True}}


class StopAfter(StopRequest):
    """Asks for a stop at the n-th look."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    def heard(self) -> int:
        self._left -= 1
        self.signal_number = 15 if self._left < 0 else 0
        return self.signal_number


def found(study: Study) -> list[tuple[Any, ...]]:
    """Return everything about the trials that must not depend on interruptions."""
    return [(t.number, t.method, t.setting, t.seed, t.state, t.values, dict(t.params)) for t in study.trials()]


def test_every_method_gets_the_same_budget_in_one_order(tmp_path: Path) -> None:
    study = make(tmp_path / "s", methods=["geta", "djpq"], trials=3, seeds=[5, 6], parallel=3)
    assert isinstance(study, sweeps.Study)
    coordinate(study)
    trials = study.trials()
    order = [(setting, method, seed) for setting in range(3) for method in ("geta", "djpq") for seed in (5, 6)]
    assert [(t.setting, t.method, t.seed) for t in trials] == order
    assert [t.number for t in trials] == list(range(12)) and {t.state for t in trials} == {"complete"}
    assert "2 methods x 3 settings x 2 seeds = 12 runs of 30 epochs" in study.definition.budget()
    first = trials[0]
    # Setting 0 has the defaults; both seeds of a setting have the same values, and the specification holds them.
    assert first.params["method.lr_quant"] == 1e-3 and first.params == trials[1].params != trials[4].params
    config = Attempts(study.folder).spec(Attempt(4, 1))["config"]
    assert all(config["method"][key.partition(".")[2]] == value for key, value in trials[4].params.items())
    assert config["run"]["output"] == str(trials[4].directory) and config["tracker"]["cell"] == "geta-001"
    means = {(cell.method, cell.setting): cell.values for cell in study.cells()}
    assert means["geta", 0] == pytest.approx([(a + b) / 2 for a, b in zip(first.values, trials[1].values, strict=True)])


@pytest.mark.parametrize(
    ("sampler", "more"),
    [
        ("tpe", {"startup": 2}),
        ("nsga2", {"startup": 3}),
        ("gp", {"startup": 2}),
        ("random", {}),
        ("grid", {"space": {"method.sparsity": {"values": [0.2, 0.4]}, "optimizer.lr": {"low": 0.1, "high": 0.3}}}),
        ("fixed", {"settings": [{"method.sparsity": 0.1 * n} for n in range(1, 8)]}),
    ],
)
def test_a_synchronous_study_repeats_whatever_interrupts_it(sampler: str, more: dict[str, Any], tmp_path: Path) -> None:
    own: dict[str, Any] = {"sampler": sampler, "parallel": 3, "synchronous": True, "seeds": [0, 1], "own_space": False}
    own |= {"trials": 7} if sampler not in ("fixed",) else {}
    own |= {"trials": 6} if sampler == "grid" else {}
    own |= {"space": SPACE, **more} if sampler != "fixed" else more
    whole = make(tmp_path / "whole", **own)
    coordinate(whole)
    parts = make(tmp_path / "parts", **own)
    stops = 0
    for looks in range(1, 40):
        try:
            coordinate(Study.open(parts.folder) if stops else parts, StopAfter(looks % 4 + 1))
            break
        except StoppedError:
            stops += 1
    assert stops
    assert found(parts) == found(whole)
    different = len({json.dumps(t.params, sort_keys=True) for t in whole.trials()})
    assert different > 4 if sampler == "nsga2" else different == whole.definition.trials, "children may equal parents"
    if sampler in ("random", "tpe"):
        other = make(tmp_path / "other", **{**own, "seed": 1})
        coordinate(other)
        assert [t.params for t in other.trials()[2:]] != [t.params for t in whole.trials()[2:]]


def test_a_sampler_that_learns_sees_the_means_of_the_seeds(tmp_path: Path) -> None:
    """TPE comes closer to where the objective is best than its own random start."""

    class Peak(NoopPool):
        def start(self, attempts: Sequence[Attempt]) -> None:
            for attempt in attempts:
                config = self._attempts.spec(attempt)["config"]
                accuracy = 1 - (config["method"]["sparsity"] - 0.65) ** 2 + 0.01 * config["run"]["seed"]
                assert self._attempts.claim(attempt)
                end = End(state="complete", numbers={"val/accuracy": accuracy, "relative_bops": 0.1})
                self._attempts.publish(attempt, end)

    space = {"method.sparsity": {"low": 0.0, "high": 0.9}}
    study = make(
        tmp_path / "s", trials=40, seeds=[0, 1], objective="accuracy", space=space, own_space=False, max_bops=0.5
    )
    coordinate(study, pool=Peak)
    chosen = [trial.params["method.sparsity"] for trial in study.trials()[::2]]
    distances = [abs(each - 0.65) for each in chosen]
    assert sum(distances[30:]) / 10 < sum(distances[:10]) / 10 / 2
    (best,) = study.best()
    assert abs(best.params["method.sparsity"] - 0.65) < 0.05 and best.seeds == 2
    # The constraint stands in the storage, where the dashboard shows it.
    (entry, *_) = ledger(study).entries()
    assert entry.notes["constraints:relative_bops"] == pytest.approx(-0.4)


def test_hopeless_runs_are_stopped_by_their_journal(tmp_path: Path) -> None:
    class Slow(NoopPool):
        """Writes an epoch at each look; what is asked to stop, stops."""

        def start(self, attempts: Sequence[Attempt]) -> None:
            for attempt in attempts:
                assert self._attempts.claim(attempt)

        def gone(self, attempts: Sequence[Attempt]) -> list[Attempt]:
            for attempt in attempts:
                config = self._attempts.spec(attempt)["config"]
                journal = Journal(Path(config["run"]["output"]))
                journal.path.parent.mkdir(exist_ok=True)
                epoch = len(journal.lines()) + 1
                accuracy = config["method"]["sparsity"] * epoch / 10
                journal.append("epoch", (epoch, epoch), "joint", {"val/accuracy": accuracy})
                if self._attempts.stop_asked(attempt) is not None:
                    self._attempts.publish(attempt, End(state="stopped"))
                elif epoch == 8:
                    numbers = {"val/accuracy": accuracy, "relative_bops": 0.1}
                    self._attempts.publish(attempt, End(state="complete", numbers=numbers))
            return []

    space = {"method.sparsity": {"low": 0.1, "high": 0.9}}
    study = make(
        tmp_path / "s", trials=12, objective="accuracy", sampler="random", space=space, own_space=False,
        stopping="median",
    )  # fmt: skip
    import sweeps.studies.coordinator as module

    pause, module.LOOK_EVERY = module.LOOK_EVERY, 0.0
    try:
        coordinate(study, pool=Slow)
    finally:
        module.LOOK_EVERY = pause
    trials = study.trials()
    assert {trial.state for trial in trials} == {"complete", "pruned"}
    pruned = [trial.params["method.sparsity"] for trial in trials if trial.state == "pruned"]
    complete = [trial.params["method.sparsity"] for trial in trials if trial.state == "complete"]
    assert sum(pruned) / len(pruned) < sum(complete) / len(complete)
    lines = [len((trial.directory / JOURNAL).read_text().splitlines()) for trial in trials if trial.state == "pruned"]
    assert max(lines) < 8, "stopped before their end"


def test_a_run_whose_process_dies_is_started_again_once(tmp_path: Path) -> None:
    class Dying(NoopPool):
        """Run 1 dies once, run 2 always; run 3 says that it cannot."""

        def start(self, attempts: Sequence[Attempt]) -> None:
            for attempt in attempts:
                if attempt.slot == 3:
                    assert self._attempts.claim(attempt)
                    self._attempts.publish(attempt, End(state="failed", reason="out of reach"))
                elif attempt.slot == 2 or (attempt.slot == 1 and attempt.number == 1):
                    assert self._attempts.claim(attempt)
                else:
                    super().start([attempt])

        def gone(self, attempts: Sequence[Attempt]) -> list[Attempt]:
            return list(attempts)

    study = make(tmp_path / "s", trials=5, sampler="random", parallel=2)
    coordinate(study, pool=Dying)
    trials = study.trials()
    assert [trial.state for trial in trials] == ["complete", "complete", "failed", "failed", "complete"]
    assert trials[1].about["attempts"] == 2
    assert trials[2].about["reason"] == "its process died without a word, 2 times"
    assert trials[3].about["reason"] == "out of reach" and "attempts" not in trials[3].about


def _claim(folder: str, barrier: Any, results: Any) -> None:
    attempts = Attempts(Path(folder))
    barrier.wait()
    results.put((attempts.claim(Attempt(0, 1)), attempts.publish(Attempt(0, 1), End(state="complete"))))


def test_one_process_of_many_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(10):
        folder = tmp_path / str(number)
        Attempts(folder).order(Attempt(0, 1), {})
        barrier, results = context.Barrier(6), context.Queue()
        processes = [context.Process(target=_claim, args=(str(folder), barrier, results)) for _ in range(6)]
        for process in processes:
            process.start()
        won = [results.get(timeout=30) for _ in processes]
        for process in processes:
            process.join(30)
        assert [sum(column) for column in zip(*won, strict=True)] == [1, 1]
        attempts = Attempts(folder)
        assert not attempts.give_up(Attempt(0, 1)) and not attempts.lives(Attempt(0, 1))
        assert attempts.give_up(Attempt(0, 2)) and not attempts.claim(Attempt(0, 2)) and attempts.lost(0, 2) == 0


def test_a_second_coordinator_is_kept_out(tmp_path: Path) -> None:
    study = make(tmp_path / "s", trials=1)
    code = "import sys, sweeps; sweeps.Study.open(sys.argv[1]).run()"
    coordinate(study)
    with owned(study.folder):
        assert study.coordinated
        done = subprocess.run([sys.executable, "-c", code, str(study.folder)], capture_output=True, text=True)
        assert "another process is running in" in done.stderr
    assert not study.coordinated


def test_a_study_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    study = make(tmp_path / "s", trials=2, sampler="random")
    coordinate(study)
    with pytest.raises(ConfigError) as caught:
        make(tmp_path / "s", "run.epochs=3", trials=2, sampler="tpe", seeds=[1])
    words = ("sweep.sampler: 'random' -> 'tpe'", "sweep.seeds: (0,) -> (1,)", "geta: run.epochs: 30 -> 3")
    assert all(word in str(caught.value) for word in words)
    with pytest.raises(ConfigError, match=r"sweep\.trials: 2 -> 1"):
        make(tmp_path / "s", trials=1, sampler="random")
    longer = make(tmp_path / "s", trials=3, sampler="random", parallel=2)
    coordinate(longer)
    assert [t.state for t in longer.trials()] == ["complete"] * 3 and found(longer)[:2] == found(study)[:2]
    elsewhere = make(tmp_path / "other", trials=1)
    with pytest.raises(ConfigError, match="belongs to another folder"):
        ledger(elsewhere, f"sqlite:///{study.folder / 'study.db'}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["study=NAME must be given"]),
        (["--stat"], ["unknown option --stat", "study=NAME must be given"]),
        (
            ["study=x", "sweep.sampler=tpp", "sweep.paralel=2", "sweep.methods=[getta]", "task=digitz", "run.epoch=3"],
            ["did you mean 'tpe'", "did you mean 'sweep.parallel'", "unknown method 'getta'", "'digits'", "run.epoch"],
        ),
        (["study=x", "task=digitz", "run.epoch=3"], ["did you mean 'digits'", "run.epoch"]),
        (
            [
                "study=x",
                "task=digits",
                "sweep.space={method.sparsty: {low: 0, high: 1}, optimizer.lr: {low: -1, high: 1}}",
            ],
            ["unknown key method.sparsty in sweep.space (did you mean 'method.sparsity'?)", "optimizer.lr must be"],
        ),
        (["study=x", "task=digits", "djqp:method.lr_gates=1", "sweep.methods=[djpq]"], ["did you mean 'djpq'"]),
        (
            ["study=x", "task=digits", "sweep.max_bops=0.1", "sweep.stopping=median", "sweep.seeds=[0,1]"],
            ["sweep.max_bops needs", "needs sweep.objective=accuracy", "needs one seed"],
        ),
        (["study=x", "task=digits", "sweep.storage=postgresql://a:secret@h/d"], ["must not hold a password"]),
        (["study=x", "task=digits", "run.seed=3", "sweep.settings=[{}]"], ["belong to the study", "need each other"]),
        (
            [
                "study=x",
                "task=digits",
                "sweep.sampler=fixed",
                "sweep.settings={geta: [{method.sparsity: 2}], djqp: []}",
            ],
            ["unknown method 'djqp' in sweep.settings", "method.sparsity"],
        ),
        (["study=x", "task=digits", "sweep.sampler=grid", "sweep.methods=[geta,djpq]"], ["as many settings as"]),
        (["study=x", "task=digits", "launcher=ray", "launcher.workers=2"], ["launcher.workers=2 must be 1"]),
        (["study=x", "task=digits", "sweep.coordinator=slurm"], ["sweep.coordinator=slurm needs launcher=slurm"]),
        (["--status", "nowhere"], ["holds no study"]),
    ],
)
def test_every_fault_at_once_and_nothing_left_behind(
    arguments: list[str], words: list[str], tmp_runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    for word in words:
        assert word in said, said
    assert "Traceback" not in said and "secret" not in said and not tmp_runs.exists()


def test_grids() -> None:
    from baselines.search import OneOf, Real, Whole

    assert ticks(Real(0.01, 1.0, log=True), 3) == (0.01, 0.1, 1.0)
    assert ticks(Real(0.0, 1.0), 5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert ticks(Whole(2, 4), 9) == (2, 3, 4)
    assert grid({"b": OneOf((1, 2)), "a": Whole(1, 2)}, 2) == [
        {"a": 1, "b": 1}, {"a": 1, "b": 2}, {"a": 2, "b": 1}, {"a": 2, "b": 2},
    ]  # fmt: skip


def test_help_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import fields

    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  sweep.{each.name} = " in shown for each in fields(SweepSettings))


def test_status_says_how_far_it_is(tmp_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make(tmp_runs / "noop", trials=3, parallel=2)
    with pytest.raises(StoppedError):
        coordinate(study, StopAfter(1))
    assert main(["--status", "noop"]) == 0
    shown = capsys.readouterr().out
    assert "noop: 2 running of 3; no coordinator runs; the same command goes on" in shown


@pytest.mark.needs("optuna_dashboard")
def test_the_dashboard_reads_the_storage(tmp_path: Path) -> None:
    study = make(tmp_path / "s", trials=3, objective="accuracy", max_bops=0.5)
    coordinate(study)
    port = own_port(8300)
    command = [sys.executable, "-m", "optuna_dashboard", f"sqlite:///{study.folder / 'study.db'}", "--port", str(port)]
    program = Path(sys.executable).with_name("optuna-dashboard")
    server = subprocess.Popen([str(program), *command[3:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        listed = _get(f"http://127.0.0.1:{port}/api/studies")
        (one,) = listed["study_summaries"]
        assert one["study_name"] == "noop"
        detail = _get(f"http://127.0.0.1:{port}/api/studies/{one['study_id']}?after=0")
        assert [trial["state"] for trial in detail["trials"]] == ["Complete"] * 3
        names = {each["name"] for each in detail["trials"][2]["params"]}
        assert "geta:method.lr_quant" in names
    finally:
        server.terminate()
        server.wait(20)


def _get(address: str) -> Any:
    until = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return json.loads(answer.read())
        except OSError:
            assert time.monotonic() < until, address
            time.sleep(0.3)


def test_a_run_without_validation_fails_with_the_reason() -> None:
    from sweeps.studies.worker import ended

    result = SimpleNamespace(
        seconds={"train": 1.0},
        numbers=lambda: {"final/test/accuracy": 0.5, "final/val/accuracy": float("nan"), "final/relative_bops": 0.1},
    )
    end = ended(result)
    assert end.state == "failed" and "validation split" in end.reason


def test_a_storage_that_stays_away_ends_the_study_with_one_line(tmp_path: Path) -> None:
    study = make(tmp_path / "s", trials=1)
    coordinate(study)
    book = ledger(study)
    book._patience = 0.0
    book._storage.engine.dispose()
    for each in study.folder.glob("study.db*"):
        each.unlink()
    (study.folder / "study.db").mkdir()
    with pytest.raises(GetaError, match=r"does not answer \(.*\); the same command goes on"):
        book.entries()
    assert isinstance(StudyTrial, type)
