"""`python -m services.gateway token create|revoke|add-key|revoke-key`: API tokens and their holders' public keys.

They are written as the schema's owner. The running gateway's role can only read them, so a process that is taken over
can neither mint a token nor free one from its duty to sign.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from services.core.client_keys import ClientKey, read_public_key
from services.gateway.credentials import Role, new_token
from services.runtime.db import database_url
from services.runtime.settings import DatabaseSettings

_INSERT = text(
    "INSERT INTO gateway.credentials (credential_id, name, role, secret_sha256, expires_at) "
    "VALUES (:credential_id, :name, :role, :secret_sha256, :expires_at)"
)
_REVOKE = text("UPDATE gateway.credentials SET revoked_at = now() WHERE credential_id = :id AND revoked_at IS NULL")
_INSERT_KEY = text("INSERT INTO gateway.client_keys (public_key, credential_id) VALUES (:public_key, :credential_id)")
_REVOKE_KEY = text(
    "UPDATE gateway.client_keys SET revoked_at = now() "
    "WHERE encode(sha256(public_key), 'hex') = :sha256 AND revoked_at IS NULL"
)


def token_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m services.gateway token", description="API tokens.")
    actions = parser.add_subparsers(dest="action", required=True)
    create = actions.add_parser("create", help="make a token and write it to a new file, mode 0600")
    create.add_argument("--name", required=True, help="who holds it; the actor in the evidence log")
    create.add_argument("--role", required=True, choices=[role.value for role in Role])
    create.add_argument("--expires-in-days", type=int, default=None)
    create.add_argument("--public-key", type=Path, default=None, help="PEM of Ed25519 or P-256: the holder must sign")
    create.add_argument("--out", type=Path, required=True)
    revoke = actions.add_parser("revoke", help="end a token; it takes up to five seconds")
    revoke.add_argument("--id", required=True, help="the 16 digits between the token's underscores")
    add_key = actions.add_parser("add-key", help="from now on this token's holder must sign what it changes")
    add_key.add_argument("--id", required=True, help="the 16 digits between the token's underscores")
    add_key.add_argument("--public-key", type=Path, required=True, help="PEM of Ed25519 or P-256")
    revoke_key = actions.add_parser("revoke-key", help="end a key for ever; it takes up to five seconds")
    revoke_key.add_argument("--fingerprint", required=True, help="sha256:<hex>, as add-key printed it")
    return parser


async def run_token_command(arguments: argparse.Namespace, settings: DatabaseSettings) -> int:
    """Exit code: 0 done, 1 no such token or key, or it cannot be taken."""
    match arguments.action:
        case "create":
            key = _read_key(arguments.public_key) if arguments.public_key is not None else None
            try:
                credential_id = await create_token(
                    settings, arguments.name, Role(arguments.role), arguments.expires_in_days, arguments.out, key
                )
            except IntegrityError:
                arguments.out.unlink()
                print("the key is registered already", file=sys.stderr)
                return 1
            print(credential_id, key.fingerprint) if key is not None else print(credential_id)
            return 0
        case "add-key":
            key = _read_key(arguments.public_key)
            if not await add_key(settings, arguments.id, key):
                print("no such token, or the key is registered already", file=sys.stderr)
                return 1
            print(key.fingerprint)
            return 0
        case "revoke-key":
            return 0 if await revoke_key(settings, arguments.fingerprint) else 1
        case _:
            return 0 if await revoke_token(settings, arguments.id) else 1


def _read_key(path: Path) -> ClientKey:
    try:
        return read_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: {error}")


async def create_token(
    settings: DatabaseSettings,
    name: str,
    role: Role,
    expires_in_days: int | None,
    out: Path,
    key: ClientKey | None = None,
) -> str:
    """The id of a new credential, whose token stands in `out`; with a key its holder must sign.

    Raises:
        FileExistsError: `out` exists.
        IntegrityError: the key is registered already; there is no credential then, and the token in `out` is void.
    """
    credential_id, token, secret_sha256 = new_token()
    expires_at = datetime.now(UTC) + timedelta(days=expires_in_days) if expires_in_days is not None else None
    # The file first: a token that nobody holds would be worse than a file that no credential backs.
    descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(token + "\n")
    row = {"credential_id": credential_id, "name": name, "role": role.value}
    async with _owner(settings) as connection:
        await connection.execute(_INSERT, {**row, "secret_sha256": secret_sha256, "expires_at": expires_at})
        if key is not None:
            await connection.execute(_INSERT_KEY, {"public_key": key.public_key_der, "credential_id": credential_id})
    return credential_id


async def revoke_token(settings: DatabaseSettings, credential_id: str) -> bool:
    async with _owner(settings) as connection:
        return (await connection.execute(_REVOKE, {"id": credential_id})).rowcount == 1


async def add_key(settings: DatabaseSettings, credential_id: str, key: ClientKey) -> bool:
    """False when there is no such credential, or the key was registered before, revoked or not."""
    try:
        async with _owner(settings) as connection:
            await connection.execute(_INSERT_KEY, {"public_key": key.public_key_der, "credential_id": credential_id})
    except IntegrityError:
        return False
    return True


async def revoke_key(settings: DatabaseSettings, fingerprint: str) -> bool:
    async with _owner(settings) as connection:
        result = await connection.execute(_REVOKE_KEY, {"sha256": fingerprint.removeprefix("sha256:")})
        return result.rowcount == 1


@asynccontextmanager
async def _owner(settings: DatabaseSettings) -> AsyncIterator[AsyncConnection]:
    """A transaction as the schema's owner."""
    engine = create_async_engine(database_url(settings, settings.database_owner_password_file, role="gateway_owner"))
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()
