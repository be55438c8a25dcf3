"""One more cause of a stall: the chain's clock."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.execute("ALTER TABLE transfers DROP CONSTRAINT transfers_stall_check")
    op.execute(
        "ALTER TABLE transfers ADD CONSTRAINT transfers_stall_check CHECK (stall IN "
        "('NOT_MINED', 'UNDERPRICED', 'INSUFFICIENT_FUNDS', 'FEE_CAP_REACHED', 'CHAIN_CLOCK'))"
    )
