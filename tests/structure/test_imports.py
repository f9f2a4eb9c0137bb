"""Imports go one way, and the heavy packages are imported where they are used."""

from __future__ import annotations

import ast
import json
import subprocess
import sys

import pytest

from tests.structure.sources import PACKAGES, ROOT, executed_on_import, imported, sources

# What geta_core may import at all; onnx and its runtime only inside the functions that need them.
ENGINE = {"torch", "numpy", "scipy", "safetensors"}
ENGINE_LAZY = {"onnx", "onnxruntime"}
# What the training process of one run may import when its modules are loaded: a bare machine has no more.
RUN = ENGINE | {"yaml"}
# The other dependencies of the distribution.
LAZY = {
    "ray",
    "mlflow",
    "optuna",
    "sqlalchemy",
    "hydra",
    "omegaconf",
    "submitit",
    "matplotlib",
    "rich",
    "sklearn",
    "PIL",
    "psutil",
    "tabulate",
}
# Never imported when a module of ours is loaded, in any package.
HEAVY = LAZY | {"pandas", "transformers", "onnx", "onnxruntime"}

# Refuses every package of HEAVY, then imports the modules named on the command line.
BARE = """
import importlib, importlib.abc, json, sys
heavy = set(json.loads(sys.argv[1]))
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in heavy:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
for module in sys.argv[2:]:
    importlib.import_module(module)
"""


def _top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package: str) -> None:
    later = set(PACKAGES[PACKAGES.index(package) + 1 :]) | {"tests"}
    wrong = [
        f"{source.at(node)} imports {name}"
        for source in sources(package)
        for node in ast.walk(source.tree)
        for name in imported(node)
        if _top(name) in later
    ]
    assert not wrong, f"{package} may import only {PACKAGES[: PACKAGES.index(package) + 1]} of ours:\n" + "\n".join(
        wrong
    )


def test_the_engine_needs_four_packages() -> None:
    allowed = ENGINE | {"geta_core"} | sys.stdlib_module_names
    wrong = []
    for source in sources("geta_core"):
        on_import = set(executed_on_import(source.tree))
        for node in ast.walk(source.tree):
            names = {_top(name) for name in imported(node)} - allowed
            if node not in on_import:
                names -= ENGINE_LAZY
            wrong += [f"{source.at(node)} imports {name}" for name in sorted(names)]
    assert not wrong, "\n".join(wrong)


def test_heavy_packages_are_imported_inside_functions() -> None:
    wrong = [
        f"{source.at(node)} imports {name}"
        for source in sources(*PACKAGES)
        for node in executed_on_import(source.tree)
        for name in imported(node)
        if _top(name) in HEAVY
    ]
    assert not wrong, "move these into the functions that use them:\n" + "\n".join(wrong)


def test_the_engine_imports_no_heavy_package() -> None:
    code = "import geta_core, json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert HEAVY.isdisjoint(json.loads(printed)), sorted(HEAVY.intersection(json.loads(printed)))


def test_a_run_loads_where_only_its_own_packages_are_installed() -> None:
    modules = [
        ".".join(source.path.with_suffix("").parts).removesuffix(".__init__")
        for source in sources(*PACKAGES[:3])
        if source.path.stem != "__main__"
    ]
    command = [sys.executable, "-c", BARE, json.dumps(sorted(HEAVY)), *modules]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert outcome.returncode == 0, outcome.stderr


def test_third_party_imports_are_declared() -> None:
    declared = RUN | LAZY | ENGINE_LAZY | set(PACKAGES)
    wrong = [
        f"{source.at(node)} imports {name}"
        for source in sources(*PACKAGES)
        for node in ast.walk(source.tree)
        for name in imported(node)
        if _top(name) not in declared | sys.stdlib_module_names
    ]
    assert not wrong, "not among the dependencies in pyproject.toml:\n" + "\n".join(wrong)
