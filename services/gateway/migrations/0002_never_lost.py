"""Replacements, superseding links, approvals, policy proposals, and the duties that one worker of all has."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # Every column has a default or is nullable: the version before goes on writing rows.
    op.execute(
        """
        ALTER TABLE transfers
            -- The newest version that broadcaster holds: 0 the first transaction, the rest its fee bumps.
            ADD COLUMN replacement integer NOT NULL DEFAULT 0,
            ADD COLUMN replacement_wanted integer,
            ADD COLUMN stall text CHECK (stall IN ('NOT_MINED', 'UNDERPRICED', 'INSUFFICIENT_FUNDS',
                                                   'FEE_CAP_REACHED')),
            -- Null for a transfer of its own; the link whose nonce it spends, empty for a nonce that was given back.
            ADD COLUMN supersedes text,
            ADD COLUMN superseded_by text,
            -- Another transaction with its nonce is finalized.
            ADD COLUMN nonce_spent boolean NOT NULL DEFAULT false,
            -- Who cancels, encrypted under the superseding link's id.
            ADD COLUMN cancelled_by bytea,
            -- {"count", "valid_s", "approvers"}: what the policy asked for.
            ADD COLUMN approval jsonb,
            ADD COLUMN approval_expires_at timestamptz;
        """
    )
    # Whoever holds signed bytes can send them: only a finalized transaction in their place ends the transfer.
    op.execute(
        "ALTER TABLE transfers ADD CONSTRAINT signed_fails_only_when_spent "
        "CHECK (state <> 'FAILED' OR raw_tx IS NULL OR nonce_spent) NOT VALID"
    )
    op.execute("ALTER TABLE transfers VALIDATE CONSTRAINT signed_fails_only_when_spent")
    op.execute(
        """
        CREATE TABLE replacements (
            transfer_id text NOT NULL,
            number integer NOT NULL CHECK (number > 0),
            unsigned_tx bytea NOT NULL,
            raw_tx bytea,
            tx_hash bytea CHECK ((tx_hash IS NULL) = (raw_tx IS NULL)),
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (transfer_id, number)
        );
        """
    )
    op.execute(
        """
        CREATE TABLE approvals (
            link_id text NOT NULL CHECK (link_id ~ '^[A-Za-z0-9._:-]{1,64}$'),
            approver text NOT NULL,
            decision text NOT NULL CHECK (decision IN ('approve', 'reject')),
            at timestamptz NOT NULL,
            expires_at timestamptz NOT NULL,
            traceparent text NOT NULL,
            -- The entry's exact body; it counts once the log has it.
            body bytea NOT NULL,
            evidence_index bigint,
            PRIMARY KEY (link_id, approver)
        );
        """
    )
    op.execute(
        """
        CREATE TABLE policy_proposals (
            sha256 bytea PRIMARY KEY CHECK (octet_length(sha256) = 32),
            version integer NOT NULL,
            document bytea NOT NULL,
            proposer text NOT NULL,
            traceparent text NOT NULL,
            created_at timestamptz NOT NULL DEFAULT now(),
            expires_at timestamptz NOT NULL,
            activated_at timestamptz,
            failure jsonb
        );
        """
    )
    op.execute("CREATE INDEX policy_proposals_by_age ON policy_proposals (created_at)")
    op.execute("INSERT INTO follow (name, cursor) VALUES ('gaps', 0), ('policies', 0)")
    op.execute("GRANT SELECT, INSERT, UPDATE ON replacements TO gateway")
    op.execute("GRANT SELECT, INSERT, UPDATE (evidence_index) ON approvals TO gateway")
    op.execute("GRANT SELECT, INSERT, UPDATE (activated_at, failure) ON policy_proposals TO gateway")
