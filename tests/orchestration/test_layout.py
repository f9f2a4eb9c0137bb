"""What `geta compare` leaves in MLflow: study, cells, seeds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestration.compose import compose
from orchestration.tracking.base import Line, TrackerSettings
from orchestration.tracking.mlflow import MlflowTracker
from sweeps.cli import main
from sweeps.layout import layout
from tests.orchestration.small import small
from tests.orchestration.tracked import copies


def test_a_cell_is_the_same_for_every_seed_and_another_for_another_question() -> None:
    def cell(*values: str) -> str:
        return layout(compose(small("unused", *values)), values, None)[0]

    assert cell("run.seed=0") == cell("run.seed=5") == cell("tracker=mlflow")
    assert len({cell(), cell("method.sparsity=0.4"), cell("method=dense"), cell("model.width=7")}) == 4
    assert layout(compose(small("unused")), [], None)[1] == 'tracker.experiment="compare-digits"'
    assert layout(compose(small("unused")), [], "mine")[1] == 'tracker.experiment="mine"'
    assert len(layout(compose(small("unused")), ["tracker.experiment=x"], None)) == 1


def test_a_comparison_is_a_study_of_cells_of_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shared = ["model.width=4", "run.steps=6", "task.batch_size=32", "run.threads=1", "study=two"]
    assert main(["compare", "methods=[dense]", "seeds=[0,1]", "output=out", *shared]) == 0
    runs = copies(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}", "two")
    (cell,) = [run for run in runs if run.data.tags["geta.level"] == "cell"]
    seeds = {run.data.tags["geta.seed"]: run for run in runs if run is not cell}
    assert seeds.keys() == {"0", "1"}
    accuracies = []
    for run in seeds.values():
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == cell.info.run_id and run.info.status == "FINISHED"
        wanted = {"geta.method": "dense", "geta.model": "digits_cnn", "geta.task": "digits", "geta.study": "two"}
        assert wanted.items() <= tags.items() and tags["geta.stage"] == "train" and len(tags["geta.digest"]) == 12
        assert tags["geta.commit"]
        accuracies.append(run.data.metrics["final/test/accuracy"])
    assert cell.data.metrics["final/test/accuracy"] == pytest.approx(sum(accuracies) / 2)
    assert cell.data.metrics["final/test/accuracy_ci95"] == pytest.approx(
        12.706205 * abs(accuracies[0] - accuracies[1]) / 2, rel=1e-5
    ), "t(0.975, 1) times the standard error of two values"
    # Said again, nothing runs and nothing is added.
    assert main(["compare", "methods=[dense]", "seeds=[0,1]", "output=out", *shared]) == 0
    assert len(copies(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}", "two")) == 3


def test_a_line_costs_the_training_next_to_nothing(tmp_path: Path) -> None:
    """A line of an epoch may take 1 % of it: for epochs of a tenth of a second, one millisecond of processor time."""
    tracker = MlflowTracker(TrackerSettings(uri="http://127.0.0.1:9"), "run", tmp_path)
    tracker.start({}, {})
    line = Line("epoch", 1, 1, "joint", 1, {"loss": 1.0})
    before = time.process_time()
    for _ in range(200):
        tracker.send([line])
    spent = time.process_time() - before
    assert tracker._process is not None
    tracker._process.kill()
    tracker.finish("KILLED")
    assert spent / 200 <= 1e-3
