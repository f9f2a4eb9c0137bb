"""Checks that a Slurm cluster can run this: its commands, its settings, and, by a tiny job, what a node really does."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from geta_core.errors import GetaError
from orchestration.config import LauncherSettings
from orchestration.launchers import scheduler
from orchestration.launchers.doctor_job import AGAIN, HELLO, LOCKED, NODE, PACKAGES, PORTS, SIGNAL, Probe
from orchestration.launchers.slurm import hand_over
from orchestration.launchers.slurm_settings import asks_for_gpus

Verdict = Literal["ok", "note", "fix"]
COMMANDS = ("sbatch", "srun", "squeue", "sacct", "scontrol", "scancel")
ROOM = 2 * 2**30
"""Bytes that a node's temporary folder should have."""
SKEW = 5.0
"""Seconds by which clocks may differ."""
LONG_REQUEUE = 60.0
"""Seconds after which a wait for a requeued job is worth a word."""
LIMIT_MIN, WARNED = 2, 10
"""Time limit of the probe in minutes, and seconds before it at which the warning is due.

Slurm may warn up to a minute early: with a limit of one minute that can be before Python has started."""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    what: str
    verdict: Verdict
    text: str
    """What was found; for "fix", also what to do."""


def examine(
    settings: LauncherSettings, folder: Path, quick: bool, patience: float, tell: Callable[[Finding], None]
) -> bool:
    """Do all checks, and tell each finding as it is made.

    Args:
        settings: of ``launcher=slurm``; the probe is submitted with them.
        folder: where the runs will lie; the probe uses a folder in it and removes that.
        quick: send the probe a signal instead of waiting for its time limit.
        patience: seconds for which the probe may wait in the queue.
        tell: shows a finding.

    Returns:
        Whether nothing must be fixed.
    """
    good = True
    for check in (
        _commands,
        _configuration,
        lambda: _partition(settings),
        lambda: _node(settings, folder, quick, patience),
    ):
        for finding in check():
            tell(finding)
            good = good and finding.verdict != "fix"
        if check is _commands and not good:
            break  # nothing else can be asked
    return good


def _commands() -> Iterator[Finding]:
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        yield Finding("commands", "fix", f"{', '.join(missing)} not on PATH: log in to a machine of the cluster")
        return
    version = _output("sbatch", "--version")
    yield Finding("commands", "ok", version.text) if version.good else Finding("commands", "fix", version.text)
    ping = _output("scontrol", "ping")
    up = ping.good and " UP" in ping.text
    yield Finding(
        "controller", "ok" if up else "fix", ping.text + ("" if up else ": slurmctld must run and be reachable")
    )
    past = _output("sacct", "-n", "-X", "-S", "now")
    yield Finding(
        "accounting",
        "ok" if past.good else "fix",
        "sacct answers"
        if past.good
        else f"sacct: {past.text}: enable accounting (slurmdbd), or killed jobs go unnoticed",
    )


def _configuration() -> Iterator[Finding]:
    told = _output("scontrol", "show", "config")
    if not told.good:
        yield Finding("configuration", "fix", told.text)
        return
    values = dict(re.findall(r"^(\w+)\s*=\s*(.*?)\s*$", told.full, re.MULTILINE))
    if values.get("JobRequeue") == "1":
        yield Finding("requeue", "ok", "JobRequeue=1")
    else:
        yield Finding(
            "requeue", "note", "JobRequeue=0: jobs ask for --requeue themselves, which your site must not forbid"
        )
    mode = values.get("PreemptMode", "OFF")
    good = mode == "OFF" or "REQUEUE" in mode
    remedy = (
        "" if good else ": preempted jobs do not come back by themselves; repeat the command, or use another partition"
    )
    warns = mode == "OFF" or "preempt_send_user_signal" in values.get("SlurmctldParameters", "")
    if good and not warns:
        remedy = (
            ": without SlurmctldParameters=preempt_send_user_signal preempted jobs go on from their last checkpoint"
        )
    yield Finding("preemption", "ok" if good and warns else "note", f"PreemptMode={mode}{remedy}")
    kill = int((re.match(r"\d+", values.get("KillWait", "0")) or ["0"])[0])
    yield Finding("KillWait", "ok", f"{kill} s from SIGTERM to SIGKILL; a step and a checkpoint should take less")


def _partition(settings: LauncherSettings) -> Iterator[Finding]:
    chosen = ["-p", settings.partition] if settings.partition else []
    told = _output("sinfo", "-h", *chosen, "-o", "%P|%a|%l|%D|%T|%G")
    rows = [line.split("|") for line in told.full.splitlines() if line.count("|") == 5]
    rows = rows if settings.partition else [row for row in rows if row[0].endswith("*")]
    name = settings.partition or "the default partition"
    if not rows:
        known = ", ".join(sorted(set(_output("sinfo", "-h", "-o", "%R").full.split())))
        yield Finding("partition", "fix", f"{name} does not exist: set launcher.partition to one of {known}")
        return
    usable = [row for row in rows if row[1] == "up" and not row[4].startswith(("down", "drain", "fail", "unk"))]
    nodes = ", ".join(f"{row[3]} {row[4]}" for row in rows)
    if not usable:
        yield Finding("partition", "fix", f"{name} has no usable node ({nodes}): use another partition")
        return
    yield Finding("partition", "ok", f"{rows[0][0].rstrip('*')}: {nodes}, limit {rows[0][2]}, gres {rows[0][5]}")


def _node(settings: LauncherSettings, folder: Path, quick: bool, patience: float) -> Iterator[Finding]:
    """Run the probe and say what it found."""
    folder.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=".doctor-", dir=folder))
    number = None
    try:
        (place / HELLO).write_text("hello")
        with (place / LOCKED).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            limits: dict[str, Any] = {"timeout_min": 10} if quick else {"timeout_min": LIMIT_MIN, "signal_s": WARNED}
            probe = Probe(str(place), 300 if quick else LIMIT_MIN * 60 + 60, asks_for_gpus(settings))
            code = Path(__file__).resolve().parents[2]
            (number,) = hand_over([probe], "doctor", replace(settings, **limits), place / "slurm", code)
            yield Finding("submission", "ok", f"job {number}")
            report = _await(place / NODE, patience, number)
            if report is None:
                yield _never_started(place, number, patience)
                return
        yield from _seen(report, settings)
        if quick:
            _output("scancel", "--signal=USR2", number)
        yield from _signalled(place, number, quick, patience)
    except GetaError as error:
        yield Finding("job", "fix", str(error))
    finally:
        if number is not None:
            _output("scancel", number)
        shutil.rmtree(place, ignore_errors=True)


def _never_started(place: Path, number: str, patience: float) -> Finding:
    job = scheduler.jobs([number]).get(number)
    if job is not None and job.waits:
        text = (
            f"job {number} waited more than {patience:.0f} s ({job.reason}): raise --patience or use another partition"
        )
        return Finding("job", "fix", text)
    errors = [path.read_text(errors="replace").strip().splitlines() for path in place.glob("slurm/*.err")]
    said = next((lines[-1] for lines in errors if lines), "no word from it")
    state = job.state if job else "unknown"
    remedy = f"{place.parent} and the Python environment must be shared with the nodes"
    return Finding("job", "fix", f"job {number} gave no report ({state}; {said}): {remedy}")


def _seen(report: dict[str, Any], settings: LauncherSettings) -> Iterator[Finding]:
    def judged(what: str, good: bool, found: str, remedy: str, bad: Verdict = "fix") -> Finding:
        return Finding(what, "ok" if good else bad, found if good else f"{found}: {remedy}")

    yield judged(
        "shared folder", report["hello"] == "hello", f"read: {report['hello']}", "use a folder that nodes share"
    )
    yield judged(
        "rename, fsync", report["rename"] is True, str(report["rename"]), "checkpoints need another file system"
    )
    lock = report["lock"]
    remedy = "two processes could write one run: mount the folder with locks (NFS: without nolock or local_lock)"
    yield judged("locks", lock is True, "seen across machines" if lock is True else f"not seen ({lock})", remedy)
    skew = abs(time.time() - report["clock"])
    yield judged("clocks", skew < SKEW, f"at most {skew:.1f} s apart", "synchronise them (chrony)", "note")
    yield judged(
        "Python", report["python"] == platform.python_version(), report["python"], "differs from this machine's"
    )
    for name in PACKAGES:
        here, there = metadata.version(name), report["versions"][name]
        yield judged(name, here == there, there, f"this machine has {here}; use one shared environment")
    for what, key in (("/tmp", "tmp"), ("/dev/shm", "shm")):
        free = report[key]
        found = f"{free / 2**30:.1f} GiB free" if isinstance(free, int) else str(free)
        yield judged(what, isinstance(free, int) and free >= ROOM, found, "Ray and compilers need more", "note")
    yield judged(
        "ports", report["ports"] > PORTS // 2, f"{report['ports']} of {PORTS} free", "Ray needs a block", "note"
    )
    address = str(report["address"])
    remedy = "jobs of several nodes need NodeAddr in slurm.conf, or a name of the node, that is no loopback address"
    severity: Verdict = "fix" if settings.nodes > 1 else "note"
    yield judged("address", not address.startswith("error:"), address, remedy, severity)
    yield judged(
        "CPUs", report["cpus"] >= settings.cpus_per_task, f"{report['cpus']}", "fewer than cpus_per_task", "note"
    )
    if asks_for_gpus(settings):
        gpus = report["gpus"]
        remedy = "torch must see the job's GPUs: install a CUDA build of torch, check the driver on the node"
        yield judged("GPUs", isinstance(gpus, int) and gpus > 0, str(gpus), remedy)


def _signalled(place: Path, number: str, quick: bool, patience: float) -> Iterator[Finding]:
    report = _await(place / SIGNAL, LIMIT_MIN * 60 + 120, number)
    if report is None or not report["signal"]:
        what = "SIGUSR2 of scancel" if quick else "Slurm's warning before the time limit"
        yield Finding(
            "signals", "fix", f"{what} did not reach the job: --signal must reach srun's tasks, see slurm.conf"
        )
        return
    when = f"{report['after']:.0f} s after the start"
    yield Finding(
        "signals", "ok", f"signal {report['signal']} arrived {when}" + ("" if quick else f", limit {LIMIT_MIN * 60} s")
    )
    asked = time.monotonic()
    if _await(place / AGAIN, patience, number) is None:
        yield Finding(
            "requeue", "fix", f"the job did not start again in {patience:.0f} s: jobs must be allowed to requeue"
        )
        return
    waited = time.monotonic() - asked
    slow = waited > LONG_REQUEUE
    remedy = "; AuthInfo=cred_expire in slurm.conf makes it shorter (default 120 s)" if slow else ""
    yield Finding("requeue", "note" if slow else "ok", f"the job started again after {waited:.0f} s{remedy}")


def _await(path: Path, seconds: float, number: str) -> dict[str, Any] | None:
    """Return a report as soon as it is there; None when it is late, or its job has ended."""
    end, look = time.monotonic() + seconds, 0
    while not path.is_file():
        look += 1
        if time.monotonic() >= end:
            return None
        if look % 50 == 0:  # every ten seconds
            job = scheduler.jobs([number]).get(number)
            if job is not None and not job.waits and not job.runs:
                time.sleep(1)
                break
        time.sleep(0.2)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@dataclass(frozen=True)
class _Answer:
    good: bool
    full: str

    @property
    def text(self) -> str:
        """The first line."""
        return (self.full.strip().splitlines() or ["no answer"])[0]


def _output(*command: str) -> _Answer:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=scheduler.PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Answer(False, str(error))
    return _Answer(done.returncode == 0, done.stdout if done.returncode == 0 else done.stderr)
