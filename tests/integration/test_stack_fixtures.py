"""The dependencies that other tests stand on are what they claim to be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pkcs11
import pytest
import redis.asyncio
import sqlalchemy
from cryptography import x509
from sqlalchemy.ext.asyncio import create_async_engine

from services.runtime.db import database_url
from tests.integration.dependencies import ServiceDatabase
from tests.integration.fresh_databases import FreshDatabases
from tools.stack.processes import StackError


async def _rpc(url: str, method: str, *params: Any) -> Any:
    call = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    async with aiohttp.ClientSession() as session, session.post(url, json=call) as response:
        return (await response.json())["result"]


async def test_a_service_database_is_migrated_and_its_role_may_only_do_what_was_granted(
    service_database: Callable[[str], Any],
) -> None:
    database = service_database("tracestore")
    engine = create_async_engine(database_url(database.settings, database.settings.database_password_file))
    try:
        async with engine.connect() as connection:
            assert (await connection.execute(sqlalchemy.text("SELECT count(*) FROM spans"))).scalar() == 0
            with pytest.raises(sqlalchemy.exc.ProgrammingError, match="permission denied"):
                await connection.execute(sqlalchemy.text("CREATE TABLE mine (n int)"))
    finally:
        await engine.dispose()


async def test_service_databases_share_nothing(service_database: Callable[[str], Any]) -> None:
    first, second = service_database("tracestore"), service_database("tracestore")
    first.server.execute("CREATE TABLE tracestore.only_here (n int)")
    assert second.server.execute("SELECT to_regclass('tracestore.only_here') IS NULL") == "t"


def _oid(database: ServiceDatabase) -> str:
    return database.server.execute("SELECT oid FROM pg_database WHERE datname = current_database()")


@pytest.mark.parametrize(
    ("left", "is_dropped"),
    [
        ("INSERT INTO gateway.workers VALUES ('mine', now())", False),
        ("UPDATE gateway.follow SET cursor = 7", False),
        ("SELECT nextval(format('%I.%I', schemaname, sequencename)) FROM pg_sequences", False),
        ("ALTER TABLE gateway.follow ADD mine int", True),
        ("REVOKE SELECT ON gateway.follow FROM gateway", True),
        ("ALTER ROLE gateway IN DATABASE {name} SET work_mem = '1MB'", True),
    ],
)
def test_what_a_test_leaves_in_a_database_is_not_met_by_the_next(
    fresh_databases: FreshDatabases, left: str, is_dropped: bool
) -> None:
    everything = (
        "SELECT * FROM gateway.follow; SELECT count(*) FROM gateway.workers; SELECT last_value FROM pg_sequences;"
        "SELECT relacl FROM pg_class WHERE relname = 'follow'; SELECT count(*) FROM pg_db_role_setting"
    )
    used = fresh_databases.take("gateway")
    before, oid = used.server.execute(everything), _oid(used)
    used.server.execute(left.format(name=used.server.name) if is_dropped else left)
    assert used.server.execute(everything) != before
    fresh_databases.give_back(used)
    following = fresh_databases.take("gateway")
    assert following.server.execute(everything) == before
    assert (_oid(following) != oid) is is_dropped
    # Whoever still knows it by its old name does not reach it.
    with pytest.raises(StackError, match="does not exist"):
        used.server.execute("SELECT 1")
    fresh_databases.give_back(following)


async def test_redis_wants_its_password(redis_url: str) -> None:
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        assert await client.set("key", "value")
    stranger = redis.asyncio.Redis.from_url("redis://" + redis_url.partition("@")[2])
    with pytest.raises(redis.AuthenticationError):
        await stranger.get("key")
    await stranger.aclose()


async def test_chains_are_separate_and_finality_follows(start_anvil: Callable[..., str]) -> None:
    first, second = start_anvil(slots_in_an_epoch=1), start_anvil()
    await _rpc(first, "anvil_mine", hex(5))
    assert await _rpc(first, "eth_blockNumber") == "0x5"
    assert await _rpc(second, "eth_blockNumber") == "0x0"
    assert (await _rpc(first, "eth_getBlockByNumber", "finalized", False))["number"] == "0x3"


def test_a_token_opens_with_its_pin_only(softhsm_token: Callable[[str], Any]) -> None:
    token = softhsm_token("signer")
    library = pkcs11.lib(str(token.library))
    library.reinitialize()
    slot = library.get_token(token_label="signer")
    with slot.open(rw=True, user_pin=token.pin_file.read_text().strip()) as session:
        assert session.generate_key(pkcs11.KeyType.AES, 256, store=False)
    with pytest.raises(pkcs11.exceptions.PinIncorrect):
        slot.open(user_pin="not the pin")


def test_certificates_name_the_service(dev_ca: Callable[[str], Path]) -> None:
    certificate = x509.load_pem_x509_certificate((dev_ca("signer") / "cert.pem").read_bytes())
    authority = x509.load_pem_x509_certificate((dev_ca("signer") / "ca.pem").read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["signer"]
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://goldenlink/signer"]
    assert (dev_ca("signer") / "key.pem").stat().st_mode & 0o777 == 0o600
