"""What must hold of ``launcher.*`` for Slurm, and what becomes of it in the batch script."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestration.config import LauncherSettings

ONLY_SLURM = (
    *("partition", "nodes", "gpus_per_node", "cpus_per_task", "mem_gb", "timeout_min", "array_parallelism"),
    *("account", "qos", "constraint", "setup", "extra", "signal_s", "max_requeues", "wait"),
)
ONLY_RAY = {"cpus_per_worker": "launcher.cpus_per_task", "gpus_per_worker": "launcher.gpus_per_node"}
"""Keys of Ray's workers, and what stands for them in a batch job."""
OWNED = {
    "partition": "launcher.partition",
    "nodes": "launcher.nodes",
    "gpus-per-node": "launcher.gpus_per_node",
    "cpus-per-task": "launcher.cpus_per_task",
    "mem": "launcher.mem_gb",
    "time": "launcher.timeout_min",
    "account": "launcher.account",
    "qos": "launcher.qos",
    "constraint": "launcher.constraint",
    "signal": "launcher.signal_s",
    **dict.fromkeys(("job-name", "output", "error", "open-mode", "array", "ntasks", "ntasks-per-node", "wrap"), ""),
}
"""Options of sbatch that the launcher writes itself, and the key that decides each, if one does."""
GPU_OPTIONS = ("gres", "gpus", "gpus-per-task", "gpus-per-socket")
"""Options of sbatch by which GPUs may be asked for besides ``launcher.gpus_per_node``."""

_RANDOM = r"od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n'"
TOKEN = f'{{ export RAY_AUTH_MODE=token RAY_AUTH_TOKEN="$({_RANDOM})"; }} 2>/dev/null'
"""Shell line that makes the token of Ray for one start of a job, which srun hands to the tasks in their environment: on
no command line, and, with ``set -x`` in the user's lines, in no log."""


BEGUN = "GETA_BEGUN"
"""Environment variable that names a file which a start of a job makes when its first task has begun."""
REFUSED = 4008 % 256
"""srun's exit code where a node refuses the job's credential (ESLURMD_CREDENTIAL_REVOKED)."""
SRUN = f"""\
srun() {{ local code tries=0; until command srun "$@"; do code=$?; \
if [ "$code" -ne {REFUSED} ] || [ -e "${BEGUN}" ] || [ "$tries" -ge 6 ]; then return "$code"; fi; \
tries=$((tries + 1)); echo "a node refused the job's credential; srun again in 10 s ($tries of 6)" >&2; \
sleep 10; done; }}"""
"""Shell function in place of srun for jobs of several nodes. A node that was cut off and comes back revokes what it
knows of the job's former start, and may do so when the next one has begun: that one's first srun is refused then."""


def slurm_faults(settings: LauncherSettings) -> list[str]:
    """Name everything about the settings that a batch job cannot honour."""
    if settings.name != "slurm":
        return [f"launcher.{key} needs launcher=slurm" for key in _changed(settings, ONLY_SLURM)]
    faults = [f"launcher.{key} needs launcher=ray; use {ONLY_RAY[key]}" for key in _changed(settings, ONLY_RAY)]
    faults += _shape_faults(settings)
    if settings.signal_s >= settings.timeout_min * 60:
        faults.append(
            f"launcher.signal_s={settings.signal_s} must be less than the time limit of {settings.timeout_min} min, "
            "or the job is told to stop when it starts"
        )
    for key in ("partition", "account", "qos", "constraint"):
        value = getattr(settings, key)
        if value is not None and (not value.strip() or not value.isprintable()):
            faults.append(f"launcher.{key} must be one line of text, but got {value!r}")
    faults += [f"launcher.setup must hold single lines, but got {line!r}" for line in settings.setup if "\n" in line]
    return [*faults, *_extra_faults(settings.extra)]


def _shape_faults(settings: LauncherSettings) -> Iterator[str]:
    """Name what keeps the workers from being shared evenly by nodes and GPUs."""
    workers, nodes, gpus = settings.workers, settings.nodes, settings.gpus_per_node
    if workers % nodes:
        yield f"launcher.workers={workers} must be a multiple of launcher.nodes={nodes}: each node gets as many"
        return
    if gpus not in (0, workers // nodes):
        yield (
            f"launcher.gpus_per_node={gpus} must be 0 or {workers // nodes}: launcher.workers={workers} on "
            f"launcher.nodes={nodes} get one GPU each"
        )
    asked = [option for option in GPU_OPTIONS if option in settings.extra]
    if asked and workers > 1:
        yield f"launcher.extra.{asked[0]} is for one worker; for more use launcher.gpus_per_node"


def sbatch_options(settings: LauncherSettings, name: str) -> dict[str, Any]:
    """Return the parameters of submitit's executor.

    Args:
        settings: of ``launcher=slurm``.
        name: the job's, shown by squeue.
    """
    chosen = {key: getattr(settings, key) for key in ("partition", "account", "qos", "constraint")}
    if settings.gpus_per_node:
        chosen["gpus_per_node"] = settings.gpus_per_node
    if settings.mem_gb is not None:
        chosen["mem"] = f"{round(settings.mem_gb * 1024)}M"
    return {
        "job_name": name,
        "time": settings.timeout_min,
        "nodes": settings.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": task_cpus(settings),
        "signal_delay_s": settings.signal_s,
        "array_parallelism": settings.array_parallelism,
        # Where one task fails the others must not hold the nodes.
        "srun_args": ["--kill-on-bad-exit=1"] if settings.nodes > 1 else None,
        "wckey": None,  # submitit's default is refused by clusters that keep a list of keys
        "additional_parameters": {"requeue": True, **settings.extra},
        **{key: value for key, value in chosen.items() if value is not None},
    }


def task_cpus(settings: LauncherSettings) -> int:
    """Return the CPUs of a task; each node has one task, which holds the workers there."""
    return settings.cpus_per_task * (settings.workers // settings.nodes)


def asks_for_gpus(settings: LauncherSettings) -> bool:
    """Whether the job gets GPUs."""
    return settings.gpus_per_node > 0 or any(option in settings.extra for option in GPU_OPTIONS)


def _changed(settings: LauncherSettings, keys: Any) -> Iterator[str]:
    """Name the keys that do not have their default."""
    for each in fields(settings):
        if each.name in keys:
            default = each.default if each.default_factory is MISSING else each.default_factory()
            if getattr(settings, each.name) != default:
                yield each.name


def _extra_faults(extra: dict[str, Any]) -> Iterator[str]:
    for option, value in extra.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", str(option)):
            yield f"launcher.extra must hold names of sbatch's long options without dashes before, but got {option!r}"
        elif option in OWNED:
            yield f"launcher.extra.{option} is set by the launcher itself" + (
                OWNED[option] and f"; use {OWNED[option]}"
            )
        elif value is False or not isinstance(value, (str, int, float)) or not str(value).isprintable():
            yield f"launcher.extra.{option} must be true, a number or one line of text, but got {value!r}"
