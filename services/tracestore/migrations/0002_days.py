"""Spans and log records by day of receipt, with the columns that search needs.

Additive: the earlier version goes on inserting and reading by the same names; what it inserts has no description
(`tokens` is {0}, the other new columns are null), like every row that is carried over here, and search looks at the
bytes of such rows. docs/adr/0010-days-of-receipt.md says why days are made and dropped by functions.
"""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE tracestore.spans RENAME TO spans_before")
    op.execute(
        """
        CREATE TABLE tracestore.spans (
            trace_id bytea NOT NULL CHECK (octet_length(trace_id) = 16),
            start_ns bigint NOT NULL,
            span_id bytea NOT NULL CHECK (octet_length(span_id) = 8),
            sha256 bytea NOT NULL,
            received_on date NOT NULL DEFAULT ((now() AT TIME ZONE 'UTC')::date),
            received_at timestamptz NOT NULL DEFAULT now(),
            parent_span_id bytea,
            duration_ns bigint,
            service text NOT NULL,
            name text NOT NULL,
            kind smallint,
            status smallint,
            tokens integer[] NOT NULL DEFAULT '{0}',
            scope_sha256 bytea NOT NULL,
            span bytea NOT NULL,
            UNIQUE (trace_id, start_ns, span_id, sha256, received_on)
        ) PARTITION BY RANGE (received_on)
        """
    )
    op.execute("CREATE INDEX ON tracestore.spans (start_ns)")
    op.execute("CREATE INDEX ON tracestore.spans (service, start_ns)")
    op.execute("CREATE INDEX ON tracestore.spans USING gin (tokens)")
    op.execute(
        """
        CREATE TABLE tracestore.logs (
            trace_id bytea NOT NULL CHECK (octet_length(trace_id) IN (0, 16)),
            time_ns bigint NOT NULL,
            sha256 bytea NOT NULL,
            scope_sha256 bytea NOT NULL,
            received_on date NOT NULL DEFAULT ((now() AT TIME ZONE 'UTC')::date),
            received_at timestamptz NOT NULL DEFAULT now(),
            span_id bytea NOT NULL CHECK (octet_length(span_id) IN (0, 8)),
            severity smallint NOT NULL,
            service text NOT NULL,
            record bytea NOT NULL,
            UNIQUE (trace_id, time_ns, sha256, scope_sha256, received_on)
        ) PARTITION BY RANGE (received_on)
        """
    )
    # Rows on their way in. An array of these costs a client half of what an array for each column does.
    op.execute(
        """
        CREATE TYPE tracestore.incoming_span AS (
            trace_id bytea, start_ns bigint, span_id bytea, sha256 bytea, parent_span_id bytea, duration_ns bigint,
            service text, name text, kind smallint, status smallint, tokens text, scope_sha256 bytea, span bytea
        )
        """
    )
    op.execute(
        """
        CREATE TYPE tracestore.incoming_log AS (
            trace_id bytea, time_ns bigint, sha256 bytea, scope_sha256 bytea, span_id bytea, severity smallint,
            service text, record bytea
        )
        """
    )
    # What there was to see on a day. A name is inserted once a day and process.
    op.execute(
        """
        CREATE TABLE tracestore.operations (
            seen_on date NOT NULL,
            service text NOT NULL,
            name text NOT NULL,
            kind smallint NOT NULL,
            PRIMARY KEY (service, name, kind, seen_on)
        )
        """
    )
    _functions()
    op.execute(
        "SELECT tracestore.make_day(day) FROM (SELECT DISTINCT received_on FROM tracestore.spans_before) AS _(day)"
    )
    op.execute("SELECT tracestore.make_days(7)")
    op.execute(
        """
        INSERT INTO tracestore.spans
            (trace_id, start_ns, span_id, sha256, received_on, received_at, service, name, scope_sha256, span)
        SELECT trace_id, start_ns, span_id, sha256, received_on, received_at, left(service, 255), left(name, 255),
               scope_sha256, span
        FROM tracestore.spans_before
        """
    )
    op.execute(
        """
        INSERT INTO tracestore.operations (seen_on, service, name, kind)
        SELECT DISTINCT received_on, left(service, 255), left(name, 255), 0 FROM tracestore.spans_before
        """
    )
    op.execute("DROP TABLE tracestore.spans_before")
    op.execute("GRANT SELECT, INSERT ON tracestore.spans, tracestore.logs, tracestore.operations TO tracestore")
    op.execute("GRANT SELECT ON tracestore.days TO tracestore")


def _functions() -> None:
    # Not granted: a day of the caller's choice.
    op.execute(
        """
        CREATE FUNCTION tracestore.make_day(day date) RETURNS void LANGUAGE plpgsql
        SET search_path = pg_catalog, pg_temp AS $$
        DECLARE
            parent text;
            place text;
        BEGIN
            FOREACH parent IN ARRAY ARRAY['spans', 'logs'] LOOP
                place := parent || to_char(day, '_YYYYMMDD');
                CONTINUE WHEN to_regclass('tracestore.' || place) IS NOT NULL;
                -- Whoever else makes days waits; readers and writers do not. Not an advisory lock: after waiting for
                -- that, what the other one made may still not be seen.
                EXECUTE format('LOCK TABLE tracestore.%I IN SHARE UPDATE EXCLUSIVE MODE', parent);
                CONTINUE WHEN to_regclass('tracestore.' || place) IS NOT NULL;
                -- Attached, not created in place: that would lock out whoever reads and writes.
                EXECUTE format(
                    'CREATE TABLE tracestore.%I (LIKE tracestore.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
                    place, parent);
                EXECUTE format(
                    'ALTER TABLE tracestore.%I ATTACH PARTITION tracestore.%I FOR VALUES FROM (%L) TO (%L)',
                    parent, place, day, day + 1);
            END LOOP;
        END $$
        """
    )
    op.execute("REVOKE EXECUTE ON FUNCTION tracestore.make_day(date) FROM PUBLIC")
    op.execute(
        """
        CREATE FUNCTION tracestore.make_days(ahead integer) RETURNS void LANGUAGE plpgsql SECURITY DEFINER
        SET search_path = pg_catalog, pg_temp SET lock_timeout = '10s' AS $$
        BEGIN
            FOR later IN 0..least(ahead, 31) LOOP
                PERFORM tracestore.make_day((now() AT TIME ZONE 'UTC')::date + later);
            END LOOP;
        END $$
        """
    )
    # A constraint that no new row keeps, and that is not asked of those that are there.
    op.execute(
        """
        CREATE FUNCTION tracestore.seal_day(day date) RETURNS TABLE (spans bigint, logs bigint)
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
        DECLARE
            place text;
        BEGIN
            IF day >= (now() AT TIME ZONE 'UTC')::date THEN
                RAISE EXCEPTION 'day %: the rule is that it is over', day USING ERRCODE = 'invalid_parameter_value';
            END IF;
            LOCK TABLE tracestore.spans IN SHARE UPDATE EXCLUSIVE MODE;
            FOREACH place IN ARRAY ARRAY['spans', 'logs'] LOOP
                place := place || to_char(day, '_YYYYMMDD');
                CONTINUE WHEN EXISTS (SELECT FROM pg_constraint
                    WHERE conrelid = ('tracestore.' || place)::regclass AND conname = 'sealed');
                EXECUTE format('ALTER TABLE tracestore.%I ADD CONSTRAINT sealed CHECK (false) NOT VALID', place);
            END LOOP;
            EXECUTE format('SELECT count(*) FROM tracestore.%I', 'spans' || to_char(day, '_YYYYMMDD')) INTO spans;
            EXECUTE format('SELECT count(*) FROM tracestore.%I', 'logs' || to_char(day, '_YYYYMMDD')) INTO logs;
            RETURN NEXT;
        END $$
        """
    )
    # Who drops says what is kept elsewhere, and is refused if that is not all.
    op.execute(
        """
        CREATE FUNCTION tracestore.drop_day(day date, kept_spans bigint, kept_logs bigint) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
        DECLARE
            sealed_spans bigint;
            sealed_logs bigint;
        BEGIN
            IF NOT EXISTS (SELECT FROM tracestore.days AS made WHERE made.day = drop_day.day AND made.sealed) THEN
                RAISE EXCEPTION 'day %: the rule is that it is sealed', day USING ERRCODE = 'invalid_parameter_value';
            END IF;
            SELECT spans, logs INTO sealed_spans, sealed_logs FROM tracestore.seal_day(day);
            IF (sealed_spans, sealed_logs) IS DISTINCT FROM (kept_spans, kept_logs) THEN
                RAISE EXCEPTION 'day %: it holds % spans and % log records, not % and %',
                    day, sealed_spans, sealed_logs, kept_spans, kept_logs USING ERRCODE = 'invalid_parameter_value';
            END IF;
            EXECUTE format('DROP TABLE tracestore.%I, tracestore.%I',
                'spans' || to_char(day, '_YYYYMMDD'), 'logs' || to_char(day, '_YYYYMMDD'));
        END $$
        """
    )
    op.execute(
        """
        CREATE VIEW tracestore.days AS
        SELECT to_date(right(partition.relname, 8), 'YYYYMMDD') AS day,
               EXISTS (
                   SELECT FROM pg_constraint WHERE conrelid = partition.oid AND conname = 'sealed'
               ) AS sealed
        FROM pg_inherits JOIN pg_class AS partition ON partition.oid = pg_inherits.inhrelid
        WHERE pg_inherits.inhparent = 'tracestore.spans'::regclass
        """
    )
    for signature in ("make_days(integer)", "seal_day(date)", "drop_day(date, bigint, bigint)"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION tracestore.{signature} FROM PUBLIC")
        op.execute(f"GRANT EXECUTE ON FUNCTION tracestore.{signature} TO tracestore")
