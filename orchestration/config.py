"""One configuration tree: which model, task and method, and how the run goes.

The dataclasses stand next to what they configure; this file joins them, checks plain values and names every fault at
once. Values come from the command line (``orchestration.compose``), a YAML file, or Python.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from baselines import matching
from baselines.registry import METHODS
from baselines.schema import REQUIRED, Bounds, Option, check_options, check_value, options_of, plain
from geta_core.errors import ConfigError, GetaError, closest
from orchestration.launchers.slurm_settings import slurm_faults
from orchestration.models import registry
from orchestration.optim import OptimizerSettings, SchedulerSettings
from orchestration.tasks import TASKS
from orchestration.tracking.base import TrackerSettings


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How one run goes."""

    epochs: Annotated[int, Bounds(1)] = 10
    """Passes over the training images."""
    steps: Annotated[int, Bounds(1)] | None = None
    """Optimizer steps; when given, it decides the run's length instead of epochs."""
    seed: Annotated[int, Bounds(0)] = 0
    """Seed of initial weights, order and augmentation; the validation split does not depend on it."""
    output: str | None = None
    """Run directory; null means a name made of task, model, method, seed and configuration, in the folder runs."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    resume: Literal["auto", "never", "must"] = "auto"
    """auto: go on from the last good checkpoint where there is one; must: fail without; never: want a new directory."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Arithmetic of forward and backward; bf16 and fp16 use autocast, fp16 with a gradient scaler."""
    compile: bool = False
    """Whether the training step's model is compiled by torch.compile."""
    channels_last: bool | None = None
    """Memory order of images and convolutions; null means channels last on CUDA."""
    deterministic: bool = False
    """Ask torch for deterministic kernels, so that a resume on a GPU gives the same bits; slower."""
    checkpoint_every: Annotated[int, Bounds(1)] = 500
    """Optimizer steps between checkpoints; one is also written at the end."""
    threads: Annotated[int, Bounds(1)] | None = None
    """CPU threads of torch; null leaves torch's own choice."""
    latency: bool = False
    """At the end, also time dense, slimmed and integer model in onnxruntime on the CPU, batch 1 and 64 (geta[onnx])."""


@dataclass(frozen=True, kw_only=True)
class LauncherSettings:
    """Where the run executes; nothing here decides the result of a run with workers of one kind."""

    name: Literal["local", "ray", "slurm"] = "local"
    """local: in this process; ray: in worker processes under Ray Train, on this machine or an existing Ray cluster;
    slurm: as a batch job."""
    workers: Annotated[int, Bounds(1)] = 1
    """Processes that share each batch and average their gradients (ray and slurm)."""
    cpus_per_worker: Annotated[float, Bounds(0, above=True)] = 1.0
    """CPUs that Ray reserves for each worker."""
    gpus_per_worker: Annotated[float, Bounds(0)] = 0.0
    """GPUs that Ray reserves for each worker; 0.5 lets two workers share one."""
    address: str | None = None
    """Address of a running Ray cluster (host:port, or auto); null starts one on this machine, on loopback alone."""
    max_failures: Annotated[int, Bounds(0)] = 3
    """Times that a run is started again from its last checkpoint after a worker, or Ray itself, died."""
    sync_batchnorm: bool = False
    """Take batch statistics over all workers (GPUs only)."""
    strategy: str = "ddp"
    """How the model is spread: ddp, a whole copy in each worker. FSDP is not supported."""
    timeout_s: Annotated[float, Bounds(0, above=True)] = 1800.0
    """Seconds in one exchange after which a worker gives the others up."""
    partition: str | None = None
    """Slurm partition; null takes the cluster's default. This key and all below need launcher=slurm."""
    nodes: Annotated[int, Bounds(1)] = 1
    """Nodes of the job; each holds workers/nodes workers."""
    gpus_per_node: Annotated[int, Bounds(0)] = 0
    """GPUs of the job on each node: one for each worker there, or 0; with 0 the job sees none."""
    cpus_per_task: Annotated[int, Bounds(1)] = 1
    """CPUs of each worker; also its OMP_NUM_THREADS, unless that is set in the submitting shell."""
    mem_gb: Annotated[float, Bounds(0, above=True)] | None = None
    """Memory on each node; null takes the cluster's default."""
    timeout_min: Annotated[int, Bounds(1)] = 60
    """Time limit of one start of the job; a run that takes longer is saved, requeued and goes on."""
    array_parallelism: Annotated[int, Bounds(1)] = 256
    """Jobs of an array that run at once."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the node must have."""
    setup: tuple[str, ...] = ()
    """Shell lines that run before Python, such as "module load cuda"."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any other options of sbatch, without the dashes: {exclude: node7, mail-type: END}; true is an option alone."""
    signal_s: Annotated[int, Bounds(1)] = 120
    """Seconds before the time limit at which Slurm warns the job; a step and a checkpoint must take less."""
    max_requeues: Annotated[int, Bounds(0)] = 50
    """Times that the job may start again after a time limit, a preemption or the death of a node."""
    wait: bool = False
    """Whether `geta run` waits for the end of the job instead of returning its number."""

    def __post_init__(self) -> None:
        faults = slurm_faults(self)
        if self.name == "local" and self.workers > 1:
            faults.append(f"launcher.workers={self.workers} needs launcher=ray; launcher=local runs in this process")
        if self.name != "ray" and self.address is not None:
            faults.append("launcher.address needs launcher=ray")
        if self.strategy.lower().startswith("fsdp"):
            faults.append(
                f"launcher.strategy={self.strategy} is not supported: groups, masks and quantizers need each parameter "
                "whole on each worker; use launcher.strategy=ddp"
            )
        elif self.strategy != "ddp":
            faults.append(f"launcher.strategy must be ddp, but got {self.strategy!r}")
        if self.gpus_per_worker > 1:
            faults.append(
                f"launcher.gpus_per_worker must be at most 1, but got {self.gpus_per_worker:g}: each worker computes "
                "on one GPU; raise launcher.workers instead"
            )
        gpus = "gpus_per_node" if self.name == "slurm" else "gpus_per_worker"
        if self.sync_batchnorm and not getattr(self, gpus):
            faults.append(f"launcher.sync_batchnorm needs GPUs; set launcher.{gpus}")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One named thing and its own keys."""

    name: str
    """A known name, or package.module:name."""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelChoice(Choice):
    """The network and the weights it starts from."""

    weights: str | None = None
    """File of a state dict (.safetensors, or .pt with tensors only), or a finished run's directory; null: fresh."""


SETTINGS: Mapping[str, Callable[..., Any]] = {
    "optimizer": OptimizerSettings,
    "scheduler": SchedulerSettings,
    "run": RunSettings,
    "tracker": TrackerSettings,
    "launcher": LauncherSettings,
}
CHOICES = ("model", "task", "method")
GROUPS = (*CHOICES, *SETTINGS)
# Keyword options of a model that the task states, where the model takes them and the user does not say otherwise.
TASK_STATES = ("num_classes", "in_channels", "image_size")
# Keys that say where things lie or how they are watched: they may differ when a run is resumed.
FREE = (
    "run.output",
    "run.resume",
    "run.checkpoint_every",
    "run.latency",
    "task.root",
    "task.download",
    "task.workers",
    "tracker",
    "launcher",
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    model: ModelChoice
    task: Choice
    method: Choice
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    run: RunSettings = field(default_factory=RunSettings)
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    launcher: LauncherSettings = field(default_factory=LauncherSettings)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], faults: list[str] | None = None) -> Config:
        """Check plain values and build the tree.

        Args:
            values: group -> keys; ``model``, ``task`` and ``method`` hold a ``name`` and that thing's own keys.
            faults: those found before; they are reported together with the new ones.

        Raises:
            ConfigError: naming every fault.
        """
        faults = faults if faults is not None else []
        for group in values:
            if group not in GROUPS:
                faults.append(f"unknown group {group!r}{closest(str(group), GROUPS)}")
        sections = {group: _section(values, group, faults) for group in GROUPS}
        parts: dict[str, Any] = {group: _choice(group, sections[group], faults) for group in CHOICES}
        for group, target in SETTINGS.items():
            checked = check_options(target, sections[group], f"{group}.", faults)
            own = _own_faults(target, checked, group)
            faults.extend(own)
            parts[group] = None if own else target(**checked)
        if faults:
            raise ConfigError(list(dict.fromkeys(faults)))
        return cls(**parts)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values with every default filled in; ``from_dict`` gives the same tree back.

        What the task states about a model (``TASK_STATES``) is left to the task, unless the user said it.
        """
        tree: dict[str, Any] = {}
        for group in CHOICES:
            choice: Choice = getattr(self, group)
            defaults = {
                name: option.default
                for name, option in choice_options(group, choice.name).items()
                if option.default is not REQUIRED and not (group == "model" and name in TASK_STATES)
            }
            extra = {"weights": self.model.weights} if group == "model" else {}
            tree[group] = {"name": choice.name, **extra, **plain({**defaults, **choice.options})}
        for group in SETTINGS:
            tree[group] = plain(asdict(getattr(self, group)))
        return tree

    def flat(self) -> dict[str, Any]:
        """Return ``group.key`` -> value."""
        return {f"{group}.{key}": value for group, keys in self.to_dict().items() for key, value in keys.items()}

    def deciding(self) -> dict[str, Any]:
        """Return the keys that decide the result: those that must be equal when a run is resumed."""
        return {key: value for key, value in self.flat().items() if decides(key)}

    def digest(self) -> str:
        """Return 12 hexadecimal digits that name the deciding keys."""
        return digest_of(self.deciding())


def digest_of(deciding: Mapping[str, Any]) -> str:
    """Return 12 hexadecimal digits that name deciding keys and their values."""
    text = json.dumps(deciding, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def decides(key: str) -> bool:
    """Whether a dotted key decides the result of a run."""
    return key not in FREE and key.partition(".")[0] not in FREE


def choice_names(group: str) -> list[str]:
    """Return the known names of a model, task or method."""
    if group == "task":
        return TASKS.names()
    if group == "method":
        return METHODS.names()
    return list(registry.available())


def choice_options(group: str, name: str) -> dict[str, Option]:
    """Return the keys that ``model=NAME``, ``task=NAME`` or ``method=NAME`` takes.

    Raises:
        ConfigError: for an unknown name, with the closest known one.
    """
    if group == "task":
        return options_of(TASKS.resolve(name))
    if group == "method":
        return options_of(METHODS.resolve(name))
    return {
        each.name: Option(each.name, each.annotation, REQUIRED if each.required else each.default, "")
        for each in registry.find(name).options.values()
    }


def _section(values: Mapping[str, Any], group: str, faults: list[str]) -> dict[str, Any]:
    section = values.get(group)
    if section is None:
        return {}
    if isinstance(section, str):  # "task: digits" is short for "task: {name: digits}"
        return {"name": section}
    if not isinstance(section, Mapping):
        faults.append(f"{group} must be a mapping with a name, but got {section!r}")
        return {}
    return {str(key): value for key, value in section.items()}


def _choice(group: str, section: dict[str, Any], faults: list[str]) -> Choice | None:
    name = section.pop("name", None)
    if not isinstance(name, str):
        faults.append(f"{group} must be given (known: {', '.join(choice_names(group))}; or package.module:name)")
        return None
    try:
        if group == "model":
            return _model_choice(name, section, faults)
        target = (TASKS if group == "task" else METHODS).resolve(name)
    except GetaError as error:
        faults.extend(error.faults if isinstance(error, ConfigError) else [str(error)])
        return None
    if group == "method":
        section = matching.refuse(name, target, section, faults)
    options = check_options(target, section, f"{group}.", faults)
    faults.extend(_own_faults(target, options, group))
    return Choice(name=name, options=options)


def _model_choice(name: str, section: dict[str, Any], faults: list[str]) -> ModelChoice:
    weights = check_value(section.pop("weights", None), str | None, "model.weights", faults)
    entry = registry.find(name)
    # What the task states (such as num_classes) need not be given; any whole number stands for it in this check.
    stated = {key: 1 for key in TASK_STATES if key in entry.options and entry.options[key].required}
    faults.extend(entry.faults({**stated, **section}))
    return ModelChoice(name=name, options=section, weights=weights)


def _own_faults(target: Callable[..., Any], options: Mapping[str, Any], group: str) -> list[str]:
    """Build the thing once, so that what it checks itself is reported with the rest."""
    try:
        target(**options)
    except ConfigError as error:
        return [fault if fault.startswith(f"{group}.") else f"{group}.{fault}" for fault in error.faults]
    except TypeError:  # a required key is missing, which has been reported
        return []
    return []
