"""Records: what stands behind a committed number, and the check that it all still holds.

A record is a JSON file of one run, or of a comparison, an ablation or a table with its runs in ``results``. Each run
says which configuration (digest and deciding keys), command, commit, versions, device, seed and seconds gave it.
"""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from geta_core.accounting import FLOAT_BITS
from geta_core.errors import ArtifactError
from orchestration.config import Config, digest_of
from orchestration.files import write_text
from orchestration.result import RunResult
from sweeps.cells import different_starts
from sweeps.grid import Found
from sweeps.statistics import paired_differences

FOLDER = Path("docs/records")
INDEX = "README.md"
ALWAYS = ("digest", "task", "model", "method", "seed", "steps", "device", "metrics", "group_sparsity", "weight_bits")
ALWAYS_TOO = ("activation_bits", "relative_bops", "parameters", "bytes", "dense", "seconds", "environment")
OF_ENVIRONMENT = ("command", "code", "versions", "python", "platform", "device", "threads")
OF_VERSIONS = ("torch", "numpy", "scipy")
CLOSE = 1e-6
"""Relative difference that counts as equal where a number is computed again."""


def run_record(result: RunResult, config: Config, cell: str) -> dict[str, Any]:
    """Return a run's part of a record: everything but where it lies and which machine it was."""
    values = {key: value for key, value in asdict(result).items() if key != "directory"}
    environment = {**values["environment"], "platform": f"{platform.system()} {platform.machine()}"}
    return {"cell": cell, **values, "environment": environment, "config": config.deciding()}


def save_record(found: Found, head: Mapping[str, Any], path: Path) -> None:
    """Write a grid of runs, one run per line.

    Args:
        found: complete runs and failures.
        head: ``kind``, ``name`` and what else tells the record from others.
        path: of the file.
    """
    rows = [
        run_record(result, found.configs[cell][seed], cell)
        for cell, own in found.results.items()
        for seed, result in own.items()
    ]
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in {**head, "failures": found.failures}.items()]
    body = ",\n".join("    " + json.dumps(row) for row in rows)
    text = "{\n" + ",\n".join(lines) + ',\n  "results": [\n' + body + "\n  ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def read_record(path: Path) -> dict[str, Any]:
    """Return a record's content.

    Raises:
        ArtifactError: when the file cannot be read or holds no mapping.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is no record ({type(error).__name__}: {error})") from error
    if isinstance(values, list):  # of runs alone, as the first comparison was written
        return {"results": values}
    if not isinstance(values, dict):
        raise ArtifactError(f"{path} is no record: it holds {type(values).__name__}, not a mapping")
    return values


def runs_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runs that a record holds; one of a single run is that run."""
    return list(record["results"]) if "results" in record else [dict(record)]


def results_of(record: Mapping[str, Any]) -> dict[str, dict[int, RunResult]]:
    """Return cell -> seed -> result; older records name cells by their method and lack numbers that are NaN here."""
    found: dict[str, dict[int, RunResult]] = {}
    for row in runs_of(record):
        values = {each.name: row.get(each.name, math.nan) for each in fields(RunResult)}
        values["directory"] = ""
        found.setdefault(str(row.get("cell", row["method"])), {})[int(row["seed"])] = RunResult(**values)
    return found


def check_records(folder: Path) -> tuple[int, list[str]]:
    """Read every record again.

    Returns:
        The number of runs that were checked, and the faults.
    """
    faults: list[str] = []
    runs = 0
    index = folder / INDEX
    listed = index.read_text(encoding="utf-8") if index.is_file() else ""
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.jsonl")]):
        if f"`{path.name}`" not in listed:
            faults.append(f"{path}: {index} must say what it shows, but does not name it")
        own, count = _lines(path) if path.suffix == ".jsonl" else _file(path)
        faults.extend(f"{path}: {fault}" for fault in own)
        runs += count
    return runs, faults


def _file(path: Path) -> tuple[list[str], int]:
    try:
        record = read_record(path)
        if "results" not in record and "method" not in record:  # of a measurement, not of runs
            return _measurement_faults(record), 1
        rows = runs_of(record)
    except (ArtifactError, TypeError) as error:
        return [str(error)], 0
    faults = [
        f"{row.get('cell', row.get('method'))}, seed {row.get('seed')}: {fault}"
        for row in rows
        for fault in faults_of(row)
    ]
    if not rows:
        faults.append("holds no run")
    if not faults and "differences" in record:
        faults += [
            f"seed {seed}: all methods must start from one file of weights, but their digests differ"
            for seed in different_starts(results_of(record))
        ]
        faults += list(_difference_faults(record))
    return faults, len(rows)


def _measurement_faults(record: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a record of a benchmark: it must say where its numbers are from."""
    about = record.get("environment")
    if not isinstance(about, Mapping):
        return ["must hold runs, or the environment of a measurement"]
    missing = [key for key in OF_ENVIRONMENT if not about.get(key)]
    return [f"environment must hold {', '.join(missing)}"] if missing else []


def _lines(path: Path) -> tuple[list[str], int]:
    """Check that every line of a list is a mapping that says which code it was made with."""
    faults, count = [], 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        count += 1
        try:
            values = json.loads(line)
        except ValueError as error:
            faults.append(f"line {number} is no JSON ({error})")
            continue
        if not isinstance(values, dict) or not _is_commit(values.get("commit")):
            faults.append(f"line {number} must be a mapping with the commit it was made with")
    return faults, count


def _is_commit(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{7,40}(\+.*)?", value) is not None


def faults_of(row: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a run's part of a record."""
    missing = [key for key in (*ALWAYS, *ALWAYS_TOO) if key not in row]
    if missing:
        return [f"must hold {', '.join(missing)}"]
    return [*_origin_faults(row), *_number_faults(row), *_config_faults(row), *_cost_faults(row)]


def _origin_faults(row: Mapping[str, Any]) -> Iterator[str]:
    about = row["environment"]
    missing = [key for key in OF_ENVIRONMENT if not about.get(key)]
    if missing:
        yield f"environment must hold {', '.join(missing)}"
        return
    lacking = [name for name in OF_VERSIONS if name not in about["versions"]]
    if lacking:
        yield f"environment.versions must hold {', '.join(lacking)}"
    code = about["code"]
    if not re.fullmatch(r"[0-9a-f]{40}", str(code.get("commit"))):
        yield f"environment.code.commit must be a commit, but is {code.get('commit')!r}"
    if code.get("modified") is not False:
        yield "the code must be that of its commit, but had been modified"
    if not re.fullmatch(r"[0-9a-f]{12}", str(row["digest"])):
        yield f"digest must be 12 hexadecimal digits, but is {row['digest']!r}"


def _number_faults(row: Mapping[str, Any]) -> Iterator[str]:
    bounds: dict[str, tuple[float, float]] = {
        "group_sparsity": (0, 1),
        "weight_bits": (1, FLOAT_BITS),
        "activation_bits": (1, FLOAT_BITS),
        "relative_bops": (0, 1 + CLOSE),
        "bytes": (1, math.inf),
        "parameters": (1, math.inf),
        "steps": (0, math.inf),  # a method that compresses the model of another run takes none
        "seed": (0, math.inf),
    }
    accuracies = {key: value for key, value in row["metrics"].items() if key.endswith("accuracy")}
    checked = [(key, row[key], limits) for key, limits in bounds.items()]
    checked += [(f"metrics.{key}", value, (0, 1)) for key, value in accuracies.items()]
    checked += [(f"seconds.{key}", value, (0, math.inf)) for key, value in row["seconds"].items()]
    for key, value, (low, high) in checked:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            yield f"{key} must lie in {low:g} to {high:g}, but is {value!r}"
    if "test/accuracy" not in row["metrics"]:
        yield "metrics must hold test/accuracy"
    if "train" not in row["seconds"]:
        yield "seconds must hold train"


def _config_faults(row: Mapping[str, Any]) -> Iterator[str]:
    config = row.get("config")
    if config is None:  # written before records held it
        return
    if digest_of(config) != row["digest"]:
        yield f"digest must be that of its configuration, {digest_of(config)}, but is {row['digest']}"
    stated = {
        "task.name": row["task"],
        "model.name": row["model"],
        "method.name": row["method"],
        "run.seed": row["seed"],
    }
    for key, value in stated.items():
        if config.get(key) != value:
            yield f"{key} is {config.get(key)!r} in its configuration and {value!r} beside it"


def _cost_faults(row: Mapping[str, Any]) -> Iterator[str]:
    """Compute the relative BOPs again from the layers, where the record has them."""
    layers = row.get("layers")
    if not layers:
        return
    bops = math.fsum(each["macs"] * each["weight_bits"] * each["input_bits"] for each in layers)
    relative = bops / (row["dense"]["macs"] * FLOAT_BITS**2)
    if not math.isclose(relative, row["relative_bops"], rel_tol=CLOSE):
        yield f"relative_bops must be that of its layers, {relative:.9g}, but is {row['relative_bops']:.9g}"


def _difference_faults(record: Mapping[str, Any]) -> Iterator[str]:
    values = {
        cell: {seed: 100 * result.accuracy for seed, result in own.items()} for cell, own in results_of(record).items()
    }
    reference = record["reference"]
    again = paired_differences(values, reference) if reference in values else {}
    for name, stated in record["differences"].items():
        found = again.get(name)
        if found is None or not math.isclose(found.mean, stated["mean"], rel_tol=CLOSE, abs_tol=CLOSE):
            yield f"the difference of {name} to {reference} must be that of its results, but is {stated['mean']!r}"


def listed_records(folder: Path) -> Sequence[Path]:
    """Return the records of runs in a folder, in order."""
    return sorted(folder.glob("*.json"))
