"""Which key of the token signs checkpoints: entered once, by whichever replica is first."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE token_keys (
    label text COLLATE "C" PRIMARY KEY,
    key_id bytea NOT NULL,
    public_key bytea NOT NULL
);

GRANT SELECT, INSERT ON token_keys TO evidence;
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split("\n\n"):
        op.execute(statement)


def downgrade() -> None:
    op.execute("DROP TABLE token_keys")
