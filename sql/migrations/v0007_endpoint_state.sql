-- What an endpoint's lane and its own row say of whether requests may go to it. What becomes of it
-- is decided in Sources/Outbox/EndpointState.swift; here is what statements select by, and what
-- tells workers that something has changed.

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- True while an operator wants nothing sent.
CREATE FUNCTION outbox.is_paused(l outbox.lane) RETURNS boolean
LANGUAGE sql STABLE
RETURN l.paused_from <= statement_timestamp() AND l.paused_until > statement_timestamp();

-- True when the owner of the lane may send: also to an endpoint that is failing, to see whether it
-- still is.
CREATE FUNCTION outbox.accepts_requests(l outbox.lane, n outbox.endpoint) RETURNS boolean
LANGUAGE sql STABLE
RETURN n.disabled_at IS NULL AND n.deleted_at IS NULL
       AND l.resting_until <= statement_timestamp() AND NOT outbox.is_paused(l);

-- True while it neither fails nor recovers: what was tried before is due when its own time is.
CREATE FUNCTION outbox.is_well(l outbox.lane) RETURNS boolean
LANGUAGE sql IMMUTABLE RETURN l.trips = 0 AND l.recovered_at IS NULL;

-- When a delivery that is due at a time can be sent at the earliest; NULL when nobody knows.
CREATE FUNCTION outbox.sent_at_the_earliest(l outbox.lane, due_at timestamptz) RETURNS timestamptz
LANGUAGE sql IMMUTABLE RETURN nullif(greatest(due_at, l.resting_until), 'infinity');

-- When somebody may send what waits in a lane: not before the earliest of it is due, and not while
-- it rests, is paused, or is somebody else's.
CREATE FUNCTION outbox.claimable_at(l outbox.lane) RETURNS timestamptz
LANGUAGE sql STABLE
RETURN greatest(l.due_at, l.resting_until, l.lease_until,
                CASE WHEN l.paused_from <= statement_timestamp() THEN l.paused_until END);

-- Marks what workers have to read again. They remember the snapshot in which they read, and look
-- for the transactions that it did not see (EndpointsSeen): nobody waits for anybody, in whatever
-- order those commit.
CREATE FUNCTION outbox.note_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    NEW.changed_tx := pg_current_xact_id();
    RETURN NEW;
END $$;
CREATE TRIGGER note_change BEFORE UPDATE ON outbox.endpoint FOR EACH ROW EXECUTE FUNCTION outbox.note_change();
CREATE TRIGGER note_change
    BEFORE UPDATE OF resting_until, paused_from, paused_until, drain_rate, trips, recovered_at
    ON outbox.lane FOR EACH ROW
    WHEN (OLD.resting_until IS DISTINCT FROM NEW.resting_until OR OLD.paused_until IS DISTINCT FROM NEW.paused_until
          OR OLD.paused_from IS DISTINCT FROM NEW.paused_from OR OLD.drain_rate IS DISTINCT FROM NEW.drain_rate
          OR OLD.trips IS DISTINCT FROM NEW.trips OR OLD.recovered_at IS DISTINCT FROM NEW.recovered_at)
    EXECUTE FUNCTION outbox.note_change();

-- A secret is its endpoint's.
CREATE FUNCTION outbox.note_secret_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE outbox.endpoint SET changed_tx = pg_current_xact_id() WHERE id IN (OLD.endpoint_id, NEW.endpoint_id);
    RETURN NULL;
END $$;
CREATE TRIGGER note_change AFTER INSERT OR UPDATE OR DELETE ON outbox.secret
    FOR EACH ROW EXECUTE FUNCTION outbox.note_secret_change();

-- After a crash transaction ids that nobody has recorded are given out again, also by a server that
-- has not been stopped. This table is empty then, as everything unlogged is: whoever finds it so
-- reads all endpoints, and leaves a mark of its own.
CREATE UNLOGGED TABLE outbox.boot (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    mark      uuid NOT NULL DEFAULT gen_random_uuid()
);
