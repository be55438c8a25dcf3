"""PostgreSQL: the server that `pgserver` carries (or a real one by URL), and the schema and two roles of each service.

The embedded server listens on a Unix socket only, asks every role for a password (SCRAM), and syncs every commit.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import URL, make_url

from tools.stack.files import let_traverse, new_password, write_private
from tools.stack.processes import ProcessSpec, StackError

# PostgreSQL refuses to run as root: then it runs as this user, which is created.
_USER = "goldenlink"
# sockaddr_un.sun_path holds 108 bytes with its terminator (unix(7)).
_LONGEST_SOCKET_PATH = 107
# SIGINT is PostgreSQL's fast shutdown: SIGTERM would wait for clients to leave.
STOP_SIGNAL = signal.SIGINT


def _binaries() -> Path:
    # Found, not imported: the package's import touches the user's home.
    spec = find_spec("pgserver")
    if spec is None or spec.origin is None:
        raise StackError("pgserver is not installed: run 'make setup'")
    return Path(spec.origin).parent / "pginstall" / "bin"


_BINARIES = _binaries()


@dataclass(frozen=True)
class DatabaseServer:
    """A database and the role that may create roles and schemas in it."""

    # libpq URL without password, `postgresql://postgres@/postgres?host=/socket/directory`.
    url: str
    password: str | None

    @classmethod
    def from_url(cls, url: str) -> DatabaseServer:
        given = make_url(url)
        # Anew: `set` cannot take a password away.
        without = URL.create("postgresql", given.username, None, given.host, given.port, given.database, given.query)
        return cls(without.render_as_string(), given.password)

    @property
    def name(self) -> str:
        """Of the database."""
        return make_url(self.url).database or "postgres"

    def database(self, name: str) -> DatabaseServer:
        return DatabaseServer(make_url(self.url).set(database=name).render_as_string(), self.password)

    def role_url(self, role: str) -> str:
        """What a service gets: asyncpg, its own role, no password."""
        return make_url(self.url).set(drivername="postgresql+asyncpg", username=role).render_as_string()

    def execute(self, sql: str) -> str:
        """Run SQL and return its rows as text.

        Raises:
            StackError: the server refused, with its message.
        """
        done = subprocess.run(
            [_BINARIES / "psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url],
            input=f"SET client_min_messages = warning;\n{sql}\n",
            env={"PATH": os.defpath, "PGPASSWORD": self.password or "", "PGCONNECT_TIMEOUT": "10"},
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0:
            raise StackError(f"PostgreSQL: {done.stderr.strip()}")
        return done.stdout.strip()


@dataclass(frozen=True)
class ServiceRoles:
    """Password files of the role that serves and of the role that owns the schema."""

    password_file: Path
    owner_password_file: Path


def check_empty(server: DatabaseServer, services: Iterable[str]) -> None:
    """A stack starts from nothing: its tokens, keys and checkpoint file do not fit what an earlier one has left.

    Raises:
        StackError: the database holds tables of the suite.
    """
    schemas = server.execute("SELECT DISTINCT schemaname FROM pg_tables").splitlines()
    if found := sorted(set(schemas).intersection(services)):
        raise StackError(
            f"WALLET_DATABASE_URL: the database '{server.name}' holds an earlier suite (schemas {', '.join(found)}),"
            " and each start is from nothing: name an empty database"
        )


def create_roles(server: DatabaseServer, services: Iterable[str], secrets: Path) -> dict[str, ServiceRoles]:
    """Roles `<service>` and `<service>_owner` with new passwords. Rights on tables are granted by the migrations."""
    # Statements that hold passwords stay out of the server's log, as far as its operator lets us say so.
    roles, statements = (
        {},
        [
            "DO $$ BEGIN PERFORM set_config('log_statement', 'none', false), "
            "set_config('log_min_error_statement', 'panic', false); "
            "EXCEPTION WHEN insufficient_privilege THEN NULL; END $$;"
        ],
    )
    for service in services:
        files = ServiceRoles(secrets / service / "database-password", secrets / service / "database-owner-password")
        for role, path in ((service, files.password_file), (f"{service}_owner", files.owner_password_file)):
            password = new_password()
            write_private(path, password + "\n")
            statements.append(
                f'DO $$ BEGIN CREATE ROLE "{role}"; EXCEPTION WHEN duplicate_object THEN NULL; END $$;\n'
                f"ALTER ROLE \"{role}\" LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD '{password}';\n"
                f'ALTER ROLE "{role}" SET search_path = "{service}";'
            )
        roles[service] = files
    server.execute("\n".join(statements))
    return roles


def create_schemas(server: DatabaseServer, services: Iterable[str]) -> None:
    """In the server's database: one schema a service, created in only by its owner, used only by its role."""
    server.execute(
        "\n".join(
            f'CREATE SCHEMA IF NOT EXISTS "{service}" AUTHORIZATION "{service}_owner";\n'
            f'GRANT USAGE ON SCHEMA "{service}" TO "{service}";'
            for service in services
        )
    )


class EmbeddedPostgres:
    """A new cluster under `directory`."""

    def __init__(self, directory: Path, log: Path, max_connections: int = 100) -> None:
        self._directory = directory
        self._data = directory / "data"
        self._user = _USER if os.geteuid() == 0 else None
        directory.mkdir(mode=0o700, parents=True)
        if self._user is not None:
            account = _ensure_user(self._user)
            os.chown(directory, account.pw_uid, account.pw_gid)
            let_traverse(directory)
            let_traverse(_BINARIES / "postgres")
        self._socket = self._socket_directory()
        password = new_password()
        self._initialise(password, max_connections)
        self.server = DatabaseServer(f"postgresql://postgres@/postgres?host={self._socket}", password)
        self.spec = ProcessSpec(
            name="postgres",
            command=(str(_BINARIES / "postgres"), "-D", str(self._data)),
            environment=self._environment(),
            log=log,
            ready=self._ready,
            user=self._user,
            working_directory=self._directory,
        )

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}

    def _own(self, path: Path) -> None:
        if self._user is not None:
            shutil.chown(path, self._user, self._user)

    def _socket_directory(self) -> Path:
        """Under our directory, or, where that path is too long for a socket, a short one that a link remembers."""
        path = self._directory / "socket"
        if len(os.fsencode(path / ".s.PGSQL.5432.lock")) <= _LONGEST_SOCKET_PATH:
            path.mkdir(mode=0o700)
            self._own(path)
            return path
        short = Path(tempfile.mkdtemp(prefix="goldenlink-"))
        self._own(short)
        path.symlink_to(short)
        return short

    def _initialise(self, password: str, max_connections: int) -> None:
        password_file = write_private(self._directory / "superuser-password", password + "\n")
        self._own(password_file)
        done = subprocess.run(
            [
                *(_BINARIES / "initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", "--locale=C"),
                *("--auth=scram-sha-256", f"--pwfile={password_file}"),
                # The new files reach the disk with the first checkpoint; commits are synced one by one all the same.
                "--no-sync",
            ],
            env=self._environment(),
            cwd=self._directory,
            user=self._user,
            group=self._user,
            extra_groups=[] if self._user is not None else None,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StackError(f"initdb: {done.stderr.strip()}")
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(
                f"listen_addresses = ''\nunix_socket_directories = '{self._socket}'\nunix_socket_permissions = 0700\n"
                # Files instead of /dev/shm: a killed server leaves nothing outside its directory.
                f"dynamic_shared_memory_type = mmap\nmax_connections = {max_connections}\n"
            )

    async def _ready(self) -> bool:
        try:
            await asyncio.to_thread(self.server.execute, "SELECT 1")
        except StackError:
            return False
        return True


def _ensure_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        # Exit status 9: another stack created it a moment ago.
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", name]
        subprocess.run(command, capture_output=True, check=False)
        return pwd.getpwnam(name)


def remove_remains(directory: Path) -> None:
    """After the server has ended: the System V segment that a killed one leaves, and a short socket directory."""
    postmaster = directory / "data" / "postmaster.pid"
    if postmaster.exists():
        # PostgreSQL's miscadmin.h: line 7 of postmaster.pid is "shmem key, shmem id".
        lines = postmaster.read_text().splitlines()
        if len(lines) >= 7 and len(lines[6].split()) == 2:
            subprocess.run(["ipcrm", "-m", lines[6].split()[1]], capture_output=True, check=False)
        postmaster.unlink()
    socket = directory / "socket"
    if socket.is_symlink():
        shutil.rmtree(socket.readlink(), ignore_errors=True)
