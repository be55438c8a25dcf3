"""Submissions, the outbox of their entries, their events, and one row a chain: lease and watched blocks."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE submissions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transfer_id text NOT NULL,
    tx_hash bytea NOT NULL CHECK (length(tx_hash) = 32),
    chain_id text NOT NULL,
    account bytea NOT NULL CHECK (length(account) = 20),
    nonce bigint NOT NULL CHECK (nonce >= 0),
    raw_tx bytea NOT NULL,
    traceparent text NOT NULL,
    state text NOT NULL DEFAULT 'QUEUED'
        CHECK (state IN ('QUEUED', 'REQUESTED', 'SUBMITTED', 'INCLUDED', 'SAFE', 'FINALIZED')),
    -- Indexes are chosen by these and not by `state`: most changes of state leave them alone, and so every index.
    is_queued boolean NOT NULL GENERATED ALWAYS AS (state = 'QUEUED') STORED,
    is_open boolean NOT NULL GENERATED ALWAYS AS (state <> 'FINALIZED') STORED,
    attempts integer NOT NULL DEFAULT 0,
    answered_nodes text[] NOT NULL DEFAULT '{}',
    silent_nodes text[] NOT NULL DEFAULT '{}',
    answered boolean NOT NULL DEFAULT false,
    next_send_at timestamptz NOT NULL DEFAULT '-infinity',
    block_number bigint,
    block_hash bytea,
    receipt_status smallint,
    fee_paid_wei numeric(78),
    proof bytea,
    agreeing_nodes text[],
    inclusion_number integer NOT NULL DEFAULT 0,
    inclusion_status text,
    inclusion_pending boolean NOT NULL DEFAULT false,
    revocation_number integer NOT NULL DEFAULT 0,
    CONSTRAINT submissions_tx_hash_once UNIQUE (tx_hash),
    CONSTRAINT submissions_transfer_once UNIQUE (transfer_id)
) WITH (fillfactor = 50);

-- Hex does not repeat within the window of PostgreSQL's compression.
ALTER TABLE submissions ALTER COLUMN proof SET STORAGE EXTERNAL;

CREATE INDEX submissions_queued ON submissions (chain_id, account, nonce) WHERE is_queued;

CREATE INDEX submissions_open ON submissions (chain_id, account, id) WHERE is_open AND NOT is_queued;

CREATE INDEX submissions_of_account ON submissions (chain_id, account, nonce);

CREATE TABLE outbox (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    chain_id text NOT NULL,
    transfer_id text NOT NULL,
    tx_hash bytea NOT NULL,
    entry_id text NOT NULL,
    kind text NOT NULL,
    node text NOT NULL,
    attempt integer NOT NULL,
    trace_id text NOT NULL,
    span_id text NOT NULL,
    body bytea NOT NULL,
    CONSTRAINT outbox_entry_once UNIQUE (transfer_id, entry_id)
);

CREATE TABLE events (
    cursor bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transfer_id text NOT NULL,
    tx_hash bytea NOT NULL,
    state text NOT NULL,
    block_number bigint,
    block_hash bytea,
    receipt_status smallint,
    fee_paid_wei numeric(78),
    at timestamptz NOT NULL
);

CREATE TABLE chains (
    chain_id text PRIMARY KEY,
    epoch bigint NOT NULL,
    lease_until timestamptz NOT NULL
);

CREATE TABLE blocks (
    chain_id text NOT NULL,
    number bigint NOT NULL,
    hash bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (chain_id, number)
);

GRANT USAGE ON SCHEMA broadcaster TO broadcaster;

GRANT SELECT, INSERT, UPDATE ON submissions, chains TO broadcaster;

GRANT SELECT, INSERT ON events TO broadcaster;

GRANT SELECT, INSERT, UPDATE, DELETE ON outbox TO broadcaster;

GRANT SELECT, INSERT, DELETE ON blocks TO broadcaster;
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split("\n\n"):  # one statement an execution: the driver prepares each
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("submissions are not taken back")
