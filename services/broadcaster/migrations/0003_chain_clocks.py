"""How far a chain's clock is behind, and transfers that wait, or can never be proven, for that."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATEMENTS = """
-- Seconds, at least, as k nodes' newest blocks tell; negative: ahead.
ALTER TABLE chains ADD COLUMN clock_behind_s integer NOT NULL DEFAULT 0;

ALTER TABLE submissions DROP CONSTRAINT submissions_stall_check;

ALTER TABLE submissions ADD CONSTRAINT submissions_stall_check
    CHECK (stall IN ('NOT_MINED', 'UNDERPRICED', 'INSUFFICIENT_FUNDS', 'CHAIN_CLOCK'));
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split("\n\n"):  # one statement an execution: the driver prepares each
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("submissions are not taken back")
