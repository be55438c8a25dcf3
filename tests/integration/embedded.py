"""A PostgreSQL of the embedded stack that a test starts, stops and starts again."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from pathlib import Path

from services.runtime.migrations import migrate
from services.runtime.settings import DatabaseSettings
from tools.stack.postgres import STOP_SIGNAL, EmbeddedPostgres, create_roles, create_schemas, remove_remains


class RunningPostgres:
    """`start` returns when it answers; leaving the block stops it and removes its files.

    Not under pytest's temporary directory: every session that starts closes that one to other users, of whom this
    server, which starts again within a test, is one.
    """

    def __init__(self) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="goldenlink-test-")
        self._directory = Path(self._temporary.name) / "postgres"
        self._embedded = EmbeddedPostgres(self._directory, self._directory.with_suffix(".log"))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RunningPostgres:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._temporary.cleanup()

    def start(self) -> None:
        spec = self._embedded.spec
        with spec.log.open("ab") as log:
            self._process = subprocess.Popen(
                spec.command,
                env=spec.environment,
                cwd=spec.working_directory,
                user=spec.user,
                group=spec.user,
                extra_groups=[] if spec.user is not None else None,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 20
        while not asyncio.run(self._embedded._ready()):
            assert self._process.poll() is None, spec.log.read_text()
            assert time.monotonic() < deadline, "PostgreSQL did not answer in time"
            time.sleep(0.05)

    def stop(self) -> None:
        """Fast shutdown: open connections are ended."""
        if self._process is not None:
            self._process.send_signal(STOP_SIGNAL)
            self._process.wait(20)
            self._process = None
            remove_remains(self._directory)

    def execute(self, sql: str) -> str:
        return self._embedded.server.execute(sql)

    def prepare(self, service: str) -> dict[str, str]:
        """Schema and roles of a service, its tables brought up to date; returns what its environment says of them."""
        roles = create_roles(self._embedded.server, [service], self._directory.with_suffix(".secrets"))[service]
        create_schemas(self._embedded.server, [service])
        environment = {
            "WALLET_DATABASE_URL": self._embedded.server.role_url(service),
            "WALLET_DATABASE_PASSWORD_FILE": os.fspath(roles.password_file),
            "WALLET_DATABASE_OWNER_PASSWORD_FILE": os.fspath(roles.owner_password_file),
        }
        asyncio.run(migrate(service, database_settings(environment)))
        return environment


def database_settings(environment: dict[str, str]) -> DatabaseSettings:
    return DatabaseSettings(
        database_url=environment["WALLET_DATABASE_URL"],
        database_password_file=Path(environment["WALLET_DATABASE_PASSWORD_FILE"]),
        database_owner_password_file=Path(environment["WALLET_DATABASE_OWNER_PASSWORD_FILE"]),
        database_timeout_s=2.0,
    )
