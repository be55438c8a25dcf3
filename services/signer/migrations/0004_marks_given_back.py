"""A superseding link that is voided gives the mark back: who is superseded by a link that is never signed is not.

The mark is cleared, or taken over by another link, only where the one that has it is voided; the trigger sees to it,
whoever writes. Marks that voided links have left behind are given back now. The version before goes on as it was: it
leaves such a mark, and its next superseding link takes it over.
"""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE FUNCTION signer.refuse_taking_a_mark() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT FROM signer.register
            WHERE link_id = OLD.superseded_by AND attempt = 1 AND voided_at IS NOT NULL
        ) THEN
            RAISE EXCEPTION 'the link that supersedes % may be signed: this % is refused', OLD.link_id, TG_OP
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END
    $$
    """,
    "DROP TRIGGER register_keeps ON signer.register",
    # As in 0003, but for the mark.
    """
    CREATE TRIGGER register_keeps BEFORE UPDATE ON signer.register FOR EACH ROW WHEN (
        (OLD.signature_body IS NOT NULL AND NEW.signature_body IS DISTINCT FROM OLD.signature_body)
        OR (OLD.signature_body IS NULL AND NEW.signature_body IS NOT NULL AND OLD.superseded_by IS NOT NULL)
        OR (OLD.intent_index IS NOT NULL AND NEW.intent_index IS DISTINCT FROM OLD.intent_index)
        OR (OLD.voided_at IS NOT NULL AND NEW.voided_at IS DISTINCT FROM OLD.voided_at)
    ) EXECUTE FUNCTION signer.refuse_undoing()
    """,
    """
    CREATE TRIGGER register_marked BEFORE UPDATE ON signer.register FOR EACH ROW WHEN (
        OLD.superseded_by IS NOT NULL AND NEW.superseded_by IS DISTINCT FROM OLD.superseded_by
    ) EXECUTE FUNCTION signer.refuse_taking_a_mark()
    """,
    """
    UPDATE signer.register r
    SET superseded_by = NULL,
        voided_at = CASE WHEN f.signature_body IS NULL THEN s.voided_at END,
        void_cause = CASE WHEN f.signature_body IS NULL THEN s.void_cause END,
        intent_body = CASE WHEN f.signature_body IS NOT NULL THEN r.intent_body END
    FROM signer.register s, signer.register f
    WHERE s.link_id = r.superseded_by AND s.attempt = 1 AND s.voided_at IS NOT NULL
        AND f.link_id = r.link_id AND f.attempt = 1
    """,
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the register is not taken back: it is what keeps a nonce from being signed twice")
