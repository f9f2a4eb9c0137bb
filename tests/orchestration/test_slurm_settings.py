"""What launcher=slurm accepts, and what it makes of it; no Slurm is needed here."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from geta_core.errors import ConfigError, GetaError
from orchestration.cli_run import main
from orchestration.compose import compose
from orchestration.config import LauncherSettings
from orchestration.launchers.slurm import setup_lines, submit_many
from orchestration.launchers.slurm_network import BLOCK, BLOCKS, FIRST_PORT, free_block
from orchestration.launchers.slurm_ray import ray_settings
from orchestration.launchers.slurm_settings import ONLY_SLURM, OWNED, sbatch_options
from orchestration.launchers.snapshot import snapshot
from orchestration.standing import find_runs, standings
from orchestration.world import LOOPBACK
from tests.orchestration.small import everything_under, small


def faults(**keys: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        LauncherSettings(**{"name": "slurm", **keys})
    return "\n".join(caught.value.faults)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"nodes": 2}, "launcher.workers=1 must be a multiple of launcher.nodes=2"),
        ({"workers": 3, "nodes": 2}, "launcher.workers=3 must be a multiple of launcher.nodes=2"),
        ({"gpus_per_node": 4}, "launcher.gpus_per_node=4 must be 0 or 1"),
        ({"workers": 4, "nodes": 2, "gpus_per_node": 4}, "launcher.gpus_per_node=4 must be 0 or 2"),
        ({"workers": 2, "extra": {"gres": "gpu:2"}}, "launcher.extra.gres is for one worker"),
        ({"workers": 2, "sync_batchnorm": True}, "needs GPUs; set launcher.gpus_per_node"),
        ({"address": "host:1"}, "launcher.address needs launcher=ray"),
        ({"cpus_per_worker": 2.0}, "launcher.cpus_per_worker needs launcher=ray; use launcher.cpus_per_task"),
        ({"gpus_per_worker": 1.0}, "launcher.gpus_per_worker needs launcher=ray; use launcher.gpus_per_node"),
        ({"timeout_min": 2}, "launcher.signal_s=120 must be less than the time limit of 2 min"),
        ({"partition": "a\n#SBATCH --uid=1"}, "launcher.partition must be one line"),
        ({"account": " "}, "launcher.account must be one line"),
        ({"setup": ("a\nb",)}, "launcher.setup must hold single lines"),
        ({"extra": {"--gres": "gpu:1"}}, "long options without dashes"),
        ({"extra": {"comment": "a\nb"}}, "launcher.extra.comment must be true, a number or one line"),
        ({"extra": {"exclusive": False}}, "launcher.extra.exclusive must be true"),
        ({"extra": {"mail-type": ["END"]}}, "launcher.extra.mail-type must be true"),
        ({"name": "local", "partition": "gpu", "timeout_min": 5}, "launcher.timeout_min needs launcher=slurm"),
    ],
)
def test_faults(keys: dict[str, Any], said: str) -> None:
    assert said in faults(**keys)


@pytest.mark.parametrize("option", sorted(OWNED))
def test_options_that_the_launcher_writes_itself(option: str) -> None:
    said = faults(extra={option: "x"})
    assert f"launcher.extra.{option} is set by the launcher itself" in said
    if OWNED[option]:
        assert f"use {OWNED[option]}" in said
        assert OWNED[option].removeprefix("launcher.") in ONLY_SLURM


def test_the_options_of_sbatch() -> None:
    extra = {"exclude": "node7", "exclusive": True}
    settings = LauncherSettings(
        name="slurm", partition="gpu", gpus_per_node=1, cpus_per_task=4, mem_gb=7.5, timeout_min=90, account="lab",
        extra=extra,
    )  # fmt: skip
    assert sbatch_options(settings, "geta-a") == {
        "job_name": "geta-a",
        "partition": "gpu",
        "account": "lab",
        "gpus_per_node": 1,
        "mem": "7680M",
        "time": 90,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 4,
        "signal_delay_s": 120,
        "array_parallelism": 256,
        "srun_args": None,
        "wckey": None,
        "additional_parameters": {"requeue": True, "exclude": "node7", "exclusive": True},
    }


def test_several_workers_share_the_nodes_evenly() -> None:
    settings = LauncherSettings(name="slurm", workers=8, nodes=2, gpus_per_node=4, cpus_per_task=3)
    options = sbatch_options(settings, "geta-a")
    assert (options["nodes"], options["ntasks_per_node"], options["cpus_per_task"]) == (2, 1, 12)
    assert options["srun_args"] == ["--kill-on-bad-exit=1"]
    ray = ray_settings(settings, "10.0.0.1:10100")
    assert (ray.name, ray.workers, ray.gpus_per_worker, ray.address) == ("ray", 8, 1.0, "10.0.0.1:10100")


def test_each_start_makes_a_token_that_no_trace_shows(tmp_path: Path) -> None:
    lines = setup_lines(LauncherSettings(name="slurm", workers=2, nodes=2, setup=("set -x",)), tmp_path, tmp_path)
    shown = []
    for _ in range(2):
        done = subprocess.run(
            ["bash", "-c", "\n".join([*lines, "env"])], capture_output=True, text=True, check=True, timeout=60
        )
        values = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
        assert re.fullmatch("[0-9a-f]{64}", values["RAY_AUTH_TOKEN"]) and values["RAY_AUTH_MODE"] == "token"
        assert "PYTHONPATH" in done.stderr and values["RAY_AUTH_TOKEN"] not in done.stderr
        shown.append(values["RAY_AUTH_TOKEN"])
    assert shown[0] != shown[1]
    assert not any(
        "RAY_AUTH" in line for line in setup_lines(LauncherSettings(name="slurm", workers=2), tmp_path, tmp_path)
    )


@pytest.mark.parametrize(
    ("script", "code", "calls"),
    [
        ('[ "$(wc -l < calls)" -ge 3 ]  || exit 168', 0, 3),  # refused twice
        ("exit 168", 168, 7),
        ('touch "$GETA_BEGUN"; exit 168', 168, 1),
        ("exit 1", 1, 1),
        ("exit 0", 0, 1),
    ],
    ids=["refused twice", "refused for ever", "begun", "failed", "passed"],
)
@pytest.mark.parametrize("strict", ["", "set -eu"])
def test_a_refused_srun_is_called_again_unless_a_task_has_begun(
    tmp_path: Path, script: str, code: int, calls: int, strict: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in (("srun", f"echo $# >> calls; {script}"), ("sleep", f"echo $1 >> {tmp_path}/slept")):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    setup = (strict,) if strict else ()
    lines = setup_lines(LauncherSettings(name="slurm", workers=2, nodes=2, setup=setup), tmp_path, tmp_path / "a b")
    (tmp_path / "a b").mkdir()
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", "-c", "\n".join([*lines, "srun --unbuffered 'of one' word"])],
        cwd=tmp_path,
        env=environment,
        timeout=60,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert (tmp_path / "calls").read_text().split() == ["3"] * calls
    assert done.stderr.count("refused the job's credential") == calls - 1
    assert (tmp_path / "a b" / "begun-7-0").exists() == ("GETA_BEGUN" in script)


def test_ports_of_a_job() -> None:
    first = free_block(12, LOOPBACK)
    assert first == FIRST_PORT + 12 * BLOCK or first % BLOCK == 0
    with socket.socket() as taken:
        taken.bind((LOOPBACK, first + BLOCK - 1))
        assert free_block(12, LOOPBACK) != first, "one port of it is taken"
    assert free_block(BLOCKS + 12, LOOPBACK) == free_block(12, LOOPBACK), "numbers of jobs go on for ever, ports do not"
    assert FIRST_PORT + BLOCKS * BLOCK < 32768


def test_a_job_without_gpus_sees_none(tmp_path: Path) -> None:
    hidden = "export CUDA_VISIBLE_DEVICES="
    assert hidden in setup_lines(LauncherSettings(name="slurm"), tmp_path, tmp_path)
    for settings in (
        LauncherSettings(name="slurm", gpus_per_node=1),
        LauncherSettings(name="slurm", extra={"gres": "gpu:a100:1"}),
    ):
        assert hidden not in setup_lines(settings, tmp_path, tmp_path)


def test_the_users_lines_come_first(tmp_path: Path) -> None:
    lines = setup_lines(
        LauncherSettings(name="slurm", setup=("module load cuda",), cpus_per_task=3), tmp_path / "a b", tmp_path
    )
    assert lines[0] == "module load cuda"
    assert lines[1].startswith(f"export PYTHONPATH='{tmp_path}/a b")
    assert "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-3}" in lines


def test_shell_lines_and_mappings_on_the_command_line(tmp_path: Path) -> None:
    values = ("launcher=slurm", "launcher.setup=['cd ${HOME}']", "launcher.extra={mail-type: END, exclusive: true}")
    config = compose(small(tmp_path / "run", *values))
    assert config.launcher.setup == ("cd ${HOME}",)
    assert config.launcher.extra == {"mail-type": "END", "exclusive": True}


def test_an_array_needs_runs_that_fit_together(tmp_path: Path) -> None:
    def made(name: str, *more: str) -> Any:
        return compose(small(tmp_path / name, "launcher=slurm", *more))

    with pytest.raises(ConfigError, match="equal launcher settings"):
        submit_many([made("a"), made("b", "launcher.timeout_min=7")])
    with pytest.raises(ConfigError, match="different directories"):
        submit_many([made("a"), made("a")])
    with pytest.raises(ConfigError, match="needs launcher=slurm"):
        submit_many([compose(small(tmp_path / "a"))])
    with pytest.raises(ConfigError, match="at least one run"):
        submit_many([])
    assert everything_under(tmp_path) == set()


def test_without_slurm_one_line_and_nothing_left(
    tmp_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_runs))
    assert main(small(tmp_runs / "run", "launcher=slurm")) == 2
    assert "needs sbatch and srun on PATH" in capsys.readouterr().err
    assert not (tmp_runs / "run").exists()


def test_the_copy_of_the_code_is_whole(tmp_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "snapshot_test_package"
    (package / "deep" / "__pycache__").mkdir(parents=True)
    (package / "__init__.py").write_text("def build():\n    return None\n")
    (package / "deep" / "sizes.yaml").write_text("a: 1\n")
    (package / "deep" / "data.bin").write_bytes(b"0" * 9)
    (package / "deep" / "__pycache__" / "x.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    values = [value for value in small(tmp_runs / "run", "model=snapshot_test_package:build") if "width" not in value]
    snapshot([compose(values)], tmp_path / "code")
    found = everything_under(tmp_path / "code")
    assert {"geta_core/py.typed", "orchestration/conf/config.yaml", "sweeps/cli.py", "baselines/geta.py"} <= found
    own = {path for path in found if path.startswith("snapshot_test_package")}
    assert own == {
        "snapshot_test_package",
        "snapshot_test_package/__init__.py",
        "snapshot_test_package/deep",
        "snapshot_test_package/deep/sizes.yaml",
    }


def test_runs_without_slurm_have_a_standing_too(tmp_path: Path) -> None:
    run = tmp_path / "study" / "run"
    run.mkdir(parents=True)
    (run / "resolved.yaml").write_text("{}\n")
    assert find_runs(tmp_path) == [run] == find_runs(run)
    (found,) = standings([run])
    assert (found.state, found.text, found.job) == ("stopped", "its process has ended", "")
    (run / "result.json").write_text("{")
    with pytest.raises(GetaError, match="no result of a run"):
        standings([run])
