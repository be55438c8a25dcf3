"""Several transactions a transfer, why one is stalled, spent nonces, and chains that contradict themselves.

Additive: the release before runs on it. It sees the transaction of each transfer that counts, and no other.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = """
ALTER TABLE submissions DROP CONSTRAINT submissions_state_check;

ALTER TABLE submissions ADD CONSTRAINT submissions_state_check
    CHECK (state IN ('QUEUED', 'REQUESTED', 'SUBMITTED', 'INCLUDED', 'SAFE', 'FINALIZED', 'NONCE_SPENT'));

DROP INDEX submissions_open;

ALTER TABLE submissions DROP COLUMN is_open;

ALTER TABLE submissions ADD COLUMN is_open boolean NOT NULL
    GENERATED ALWAYS AS (state NOT IN ('FINALIZED', 'NONCE_SPENT')) STORED;

CREATE INDEX submissions_open ON submissions (chain_id, account, id) WHERE is_open AND NOT is_queued;

-- tx_hash, raw_tx and answered are of the transaction that counts: the mined one, else the newest. It changes only
-- while block_number is null, or in the commit that revokes the block.
ALTER TABLE submissions
    -- Null: it is tx_hash.
    ADD COLUMN newest_tx_hash bytea CHECK (length(newest_tx_hash) = 32),
    ADD COLUMN stall text CHECK (stall IN ('NOT_MINED', 'UNDERPRICED', 'INSUFFICIENT_FUNDS')),
    -- Since when the newest is with a node; null before.
    ADD COLUMN submitted_at timestamptz,
    -- Attempts before the newest, or before a reorg: pauses are counted from there.
    ADD COLUMN earlier_attempts integer NOT NULL DEFAULT 0;

UPDATE submissions SET submitted_at = clock_timestamp() WHERE state = 'SUBMITTED';

-- The transactions of a transfer that do not count now.
CREATE TABLE versions (
    tx_hash bytea PRIMARY KEY CHECK (length(tx_hash) = 32),
    submission_id bigint NOT NULL REFERENCES submissions (id),
    raw_tx bytea NOT NULL,
    answered boolean NOT NULL
);

CREATE INDEX versions_of_submission ON versions (submission_id);

ALTER TABLE events ADD COLUMN newest_tx_hash bytea, ADD COLUMN stall text;

ALTER TABLE chains
    -- The highest block that k nodes called final, as far as it was watched.
    ADD COLUMN finalized_number bigint,
    -- Why nothing more is sent and proven: one sentence.
    ADD COLUMN broken text;

GRANT SELECT, INSERT, UPDATE, DELETE ON versions TO broadcaster;
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split("\n\n"):  # one statement an execution: the driver prepares each
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("submissions are not taken back")
