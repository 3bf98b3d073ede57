-- Order. The events of an ordering key stand in line in the lane of an endpoint that keeps order,
-- at the place (scan, event_id), where `scan` is the number of a complete scan of the stream. Only
-- the first of a line has a due time, the others are due at infinity. The invariants, and why they
-- hold:
--
-- O1. At most one delivery of a line is due: the unique index below.
-- O2. It is the first of its line: `route_ordered` gives a due time to the first delivery of an
--     empty line, and after that only `let_go` does, to the first one that is left. (A delivery
--     that was released before an older one is replayed goes first; then the older one.)
-- O3. No delivery enters a line before the due one. Within a scan events are put in line by
--     transaction, and of two transactions the later one may have published first: so no delivery
--     of a scan is released before the scan has ended (`first_incomplete`). Events of a later scan
--     were committed later, and stand behind.
-- O4. A line stands still only for a reason: the scan that it waits for has not ended
--     (`release_order` then walks along all keys), a dead letter blocks it (`is_blocked`), or its
--     lane is behind (`catch_up`). The transaction that takes the first delivery out also releases
--     the next one (`advance`).
-- O5. A session that adds to a line or takes out of it has locked the lane. The cut does not wait
--     for that lock: its deliveries for a locked lane go to outbox.unrouted, the row of the cut
--     names the lane (`behind`), and the first cut that finds the lane free puts them in line
--     before any later delivery of the lane.
--
-- An example: one endpoint, one key. Scan 7 has found the events 1 and 4, and is not complete; 2
-- and 3 are published, but commit later. (∞ is due at infinity; the line is read from left to
-- right.)
--
--     scan 7, first step    1 ∞   4 ∞                   nothing of scan 7 is due before its end
--     scan 7 ends           1 due 4 ∞                   release_order has passed the key
--     scan 8, 2 and 3       1 due 4 ∞   2 ∞   3 ∞       later commits stand behind
--     1 is delivered        4 due 2 ∞   3 ∞             advance
--     4 is a dead letter    2 ∞   3 ∞                   is_blocked: on_dead is block
--     it is replayed        4 due 2 ∞   3 ∞             back at its place (7, 4)

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

CREATE UNIQUE INDEX delivery_one_due_per_key ON outbox.delivery (endpoint_id, ordering_key)
    WHERE ordering_key IS NOT NULL AND due_at < 'infinity';

-- True when some endpoint keeps order.
CREATE FUNCTION outbox.keeps_order() RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM outbox.endpoint n WHERE n.ordered AND n.deleted_at IS NULL);
END;

-- The line in which an event stands: a key belongs to one customer, and the same text of another
-- customer is another line.
CREATE FUNCTION outbox.line_of(customer_id text, ordering_key text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN length(customer_id) || ':' || customer_id || ':' || nullif(ordering_key, '');

-- The ordering key of a line.
CREATE FUNCTION outbox.key_of(line text) RETURNS text
LANGUAGE sql IMMUTABLE RETURN substr(line, strpos(line, ':') + split_part(line, ':', 1)::int + 2);

-- True when a dead letter of the key blocks the ones behind it.
CREATE FUNCTION outbox.is_blocked(endpoint_id uuid, ordering_key text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM outbox.dead_letter x
                     JOIN outbox.endpoint n ON n.id = x.endpoint_id
                    WHERE x.endpoint_id = is_blocked.endpoint_id
                      AND x.ordering_key = is_blocked.ordering_key
                      AND x.reason <> 'cancelled'
                      AND n.on_dead = 'block');
END;

-- The event types of the endpoints that keep order, for lookups: however many there are, an event
-- costs two lookups for its type, for each prefix of its type, and for the patterns that take any
-- type.
CREATE TABLE outbox.ordered_type (
    kind        text NOT NULL,
    text        text NOT NULL,
    customer_id text NOT NULL,
    endpoint_id uuid NOT NULL REFERENCES outbox.endpoint,
    PRIMARY KEY (kind, text, customer_id, endpoint_id)
);
CREATE INDEX ON outbox.ordered_type (endpoint_id);

CREATE FUNCTION outbox.note_ordered_types() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    DELETE FROM outbox.ordered_type WHERE endpoint_id = NEW.id;
    IF NEW.ordered AND NEW.deleted_at IS NULL THEN
        INSERT INTO outbox.ordered_type
        SELECT p.kind, coalesce(p.text, ''), NEW.customer_id, NEW.id
          FROM jsonb_to_recordset(NEW.event_types) AS p(kind text, text text)
        ON CONFLICT DO NOTHING;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER note_ordered_types
    AFTER INSERT OR UPDATE OF ordered, deleted_at, customer_id, event_types
    ON outbox.endpoint FOR EACH ROW
    EXECUTE FUNCTION outbox.note_ordered_types();

-- The endpoints that keep order and match an event. A disabled one matches, too.
CREATE FUNCTION outbox.keepers_of(customer_id text, type text, change_type text)
RETURNS TABLE (id uuid, is_disabled boolean)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT DISTINCT n.id, n.disabled_at IS NOT NULL
      FROM (VALUES ('*'), (nullif(keepers_of.customer_id, '*'))) c(customer_id)
     CROSS JOIN (SELECT 'any', ''
                  WHERE keepers_of.type NOT LIKE 'outbox.%'
                 UNION ALL
                 SELECT 'exact', keepers_of.type
                 UNION ALL
                 SELECT 'prefix', left(keepers_of.type, n)
                   FROM generate_series(1, length(keepers_of.type)) n
                  WHERE substr(keepers_of.type, n, 1) = '.') t(kind, text)
     -- Looked up by all columns: a join may read the whole table instead.
     CROSS JOIN LATERAL (
           SELECT o.endpoint_id
             FROM outbox.ordered_type o
            WHERE o.kind = t.kind AND o.text = t.text AND o.customer_id = c.customer_id OFFSET 0) o
     CROSS JOIN LATERAL (
           SELECT n.id, n.disabled_at, n.change_types
             FROM outbox.endpoint n
            WHERE n.id = o.endpoint_id AND n.ordered AND n.deleted_at IS NULL OFFSET 0) n
     WHERE outbox.matches(n.change_types, keepers_of.change_type) OFFSET 0;
END;

-- The events of these batches.
CREATE FUNCTION outbox.events_of(batches bigint[]) RETURNS SETOF outbox.event
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT e.*
      FROM outbox.batch b
     CROSS JOIN LATERAL outbox.events_in(b.ids, b.first_at, b.last_at) e
     WHERE b.id = ANY (events_of.batches);
END;

-- Deliveries of cut events for lanes that another session had locked at that moment: the cut does
-- not wait for a lane. The next cut that finds the lane free puts them in line, before any later
-- delivery of the lane (`catch_up`).
CREATE TABLE outbox.unrouted (
    event_id     bigint NOT NULL,
    endpoint_id  uuid NOT NULL,
    event_at     timestamptz NOT NULL,
    ordering_key text,              -- its line, as in outbox.delivery
    deliver_at   timestamptz,
    scan         bigint NOT NULL,
    noted_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (event_id, endpoint_id, event_at)
);
CREATE INDEX ON outbox.unrouted (endpoint_id, scan, event_id);
CREATE INDEX ON outbox.unrouted (endpoint_id, ordering_key, scan, event_id);

-- Puts the events of new batches into the lanes of the endpoints that keep order, behind the
-- deliveries already there, and names these endpoints in the batches, so that no dispatcher sends
-- them. This happens here, in the only place that sees the events in order: two workers that
-- dispatch two batches would put them in line in arbitrary order. Only lanes that get a delivery
-- are locked, and deliveries for a lane that another session has locked, or that is already behind,
-- go to outbox.unrouted.
--
-- `is_whole` says that the scan ends with these batches. Otherwise no delivery of the scan is due
-- before its end (`release_order`): it proceeds by transaction, and of two transactions the later
-- one may have published first.
--
-- Returns the lanes that are behind now, including those that were behind before.
CREATE FUNCTION outbox.route_ordered(
    batches bigint[], scan bigint, is_whole boolean, behind outbox.lane_place[])
RETURNS outbox.lane_place[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keepers uuid[];
    locked  uuid[];
    busy    uuid[];
    late    uuid[];
BEGIN
    IF batches = '{}' OR NOT outbox.keeps_order() THEN RETURN behind; END IF;
    keepers := ARRAY(
        SELECT DISTINCT n.id
          FROM (SELECT DISTINCT e.customer_id::text, e.type::text, e.change_type::text
                  FROM outbox.events_of(batches) e) kind
         CROSS JOIN LATERAL outbox.keepers_of(kind.customer_id, kind.type, kind.change_type) n);
    IF keepers = '{}' THEN RETURN behind; END IF;
    locked := ARRAY(SELECT l.endpoint_id
                      FROM outbox.lane l
                     WHERE l.endpoint_id = ANY (keepers)
                     ORDER BY l.endpoint_id
                       FOR UPDATE SKIP LOCKED);
    -- A session that changes whether an endpoint keeps order locks its lane: for the lanes that we
    -- have locked it stays as it is now.
    keepers := ARRAY(SELECT n.id
                       FROM outbox.endpoint n
                      WHERE n.id = ANY (keepers) AND n.ordered AND n.deleted_at IS NULL);
    busy := ARRAY(SELECT k
                    FROM unnest(keepers) k
                   WHERE k NOT IN (SELECT unnest(locked))
                      OR k IN (SELECT b.endpoint_id FROM unnest(behind) b));
    UPDATE outbox.batch b SET ordered = keepers WHERE b.id = ANY (batches);
    -- A disabled endpoint gets none of these events, even when it is enabled before a worker
    -- dispatches the batch.
    WITH line AS MATERIALIZED (
        SELECT e.id AS event_id, n.id AS endpoint_id, e.created_at, e.deliver_at,
               outbox.line_of(e.customer_id, e.ordering_key) AS ordering_key,
               row_number() OVER (PARTITION BY n.id, outbox.line_of(e.customer_id, e.ordering_key)
                                      ORDER BY e.id) AS place,
               n.id IN (SELECT unnest(busy)) AS is_missed
          FROM outbox.events_of(batches) e
         CROSS JOIN LATERAL outbox.keepers_of(e.customer_id, e.type, e.change_type) n
         -- Not as a join, either: one lookup in a hash table.
         WHERE NOT n.is_disabled AND (n.id IN (SELECT unnest(keepers))) IS TRUE),
    missed AS (
        INSERT INTO outbox.unrouted (
            event_id, endpoint_id, event_at, ordering_key, deliver_at, scan)
        SELECT l.event_id, l.endpoint_id, l.created_at, l.ordering_key, l.deliver_at,
               CASE WHEN l.ordering_key IS NULL THEN 0 ELSE route_ordered.scan END
          FROM line l
         WHERE l.is_missed
        ON CONFLICT DO NOTHING
        RETURNING endpoint_id),
    routed AS (
        INSERT INTO outbox.delivery (
            event_id, endpoint_id, event_at, due_at, trigger, ordering_key, deliver_at, scan)
        SELECT l.event_id, l.endpoint_id, l.created_at,
               CASE WHEN l.ordering_key IS NULL
                      OR is_whole
                         AND l.place = 1
                         AND NOT outbox.is_blocked(l.endpoint_id, l.ordering_key)
                         AND NOT EXISTS (SELECT FROM outbox.delivery d
                                          WHERE d.endpoint_id = l.endpoint_id
                                            AND d.ordering_key = l.ordering_key)
                    THEN greatest(clock_timestamp(), l.deliver_at)
                    ELSE 'infinity' END,
               'first', l.ordering_key, CASE WHEN l.ordering_key IS NOT NULL THEN l.deliver_at END,
               CASE WHEN l.ordering_key IS NULL THEN 0 ELSE route_ordered.scan END
          FROM line l
         WHERE NOT l.is_missed
        ON CONFLICT DO NOTHING
        RETURNING endpoint_id, due_at),
    lowered AS (
        UPDATE outbox.lane l
           SET due_at = r.due_at
          FROM (SELECT endpoint_id, min(due_at) AS due_at FROM routed GROUP BY endpoint_id) r
         WHERE l.endpoint_id = ANY (ARRAY[r.endpoint_id])
           AND l.due_at > r.due_at)
    SELECT ARRAY(SELECT DISTINCT m.endpoint_id FROM missed m) INTO late;
    RETURN behind || ARRAY(SELECT ROW(l, NULL)::outbox.lane_place
                             FROM unnest(late) l
                            WHERE l NOT IN (SELECT b.endpoint_id FROM unnest(behind) b));
END $$;

-- The first incomplete scan; NULL when all are complete.
CREATE FUNCTION outbox.first_incomplete(k outbox.cut) RETURNS bigint
LANGUAGE sql IMMUTABLE
RETURN least(k.scan, (SELECT min(s) FROM unnest(k.large_scan) s));

-- For each of these keys whose line stands still, releases the first delivery, unless a dead letter
-- blocks it or its scan is not before `until`. `after_loss`: a request of the key may still be
-- under way, and nothing waits for its end, so the delivery is due only when that request has timed
-- out. The caller has locked the lanes.
CREATE FUNCTION outbox.let_go(endpoints uuid[], keys text[], until bigint, after_loss boolean)
RETURNS void
LANGUAGE sql BEGIN ATOMIC
    WITH head AS (
        SELECT h.event_id, h.event_at, h.endpoint_id,
               greatest(clock_timestamp()
                            + CASE WHEN after_loss THEN n.timeout + interval '1 s' ELSE '0' END,
                        h.deliver_at) AS due_at
          FROM (SELECT DISTINCT * FROM unnest(endpoints, keys) AS u(endpoint_id, ordering_key)) k
          JOIN outbox.endpoint n ON n.id = k.endpoint_id
         CROSS JOIN LATERAL (
               SELECT *
                 FROM outbox.delivery d
                WHERE d.endpoint_id = k.endpoint_id AND d.ordering_key = k.ordering_key
                ORDER BY d.scan, d.event_id
                LIMIT 1) h
         -- As a scalar: regardless of statistics on how many are due, it stays an index lookup.
         WHERE (SELECT true
                  FROM outbox.delivery d
                 WHERE d.endpoint_id = k.endpoint_id
                   AND d.ordering_key = k.ordering_key
                   AND d.due_at < 'infinity'
                 LIMIT 1) IS NULL
           AND NOT outbox.is_blocked(k.endpoint_id, k.ordering_key)
           AND NOT coalesce(h.scan >= until, false)
           -- Deliveries before it may not be in line yet.
           AND NOT EXISTS (SELECT FROM outbox.unrouted u
                            WHERE u.endpoint_id = k.endpoint_id
                              AND u.ordering_key = k.ordering_key
                              AND (u.scan, u.event_id) < (h.scan, h.event_id))),
    moved AS (
        UPDATE outbox.delivery d
           SET due_at = h.due_at
          FROM head h
         WHERE d.event_id = ANY (ARRAY[h.event_id])
           AND d.endpoint_id = ANY (ARRAY[h.endpoint_id])
           AND d.event_at = ANY (ARRAY[h.event_at])
        RETURNING d.endpoint_id, d.due_at)
    UPDATE outbox.lane l
       SET due_at = m.due_at
      FROM (SELECT endpoint_id, min(due_at) AS due_at FROM moved GROUP BY endpoint_id) m
     WHERE l.endpoint_id = ANY (ARRAY[m.endpoint_id])
       AND l.due_at > m.due_at;
END;

-- After a delivery of these keys was taken out: releases the next ones.
CREATE FUNCTION outbox.advance(endpoints uuid[], keys text[], after_loss boolean) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    SELECT outbox.let_go(
        endpoints, keys,
        (SELECT outbox.first_incomplete(c) FROM outbox.cut c ORDER BY c.id DESC LIMIT 1),
        after_loss);
END;

-- The same as let_go, without waiting for the lock of a delivery: returns the lanes in which a
-- delivery was locked, and nothing was released.
CREATE FUNCTION outbox.let_go_unless_locked(endpoints uuid[], keys text[], until bigint)
RETURNS uuid[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '50ms' AS $$
DECLARE
    missed uuid[] := '{}';
    lane   uuid;
BEGIN
    BEGIN
        PERFORM outbox.let_go(endpoints, keys, until, false);
        RETURN missed;
    EXCEPTION
        WHEN lock_not_available THEN NULL;
    END;
    FOR lane IN SELECT DISTINCT unnest(endpoints) LOOP
        -- A session that has locked this many lanes has locked them all.
        IF cardinality(missed) >= 10 THEN
            missed := missed || lane;
            CONTINUE;
        END IF;
        BEGIN
            PERFORM outbox.let_go(
                        array_agg(u.endpoint_id), array_agg(u.ordering_key), until, false)
               FROM unnest(endpoints, keys) u(endpoint_id, ordering_key)
              WHERE u.endpoint_id = lane;
        EXCEPTION
            WHEN lock_not_available THEN missed := missed || lane;
        END;
    END LOOP;
    RETURN missed;
END $$;

-- The lines of all lanes in order, after a place.
CREATE FUNCTION outbox.next_lines(after outbox.lane_place, step int)
RETURNS SETOF outbox.lane_place
LANGUAGE sql STABLE BEGIN ATOMIC
    WITH RECURSIVE line AS (
        (SELECT d.endpoint_id, d.ordering_key
           FROM outbox.delivery d
          WHERE d.ordering_key IS NOT NULL
            AND (d.endpoint_id, d.ordering_key)
                > ((next_lines.after).endpoint_id, (next_lines.after).ordering_key)
          ORDER BY d.endpoint_id, d.ordering_key
          LIMIT 1)
        UNION ALL
        SELECT n.*
          FROM line l
         CROSS JOIN LATERAL (
               SELECT d.endpoint_id, d.ordering_key
                 FROM outbox.delivery d
                WHERE d.ordering_key IS NOT NULL
                  AND (d.endpoint_id, d.ordering_key) > (l.endpoint_id, l.ordering_key)
                ORDER BY d.endpoint_id, d.ordering_key
                LIMIT 1) n)
    SELECT l.endpoint_id, l.ordering_key FROM line l LIMIT next_lines.step;
END;

-- A walk along all keys that releases held deliveries, up to the first incomplete scan: `step` keys
-- at a time. Returns its position.
CREATE FUNCTION outbox.release_order(k outbox.cut, scan bigint, step int) RETURNS outbox.cut
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    endpoints uuid[];
    keys      text[];
    locked    uuid[];
    missed    uuid[];
BEGIN
    IF k.release_to IS NULL THEN
        k.release_to := coalesce(outbox.first_incomplete(k), scan + 1);
        IF k.release_to <= k.unreleased THEN
            k.release_to := NULL;
            RETURN k;
        END IF;
        k.release_endpoint := '00000000-0000-0000-0000-000000000000';
        k.release_key := '';
        k.release_next := outbox.first_incomplete(k);
    END IF;
    SELECT array_agg(n.endpoint_id), array_agg(n.ordering_key) INTO endpoints, keys
      FROM outbox.next_lines(ROW(k.release_endpoint, k.release_key)::outbox.lane_place, step) n;
    locked := ARRAY(SELECT l.endpoint_id
                      FROM outbox.lane l
                     WHERE l.endpoint_id = ANY (endpoints)
                     ORDER BY l.endpoint_id
                       FOR UPDATE SKIP LOCKED);
    missed := outbox.let_go_unless_locked(
        ARRAY(SELECT u.endpoint_id
                FROM unnest(endpoints) u(endpoint_id)
               WHERE u.endpoint_id IN (SELECT unnest(locked))),
        ARRAY(SELECT u.ordering_key
                FROM unnest(endpoints, keys) u(endpoint_id, ordering_key)
               WHERE u.endpoint_id IN (SELECT unnest(locked))),
        k.release_to);
    -- The walk does not wait for a lane: catching up with it begins at its first key.
    missed := missed || ARRAY(SELECT DISTINCT e
                                FROM unnest(endpoints) e
                               WHERE e NOT IN (SELECT unnest(locked)));
    IF missed <> '{}' THEN
        k.behind := ARRAY(SELECT b
                            FROM unnest(k.behind) b
                           WHERE b.endpoint_id NOT IN (SELECT unnest(missed)))
                    || ARRAY(SELECT ROW(m, '')::outbox.lane_place FROM unnest(missed) m);
    END IF;
    IF coalesce(cardinality(keys), 0) = step THEN
        k.release_endpoint := endpoints[step];
        k.release_key := keys[step];
    ELSE
        k.unreleased := k.release_next;
        k.release_to := NULL;
        k.release_next := NULL;
    END IF;
    RETURN k;
END $$;

-- Catches up with lanes that are behind and free now: puts their unrouted deliveries in line, in
-- order, and releases deliveries that a walk had to leave. At most `step` deliveries and lines a
-- call, shared equally among the lanes, and at most 500 lanes: those that are still locked come
-- last in the next call.
CREATE FUNCTION outbox.catch_up(
    k outbox.cut, step int, OUT behind outbox.lane_place[], OUT is_unfinished boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    until  bigint := outbox.first_incomplete(k);
    first  outbox.lane_place[] := k.behind[1:500];
    locked uuid[] := ARRAY(SELECT l.endpoint_id
                             FROM outbox.lane l
                            WHERE l.endpoint_id = ANY (ARRAY(SELECT b.endpoint_id
                                                               FROM unnest(first) b))
                            ORDER BY l.endpoint_id
                              FOR UPDATE SKIP LOCKED);
    share  int := step / greatest(1, cardinality(locked));
    lanes  uuid[];
    keys   text[];
    missed uuid[];
    place  outbox.lane_place;
BEGIN
    behind := k.behind[501:];
    is_unfinished := behind <> '{}' AND locked <> '{}';
    WITH next AS MATERIALIZED (
        SELECT u.*, n.ordered AND u.ordering_key IS NOT NULL AS is_in_line,
               greatest(clock_timestamp(), u.deliver_at) AS first_due_at
          FROM unnest(locked) b(endpoint_id)
         CROSS JOIN LATERAL (
               SELECT *
                 FROM outbox.unrouted u
                WHERE u.endpoint_id = b.endpoint_id
                ORDER BY u.scan, u.event_id
                LIMIT share) u
          JOIN outbox.endpoint n ON n.id = u.endpoint_id),
    gone AS (
        DELETE FROM outbox.unrouted u USING next x
         WHERE u.event_id = ANY (ARRAY[x.event_id])
           AND u.endpoint_id = ANY (ARRAY[x.endpoint_id])
           AND u.event_at = ANY (ARRAY[x.event_at])),
    -- Where order has ended meanwhile no delivery stands in line.
    routed AS (
        INSERT INTO outbox.delivery (
            event_id, endpoint_id, event_at, due_at, trigger, ordering_key, deliver_at, scan)
        SELECT x.event_id, x.endpoint_id, x.event_at,
               CASE WHEN x.is_in_line THEN 'infinity' ELSE x.first_due_at END, 'first',
               CASE WHEN x.is_in_line THEN x.ordering_key END,
               CASE WHEN x.is_in_line THEN x.deliver_at END,
               CASE WHEN x.is_in_line THEN x.scan ELSE 0 END
          FROM next x
        ON CONFLICT DO NOTHING
        RETURNING endpoint_id, due_at, ordering_key),
    lowered AS (
        UPDATE outbox.lane l
           SET due_at = r.due_at
          FROM (SELECT endpoint_id, min(due_at) AS due_at FROM routed GROUP BY endpoint_id) r
         WHERE l.endpoint_id = ANY (ARRAY[r.endpoint_id])
           AND l.due_at > r.due_at)
    SELECT array_agg(r.endpoint_id), array_agg(r.ordering_key) INTO lanes, keys
      FROM routed r
     WHERE r.ordering_key IS NOT NULL;
    missed := outbox.let_go_unless_locked(lanes, keys, until);
    FOREACH place IN ARRAY first LOOP
        IF place.endpoint_id = ANY (missed) THEN
            place.ordering_key := '';
        ELSIF place.ordering_key IS NOT NULL AND place.endpoint_id = ANY (locked) THEN
            keys := ARRAY(SELECT n.ordering_key
                            FROM outbox.next_lines(place, share) n
                           WHERE n.endpoint_id = place.endpoint_id);
            IF outbox.let_go_unless_locked(
                   array_fill(place.endpoint_id, ARRAY[cardinality(keys)]), keys, until) = '{}' THEN
                place.ordering_key := keys[share];
                is_unfinished := is_unfinished OR place.ordering_key IS NOT NULL;
            END IF;
        END IF;
        IF place.endpoint_id <> ALL (locked) OR place.ordering_key IS NOT NULL THEN
            behind := behind || place;
        ELSIF EXISTS (SELECT FROM outbox.unrouted u WHERE u.endpoint_id = place.endpoint_id) THEN
            behind := behind || place;
            is_unfinished := true;
        END IF;
    END LOOP;
END $$;
