"""Wallets with sealed seeds, accounts, transport keys, wrapped leaves, and the entries on their way to the log."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = r"""
CREATE TABLE wallets (
    wallet_id text PRIMARY KEY CHECK (wallet_id ~ '^[A-Za-z0-9._:-]{1,64}$'),
    name text NOT NULL CHECK (length(name) <= 128),
    strength_bits smallint NOT NULL CHECK (strength_bits IN (128, 160, 192, 224, 256)),
    recovery_recipient bytea NOT NULL CHECK (octet_length(recovery_recipient) IN (0, 32)),
    encrypted_seed bytea NOT NULL,
    encrypted_recovery bytea NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE accounts (
    account_id text PRIMARY KEY,
    wallet_id text NOT NULL REFERENCES wallets,
    chain_id text NOT NULL,
    algorithm text NOT NULL CHECK (algorithm IN ('ecdsa_secp256k1', 'ed25519')),
    account bigint NOT NULL CHECK (account >= 0 AND account < 2147483648),
    change bigint NOT NULL CHECK (change >= 0 AND change < 2147483648),
    index bigint NOT NULL CHECK (index >= 0 AND index < 2147483648),
    address bytea NOT NULL CHECK (octet_length(address) IN (0, 20)),
    public_key bytea NOT NULL CHECK (octet_length(public_key) IN (32, 33)),
    key_id text NOT NULL,
    key_version integer NOT NULL CHECK (key_version >= 1),
    created_at timestamptz NOT NULL,
    CONSTRAINT accounts_place_once UNIQUE (wallet_id, chain_id, algorithm, account, change, index)
);

CREATE UNIQUE INDEX accounts_address_once ON accounts (chain_id, address) WHERE octet_length(address) = 20;

CREATE INDEX accounts_by_key ON accounts (key_id, key_version);

CREATE TABLE transport_keys (
    fingerprint bytea PRIMARY KEY CHECK (octet_length(fingerprint) = 32),
    public_key_der bytea NOT NULL,
    token_label text NOT NULL,
    token_serial text NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE wrapped_leaves (
    key_id text NOT NULL,
    key_version integer NOT NULL,
    fingerprint bytea NOT NULL REFERENCES transport_keys,
    wrapped_aes_key bytea NOT NULL,
    wrapped_private_key bytea NOT NULL,
    PRIMARY KEY (key_id, key_version, fingerprint)
);

CREATE TABLE key_entries (
    link_id text NOT NULL,
    entry_id text NOT NULL,
    traceparent text NOT NULL,
    body bytea NOT NULL,
    appended_at timestamptz,
    PRIMARY KEY (link_id, entry_id)
);

CREATE INDEX key_entries_pending ON key_entries (link_id) WHERE appended_at IS NULL;

GRANT USAGE ON SCHEMA keys TO keys;

GRANT SELECT, INSERT ON wallets, accounts, transport_keys, wrapped_leaves, key_entries TO keys;

GRANT UPDATE (appended_at) ON key_entries TO keys;
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split("\n\n"):  # one statement an execution: the driver prepares each
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("dropping sealed seeds is not a migration")
