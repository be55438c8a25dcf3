"""Spans and the scopes they share.

Ready to be partitioned by day of receipt: a later revision makes a parent partitioned by RANGE (received_on) whose
unique key is (received_on, trace_id, span_id, sha256), builds that index on this table, and attaches it as the first
partition; no row is rewritten. Scopes are few and stay outside the partitions.
"""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE tracestore.scopes (
            sha256 bytea PRIMARY KEY,
            scope bytea NOT NULL
        )
        """
    )
    op.execute(
        """
        CREATE TABLE tracestore.spans (
            trace_id bytea NOT NULL CHECK (octet_length(trace_id) = 16),
            span_id bytea NOT NULL CHECK (octet_length(span_id) = 8),
            sha256 bytea NOT NULL,
            start_ns bigint NOT NULL,
            received_at timestamptz NOT NULL DEFAULT now(),
            received_on date NOT NULL DEFAULT ((now() AT TIME ZONE 'UTC')::date),
            service text NOT NULL,
            name text NOT NULL,
            scope_sha256 bytea NOT NULL,
            span bytea NOT NULL,
            CONSTRAINT spans_identity UNIQUE (trace_id, span_id, sha256)
        )
        """
    )
    op.execute("GRANT SELECT, INSERT ON tracestore.scopes, tracestore.spans TO tracestore")
