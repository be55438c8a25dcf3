"""Real dependencies, one at a time and fast. Their processes end with the test run, however it ends."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pkcs11
import pytest
import redis

from tests.integration.dependencies import Dependencies, OwnPostgres, ServiceDatabase, run_to_end, unsynced
from tests.integration.fresh_databases import FreshDatabases
from tests.integration.gateway_harness import gateway_bench, gateway_client
from tests.integration.signer_harness import first_replica, policy, replicas
from tools.stack.authority import Authority
from tools.stack.chain import EmbeddedChain
from tools.stack.options import External, StackOptions
from tools.stack.postgres import DatabaseServer, EmbeddedPostgres
from tools.stack.redis_server import EmbeddedRedis
from tools.stack.services import SERVICE_NAMES
from tools.stack.stack import Stack
from tools.stack.supervisor import Supervisor
from tools.stack.tokens import Token, create_softhsm_token

# Fixtures of one service's tests, kept beside what they make.
__all__ = ["first_replica", "gateway_bench", "gateway_client", "policy", "replicas"]

# Spans are stored soon after they end, so that tests need not wait the exporter's five seconds. Unit: ms.
_EXPORT_SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}


@pytest.fixture(scope="session")
def dependencies() -> Iterator[Dependencies]:
    # Not under pytest's temporary directory: every test run that starts closes that to PostgreSQL's user.
    directory = Path(tempfile.mkdtemp(prefix="goldenlink-tests-"))
    directory.chmod(0o755)
    supervisor = Supervisor(directory)
    started = Dependencies(directory)
    try:
        yield started
    finally:
        started.end_all()
        supervisor.release()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(dependencies: Dependencies) -> DatabaseServer:
    """A real server, by its superuser: `postgres.execute(sql)`, `postgres.database(name)`."""
    embedded = EmbeddedPostgres(dependencies.directory / "postgres", dependencies.directory / "postgres.log")
    dependencies.launch(unsynced(embedded.spec))
    return embedded.server


@pytest.fixture(scope="session")
def own_postgres(dependencies: Dependencies) -> Callable[[], OwnPostgres]:
    """`with own_postgres() as server:` one to stop and to start again."""
    numbers = itertools.count(1)
    return lambda: OwnPostgres(dependencies, f"postgres-{next(numbers)}")


@pytest.fixture(scope="session")
def fresh_databases(postgres: DatabaseServer, dependencies: Dependencies) -> FreshDatabases:
    return FreshDatabases(postgres, SERVICE_NAMES, dependencies.directory / "secrets")


@contextmanager
def _lending(
    databases: FreshDatabases, take: Callable[[str], ServiceDatabase]
) -> Iterator[Callable[[str], ServiceDatabase]]:
    lent: list[ServiceDatabase] = []

    def lend(service: str) -> ServiceDatabase:
        lent.append(take(service))
        return lent[-1]

    yield lend
    for database in lent:
        databases.give_back(database)


@pytest.fixture
def service_database(fresh_databases: FreshDatabases) -> Iterator[Callable[[str], ServiceDatabase]]:
    """`service_database("evidence")`: a fresh database, migrated, for this test alone."""
    with _lending(fresh_databases, fresh_databases.take) as lend:
        yield lend


@pytest.fixture
def unused_database(fresh_databases: FreshDatabases) -> Iterator[Callable[[str], ServiceDatabase]]:
    """The same, and no earlier test had it."""
    with _lending(fresh_databases, fresh_databases.take_unused) as lend:
        yield lend


@pytest.fixture(scope="session")
def _redis_server(dependencies: Dependencies) -> str:
    directory = dependencies.directory / "redis"
    embedded = EmbeddedRedis(directory, dependencies.directory / "redis.log", dependencies.ports.free())
    dependencies.launch(embedded.spec)
    return embedded.url


@pytest.fixture
def redis_url(_redis_server: str) -> str:
    """URL, with password, of an empty Redis."""
    with redis.Redis.from_url(_redis_server) as client:
        client.flushall()
    return _redis_server


@pytest.fixture
def softhsm_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Token]:
    """`softhsm_token("signer")`: a fresh token in a directory of its own, with a random PIN.

    SOFTHSM2_CONF of this process names the last one made; SoftHSM reads it when it is initialised.
    """

    def make(label: str) -> Token:
        token = create_softhsm_token(tmp_path / "tokens" / label, label)
        monkeypatch.setenv("SOFTHSM2_CONF", str(token.configuration))
        # A library that an earlier test initialised in this process still knows that test's token only.
        pkcs11.lib(str(token.library)).finalize()
        return token

    return make


@pytest.fixture
def start_anvil(dependencies: Dependencies) -> Iterator[Callable[..., str]]:
    """`start_anvil(block_time_s=1.0, slots_in_an_epoch=1)`: URL of a new chain; by default a block a transaction."""
    started: list[str] = []

    def start(block_time_s: float | None = None, slots_in_an_epoch: int = 1) -> str:
        log = dependencies.directory / "anvil.log"
        chain = EmbeddedChain(log, dependencies.ports.free(), block_time_s, slots_in_an_epoch)
        name = f"anvil-{chain.spec.ports['json_rpc']}"
        dependencies.launch(chain.spec.named(name))
        started.append(name)
        return chain.url

    yield start
    for name in started:
        dependencies.end(name)


@pytest.fixture
def anvil(start_anvil: Callable[..., str]) -> str:
    """URL of a new chain that mines a block for each transaction at once."""
    return start_anvil()


@pytest.fixture(scope="session")
def whole_stack() -> Iterator[Stack]:
    """Every service on real databases, tokens and a chain; one for all tests that take it. Who kills, heals."""
    # Not under pytest's temporary directory: every test run that starts closes that to PostgreSQL's user.
    directory = Path(tempfile.mkdtemp(prefix="goldenlink-suite-"))
    directory.chmod(0o755)
    options = StackOptions(
        block_time_s=0.5,
        supervised=True,
        metrics=True,
        environment=dict.fromkeys(SERVICE_NAMES, _EXPORT_SOON),
        external=External(),
    )
    stack = Stack(directory / "stack", options)
    try:
        run_to_end(stack.start())
        try:
            yield stack
        finally:
            run_to_end(stack.stop())
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def dev_ca(dependencies: Dependencies) -> Callable[[str], Path]:
    """`dev_ca("signer")`: directory with ca.pem, cert.pem and key.pem of that service; one authority for the run."""
    directory = dependencies.directory / "tls"
    authority = Authority(directory)
    for service in SERVICE_NAMES:
        authority.issue(service)

    def tls_dir(service: str) -> Path:
        return directory / service if os.path.isdir(directory / service) else authority.issue(service)

    return tls_dir
