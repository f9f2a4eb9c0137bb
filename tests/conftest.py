"""Settings of every test: missing parts, seeds, threads, golden files, and no process left behind."""

from __future__ import annotations

import ctypes
import difflib
import gc
import importlib.util
import os
import random
import sys
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from pathlib import Path

import pytest

from tests import parts, torchvision_operators

ROOT = Path(__file__).resolve().parents[1]

# Set before torch is imported, which reads some of them only then; inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.update(
    DO_NOT_TRACK="1",
    HF_HUB_OFFLINE="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    RAY_USAGE_STATS_ENABLED="0",
    TORCHINDUCTOR_COMPILE_THREADS="1",  # a pool of compile workers would outlive the tests
    PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
)

# A traced graph is a million small objects: to look for cycles after every 700 of them takes a tenth of the time.
gc.set_threshold(50_000, 20, 20)

# The GPU tests also run where only torch and pytest are installed.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    settings.register_profile("default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("ci", settings.get_profile("default"), derandomize=True, database=None)
    settings.load_profile("ci" if os.environ.get("CI") else "default")

torchvision_operators.install()

_ABSENT = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also run the tests marked long")
    parser.addoption("--update-golden", action="store_true", help="accept what the golden files are compared with")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what the machine lacks, or make it fail where GETA_REQUIRE names it; leave the long tests out.

    What covers the engine is its own tests: to trace the others would take a third of their time once more.
    """
    try:
        required = parts.required()
        for item in items:
            needed = parts.check((name for mark in item.iter_markers("needs") for name in mark.args), item.nodeid)
            lacking = {name: reason for name in sorted(needed) if (reason := parts.missing(name))}
            if lacking:
                reason = "; ".join(f"needs {name}: {why}" for name, why in lacking.items())
                if required.intersection(lacking):
                    item.stash[_ABSENT] = f"GETA_REQUIRE forbids this skip: {reason}"
                else:
                    item.add_marker(pytest.mark.skip(reason=reason))  # it fails instead if GETA_REQUIRE names it
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    for item in items:
        if not item.path.is_relative_to(ROOT / "tests" / "geta_core"):
            item.add_marker("no_cover")
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        if long:
            config.hook.pytest_deselected(items=long)
            items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test whose part must be here and is not."""
    reason = item.stash.get(_ABSENT, None)
    if reason is not None:
        pytest.fail(reason, pytrace=False)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Give every test the same random numbers, whatever ran before it; nothing is imported for that."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail, at the end, on each process that the tests started and did not end; end it."""
    if not importlib.util.find_spec("psutil"):
        yield
        return
    import psutil

    if sys.platform == "linux":
        # Orphans then become children of this process instead of vanishing from its sight (prctl(2)).
        pr_set_child_subreaper = 36
        ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
    me = psutil.Process()
    known = {child.pid for child in me.children(recursive=True)}
    yield
    # Python's own tracker of shared memory ends with the interpreter.
    known.add(getattr(resource_tracker._resource_tracker, "_pid", None))
    children = [child for child in me.children(recursive=True) if child.pid not in known]
    _, alive = psutil.wait_procs(children, timeout=5)
    left = []
    for child in alive:
        try:
            if child.status() != psutil.STATUS_ZOMBIE:
                left.append(f"{child.pid}: {' '.join(child.cmdline())[:200]}")
                child.kill()
        except psutil.NoSuchProcess:
            continue
    if left:
        pytest.fail("processes left behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture
def tmp_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move into an empty directory, so that nothing is written into the repository; return ``runs`` in it, not made."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the directory of the data sets, for tests marked with ``needs`` of one of them."""
    root = parts.data_root()
    assert root is not None, "mark the test with needs('cifar10') or another data set"
    return root


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """Return a function that compares a text with a committed file, and says how to accept a change."""

    def compare(path: Path, text: str) -> None:
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
            return
        expected = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != expected:
            diff = "\n".join(
                difflib.unified_diff(expected.splitlines(), text.splitlines(), "committed", "now", lineterm="")
            )
            accept = f"python -m pytest '{request.node.nodeid}' --update-golden"
            pytest.fail(
                f"{path.relative_to(ROOT)} no longer holds:\n{diff}\n"
                f"If the change is meant: {accept}; commit the file and add to CHANGELOG.md.",
                pytrace=False,
            )

    return compare
