"""Superseding links, velocity, and triggers that keep the register from being undone.

A register row counts its own velocity: asset, amount and time stand in the row that is entered once a link, so that
neither a race nor a replay counts twice, and a void gives back by being one. Everything is additive: the version before
enters rows that supersede nothing and count nothing.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    ALTER TABLE signer.register
        -- Of a superseding link: whose nonce it spends; empty for one that was given back.
        ADD COLUMN supersedes text,
        -- Who spends the nonce of this link, which is never signed again.
        ADD COLUMN superseded_by text,
        ADD COLUMN asset text,
        ADD COLUMN amount numeric(78, 0) CHECK (amount > 0),
        ADD COLUMN counted_at timestamptz,
        ADD CONSTRAINT register_counted CHECK (num_nulls(asset, amount, counted_at) IN (0, 3)),
        ADD CONSTRAINT register_superseded_stays CHECK (superseded_by IS NULL OR voided_at IS NULL)
    """,
    # One nonce, one link; whoever fills a nonce that was given back is that link.
    """
    CREATE UNIQUE INDEX register_holder ON signer.register (chain_id, address, nonce, attempt)
    WHERE voided_at IS NULL AND coalesce(supersedes, '') = ''
    """,
    # … and at most one that supersedes it.
    """
    CREATE UNIQUE INDEX register_superseding ON signer.register (chain_id, address, nonce, attempt)
    WHERE voided_at IS NULL AND supersedes <> ''
    """,
    "DROP INDEX signer.register_nonce",
    # A window is summed from this alone.
    """
    CREATE INDEX register_velocity ON signer.register (chain_id, address, asset, counted_at) INCLUDE (amount)
    WHERE counted_at IS NOT NULL AND voided_at IS NULL
    """,
    # The lock of one account and asset, and the largest time that was counted by: a clock set back opens no window.
    """
    CREATE TABLE signer.velocity (
        chain_id bigint NOT NULL,
        address bytea NOT NULL CHECK (octet_length(address) = 20),
        asset text NOT NULL,
        latest_at timestamptz NOT NULL,
        PRIMARY KEY (chain_id, address, asset)
    )
    """,
    "GRANT SELECT, INSERT ON signer.velocity TO signer",
    "GRANT UPDATE (latest_at) ON signer.velocity TO signer",
    "GRANT UPDATE (superseded_by) ON signer.register TO signer",
    """
    CREATE FUNCTION signer.refuse_undoing() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'what % has is never undone: this % is refused', TG_TABLE_NAME, TG_OP
            USING ERRCODE = 'integrity_constraint_violation';
    END
    $$
    """,
    # A signature that was made may be on its way to a node: whoever clears it could have the nonce signed again.
    """
    CREATE TRIGGER register_keeps BEFORE UPDATE ON signer.register FOR EACH ROW WHEN (
        (OLD.signature_body IS NOT NULL AND NEW.signature_body IS DISTINCT FROM OLD.signature_body)
        OR (OLD.signature_body IS NULL AND NEW.signature_body IS NOT NULL AND OLD.superseded_by IS NOT NULL)
        OR (OLD.intent_index IS NOT NULL AND NEW.intent_index IS DISTINCT FROM OLD.intent_index)
        OR (OLD.voided_at IS NOT NULL AND NEW.voided_at IS DISTINCT FROM OLD.voided_at)
        OR (OLD.superseded_by IS NOT NULL AND NEW.superseded_by IS NULL)
    ) EXECUTE FUNCTION signer.refuse_undoing()
    """,
    """
    CREATE TRIGGER velocity_rises BEFORE UPDATE ON signer.velocity FOR EACH ROW
    WHEN (NEW.latest_at < OLD.latest_at) EXECUTE FUNCTION signer.refuse_undoing()
    """,
    *(
        f"CREATE TRIGGER {table}_stays BEFORE DELETE OR TRUNCATE ON signer.{table} "
        "FOR EACH STATEMENT EXECUTE FUNCTION signer.refuse_undoing()"
        for table in ("register", "denials", "failed_signatures", "policy_versions", "velocity")
    ),
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the register is not taken back: it is what keeps a nonce from being signed twice")
