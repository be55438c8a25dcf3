"""The register is read by its keys, however large it becomes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from services.runtime.db import Database
from services.runtime.settings import DatabaseSettings
from services.signer import store
from tests.integration.dependencies import ServiceDatabase

_TYPES = {
    "_ENTER": "text[], bigint[], bytea[], bigint[], bytea[], integer[], bytea[]",
    "_FIND": "text[], bigint[], bytea[], bigint[]",
    "_SIGN": "text[], integer[], bigint[], bytea[]",
}


@pytest.mark.parametrize("name", _TYPES)
async def test_a_plan_made_for_an_empty_register_reads_rows_by_key(
    service_database: Callable[[str], ServiceDatabase], name: str
) -> None:
    types = _TYPES[name]
    # PostgreSQL makes this plan after a few executions, and keeps it.
    arguments = ", ".join(f"NULL::{one}" for one in types.split(", "))
    environment = service_database("signer").environment
    database = Database(
        DatabaseSettings(
            database_url=environment["WALLET_DATABASE_URL"],
            database_password_file=environment["WALLET_DATABASE_PASSWORD_FILE"],
        )
    )
    try:
        async with database.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.execute("SET plan_cache_mode = force_generic_plan")
            await driver.execute(f"PREPARE kept ({types}) AS {getattr(store, name)}")
            plan = [row[0] for row in await driver.fetch(f"EXPLAIN EXECUTE kept ({arguments})")]
    finally:
        await database.close()
    scans = [line for line in plan if "Scan" in line and "Function Scan" not in line and "Subquery Scan" not in line]
    assert all("Index" in line for line in scans), plan
    keys = [line for line in plan if "Index Cond" in line]
    assert len(keys) == len(scans), plan
    assert all("link_id = " in line or ("chain_id" in line and "nonce" in line) for line in keys), plan
