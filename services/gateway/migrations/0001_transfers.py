"""Credentials, transfers with their events, idempotency keys, the workers' leases, and the broadcaster cursor."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE credentials (
            credential_id text PRIMARY KEY,
            name text NOT NULL,
            role text NOT NULL CHECK (role IN ('operator', 'approver', 'auditor')),
            secret_sha256 bytea NOT NULL CHECK (octet_length(secret_sha256) = 32),
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz,
            revoked_at timestamptz
        );
        """
    )
    op.execute(
        """
        CREATE TABLE transfers (
            transfer_id text PRIMARY KEY CHECK (transfer_id ~ '^[A-Za-z0-9._:-]{1,64}$'),
            state text NOT NULL CHECK (state IN ('ACCEPTED', 'AWAITING_APPROVAL', 'BUILT', 'SIGNED', 'SUBMITTED',
                                                 'INCLUDED', 'SAFE', 'FINALIZED', 'FAILED')),
            account_id text NOT NULL,
            chain_id text NOT NULL,
            from_address bytea NOT NULL CHECK (octet_length(from_address) = 20),
            to_address bytea NOT NULL CHECK (octet_length(to_address) IN (0, 20)),
            value_wei text NOT NULL CHECK (value_wei ~ '^(0|[1-9][0-9]{0,77})$'),
            data bytea NOT NULL,
            fees bytea NOT NULL,
            key_id text NOT NULL,
            key_version integer NOT NULL,
            traceparent text NOT NULL,
            personal bytea,
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            unsigned_tx bytea,
            nonce bigint,
            raw_tx bytea,
            tx_hash bytea,
            block_number bigint,
            receipt_status smallint,
            failure jsonb,
            attempts integer NOT NULL DEFAULT 0,
            next_attempt_at timestamptz DEFAULT now(),
            lease_owner text,
            fencing bigint NOT NULL DEFAULT 0,
            CHECK (state <> 'FAILED' OR failure IS NOT NULL)
        ) WITH (fillfactor = 70);
        """
    )
    # Only transfers that the saga still works on: small, whatever the table's size.
    op.execute(
        "CREATE INDEX transfers_due ON transfers (chain_id, from_address, transfer_id) "
        "WHERE next_attempt_at IS NOT NULL"
    )
    op.execute("CREATE INDEX transfers_by_account ON transfers (account_id, transfer_id)")
    op.execute(
        """
        CREATE TABLE transfer_events (
            event_id bigint GENERATED ALWAYS AS IDENTITY,
            transfer_id text NOT NULL,
            state text NOT NULL,
            at timestamptz NOT NULL,
            PRIMARY KEY (transfer_id, event_id)
        );
        """
    )
    op.execute(
        """
        CREATE TABLE idempotency_keys (
            credential_id text NOT NULL,
            key text NOT NULL,
            body_sha256 bytea NOT NULL CHECK (octet_length(body_sha256) = 32),
            transfer_ids text[] NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (credential_id, key)
        );
        """
    )
    # A lease on a row is alive while its owner's row here is: one heartbeat for all leases of a process.
    op.execute("CREATE TABLE workers (owner text PRIMARY KEY, until timestamptz NOT NULL)")
    op.execute("CREATE TABLE follow (name text PRIMARY KEY, cursor bigint NOT NULL, lease_owner text)")
    op.execute("INSERT INTO follow (name, cursor) VALUES ('broadcaster', 0)")
    # Credentials are written by the owner role (`token create`): a running gateway cannot mint one.
    op.execute("GRANT SELECT ON credentials TO gateway")
    op.execute("GRANT SELECT, INSERT, UPDATE ON transfers TO gateway")
    op.execute("GRANT SELECT, INSERT ON transfer_events, idempotency_keys TO gateway")
    op.execute("GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO gateway")
    op.execute("GRANT SELECT, UPDATE ON follow TO gateway")
