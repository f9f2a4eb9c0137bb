"""The wheel holds the four packages with their YAML files and nothing else."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.structure.sources import PACKAGES, ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    (path,) = folder.glob("geta-*-py3-none-any.whl")
    return zipfile.ZipFile(path)


def test_it_holds_every_file_of_the_packages_and_no_other(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert shipped == expected
    assert {Path(name).suffix for name in shipped} <= {".py", ".yaml", ".typed"}


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_is_typed(wheel: zipfile.ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


def test_its_metadata_names_the_command_the_licence_and_the_python_versions(wheel: zipfile.ZipFile) -> None:
    def read(name: str) -> str:
        (member,) = (entry for entry in wheel.namelist() if entry.endswith(f".dist-info/{name}"))
        return wheel.read(member).decode()

    assert "geta = sweeps.cli:main" in read("entry_points.txt")
    assert "Apache License" in read("licenses/LICENSE")
    metadata = read("METADATA").splitlines()
    assert "Name: geta" in metadata
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: <3.14,>=3.11" in metadata
