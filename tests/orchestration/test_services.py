"""`geta services`: a real PostgreSQL and a real MLflow server, killed and started again, on loopback, without leaks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestration.cli_services import main
from orchestration.cli_sync import main as sync
from orchestration.cli_ui import main as ui
from orchestration.services import postgres
from orchestration.services.processes import HOST, Background, end_group, free_port, is_free
from orchestration.services.settings import ServicesSettings, read_settings
from orchestration.tracking.intent import RECEIPT
from tests.orchestration.tracked import copies, history, start_tracking, written
from tests.ports import own_port

LOOPBACK = {"127.0.0.1", "::1"}
KILLS = int(os.environ.get("GETA_KILLS_OF_SERVERS", "1"))
"""Kills of each kind; five make the table in docs/tracking.md."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail at once where a server is away: MLflow's own clients try for minutes."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user can enter, as pytest's are not."""
    place = Path(tempfile.mkdtemp(prefix="geta-services-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def team(folder: Path) -> Iterator[list[str]]:
    """Arguments of services that are up."""
    first = own_port(5800)
    arguments = [
        f"services.folder={folder / 'team'}", f"services.postgres_port={first}",
        f"services.mlflow_port={free_port(first + 1)}", "services.workers=1",
    ]  # fmt: skip
    try:
        assert main(["up", *arguments]) == 0
        yield arguments
    finally:
        assert main(["down", *arguments]) == 0


def processes(settings: ServicesSettings) -> list[psutil.Process]:
    """Return every process of the services."""
    heads = [int((settings.path / "postgres" / "data" / "postmaster.pid").read_text().split()[0])]
    heads.append(json.loads((settings.path / "mlflow.pid").read_text())["pid"])
    leaders = [psutil.Process(pid) for pid in heads]
    return [*leaders, *(child for leader in leaders for child in leader.children(recursive=True))]


def listening(found: list[psutil.Process]) -> list[Any]:
    """Return the addresses that processes listen on."""
    return [
        connection.laddr
        for process in found
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]


@pytest.mark.needs("postgresql")
def test_up_is_up_and_can_be_said_again(team: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    settings = read_settings(team, None)
    assert main(["status", *team]) == 0
    before = {process.pid for process in processes(settings)}
    assert main(["up", *team]) == 0
    out = capsys.readouterr().out
    assert "PostgreSQL: up" in out and "everything was up" in out and settings.address in out
    leaders = {process.pid for process in processes(settings) if process.pid in before}
    assert len(leaders) >= 2
    assert ui(["--uri", settings.address, "--no-browser"]) == 0
    assert settings.address in capsys.readouterr().out


@pytest.mark.needs("postgresql")
def test_every_socket_is_on_loopback(team: list[str]) -> None:
    settings = read_settings(team, None)
    found = listening(processes(settings))
    assert {each.port for each in found} == {settings.postgres_port, settings.mlflow_port}
    assert {each.ip for each in found} <= LOOPBACK
    unix = [each for process in processes(settings) for each in process.net_connections("unix")]
    assert not [each for each in unix if "PGSQL" in str(each.laddr)], "no socket file that other users could open"


@pytest.mark.needs("postgresql")
def test_the_password_is_in_two_private_files_alone(team: list[str], folder: Path) -> None:
    settings = read_settings(team, None)
    run = folder / "secret" / "run"
    process = start_tracking(run, settings.address, 3, 1.0)
    assert process.wait(200) == 0, run.with_suffix(".log").read_text()
    password = (settings.path / "password").read_text().strip()
    assert len(password) >= 32
    private = {settings.path / "password", settings.path / "pgpass"}
    for path in private:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files = [path for path in folder.rglob("*") if path.is_file() and path not in private]
    assert len(files) > 100
    leaks = [path for path in files if password.encode() in path.read_bytes()]
    for each in processes(settings):
        if password in " ".join(each.cmdline()) + " ".join(each.environ().values()):
            leaks.append(Path(f"process {each.pid}"))
    (copy,) = copies(settings.address)
    assert password not in json.dumps(copy.to_dictionary()) and not leaks
    # It is needed: without it PostgreSQL lets nobody in.
    asked = [
        "-h",
        HOST,
        "-p",
        str(settings.postgres_port),
        "-U",
        settings.role,
        "-d",
        settings.database,
        "-w",
        "-tAc",
        "select 1",
    ]
    program = str(postgres.find_programs() / "psql")
    assert run_psql(program, asked, "/dev/null") != 0
    assert run_psql(program, asked, str(settings.path / "pgpass")) == 0


def run_psql(program: str, arguments: list[str], passfile: str) -> int:
    import subprocess

    environment = {**os.environ, "PGPASSFILE": passfile}
    return subprocess.run([program, *arguments], env=environment, capture_output=True, check=False).returncode


@pytest.mark.needs("postgresql")
@pytest.mark.parametrize("number", range(KILLS))
@pytest.mark.parametrize(
    "victim", [*(pytest.param(one, marks=pytest.mark.long) for one in ("PostgreSQL", "MLflow")), "both"]
)
def test_killed_at_a_drawn_time_nothing_is_lost_or_doubled(
    team: list[str], folder: Path, victim: str, number: int
) -> None:
    settings = read_settings(team, None)
    run = folder / f"{victim}-{number}" / "run"
    assert main(["up", *team]) == 0
    process = start_tracking(run, settings.address, 40, 25.0)
    try:
        wait_until_sent(run, settings.address)
        time.sleep(random.Random(f"{victim}{number}").uniform(0.0, 10.0))
        kill(settings, victim)
        time.sleep(6.0)
        assert main(["up", *team]) == 0
        assert process.wait(250) == 0
    finally:
        process.kill()
        process.wait()
        assert main(["up", *team]) == 0
    # Where the server took longer to come back than the run to end, the rest was left to `geta sync`.
    assert ("`geta sync" in run.with_suffix(".log").read_text()) is not (run / RECEIPT).exists()
    for _ in range(2):
        assert sync([str(run)]) == 0
        (copy,) = [each for each in copies(settings.address) if each.data.tags["geta.directory"] == str(run)]
        for key in ("loss", "val/accuracy"):
            assert history(settings.address, copy, key) == written(run, key) and len(written(run, key)) == 40
        assert copy.info.status == "FINISHED"


def wait_until_sent(run: Path, address: str) -> None:
    """Wait until the server knows a run."""
    until = time.monotonic() + 120
    while not any(each.data.tags["geta.directory"] == str(run) for each in copies(address)):
        assert time.monotonic() < until, run.with_suffix(".log").read_text()
        time.sleep(0.3)


def kill(settings: ServicesSettings, victim: str) -> None:
    """End every process of one of the servers, or of both, at once."""
    found = processes(settings)
    databases = [each for each in found if each.name() == "postgres"]
    servers = [each for each in found if each not in databases]
    doomed = {"PostgreSQL": databases, "MLflow": servers, "both": found}[victim]
    for each in doomed:
        each.send_signal(signal.SIGKILL)
    psutil.wait_procs(doomed, timeout=20)


@pytest.mark.needs("postgresql")
def test_down_ends_everything_and_up_finds_the_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = own_port(5850)
    password = folder / "own-password"
    password.write_text("a:b\\c d\n")
    password.chmod(0o600)
    arguments = [f"services.folder={folder / 'second'}", f"services.postgres_port={first}", "services.workers=1"]
    arguments += [f"services.mlflow_port={free_port(first + 1)}", f"services.password_file={password}"]
    settings = read_settings(arguments, None)
    try:
        for round_ in range(2):
            assert main(["up", *arguments]) == 0
            from mlflow.tracking import MlflowClient

            client = MlflowClient(settings.address)
            if round_ == 0:
                client.create_experiment("kept")
            assert client.get_experiment_by_name("kept") is not None
            found = processes(settings)
            assert main(["down", *arguments]) == 0
            _, living = psutil.wait_procs(found, timeout=10)
            assert not living and main(["status", *arguments]) == 1
    finally:
        main(["down", *arguments])
    assert "nothing was up" in capsys.readouterr().out
    assert is_free(settings.postgres_port) and is_free(settings.mlflow_port)


@pytest.mark.needs("postgresql")
def test_ports_and_passwords_that_do_not_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    place = folder / "bad"
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["up", f"services.folder={place}", f"services.postgres_port={port}"]) == 2
        assert f"services.postgres_port={port} is taken by another process" in capsys.readouterr().err
    password = folder / "open-password"
    for text, mode, words in (
        ("x\n", 0o644, "must be readable by its owner alone, but has mode 0644"),
        ("", 0o600, "must hold one line"),
        ("one\ntwo\n", 0o600, "must hold one line"),
    ):
        password.write_text(text)
        password.chmod(mode)
        shutil.rmtree(place, ignore_errors=True)
        arguments = [f"services.folder={place}", f"services.postgres_port={own_port(5900)}"]
        assert main(["up", *arguments, f"services.password_file={password}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert main(["up", *arguments, f"services.password_file={folder / 'absent'}"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.needs("postgresql", "root")
def test_root_is_told_where_the_other_user_cannot_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tmp_path.chmod(0o700)
    assert main(["up", f"services.folder={tmp_path / 'team'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "PostgreSQL refuses to run as root" in line and "cannot enter" in line


def test_without_postgresql(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "PLACES", f"{tmp_path}/*/bin")
    assert main(["up", f"services.folder={tmp_path / 'team'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "apt-get install -y --no-install-recommends postgresql" in line
    assert main(["down", f"services.folder={tmp_path / 'nowhere'}"]) == 0
    assert "nothing was up" in capsys.readouterr().out and not (tmp_path / "nowhere").exists()


def test_the_newest_programs_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "PLACES", f"{tmp_path}/*/bin")
    for version, names in {"9.6": postgres.PROGRAMS, "15": postgres.PROGRAMS, "17": ["psql"], "x": ["initdb"]}.items():
        place = tmp_path / version / "bin"
        place.mkdir(parents=True)
        for name in names:
            (place / name).touch()
    assert postgres.find_programs() == tmp_path / "15" / "bin", "17 has the client alone"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["services.mlflow_prt=1"], "unknown key services.mlflow_prt (did you mean 'services.mlflow_port'?)"),
        (["services.mlflow_port=80"], "services.mlflow_port must be a whole number >= 1024 and <= 65535, but got 80"),
        (["services.mlflow_port=5532"], "must differ, but both are 5532"),
        (["services.role=geta; drop"], "services.role must consist of letters"),
        (["services.database=a-b"], "services.database must consist of letters"),
        (["services.system_user=nobody-here"], "is no user of this machine"),
        (["run.epochs=3"], "unknown key run.epochs; keys begin with services."),
        (["services=up"], "services has keys only"),
        (["--config", "absent.yaml"], "cannot read the configuration absent.yaml"),
    ],
)
def test_bad_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["up", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("geta: ") and words in line
    assert not list(tmp_path.iterdir())


def test_settings_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "services.yaml").write_text("services:\n  workers: 3\n  mlflow_port: 6000\n")
    settings = read_settings(["services.mlflow_port=6001"], None)
    assert (settings.workers, settings.mlflow_port, settings.address) == (3, 6001, "http://127.0.0.1:6001")
    assert "@" in settings.store and ":" not in settings.store.partition("//")[2].partition("@")[0], "no password"


def test_a_group_that_will_not_end_is_ended(tmp_path: Path) -> None:
    import sys

    background = Background(tmp_path / "pid", tmp_path / "log")
    assert background.pid() is None and not background.stop()
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    process = background.start([sys.executable, "-c", code], {})
    while "deaf" not in (tmp_path / "log").read_text():
        time.sleep(0.05)
    assert background.pid() == process.pid
    end_group(process.pid, seconds=0.5)
    process.wait(10)
    assert background.pid() is None and not background.stop() and not (tmp_path / "pid").exists()
