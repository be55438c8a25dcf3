"""Public keys of clients, and the signatures that count once."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE client_keys (
            -- One key belongs to one credential, for ever: a revoked key does not come back.
            public_key bytea PRIMARY KEY CHECK (octet_length(public_key) BETWEEN 32 AND 128),
            credential_id text NOT NULL REFERENCES credentials,
            created_at timestamptz NOT NULL DEFAULT now(),
            revoked_at timestamptz
        );
        """
    )
    op.execute("CREATE INDEX client_keys_by_credential ON client_keys (credential_id)")
    op.execute(
        """
        CREATE TABLE used_signatures (
            identity bytea PRIMARY KEY CHECK (octet_length(identity) = 32),
            until timestamptz NOT NULL
        );
        """
    )
    op.execute("CREATE INDEX used_signatures_by_end ON used_signatures (until)")
    # Keys, like credentials, are written by the owner role alone.
    op.execute("GRANT SELECT ON client_keys TO gateway")
    op.execute("GRANT SELECT, INSERT, DELETE ON used_signatures TO gateway")
