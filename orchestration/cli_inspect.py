"""``geta inspect``: the preflight of a model, as tables, JSON and a picture."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from orchestration.console import USER_ERROR, Parser, complain, guarded, write

if TYPE_CHECKING:
    from torch import nn

    from geta_core import CompressionConfig, Inspection
    from orchestration.config import Config

UNSOUND = 1
"""Exit code when the proof fails or an operation has no rule."""
HELP = """\
usage: geta inspect model=NAME [task=NAME] [group.key=VALUE ...] [options]

Say what of a model can be removed, what it saves, what must stay and why, and prove on random groups that removal
changes nothing. Nothing is trained or written, and no data is read unless task=NAME is given.

  model=NAME          a model of `geta models`, or package.module:build; model.KEY=VALUE sets its options
  task=NAME           take the example inputs, and what the task states of the model (such as num_classes), from this
                      task; without it a named model gets random inputs of the shape it is for, and package.module:build
                      those of --inputs, or of task=digits
  method.KEY=VALUE    policy and quantizers, as for `geta run`: method.heads, method.pin, method.activation_bits, ...
  --inputs MODULE:F   package.module:function that returns the example inputs (a tensor, a tuple or a dict)
  --config FILE       start from a resolved configuration
  --config-dir DIR    search DIR/<group>/<name>.yaml before the built-in group files
  --groups            list every group, not only the families
  --json FILE         write everything as JSON; - means standard output, and no tables
  --svg FILE          draw the graph, one colour per family
  --no-proof          do not try a random pruning
  --share SHARE       share of each family that the proof removes (default: 0.3)
  --seed SEED         seed of that choice (default: 0)

exit codes: 0 the proof holds (or was not asked for), 1 the proof fails or operations have no rule, 2 bad input

examples:
  geta inspect model=resnet20 --svg resnet20.svg
  geta inspect model=vit method.heads=head_dim method.activation_bits=[4,8] --groups
  geta inspect model=mypackage.nets:build --inputs mypackage.nets:inputs --json - --no-proof
"""


def main(arguments: Sequence[str]) -> int:
    """Inspect one model.

    Args:
        arguments: of the command line.

    Returns:
        0 if the proof holds, 1 if it fails or operations are missing, 2 for bad input.
    """
    return guarded(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    parser = Parser("geta inspect", add_help=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    for option in ("--config", "--config-dir", "--inputs", "--json", "--svg"):
        parser.add_argument(option)
    parser.add_argument("--groups", action="store_true")
    parser.add_argument("--no-proof", action="store_true")
    parser.add_argument("--share", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("values", nargs="*")
    given = parser.parse_intermixed_args(arguments)
    if given.help:
        write(HELP.rstrip())
        return 0
    faults = _path_faults(given)
    if faults:
        for fault in faults:
            complain(fault)
        return USER_ERROR
    found = _inspect(given)
    _output(found, given)
    return 0 if found.sound else UNSOUND


def _path_faults(given: argparse.Namespace) -> list[str]:
    """What is wrong with the files to write, found before the work is done."""
    faults = []
    for option in ("json", "svg"):
        path = getattr(given, option)
        if path is None or (option == "json" and path == "-"):
            continue
        if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
            faults.append(f"--{option} must name a file in a folder that exists, but got {path!r}")
    return faults


def _inspect(given: argparse.Namespace) -> Inspection:
    import geta_core as geta
    from orchestration.cli_run import read_config

    config = read_config(given.values, given.config, given.config_dir)
    model, inputs = _model(config, given)
    settings = _compression(config)
    return geta.inspect(model, inputs, settings, prove=not given.no_proof, share=given.share, seed=given.seed)


def _compression(config: Config) -> CompressionConfig:
    """The engine's configuration of the method, or the engine's defaults for a method that has none."""
    import geta_core as geta
    from baselines.registry import METHODS

    method = METHODS.resolve(config.method.name)(**config.method.options)
    state = getattr(method, "compression", None)
    found = state() if callable(state) else None
    return found if isinstance(found, geta.CompressionConfig) else geta.CompressionConfig()


def _model(config: Config, given: argparse.Namespace) -> tuple[nn.Module, Any]:
    """The model and its example inputs, on the CPU.

    Raises:
        GetaError: for whatever does not fit together.
    """
    import torch

    from orchestration.models import registry

    torch.manual_seed(config.run.seed)
    entry = registry.find(config.model.name)
    named_task = given.config is not None or any(_group(value) == "task" for value in given.values)
    if named_task or (entry.inputs is None and given.inputs is None):
        model, inputs = _with_task(config)
        return model, inputs if given.inputs is None else _inputs(given.inputs)
    model = entry.build(config.model.options)
    if config.model.weights is not None:
        from orchestration.weights import load_weights

        load_weights(model, config.model.weights)
    return model, _inputs(given.inputs) if given.inputs else entry.example_inputs(2, config.model.options)


def _group(value: str) -> str:
    return value.partition("=")[0].partition(".")[0]


def _with_task(config: Config) -> tuple[nn.Module, Any]:
    import torch

    from orchestration.assemble import build_model
    from orchestration.tasks import TASKS
    from orchestration.tasks.base import Placement, Task

    task = cast(Task, TASKS.resolve(config.task.name)(**config.task.options))
    task.setup(config.run.seed, Placement(torch.device("cpu")))
    return build_model(config, task), task.example_inputs()


def _inputs(path: str) -> Any:
    """Call the user's function.

    Raises:
        GetaError: if it cannot be imported or called.
    """
    from geta_core.errors import GetaError
    from orchestration.models.imports import import_callable, one_line

    function = import_callable(path, "--inputs")
    try:
        return function()
    except Exception as error:
        raise GetaError(f"--inputs {path} failed: {one_line(error)}") from error


def _output(found: Inspection, given: argparse.Namespace) -> None:
    from orchestration.files import write_text

    if given.svg is not None and not found.missing:
        write_text(Path(given.svg), found.svg())
    if given.json is not None:
        text = json.dumps(found.to_dict(), indent=1) + "\n"
        if given.json == "-":
            sys.stdout.write(text)
            return
        write_text(Path(given.json), text)
    from orchestration.inspect_tables import show

    show(found, every_group=given.groups)
