"""What a run takes from its machine: processor, memory, disk and GPU, sampled by the process that sends its numbers."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

from orchestration.tracking.base import Line

SYSTEM = "system.jsonl"
EVERY = 10.0
"""Seconds between samples."""
MEGABYTE = 1e6


class Sampler:
    """Samples one process with all that it started, and appends to ``system.jsonl``.

    The names are those that MLflow's pages show under system metrics. The steps count the samples of all attempts.

    Args:
        pid: of the process that trains.
        folder: the run directory.
    """

    def __init__(self, pid: int, folder: Path) -> None:
        self._pid, self._folder = pid, folder
        self._due = time.monotonic()
        self._before: tuple[float, float] | None = None
        self._gpu = shutil.which("nvidia-smi")
        path = folder / SYSTEM
        self._count = path.read_bytes().count(b"\n") if path.exists() else 0

    def sample_if_due(self) -> None:
        """Take a sample when the time has come."""
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY
            self.sample()

    def sample(self) -> None:
        """Take a sample."""
        metrics = self._process()
        if not metrics:
            return
        metrics |= self._machine() | self._gpus()
        line = Line("system", self._count, 0, "", time.time_ns() // 1_000_000, metrics)
        self._count += 1
        with (self._folder / SYSTEM).open("a") as file:
            file.write(json.dumps(line.to_dict()) + "\n")

    def _process(self) -> dict[str, float]:
        import psutil

        busy, memory = 0.0, 0
        try:
            root = psutil.Process(self._pid)
            family = [root, *root.children(recursive=True)]
        except psutil.Error:
            return {}
        for each in family:
            try:
                times = each.cpu_times()
                busy += times.user + times.system
                memory += each.memory_info().rss
            except psutil.Error:  # it ended in between
                continue
        now = time.monotonic()
        before, self._before = self._before, (now, busy)
        found = {"system/process_memory_megabytes": memory / MEGABYTE}
        if before is not None and now > before[0]:
            found["system/process_cpu_percentage"] = max(100 * (busy - before[1]) / (now - before[0]), 0.0)
        return found

    def _machine(self) -> dict[str, float]:
        import psutil

        memory = psutil.virtual_memory()
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": (memory.total - memory.available) / MEGABYTE,
            "system/system_memory_usage_percentage": memory.percent,
            "system/disk_available_megabytes": shutil.disk_usage(self._folder).free / MEGABYTE,
        }

    def _gpus(self) -> dict[str, float]:
        if self._gpu is None:
            return {}
        asked = ["--query-gpu=index,utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run([self._gpu, *asked], capture_output=True, text=True, timeout=5, check=True)
        except (OSError, subprocess.SubprocessError):
            self._gpu = None  # a driver that does not answer is not asked again
            return {}
        return gpu_metrics(done.stdout)


def gpu_metrics(text: str) -> dict[str, float]:
    """Read the lines "index, utilization in percent, used MiB" of nvidia-smi; what is not a number is left out."""
    found: dict[str, float] = {}
    for row in text.splitlines():
        cells = [cell.strip() for cell in row.split(",")]
        if len(cells) != 3:
            continue
        for name, cell, unit in (
            ("utilization_percentage", cells[1], 1.0),
            ("memory_usage_megabytes", cells[2], 1.048576),
        ):
            try:
                found[f"system/gpu_{cells[0]}_{name}"] = float(cell) * unit
            except ValueError:
                continue
    return found
