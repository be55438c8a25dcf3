"""Processes that tests stand on, the database of a service, and a PostgreSQL that a test stops and starts again."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.runtime.migrations import migrate
from services.runtime.settings import DatabaseSettings
from tools.stack.ports import Ports
from tools.stack.postgres import (
    STOP_SIGNAL,
    DatabaseServer,
    EmbeddedPostgres,
    ServiceRoles,
    create_roles,
    create_schemas,
    remove_remains,
)
from tools.stack.processes import ProcessSpec, ProcessTable
from tools.stack.shutdown import end_stack, run_directory


def run_to_end(step: Coroutine[Any, Any, None]) -> None:
    """In a thread of its own: a fixture may be asked for inside a running loop."""
    with ThreadPoolExecutor(1) as executor:
        executor.submit(asyncio.run, step).result()


def unsynced(spec: ProcessSpec) -> ProcessSpec:
    """PostgreSQL that leaves it to the kernel when files reach the disk: a killed server loses nothing by it.

    Only a power cut would, and making and dropping a database takes a tenth of the time.
    """
    return replace(spec, command=(*spec.command, "-c", "fsync=off"))


class Dependencies:
    """The processes of this test run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ports = Ports()
        self._table = ProcessTable(run_directory(directory))

    def launch(self, spec: ProcessSpec) -> None:
        run_to_end(self._table.launch(spec))

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        self._table.end([name], number=number)

    def end_all(self) -> None:
        end_stack(self.directory, self._table)


@dataclass(frozen=True)
class ServiceDatabase:
    """A migrated database of one service, as its settings name it."""

    server: DatabaseServer
    service: str
    roles: ServiceRoles

    @property
    def url(self) -> str:
        return self.server.role_url(self.service)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "WALLET_DATABASE_URL": self.url,
            "WALLET_DATABASE_PASSWORD_FILE": str(self.roles.password_file),
            "WALLET_DATABASE_OWNER_PASSWORD_FILE": str(self.roles.owner_password_file),
        }

    @property
    def settings(self) -> DatabaseSettings:
        """What the running service is told."""
        return DatabaseSettings(database_url=self.url, database_password_file=self.roles.password_file)

    @property
    def owner_settings(self) -> DatabaseSettings:
        """What `migrate` is told."""
        return DatabaseSettings(
            database_url=self.url,
            database_password_file=self.roles.password_file,
            database_owner_password_file=self.roles.owner_password_file,
        )


class OwnPostgres:
    """A server of a test's own. Leaving the block ends it."""

    def __init__(self, dependencies: Dependencies, name: str) -> None:
        self._dependencies = dependencies
        self._directory = dependencies.directory / name
        embedded = EmbeddedPostgres(self._directory, self._directory.with_suffix(".log"))
        self._spec = unsynced(embedded.spec.named(name))
        self.server = embedded.server

    def __enter__(self) -> OwnPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        remove_remains(self._directory)

    def start(self) -> None:
        """Return when it answers."""
        self._dependencies.launch(self._spec)

    def stop(self) -> None:
        """Fast shutdown: open connections are ended."""
        self._dependencies.end(self._spec.name, STOP_SIGNAL)

    def execute(self, sql: str) -> str:
        return self.server.execute(sql)

    def migrated(self, service: str) -> ServiceDatabase:
        """Schema and roles of a service, its tables brought up to date."""
        roles = create_roles(self.server, [service], self._directory.with_suffix(".secrets"))
        create_schemas(self.server, [service])
        database = ServiceDatabase(self.server, service, roles[service])
        run_to_end(migrate(service, database.owner_settings))
        return database
