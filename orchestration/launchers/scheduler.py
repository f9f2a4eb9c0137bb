"""Asks Slurm about jobs and tells it what to do with them, by its own commands."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from geta_core.errors import GetaError

PATIENCE = 60.0
"""Seconds that one command may take; a busy controller answers slowly."""
WAITING = {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
GOING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
FORGOTTEN = "Invalid job id"
"""What squeue says of a job that it no longer lists."""
REMEDIES = {
    "OUT_OF_MEMORY": "raise launcher.mem_gb",
    "TIMEOUT": "raise launcher.timeout_min or launcher.signal_s",
    "NODE_FAIL": "the node died",
    "BOOT_FAIL": "the node did not start",
    "PREEMPTED": "the partition ends preempted jobs instead of requeuing them; use one that requeues",
    "DEADLINE": "the job's deadline was reached",
}
"""What to do about jobs that Slurm ended."""


@dataclass(frozen=True)
class Job:
    """What Slurm knows of a job."""

    number: str
    state: str
    """Slurm's word, such as PENDING, RUNNING, COMPLETED, CANCELLED or NODE_FAIL."""
    reason: str = ""
    """Why it waits, or its exit code."""
    elapsed: str = ""
    nodes: str = ""

    @property
    def waits(self) -> bool:
        """Whether the job is still to start."""
        return self.state in WAITING

    @property
    def runs(self) -> bool:
        """Whether the job runs or is just ending."""
        return self.state in GOING


def jobs(numbers: Iterable[str]) -> dict[str, Job]:
    """Return what Slurm knows of jobs, by number; those that it has forgotten are left out.

    Raises:
        GetaError: when Slurm does not answer.
    """
    wanted = sorted(set(numbers))
    if not wanted:
        return {}
    found: dict[str, Job] = {}
    listed = ",".join(wanted)
    # Accounting knows the past, the queue the present: what the queue says is newer.
    for line in _ask("sacct", "-n", "-P", "-X", "-j", listed, "-o", "JobID,State,ExitCode,Elapsed,NodeList"):
        number, state, code, elapsed, nodes = line.split("|")
        # "CANCELLED by 1000" names the user.
        found[number] = Job(number, state.split()[0], f"exit code {code}", elapsed, nodes)
    for line in _ask("squeue", "-h", "-r", "-t", "all", "-j", listed, "-o", "%i|%T|%r|%M|%N", none=FORGOTTEN):
        number, state, reason, elapsed, nodes = line.split("|")
        found[number] = Job(number, state, reason, elapsed, nodes)
    return {number: job for number, job in found.items() if number in wanted}


def state_now(number: str) -> str:
    """Return the controller's word for the state of a job; COMPLETING hides why it ends, as by a cancellation."""
    states = _ask("squeue", "-h", "-r", "-t", "all", "-j", number, "-o", "%T", none=FORGOTTEN)
    return states[0] if states else "UNKNOWN"


def node_address(name: str) -> str:
    """Return the address or host name by which Slurm reaches a node; nothing where it does not say."""
    try:
        words = " ".join(_ask("scontrol", "-o", "show", "node", name)).split()
    except GetaError:
        return ""
    return next((word.partition("=")[2] for word in words if word.startswith("NodeAddr=")), "")


def requeue(number: str) -> None:
    """End a job and put it back into the queue.

    Raises:
        GetaError: when Slurm refuses.
    """
    _ask("scontrol", "requeue", number)


def cancel(numbers: Sequence[str]) -> None:
    """End jobs for good.

    Raises:
        GetaError: when Slurm refuses.
    """
    _ask("scancel", *numbers)


def _ask(*command: str, none: str | None = None) -> list[str]:
    """Run a command of Slurm's and return its lines; no lines where its complaint holds the text ``none``."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        raise GetaError(f"{command[0]} is not on PATH: this is no machine of a Slurm cluster") from None
    except subprocess.TimeoutExpired:
        raise GetaError(f"{command[0]} gave no answer in {PATIENCE:.0f} s: Slurm's controller may be down") from None
    if done.returncode and none is not None and none in done.stderr:
        return []
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise GetaError(f"{' '.join(command[:2])} failed: {said[0]}")
    return [line for line in done.stdout.splitlines() if line.strip()]
