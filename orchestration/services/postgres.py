"""A PostgreSQL server of one's own: data folder, role and database, on loopback, with a password.

The password stands in two files that their owner alone can read; no command line, environment or log has it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from geta_core.errors import ConfigError, GetaError
from orchestration.services.processes import is_free
from orchestration.services.settings import HOST, ServicesSettings

INSTALL = "apt-get install -y --no-install-recommends postgresql"
PLACES = "/usr/lib/postgresql/*/bin"
PROGRAMS = ("initdb", "pg_ctl", "postgres", "psql", "createdb")
SECONDS = 120.0


def find_programs() -> Path:
    """Return the folder of PostgreSQL's programs: that of PATH, else the newest that Debian installed.

    Raises:
        ConfigError: when there is none.
    """
    on_path = shutil.which("pg_ctl")
    places = [Path(on_path).resolve().parent] if on_path else []
    found = Path("/").glob(PLACES.lstrip("/"))
    places += sorted(found, key=lambda place: float(place.parent.name) if _is_number(place.parent.name) else 0.0)[::-1]
    for place in places:
        if all((place / name).is_file() for name in PROGRAMS):
            return place
    raise ConfigError([f"PostgreSQL's programs are neither on PATH nor in {PLACES}; on Debian and Ubuntu: {INSTALL}"])


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


class Postgres:
    """The server of one folder.

    Args:
        settings: of the services.
    """

    def __init__(self, settings: ServicesSettings) -> None:
        self._settings = settings
        self._user = settings.postgres_user()
        self._home = settings.path / "postgres"
        self.data = self._home / "data"
        self.log = self._home / "log"
        self.passfile = settings.path / "pgpass"

    def is_up(self) -> bool:
        """Whether the server of this folder runs."""
        return self.data.is_dir() and self._run("pg_ctl", "-D", str(self.data), "status", check=False).returncode == 0

    def up(self) -> bool:
        """Make the data folder where there is none, start the server, and make the database; return if it was down.

        Raises:
            GetaError: when a step fails, with the server's own words.
        """
        programs, port = find_programs(), self._settings.postgres_port
        self._make_home()
        if not (self.data / "PG_VERSION").is_file():
            self._initialize()
        if self.is_up():
            return False
        if not is_free(port):
            raise ConfigError([f"services.postgres_port={port} is taken by another process; choose another one"])
        lines = [
            f"listen_addresses = '{HOST}'",
            f"port = {port}",
            "unix_socket_directories = ''",
            "max_connections = 200",
        ]
        self._own_file(self.data / "geta.conf", "\n".join(lines) + "\n")
        started = self._run("pg_ctl", "-D", str(self.data), "-l", str(self.log), "-w", "-t", "60", "start", check=False)
        if started.returncode:
            raise GetaError(f"PostgreSQL ({programs}) did not start: {self._last_words() or _words(started)}")
        self._make_database()
        return True

    def down(self) -> bool:
        """Stop the server; return whether it ran."""
        if not self.is_up():
            return False
        self._run("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "-t", "60", "stop")
        return True

    def _make_home(self) -> None:
        self._settings.path.mkdir(parents=True, exist_ok=True)
        self._home.mkdir(mode=0o700, exist_ok=True)
        if self._user is None:
            return
        os.chown(self._home, self._user.pw_uid, self._user.pw_gid)
        if self._as_user(["test", "-w", str(self._home)], cwd="/").returncode:
            raise ConfigError(
                [
                    f"PostgreSQL refuses to run as root, and {self._user.pw_name} cannot enter {self._home}; choose "
                    "services.folder where that user may go, or give the command as another user"
                ]
            )

    def _initialize(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)  # one that was never finished
        self._write_passfile()
        with tempfile.NamedTemporaryFile("w", dir=self._home, prefix=".once-") as file:  # made with mode 0600
            file.write(self._password() + "\n")
            file.flush()
            if self._user is not None:
                os.chown(file.name, self._user.pw_uid, self._user.pw_gid)
            authentication = ["-A", "scram-sha-256", f"--pwfile={file.name}"]
            self._run(
                "initdb", "-D", str(self.data), "-U", self._settings.role, *authentication, "-E", "UTF8", "--no-locale"
            )
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("include_if_exists = 'geta.conf'\n")

    def _make_database(self) -> None:
        settings = self._settings
        self._write_passfile()
        where = ["-h", HOST, "-p", str(settings.postgres_port), "-U", settings.role, "-w"]
        asked = f"select 1 from pg_database where datname = '{settings.database}'"
        found = self._client("psql", *where, "-d", "postgres", "-tAc", asked)
        if not found.stdout.strip():
            self._client("createdb", *where, settings.database)

    def _password(self) -> str:
        """Return the role's password; one is made where the settings name no file.

        Raises:
            ConfigError: when others can read the file, or it is empty.
        """
        given = self._settings.password_file
        path = Path(given).expanduser() if given else self._settings.path / "password"
        if not given and not path.exists():
            _write_private(path, secrets.token_urlsafe(32) + "\n")
        try:
            mode, text = stat.S_IMODE(path.stat().st_mode), path.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError([f"services.password_file={path} cannot be read: {error.strerror}"]) from error
        if mode & 0o077:
            raise ConfigError(
                [f"{path} must be readable by its owner alone, but has mode {mode:04o}; chmod 600 {path}"]
            )
        if not text or "\n" in text:
            raise ConfigError([f"{path} must hold one line, the password"])
        return text

    def _write_passfile(self) -> None:
        settings = self._settings
        password = self._password().replace("\\", "\\\\").replace(":", "\\:")
        _write_private(self.passfile, f"{HOST}:{settings.postgres_port}:*:{settings.role}:{password}\n")

    def _own_file(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            return " ".join(self.log.read_text(errors="replace").splitlines()[-3:])
        return ""

    def _client(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a client as the user who gives the command: the password file is theirs."""
        done = subprocess.run(
            [str(find_programs() / program), *arguments], capture_output=True, text=True, timeout=SECONDS, check=False,
            env={**os.environ, "PGPASSFILE": str(self.passfile)}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise GetaError(f"{program} failed: {_words(done)}")
        return done

    def _run(self, program: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = self._as_user([str(find_programs() / program), *arguments], cwd=str(self._home))
        if check and done.returncode:
            raise GetaError(f"{program} failed: {_words(done)}")
        return done

    def _as_user(self, command: Sequence[str], cwd: str) -> subprocess.CompletedProcess[str]:
        # Messages go to a file: a pipe would be kept open by the server that pg_ctl leaves behind.
        with tempfile.TemporaryFile("w+") as out:
            user = self._user
            try:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=SECONDS, check=False, cwd=cwd,
                    user=user.pw_uid if user else None, group=user.pw_gid if user else None,
                    extra_groups=[] if user else None, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                return subprocess.CompletedProcess(command, 126, str(error), "")
            out.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), "")


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _words(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())[-400:]
