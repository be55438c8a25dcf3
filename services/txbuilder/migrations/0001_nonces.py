"""Accounts with their epoch, reservations, and nonces that were given back."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE accounts (
    chain_id text NOT NULL,
    address bytea NOT NULL CHECK (length(address) = 20),
    -- Raised whenever the nonce lock is taken: the fencing token.
    epoch bigint NOT NULL DEFAULT 0,
    -- Null until the chain was asked.
    next_nonce numeric(20) CHECK (next_nonce >= 0),
    PRIMARY KEY (chain_id, address)
);

CREATE TABLE reservations (
    transfer_id text PRIMARY KEY,
    chain_id text,
    address bytea,
    -- Null once the nonce was given back, or when the transfer was voided before it had one: it is never built again.
    nonce numeric(20),
    unsigned_tx bytea,
    terms_sha256 bytea,
    gas_limit bigint,
    -- Value and the largest fee, wei.
    cost_wei numeric(78),
    max_fee_wei numeric(78),
    reserved_at timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (chain_id, address) REFERENCES accounts,
    CHECK (
        nonce IS NULL
        OR num_nulls(chain_id, address, unsigned_tx, terms_sha256, gas_limit, cost_wei, max_fee_wei) = 0
    )
);

-- What makes a nonce safe without any lock.
CREATE UNIQUE INDEX reservations_nonce_once ON reservations (chain_id, address, nonce) WHERE nonce IS NOT NULL;

CREATE TABLE free_nonces (
    chain_id text NOT NULL,
    address bytea NOT NULL,
    nonce numeric(20) NOT NULL,
    PRIMARY KEY (chain_id, address, nonce),
    FOREIGN KEY (chain_id, address) REFERENCES accounts
);

GRANT USAGE ON SCHEMA txbuilder TO txbuilder;

GRANT SELECT, INSERT, UPDATE ON accounts, reservations TO txbuilder;

GRANT SELECT, INSERT, DELETE ON free_nonces TO txbuilder;
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split("\n\n"):  # one statement an execution: the driver prepares each
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE free_nonces, reservations, accounts")
