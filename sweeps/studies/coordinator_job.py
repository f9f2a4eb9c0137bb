"""The coordinator as a Slurm job of its own: requeued before its time limit, it finds everything where it was."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from geta_core.errors import ConfigError
from sweeps.studies.settings import Given
from sweeps.studies.study import Study

FOLDER = "coordinator"


class CoordinatorJob:
    """Goes on with a study, as submitit calls it.

    Args:
        folder: of the study.
        cwd: where the study was begun.
    """

    def __init__(self, folder: str, cwd: str) -> None:
        self.folder, self.cwd = folder, cwd

    def __call__(self) -> None:
        """Do what is left; where Slurm warns or ends the job, put it back into the queue."""
        os.environ.pop("PYTHONSAFEPATH", None)  # meant for this interpreter alone, not for those that it starts
        os.chdir(self.cwd)
        from orchestration.launchers import scheduler
        from orchestration.launchers.slurm_job import job_number
        from orchestration.signals import StoppedError
        from sweeps.cli_sweep import summarize

        study = Study.open(self.folder)
        try:
            summarize(study, study.run(signals=[signal.SIGUSR2]))
        except StoppedError:
            number = job_number()
            if scheduler.state_now(number) != "RUNNING":  # cancelled, or Slurm requeues it already
                return
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            scheduler.requeue(number)
            time.sleep(120)

    def checkpoint(self) -> Any:
        """Tell submitit to start the job again: its own handler is there until the study listens."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit_coordinator(study: Study, given: Given) -> str:
    """Submit the coordinator of a study as a batch job with the launcher's partition, account and limits.

    Returns:
        The job's number.

    Raises:
        GetaError: when a coordinator runs already, or Slurm refuses.
    """
    from orchestration.launchers.slurm import hand_over
    from orchestration.launchers.snapshot import snapshot
    from sweeps.studies.definition import merged, save

    if study.coordinated:
        raise ConfigError([f"a coordinator of {study.folder} runs already; geta sweep --status shows how far it is"])
    definition = study.definition
    save(definition, merged(given, study.folder))
    place = study.folder / FOLDER / time.strftime("%F-%H%M%S")
    snapshot(definition.bases.values(), place / "code")
    launcher = replace(definition.launcher, gpus_per_node=0, cpus_per_task=1, array_parallelism=256)
    call = CoordinatorJob(str(study.folder), os.getcwd())
    (number,) = hand_over([call], f"sweep-{definition.name}", launcher, place / "slurm", Path(place / "code"))
    return number
