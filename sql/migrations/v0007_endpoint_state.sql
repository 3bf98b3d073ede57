-- The state of an endpoint, which says whether requests may go to it, is in its lane and its own
-- row. Its changes are decided in Sources/Outbox/EndpointState/EndpointState.swift; this file has
-- the functions by which statements select, and the marks that tell workers of a change.

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- True while a pause by an operator holds.
CREATE FUNCTION outbox.is_paused(l outbox.lane) RETURNS boolean
LANGUAGE sql STABLE
RETURN l.paused_from <= statement_timestamp() AND l.paused_until > statement_timestamp();

-- True when the owner of the lane may send: even to a failing endpoint, to see whether it still
-- fails.
CREATE FUNCTION outbox.accepts_requests(l outbox.lane, n outbox.endpoint) RETURNS boolean
LANGUAGE sql STABLE
RETURN n.disabled_at IS NULL
       AND n.deleted_at IS NULL
       AND l.resting_until <= statement_timestamp()
       AND NOT outbox.is_paused(l);

-- True while it neither fails nor recovers: deliveries that were tried before are due at their own
-- time.
CREATE FUNCTION outbox.is_well(l outbox.lane) RETURNS boolean
LANGUAGE sql IMMUTABLE RETURN l.trips = 0 AND l.recovered_at IS NULL;

-- The earliest time at which a delivery with this due time can be sent; NULL when it is unknown.
CREATE FUNCTION outbox.sent_at_the_earliest(l outbox.lane, due_at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE RETURN nullif(greatest(due_at, l.resting_until), 'infinity');

-- When a worker may claim a lane: not before its earliest delivery is due, and not while it rests,
-- is paused, or has an owner.
CREATE FUNCTION outbox.claimable_at(l outbox.lane) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN greatest(l.due_at, l.resting_until, l.lease_until,
                CASE WHEN l.paused_from <= statement_timestamp() THEN l.paused_until END);

-- Marks the rows that workers have to read again. Workers remember the snapshot in which they read,
-- and scan for the transactions that it did not see (EndpointsSeen): no session waits for another,
-- in any order of commits.
CREATE FUNCTION outbox.note_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.changed_tx := pg_current_xact_id();
    RETURN NEW;
END $$;
CREATE TRIGGER note_change
    BEFORE UPDATE ON outbox.endpoint FOR EACH ROW
    EXECUTE FUNCTION outbox.note_change();
CREATE TRIGGER note_change
    BEFORE UPDATE OF resting_until, paused_from, paused_until, drain_rate, trips, recovered_at
    ON outbox.lane FOR EACH ROW
    WHEN (OLD.resting_until IS DISTINCT FROM NEW.resting_until
          OR OLD.paused_until IS DISTINCT FROM NEW.paused_until
          OR OLD.paused_from IS DISTINCT FROM NEW.paused_from
          OR OLD.drain_rate IS DISTINCT FROM NEW.drain_rate
          OR OLD.trips IS DISTINCT FROM NEW.trips
          OR OLD.recovered_at IS DISTINCT FROM NEW.recovered_at)
    EXECUTE FUNCTION outbox.note_change();

-- A change of a secret is a change of its endpoint.
CREATE FUNCTION outbox.note_secret_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE outbox.endpoint
       SET changed_tx = pg_current_xact_id()
     WHERE id IN (OLD.endpoint_id, NEW.endpoint_id);
    RETURN NULL;
END $$;
CREATE TRIGGER note_change
    AFTER INSERT OR UPDATE OR DELETE ON outbox.secret FOR EACH ROW
    EXECUTE FUNCTION outbox.note_secret_change();

-- After a crash, transaction ids that were never recorded are assigned again, even by a server that
-- has not been stopped. This table is empty then, like every unlogged table: a worker that finds it
-- empty reads all endpoints, and leaves a new mark.
CREATE UNLOGGED TABLE outbox.boot (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    mark      uuid NOT NULL DEFAULT gen_random_uuid()
);
