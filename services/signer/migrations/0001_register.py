"""The double-sign register, denials, failed signatures and policy versions.

`attempt` counts the transactions of one link: a fee bump will be attempt 2 of the same (chain, address, nonce). A
superseding link will be a column of that key beside it. Intent bodies hold personal data: they are dropped once the log
has them. Rows are about 2 KB and written twice within milliseconds: they stay in the table (no compression, no TOAST)
unless call data is long.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE signer.register (
    link_id text NOT NULL,
    attempt integer NOT NULL CHECK (attempt >= 1),
    chain_id bigint,
    address bytea CHECK (octet_length(address) = 20),
    nonce bigint CHECK (nonce >= 0),
    unsigned_tx bytea,
    decision text CHECK (decision = 'allow'),
    policy_version integer,
    intent_body bytea,
    intent_index bigint,
    signature_body bytea,
    registered_at timestamptz NOT NULL DEFAULT now(),
    voided_at timestamptz,
    void_cause text,
    CONSTRAINT register_link PRIMARY KEY (link_id, attempt),
    -- A tombstone of a link that never came here has no transaction; every other row has a whole one.
    CONSTRAINT register_whole CHECK (
        voided_at IS NOT NULL
        OR num_nulls(chain_id, address, nonce, unsigned_tx, decision, policy_version) = 0
    ),
    -- The outbox: a body until it is known to be in the log.
    CONSTRAINT register_outbox CHECK (voided_at IS NOT NULL OR num_nulls(intent_body, intent_index) = 1),
    CONSTRAINT register_intent_first CHECK (signature_body IS NULL OR intent_index IS NOT NULL),
    CONSTRAINT register_voided_unsigned CHECK (voided_at IS NULL OR signature_body IS NULL)
) WITH (toast_tuple_target = 8160);
-- One nonce, one link. A voided link is never signed, so its nonce is free again.
CREATE UNIQUE INDEX register_nonce ON signer.register (chain_id, address, nonce, attempt) WHERE voided_at IS NULL;

CREATE TABLE signer.denials (
    link_id text PRIMARY KEY,
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    policy_version integer NOT NULL,
    rule text NOT NULL,
    intent_body bytea,
    intent_index bigint,
    denied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT denials_outbox CHECK (num_nulls(intent_body, intent_index) = 1)
);

CREATE TABLE signer.failed_signatures (
    link_id text NOT NULL,
    attempt integer NOT NULL,
    number integer NOT NULL CHECK (number >= 1),
    body bytea NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (link_id, attempt, number)
);

CREATE TABLE signer.policy_versions (
    version integer PRIMARY KEY,
    sha256 bytea NOT NULL CHECK (octet_length(sha256) = 32),
    document bytea NOT NULL,
    traceparent text NOT NULL,
    body bytea NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now()
);

GRANT USAGE ON SCHEMA signer TO signer;
GRANT SELECT, INSERT ON signer.register, signer.denials, signer.failed_signatures, signer.policy_versions TO signer;
GRANT UPDATE (intent_body, intent_index, signature_body, voided_at, void_cause) ON signer.register TO signer;
GRANT UPDATE (intent_body, intent_index) ON signer.denials TO signer;
"""


def upgrade() -> None:
    # One prepared statement each: asyncpg takes no more at once.
    for statement in _STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the register is not taken back: it is what keeps a nonce from being signed twice")
