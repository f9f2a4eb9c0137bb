"""Copies the code that a job will run, so that edits between its submission and its end change nothing."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from orchestration.config import CHOICES, Config

OWN = ("geta_core", "baselines", "orchestration", "sweeps")
KEPT = {".py", ".pyi", ".typed", ".so", ".yaml", ".yml", ".json", ".toml", ".txt", ".csv", ".html", ".css", ".js"}
"""Endings of the files that are code, or that code reads."""


def snapshot(configs: Iterable[Config], folder: Path) -> None:
    """Copy this project's packages, and the user's own modules that configurations name.

    Installed packages are not copied: the job finds them where they are.

    Args:
        configs: of the runs; their ``package.module:name`` choices count.
        folder: receives the packages; it belongs before everything else on PYTHONPATH.
    """
    folder.mkdir(parents=True)
    root = Path(__file__).resolve().parents[2]
    for name in OWN:
        if (root / name).is_dir():
            _copy(root / name, folder / name)
    choices = [getattr(config, group).name for config in configs for group in CHOICES]
    for name in sorted({choice.partition(":")[0].partition(".")[0] for choice in choices if ":" in choice} - {*OWN}):
        spec = importlib.util.find_spec(name)
        places = [Path(place) for place in (spec.submodule_search_locations or ()) if spec] if spec else []
        if spec is not None and spec.origin not in (None, "namespace", "built-in", "frozen") and not places:
            places = [Path(str(spec.origin))]
        for place in places:
            if not _installed(place):
                _copy(place, folder / place.name)


def _installed(place: Path) -> bool:
    roots = {Path(sysconfig.get_path(kind)).resolve() for kind in ("purelib", "platlib", "stdlib", "platstdlib")}
    return any(root in place.resolve().parents for root in roots)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copy2(source, target)
        return
    for path in sorted(source.rglob("*")):
        inner = path.relative_to(source)
        if (
            path.is_file()
            and path.suffix in KEPT
            and not any(part.startswith((".", "__pycache__")) for part in inner.parts)
        ):
            (target / inner).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / inner)
