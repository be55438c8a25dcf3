"""Room in each page of the register for the second version of its rows: a row gets its signature milliseconds after it
was entered, and where the new version stays in the page no index learns of it. The version before runs on it as before.
"""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE signer.register SET (fillfactor = 50)")


def downgrade() -> None:
    op.execute("ALTER TABLE signer.register RESET (fillfactor)")
