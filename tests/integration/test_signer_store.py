"""The register is read by its keys, however large it becomes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from services.runtime.db import Database
from services.runtime.settings import DatabaseSettings
from services.signer import replacement_store, store, velocity_store
from tests.integration.dependencies import ServiceDatabase

_STATEMENTS = {
    store._ENTER: "text[], bigint[], bytea[], bigint[], bytea[], integer[], bytea[]",
    store._FIND: "text[], bigint[], bytea[], bigint[]",
    store._SIGN: "text[], integer[], bigint[], bytea[]",
    store._PURSES: "text",
    store._SUPERSEDED: "text",
    velocity_store._FORESEE: "bigint[], bytea[], text[], integer[], timestamptz",
    velocity_store._ENTER: ("text[], bigint[], bytea[], bigint[], bytea[], integer[], bytea[], text[], numeric[]"),
    replacement_store._BUMP: ("text[], integer[], bigint[], bytea[], bigint[], bytea[], integer[], bytea[], text[]"),
    replacement_store._HOLDER: "bigint, bytea, bigint",
}
# What a condition on an index has to name, one of these, for the rows to be few.
_KEYS = ("link_id = ", "nonce", "asset", "version IS NOT NULL")


@pytest.mark.parametrize(
    "statement", _STATEMENTS, ids=lambda text: text.split(" AS ")[0].strip().replace("\n", " ")[:40]
)
async def test_a_plan_made_for_an_empty_register_reads_rows_by_key(
    unused_database: Callable[[str], ServiceDatabase], statement: str
) -> None:
    types = _STATEMENTS[statement]
    # PostgreSQL makes this plan after a few executions, and keeps it.
    arguments = ", ".join(f"NULL::{one}" for one in types.split(", "))
    environment = unused_database("signer").environment
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
            await driver.execute(f"PREPARE kept ({types}) AS {statement}")
            plan = [row[0] for row in await driver.fetch(f"EXPLAIN EXECUTE kept ({arguments})")]
    finally:
        await database.close()
    scans = [line for line in plan if "Scan" in line and not re.search("(Function|Subquery|CTE) Scan", line)]
    assert all("Index" in line for line in scans), plan
    keys = [line for line in plan if "Index Cond" in line]
    assert len(keys) == len(scans), plan
    assert all(any(key in line for key in _KEYS) for line in keys), plan
