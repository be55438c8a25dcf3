"""Replacements, superseding links, and what a search for gaps needs. The version before runs on it as before."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = """
-- Null for a transfer. A superseding link names the transfer whose nonce it spends, or '': it holds the nonce itself.
ALTER TABLE reservations ADD COLUMN supersedes text;

-- Whoever holds a nonce, transfer or gap filler: one.
CREATE UNIQUE INDEX reservations_nonce_held_once ON reservations (chain_id, address, nonce)
    WHERE nonce IS NOT NULL AND (supersedes IS NULL OR supersedes = '');

-- And at most one superseding link.
CREATE UNIQUE INDEX reservations_nonce_superseded_once ON reservations (chain_id, address, nonce)
    WHERE nonce IS NOT NULL AND supersedes IS NOT NULL;

DROP INDEX reservations_nonce_once;

-- The same transaction with higher fees. A row is written once: no role may change it.
CREATE TABLE replacements (
    transfer_id text NOT NULL REFERENCES reservations,
    replacement integer NOT NULL CHECK (replacement >= 1),
    unsigned_tx bytea NOT NULL,
    max_fee_wei numeric(78) NOT NULL,
    built_at timestamptz NOT NULL DEFAULT now(),
    -- None is built before the one that it replaces.
    replaces integer GENERATED ALWAYS AS (nullif(replacement - 1, 0)) STORED,
    PRIMARY KEY (transfer_id, replacement),
    FOREIGN KEY (transfer_id, replaces) REFERENCES replacements
);

ALTER TABLE free_nonces ADD COLUMN freed_at timestamptz NOT NULL DEFAULT now();

-- Below it everything is final on k nodes, and no nonce is of interest any more. It only rises.
ALTER TABLE accounts ADD COLUMN finalized_nonce numeric(20) NOT NULL DEFAULT 0;

CREATE INDEX accounts_unfinished ON accounts (chain_id, address) WHERE next_nonce > finalized_nonce;

GRANT SELECT, INSERT ON replacements TO txbuilder;
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split("\n\n"):  # one statement an execution: the driver prepares each
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE replacements")
    op.execute("DELETE FROM reservations WHERE supersedes <> ''")
    op.execute("DROP INDEX reservations_nonce_held_once, reservations_nonce_superseded_once, accounts_unfinished")
    op.execute(
        "CREATE UNIQUE INDEX reservations_nonce_once ON reservations (chain_id, address, nonce) WHERE nonce IS NOT NULL"
    )
    op.execute("ALTER TABLE reservations DROP COLUMN supersedes")
    op.execute("ALTER TABLE free_nonces DROP COLUMN freed_at")
    op.execute("ALTER TABLE accounts DROP COLUMN finalized_nonce")
