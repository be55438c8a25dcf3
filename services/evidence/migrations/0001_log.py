"""Entries, bodies, full tiles, checkpoints and the log's head. Rows of the log are only ever inserted."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_STATEMENTS = """
CREATE TABLE entries (
    index bigint PRIMARY KEY CHECK (index >= 0),
    link_id text COLLATE "C" NOT NULL,
    step integer NOT NULL CHECK (step >= 0),
    entry_id text COLLATE "C" NOT NULL,
    leaf bytea NOT NULL,
    leaf_hash bytea NOT NULL CHECK (length(leaf_hash) = 32),
    CONSTRAINT entries_step_once UNIQUE (link_id, step),
    CONSTRAINT entries_entry_id_once UNIQUE (link_id, entry_id)
);

-- No foreign key: its check would lock each entry that the same statement has just inserted, and entries stay for ever.
-- Bodies are mostly hashes and signatures: to compress those of inclusions takes longer than all the rest of a commit.
CREATE TABLE bodies (
    index bigint PRIMARY KEY,
    salt bytea NOT NULL CHECK (length(salt) = 32),
    body bytea NOT NULL
) WITH (toast_tuple_target = 8160);

ALTER TABLE bodies ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE tiles (
    level smallint NOT NULL,
    number bigint NOT NULL,
    hashes bytea NOT NULL CHECK (length(hashes) = 8192),
    root bytea NOT NULL CHECK (length(root) = 32),
    PRIMARY KEY (level, number)
);

CREATE TABLE checkpoints (
    tree_size bigint PRIMARY KEY,
    root_hash bytea NOT NULL CHECK (length(root_hash) = 32),
    note text NOT NULL
);

CREATE TABLE log_head (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    size bigint NOT NULL,
    frontier bytea NOT NULL,
    last_at timestamptz NOT NULL,
    epoch bigint NOT NULL,
    lease_until timestamptz NOT NULL
);

INSERT INTO log_head (size, frontier, last_at, epoch, lease_until)
VALUES (0, '\\x0000000000000000', '-infinity', 0, '-infinity');

CREATE FUNCTION refuse_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the evidence log is append-only: % on % is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_rewrite();

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tiles
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_rewrite();

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON checkpoints
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_rewrite();

CREATE TRIGGER never_removed BEFORE DELETE OR TRUNCATE ON log_head
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_rewrite();

-- A body may be deleted, by the owner alone: that is erasure, and the tree still verifies.
CREATE TRIGGER never_rewritten BEFORE UPDATE OR TRUNCATE ON bodies
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_rewrite();

GRANT USAGE ON SCHEMA evidence TO evidence;

GRANT SELECT, INSERT ON entries, bodies, tiles, checkpoints TO evidence;

GRANT SELECT, UPDATE ON log_head TO evidence;
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split("\n\n"):  # one statement an execution: the driver prepares each
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("a log is not taken back")
