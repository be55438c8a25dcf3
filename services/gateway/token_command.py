"""`python -m services.gateway token create|revoke`: API tokens, written as the schema's owner.

The running gateway's role can only read credentials, so a process that is taken over cannot mint one.
"""

from __future__ import annotations

import argparse
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from services.gateway.credentials import Role, new_token
from services.runtime.db import database_url
from services.runtime.settings import DatabaseSettings

_INSERT = text(
    "INSERT INTO gateway.credentials (credential_id, name, role, secret_sha256, expires_at) "
    "VALUES (:credential_id, :name, :role, :secret_sha256, :expires_at)"
)
_REVOKE = text("UPDATE gateway.credentials SET revoked_at = now() WHERE credential_id = :id AND revoked_at IS NULL")


def token_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.gateway token", description="API tokens.")
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a token and write it to a new file, mode 0600")
    create.add_argument("--name", required=True, help="who holds it; the actor in the evidence log")
    create.add_argument("--role", required=True, choices=[role.value for role in Role])
    create.add_argument("--expires-in-days", type=int, default=None)
    create.add_argument("--out", type=Path, required=True)
    revoke = actions.add_parser("revoke", help="end a token; it takes up to five seconds")
    revoke.add_argument("--id", required=True, help="the 16 digits between the token's underscores")
    return parser


async def run_token_command(arguments: argparse.Namespace, settings: DatabaseSettings) -> int:
    """Exit code: 0 done, 1 no such token."""
    if arguments.action == "create":
        credential_id = await create_token(
            settings, arguments.name, Role(arguments.role), arguments.expires_in_days, arguments.out
        )
        print(credential_id)
        return 0
    return 0 if await revoke_token(settings, arguments.id) else 1


async def create_token(
    settings: DatabaseSettings, name: str, role: Role, expires_in_days: int | None, out: Path
) -> str:
    """The id of a new credential, whose token stands in `out`.

    Raises:
        FileExistsError: `out` exists.
    """
    credential_id, token, secret_sha256 = new_token()
    expires_at = datetime.now(UTC) + timedelta(days=expires_in_days) if expires_in_days is not None else None
    # The file first: a token that nobody holds would be worse than a file that no credential backs.
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    row = {"credential_id": credential_id, "name": name, "role": role.value}
    await _execute_as_owner(settings, _INSERT, {**row, "secret_sha256": secret_sha256, "expires_at": expires_at})
    return credential_id


async def revoke_token(settings: DatabaseSettings, credential_id: str) -> bool:
    return await _execute_as_owner(settings, _REVOKE, {"id": credential_id}) == 1


async def _execute_as_owner(settings: DatabaseSettings, statement: object, values: dict[str, object]) -> int:
    engine = create_async_engine(database_url(settings, settings.database_owner_password_file, role="gateway_owner"))
    try:
        async with engine.begin() as connection:
            result = await connection.execute(statement, values)  # type: ignore[call-overload]
            return int(result.rowcount)
    finally:
        await engine.dispose()
