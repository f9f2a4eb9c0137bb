"""What a study is: the keys ``sweep.*``."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from baselines.schema import Bounds
from geta_core.errors import ConfigError
from orchestration.tracking.base import DATABASES, uri_faults

FREE = ("trials", "output", "storage", "patience_s", "coordinator", "requeues")
"""Keys that may change when a study goes on; ``trials`` may grow, ``parallel`` may change where it decides nothing."""
Direction = Literal["maximize", "minimize"]
LISTED = ("grid", "fixed")
"""Samplers whose settings are known beforehand."""


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """Which runs a study makes, how many at once, and what it looks for."""

    methods: tuple[str, ...] = ("geta",)
    """Methods, as method=; each gets the same budget: sweep.trials settings, each with every seed, each a whole run."""
    seeds: tuple[Annotated[int, Bounds(0)], ...] = (0,)
    """Seeds; every setting runs with each of them, and the sampler sees the mean."""
    trials: Annotated[int, Bounds(1)] | None = None
    """Settings that each method is tried with, its defaults first; null: 10, or all of a grid or list."""
    objective: Literal["pareto", "accuracy", "bops"] = "pareto"
    """pareto: accuracy on the validation split up and relative BOPs down; accuracy or bops: that one alone."""
    max_bops: Annotated[float, Bounds(0, 1, above=True)] | None = None
    """Relative BOPs that a run may have to be feasible; with objective=accuracy."""
    min_accuracy: Annotated[float, Bounds(0, 1)] | None = None
    """Validation accuracy (0 to 1) that a run must have to be feasible; with objective=bops."""
    sampler: Literal["tpe", "nsga2", "gp", "random", "grid", "fixed"] = "tpe"
    """How settings are chosen; grid: every combination; fixed: those of sweep.settings."""
    startup: Annotated[int, Bounds(1)] = 10
    """Settings per method that tpe and gp draw at random before they learn; the population of nsga2."""
    seed: Annotated[int, Bounds(0)] = 0
    """Seed of the sampler."""
    parallel: Annotated[int, Bounds(1)] = 1
    """Runs at once."""
    synchronous: bool = False
    """Whether settings are chosen in batches of sweep.parallel runs, so that the study can be repeated exactly."""
    stopping: Literal["none", "median", "halving", "hyperband"] = "none"
    """Rule by which hopeless runs are stopped early; needs one objective=accuracy and one seed."""
    space: dict[str, Any] | str | None = None
    """Dimensions besides the methods' own, or a YAML file of them: {"method.sparsity": {low: 0.3, high: 0.7}}; a key
    METHOD:group.key is for one method, and null takes a dimension away."""
    own_space: bool = True
    """Whether the spaces that come with the methods are searched too."""
    points: Annotated[int, Bounds(2)] = 3
    """Values of each interval in a grid."""
    settings: list[Any] | dict[str, Any] | None = None
    """With sampler=fixed: a list of mappings "group.key" -> value, or one such list per method."""
    storage: str | None = None
    """Optuna storage; null: the SQLite file study.db in the study's folder; postgresql://USER@HOST:PORT/DATABASE."""
    output: str | None = None
    """Folder of the study; null: its name in the folder runs."""
    requeues: Annotated[int, Bounds(0)] = 1
    """Times that a run is started again from its last checkpoint after its process died without a word."""
    patience_s: Annotated[float, Bounds(0)] = 600.0
    """Seconds that a storage may be away before the study stops; the same command goes on."""
    coordinator: Literal["here", "slurm"] = "here"
    """Where the coordinator runs; slurm: as a batch job of its own, with launcher=slurm."""

    def __post_init__(self) -> None:
        faults = [f"sweep.{name} must name at least one" for name in ("methods", "seeds") if not getattr(self, name)]
        for name in ("methods", "seeds"):
            given = getattr(self, name)
            if len(set(given)) < len(given):
                faults.append(f"sweep.{name} must differ, but got {list(given)}")
        if self.max_bops is not None and self.objective != "accuracy":
            faults.append("sweep.max_bops needs sweep.objective=accuracy")
        if self.min_accuracy is not None and self.objective != "bops":
            faults.append("sweep.min_accuracy needs sweep.objective=bops")
        if (self.settings is not None) is not (self.sampler == "fixed"):
            faults.append("sweep.settings and sweep.sampler=fixed need each other")
        if self.sampler == "fixed" and self.space is not None:
            faults.append("sweep.space has no use with sweep.sampler=fixed")
        faults += self._stopping_faults()
        if self.storage is not None:
            faults += storage_faults(self.storage)
        if faults:
            raise ConfigError(faults)

    def _stopping_faults(self) -> list[str]:
        if self.stopping == "none":
            return []
        faults = []
        if self.objective != "accuracy":
            faults.append(f"sweep.stopping={self.stopping} needs sweep.objective=accuracy: only that is known early")
        if len(self.seeds) > 1:
            faults.append(f"sweep.stopping={self.stopping} needs one seed, but sweep.seeds has {len(self.seeds)}")
        if self.synchronous:
            faults.append(
                f"sweep.stopping={self.stopping} needs sweep.synchronous=false: when a run is stopped depends on clocks"
            )
        if self.sampler in LISTED:
            faults.append(f"sweep.stopping={self.stopping} needs a sampler that learns, but got {self.sampler}")
        return faults

    @property
    def directions(self) -> tuple[Direction, ...]:
        """Of the objectives, in Optuna's words."""
        known: dict[str, tuple[Direction, ...]] = {
            "pareto": ("maximize", "minimize"),
            "accuracy": ("maximize",),
            "bops": ("minimize",),
        }
        return known[self.objective]

    def values(self, accuracy: float, bops: float) -> tuple[float, ...]:
        """Return what the objectives are for a run.

        Args:
            accuracy: on the validation split.
            bops: relative to the dense float model.
        """
        return {"pareto": (accuracy, bops), "accuracy": (accuracy,), "bops": (bops,)}[self.objective]

    def constraints(self, accuracy: float, bops: float) -> dict[str, float]:
        """Return name -> violation; feasible where none is above zero."""
        if self.max_bops is not None:
            return {"relative_bops": bops - self.max_bops}
        return {} if self.min_accuracy is None else {"val_accuracy": self.min_accuracy - accuracy}

    def deciding(self) -> dict[str, Any]:
        """Return the keys that must be equal when a study goes on."""
        free = {*FREE, *(() if self.synchronous else ("parallel",))}
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in free}


def storage_faults(uri: str) -> list[str]:
    """Say what is wrong with the address of a storage; a password in it is never repeated."""
    faults = [fault.replace("tracker.uri", "sweep.storage") for fault in uri_faults(uri)]
    if not faults and uri.partition(":")[0].partition("+")[0] not in DATABASES:
        faults.append(f"sweep.storage must be sqlite:///FILE or postgresql://USER@HOST:PORT/DATABASE, but got {uri!r}")
    return faults


@dataclass(frozen=True)
class Given:
    """What a user says about a study."""

    name: str
    sweep: dict[str, Any] = field(default_factory=dict)
    """Keys of ``SweepSettings``."""
    values: tuple[str, ...] = ()
    """``group=name``, ``group.key=value`` for every run, ``METHOD:key=value`` for one method."""
