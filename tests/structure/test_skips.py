"""A test is skipped in one way only, so that GETA_REQUIRE sees every skip."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.structure.sources import ROOT, sources

# The names by which a test could be left out: this file finds their uses.
SKIPS = {"skip", "skipif", "importorskip", "SkipTest", "xfail"}  # looked for, none is used here


def test_skips_go_through_the_needs_marker() -> None:
    found = [
        f"{source.at(node)}: {ast.unparse(node)}"
        for source in sources("tests")
        if source.path != Path("tests/conftest.py")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in SKIPS
        and ast.unparse(node).partition(".")[0] in ("pytest", "unittest")
    ]
    assert not found, "use @pytest.mark.needs(part), see tests/parts.py:\n" + "\n".join(found)


@pytest.fixture
def outcome(tmp_path: Path) -> Path:
    """Return a test file that needs a data set which is not there."""
    path = tmp_path / "test_part.py"
    path.write_text("import pytest\n@pytest.mark.needs('cifar10')\ndef test_it():\n    pass\n", encoding="utf-8")
    return path


def _pytest(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    command += ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(path.parent), str(path)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "GETA_", "COV_"))}
    return subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False)


def test_a_missing_part_is_skipped_with_its_reason(outcome: Path, tmp_path: Path) -> None:
    printed = _pytest(outcome, GETA_DATA=str(tmp_path))
    assert printed.returncode == 0, printed.stdout + printed.stderr
    assert "1 skipped" in printed.stdout
    assert f"needs cifar10: {tmp_path}/cifar-10-batches-py lacks data_batch_1" in printed.stdout


def test_a_required_part_that_is_missing_fails(outcome: Path, tmp_path: Path) -> None:
    printed = _pytest(outcome, GETA_DATA=str(tmp_path), GETA_REQUIRE="cifar10")
    assert printed.returncode == 1, printed.stdout + printed.stderr
    assert "GETA_REQUIRE forbids this skip: needs cifar10" in printed.stdout


def test_an_unknown_part_is_an_error(outcome: Path) -> None:
    printed = _pytest(outcome, GETA_REQUIRE="cifar11")
    assert printed.returncode == 4, printed.stdout + printed.stderr
    assert "GETA_REQUIRE: no such part: cifar11 (known: brevitas, " in printed.stdout + printed.stderr


def test_a_process_left_behind_fails_even_as_an_orphan(tmp_path: Path) -> None:
    path = tmp_path / "test_orphan.py"
    path.write_text(
        "import subprocess\ndef test_it():\n    subprocess.run(['sh', '-c', 'sleep 60 & :'], check=True)\n",
        encoding="utf-8",
    )
    printed = _pytest(path)
    assert printed.returncode == 1, printed.stdout + printed.stderr
    assert "processes left behind" in printed.stdout
    assert "sleep 60" in printed.stdout
