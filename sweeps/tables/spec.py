"""The data file of a published table, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from baselines.schema import check_options
from geta_core.errors import ConfigError, closest
from orchestration.values import read_yaml

DATA = Path(__file__).resolve().parent / "data"
Mark = Literal["verbatim", "second-hand", "recalled", "calculated", "missing"]
Scale = Literal["full", "smoke"]
SCALES: tuple[Scale, ...] = ("full", "smoke")
MEASURES = ("accuracy", "relative_bops", "relative_sparse_bops")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A number that the table publishes."""

    label: str
    """Heading."""
    measure: Literal["accuracy", "relative_bops"] | None = None
    """What is measured beside it; null where no task of ours gives it."""
    better: Literal["higher", "lower"]
    """Which way is better."""
    margin: float = 0.0
    """How far a measured mean may lie from the published value and still reproduce it."""
    unit: Literal["points", "share"] = "points"
    """Whether the margin is in the column's own unit or a share of the published value."""

    def width(self, published: float) -> float:
        """Return the margin in the column's unit."""
        return self.margin if self.unit == "points" else self.margin * abs(published)


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published number."""

    value: float | None = None
    """As printed; null where it is not known."""
    mark: Mark
    """How it is known: read in the source itself, told by somebody who had it, recalled from the literature and
    unchecked, computed from other cells, or not at all."""
    source: str = ""
    """Where it is from."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    name: str
    """As the table has it."""
    published: dict[str, Any] = field(default_factory=dict)
    """Column -> what is published."""
    keys: list[str] = field(default_factory=list)
    """What makes the run of this row; empty where there is none."""
    reason: str = ""
    """Why it is not run."""
    zeros: bool = False
    """Whether BOPs are counted of nonzero weights alone, as papers on unstructured pruning do."""

    def cell(self, column: str) -> Published:
        """Return the published number; one that the file does not state is missing."""
        return cast(Published, self.published.get(column, Published(mark="missing")))


@dataclass(frozen=True, kw_only=True)
class ScaleSpec:
    """How large the runs are."""

    seeds: list[int]
    """Every row runs with each of them."""
    keys: list[str] = field(default_factory=list)
    """For every row."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A table as its file states it."""

    title: str
    """Stands above."""
    source: str
    """Where it is published."""
    columns: dict[str, Any]
    """Name -> what is published and how it is judged."""
    rows: list[Any]
    """In the published order."""
    keys: list[str] = field(default_factory=list)
    """For every run."""
    scales: dict[str, Any] = field(default_factory=dict)
    """``full``, as published, and ``smoke``, minutes on a CPU."""
    notes: list[str] = field(default_factory=list)
    """What must be said below."""
    name: str = ""
    """Of the file."""

    def scale(self, name: Scale) -> ScaleSpec:
        """Return a scale.

        Raises:
            ConfigError: when nothing of this table can be run.
        """
        if name not in self.scales:
            reasons = {row.reason for row in self.rows}
            raise ConfigError([f"table {self.name} cannot be run: {'; '.join(sorted(reasons))}"])
        return cast(ScaleSpec, self.scales[name])


def known() -> list[str]:
    """Return the names of the tables that come with geta."""
    return sorted(path.stem for path in DATA.glob("*.yaml"))


def read(name: str) -> Spec:
    """Read and check a table, one of ours by its name or a file.

    Raises:
        ConfigError: naming every fault of the file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else DATA / f"{name}.yaml"
    if path.parent == DATA and name not in known():
        raise ConfigError([f"unknown table {name!r}{closest(name, known())}; or give a file NAME.yaml"])
    faults: list[str] = []
    values = check_options(Spec, read_yaml(path), f"{path.name}: ", faults)
    if faults:
        raise ConfigError(faults)
    columns = {
        key: _built(Column, each, f"{path.name}: columns.{key}", faults) for key, each in values["columns"].items()
    }
    scales = {
        key: _built(ScaleSpec, each, f"{path.name}: scales.{key}", faults)
        for key, each in values.get("scales", {}).items()
    }
    faults += [f"{path.name}: a scale must be full or smoke, but got {key!r}" for key in scales if key not in SCALES]
    rows = [
        _row(each, f"{path.name}: rows[{number}]", list(columns), faults) for number, each in enumerate(values["rows"])
    ]
    if not faults:
        faults += [f"{path.name}: {fault}" for fault in _row_faults(rows, scales)]
    if faults:
        raise ConfigError(faults)
    return Spec(**{**values, "columns": columns, "scales": scales, "rows": rows, "name": path.stem})


def _built(kind: Any, values: Any, where: str, faults: list[str]) -> Any:
    if not isinstance(values, Mapping):
        faults.append(f"{where} must be a mapping, but got {values!r}")
        return None
    before = len(faults)
    checked = check_options(kind, values, f"{where}.", faults)
    return kind(**checked) if len(faults) == before else None


def _row(values: Any, where: str, columns: Sequence[str], faults: list[str]) -> Any:
    row = _built(Row, values, where, faults)
    if row is None:
        return None
    cells = {}
    for key, each in row.published.items():
        if key not in columns:
            faults.append(f"{where}.published: unknown column {key!r}{closest(str(key), columns)}")
        cells[key] = _built(Published, each, f"{where}.published.{key}", faults)
        if cells[key] is not None and (cells[key].value is None) != (cells[key].mark == "missing"):
            faults.append(f"{where}.published.{key}: exactly the cells without a value are marked missing")
        if cells[key] is not None and cells[key].value is not None and not cells[key].source:
            faults.append(f"{where}.published.{key} must name its source")
    return replace(row, published=cells)


def _row_faults(rows: Sequence[Row], scales: Mapping[str, Any]) -> list[str]:
    faults = [
        f"row {row.name!r} must have either keys to run it with or a reason why it is not run"
        for row in rows
        if bool(row.keys) == bool(row.reason)
    ]
    if any(row.keys for row in rows) and set(scales) != set(SCALES):
        faults.append(f"a table with runs must have the scales {' and '.join(SCALES)}, but has {sorted(scales)}")
    names = [row.name for row in rows]
    return faults + [f"row {name!r} stands twice" for name in dict.fromkeys(names) if names.count(name) > 1]
