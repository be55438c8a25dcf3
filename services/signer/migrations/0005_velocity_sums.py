"""Sums of velocity windows: what a window holds is not read anew for each call.

A sum is of the rows of one purse and window with start_at < counted_at < settled_at. Whoever counts moves both ends to
the present, under the purse's lock, and so reads each row twice, when it enters the sum and when it leaves; rows from
settled_at on are read in place. As the times of a purse never fall, no row comes below settled_at later, whoever enters
it: the version before goes on summing rows, and is right.

Only the two functions write sums, and from rows alone: the role of the service can move the ends, and make up nothing.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_STATEMENTS = (
    """
    CREATE TABLE signer.velocity_windows (
        chain_id bigint NOT NULL,
        address bytea NOT NULL,
        asset text NOT NULL,
        window_s integer NOT NULL,
        start_at timestamptz NOT NULL,
        settled_at timestamptz NOT NULL,
        spent numeric NOT NULL CHECK (spent >= 0),
        PRIMARY KEY (chain_id, address, asset, window_s)
    ) WITH (fillfactor = 50)
    """,
    "GRANT SELECT ON signer.velocity_windows TO signer",
    # What one window holds that begins after `since`, in the snapshot of the statement that asks.
    """
    CREATE FUNCTION signer.velocity_since(chain bigint, account bytea, coin text, seconds integer, since timestamptz)
    RETURNS numeric LANGUAGE plpgsql STABLE AS $$
    DECLARE
        settled signer.velocity_windows;
    BEGIN
        SELECT * INTO settled FROM signer.velocity_windows
        WHERE chain_id = chain AND address = account AND asset = coin AND window_s = seconds;
        IF NOT FOUND THEN
            settled.spent := 0;
            settled.start_at := '-infinity';
            settled.settled_at := '-infinity';
        END IF;
        RETURN settled.spent + (
            SELECT coalesce(sum(amount), 0) FROM signer.register
            WHERE chain_id = chain AND address = account AND asset = coin
                AND counted_at >= settled.settled_at AND counted_at > since
                AND counted_at IS NOT NULL AND voided_at IS NULL
        ) - (
            SELECT coalesce(sum(amount), 0) FROM signer.register
            WHERE chain_id = chain AND address = account AND asset = coin
                AND counted_at > settled.start_at AND counted_at <= since AND counted_at < settled.settled_at
                AND counted_at IS NOT NULL AND voided_at IS NULL
        ) + (
            -- A clock that was ahead has moved the end too far.
            SELECT coalesce(sum(amount), 0) FROM signer.register
            WHERE chain_id = chain AND address = account AND asset = coin
                AND counted_at > since AND counted_at <= settled.start_at AND counted_at < settled.settled_at
                AND counted_at IS NOT NULL AND voided_at IS NULL
        );
    END
    $$
    """,
    # Lock these purses in one order for all callers, so that they queue instead of deadlocking; stamp them, never
    # earlier than before; answer what their windows hold. A window ends at the earlier of the database's clock and
    # `clock`: one that is ahead opens none. Stamps differ, so that every row of an earlier call is below the next one.
    """
    CREATE FUNCTION signer.settle_velocity(
        chains bigint[], accounts bytea[], coins text[], seconds integer[], clock timestamptz
    )
    RETURNS TABLE (chain_id bigint, address bytea, asset text, window_s integer, spent numeric)
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    #variable_conflict use_column
    BEGIN
        INSERT INTO signer.velocity AS v (chain_id, address, asset, latest_at)
        SELECT u.chain_id, u.address, u.asset, clock_timestamp()
        FROM (SELECT DISTINCT * FROM unnest(chains, accounts, coins)) AS u (chain_id, address, asset)
        ORDER BY u.chain_id, u.address, u.asset
        ON CONFLICT (chain_id, address, asset) DO UPDATE
        SET latest_at = greatest(v.latest_at + interval '1 microsecond', excluded.latest_at);
        -- A statement of its own: it sees what was committed before the lock was ours.
        RETURN QUERY
        INSERT INTO signer.velocity_windows AS w (chain_id, address, asset, window_s, start_at, settled_at, spent)
        SELECT u.chain_id, u.address, u.asset, u.window_s, s.since, v.latest_at,
               signer.velocity_since(u.chain_id, u.address, u.asset, u.window_s, s.since)
        FROM unnest(chains, accounts, coins, seconds) AS u (chain_id, address, asset, window_s)
        CROSS JOIN LATERAL (
            SELECT latest_at FROM signer.velocity
            WHERE chain_id = u.chain_id AND address = u.address AND asset = u.asset OFFSET 0
        ) v
        CROSS JOIN LATERAL (
            SELECT least(greatest(v.latest_at, clock_timestamp()), clock) - u.window_s * interval '1 second' AS since
        ) s
        ON CONFLICT (chain_id, address, asset, window_s) DO UPDATE
        SET start_at = excluded.start_at, settled_at = excluded.settled_at, spent = excluded.spent
        RETURNING w.chain_id, w.address, w.asset, w.window_s, w.spent;
    END
    $$
    """,
    # What is voided is in no sum from the same commit on, whoever voids it. The lock first: a sum that is being moved
    # has seen the row, or sees that it is voided.
    """
    CREATE FUNCTION signer.give_velocity_back() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    BEGIN
        PERFORM FROM signer.velocity
        WHERE chain_id = OLD.chain_id AND address = OLD.address AND asset = OLD.asset FOR UPDATE;
        UPDATE signer.velocity_windows SET spent = spent - OLD.amount
        WHERE chain_id = OLD.chain_id AND address = OLD.address AND asset = OLD.asset
            AND start_at < OLD.counted_at AND OLD.counted_at < settled_at;
        RETURN NULL;
    END
    $$
    """,
    """
    CREATE TRIGGER register_gives_back AFTER UPDATE ON signer.register FOR EACH ROW
    WHEN (OLD.counted_at IS NOT NULL AND OLD.voided_at IS NULL AND NEW.voided_at IS NOT NULL)
    EXECUTE FUNCTION signer.give_velocity_back()
    """,
    "REVOKE ALL ON FUNCTION signer.settle_velocity FROM PUBLIC",
    "GRANT EXECUTE ON FUNCTION signer.settle_velocity TO signer",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the register is not taken back: it is what keeps a nonce from being signed twice")
