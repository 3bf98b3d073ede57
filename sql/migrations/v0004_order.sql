-- Order. The events of an ordering key stand in line in the lane of an endpoint that keeps order,
-- at the place (pass, event_id), where a pass is one look through the stream. Only one of a key may
-- be due, and it is the first; the others have no due time until somebody takes the first one out
-- and lets the next one go. Everything here is done with the lane locked.

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

CREATE UNIQUE INDEX delivery_one_due_per_key ON outbox.delivery (endpoint_id, ordering_key)
    WHERE ordering_key IS NOT NULL AND due_at < 'infinity';

-- True when some endpoint keeps order.
CREATE FUNCTION outbox.keeps_order() RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC SELECT EXISTS (SELECT FROM outbox.endpoint n WHERE n.ordered AND n.deleted_at IS NULL); END;

-- The line in which an event stands: a key is one customer's own, and what another does with the
-- same text is another line.
CREATE FUNCTION outbox.line_of(customer_id text, ordering_key text) RETURNS text
LANGUAGE sql IMMUTABLE RETURN length(customer_id) || ':' || customer_id || ':' || nullif(ordering_key, '');

-- The ordering key of a line.
CREATE FUNCTION outbox.key_of(line text) RETURNS text
LANGUAGE sql IMMUTABLE RETURN substr(line, strpos(line, ':') + split_part(line, ':', 1)::int + 2);

-- True when a dead letter of the key blocks the ones behind it.
CREATE FUNCTION outbox.is_blocked(endpoint_id uuid, ordering_key text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM outbox.dead_letter x JOIN outbox.endpoint n ON n.id = x.endpoint_id
                    WHERE x.endpoint_id = is_blocked.endpoint_id AND x.ordering_key = is_blocked.ordering_key
                      AND x.reason <> 'cancelled' AND n.on_dead = 'block');
END;

-- True when one of the patterns takes the value.
CREATE FUNCTION outbox.matches(patterns jsonb, value text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN EXISTS (SELECT FROM jsonb_to_recordset(patterns) AS p(kind text, text text)
                WHERE p.kind = 'any' OR p.kind = 'exact' AND p.text = matches.value
                   OR p.kind = 'prefix' AND starts_with(matches.value, p.text));

-- True when one of the patterns takes the event type: 'any' does not include what the service says
-- about itself.
CREATE FUNCTION outbox.takes_type(patterns jsonb, type text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN outbox.matches(CASE WHEN takes_type.type LIKE 'outbox.%'
                           THEN jsonb_path_query_array(patterns, '$[*] ? (@.kind != "any")') ELSE patterns END,
                      takes_type.type);

-- True when the endpoint wants such an event, as far as its filter does not say otherwise.
CREATE FUNCTION outbox.wants(n outbox.endpoint, customer_id text, type text, change_type text) RETURNS boolean
LANGUAGE sql STABLE
RETURN n.customer_id IN ('*', wants.customer_id) AND outbox.takes_type(n.event_types, wants.type)
       AND outbox.matches(n.change_types, wants.change_type);

-- What a filter is asked about. Raises what JSON text may say and jsonb may not.
CREATE FUNCTION outbox.filter_document(e outbox.event) RETURNS jsonb
LANGUAGE sql STABLE
RETURN jsonb_build_object(
    'type', e.type, 'change_type', e.change_type, 'customer_id', e.customer_id, 'identity', e.identity,
    'ordering_key', e.ordering_key, 'headers', e.headers, 'context', e.headers,
    'before', e.before::text::jsonb, 'after', e.after::text::jsonb);

-- The event types of the endpoints that keep order, to be looked up by: however many there are, an
-- event costs two looks for itself, for each prefix of its type, and for those that take any.
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
CREATE TRIGGER note_ordered_types AFTER INSERT OR UPDATE OF ordered, deleted_at, customer_id, event_types
    ON outbox.endpoint FOR EACH ROW EXECUTE FUNCTION outbox.note_ordered_types();

-- The endpoints that keep order and match an event. A disabled one matches, too.
CREATE FUNCTION outbox.keepers_of(customer_id text, type text, change_type text)
RETURNS TABLE (id uuid, is_disabled boolean)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT DISTINCT n.id, n.disabled_at IS NOT NULL
      FROM (VALUES ('*'), (nullif(keepers_of.customer_id, '*'))) c(customer_id)
     CROSS JOIN (SELECT 'any', '' WHERE keepers_of.type NOT LIKE 'outbox.%'
                 UNION ALL SELECT 'exact', keepers_of.type
                 UNION ALL SELECT 'prefix', left(keepers_of.type, n) FROM generate_series(1, length(keepers_of.type)) n
                            WHERE substr(keepers_of.type, n, 1) = '.') t(kind, text)
     -- Looked up by all of them: as a join it may be read whole instead.
     CROSS JOIN LATERAL (
           SELECT o.endpoint_id FROM outbox.ordered_type o
            WHERE o.kind = t.kind AND o.text = t.text AND o.customer_id = c.customer_id OFFSET 0) o
     CROSS JOIN LATERAL (
           SELECT n.id, n.disabled_at, n.change_types FROM outbox.endpoint n
            WHERE n.id = o.endpoint_id AND n.ordered AND n.deleted_at IS NULL OFFSET 0) n
     WHERE outbox.matches(n.change_types, keepers_of.change_type) OFFSET 0;
END;

-- How long sixteen partitions are: a statement that looks at no more takes less than a hundred locks.
CREATE FUNCTION outbox.few_partitions() RETURNS interval
LANGUAGE sql STABLE BEGIN ATOMIC SELECT 16 * ('1 ' || s.partition_unit)::interval FROM outbox.setting s; END;

-- Events by their numbers and the times that they are between.
--
-- This and the three functions after it are planned with their values, as outbox.uncut is: a
-- partition that can have nothing of it is not even locked.
CREATE FUNCTION outbox.events_in(ids int8multirange, first_at timestamptz, last_at timestamptz) RETURNS SETOF outbox.event
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE
        'SELECT e.* FROM unnest($1) AS range CROSS JOIN LATERAL (
             SELECT * FROM outbox.event e WHERE e.id >= lower(range) AND e.id < upper(range)
                                            AND e.created_at >= $2 AND e.created_at <= $3 OFFSET 0) e' USING ids, first_at, last_at;
END $$;

-- Events by their keys, in their order: of the first ones, as far as few partitions have them.
-- (`OFFSET 0`, here and there: each is looked up, whatever the statistics say; as a join, all would
-- be read.)
CREATE FUNCTION outbox.first_events_at(ids bigint[], times timestamptz[]) RETURNS SETOF outbox.event
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    few      interval := outbox.few_partitions();
    first_at timestamptz;
    last_at  timestamptz;
    n        int;
BEGIN
    SELECT min(t), max(t) INTO first_at, last_at FROM unnest(times) t;
    IF last_at > first_at + few THEN
        n := (SELECT count(*) FROM (
                     SELECT max(k.at) OVER so_far <= min(k.at) OVER so_far + few AS is_of_few
                       FROM unnest(times) WITH ORDINALITY AS k(at, place)
                     WINDOW so_far AS (ORDER BY k.place ROWS UNBOUNDED PRECEDING)) s
               WHERE s.is_of_few);
        RETURN QUERY SELECT * FROM outbox.first_events_at(ids[:n], times[:n]);
        RETURN;
    END IF;
    RETURN QUERY EXECUTE
        'SELECT e.* FROM unnest($1, $2) WITH ORDINALITY AS k(id, at, place) CROSS JOIN LATERAL (
             SELECT * FROM outbox.event e WHERE e.id = k.id AND e.created_at = k.at
                                            AND e.created_at >= $3 AND e.created_at <= $4 OFFSET 0) e
          ORDER BY k.place' USING ids, times, first_at, last_at;
END $$;

-- Events by their keys, each of which is named once: a look at each hour that has some.
CREATE FUNCTION outbox.events_at(ids bigint[], times timestamptz[]) RETURNS SETOF outbox.event
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT e.*
      FROM (SELECT array_agg(k.id) AS ids, array_agg(k.at) AS times FROM unnest(events_at.ids, events_at.times) AS k(id, at)
             GROUP BY date_bin('1 hour', k.at, '2000-01-01 00:00+00')) h
     CROSS JOIN LATERAL outbox.first_events_at(h.ids, h.times) e;
END;

-- An error's text without what it quotes.
CREATE FUNCTION outbox.without_values(message text) RETURNS text
LANGUAGE sql IMMUTABLE RETURN regexp_replace(message, '"[^"]*"', '"…"', 'g');

-- Asks filters about events: true when the path's first item is neither false nor null. One that
-- cannot be answered harms nobody else's: it says why. Of each event the document is made once, and
-- an event that is not there has no row.
CREATE FUNCTION outbox.ask_filters(ids bigint[], times timestamptz[], filters text[])
RETURNS TABLE (place bigint, holds boolean, error text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    asked    record;
    document jsonb;
    raised   text;
BEGIN
    FOR asked IN
        WITH question AS (
            SELECT u.id, u.at, array_agg(u.place) AS places FROM unnest(ids, times) WITH ORDINALITY u(id, at, place)
             GROUP BY u.id, u.at)
        SELECT e AS event, q.places
          FROM outbox.events_at(ARRAY(SELECT q.id FROM question q ORDER BY q.id), ARRAY(SELECT q.at FROM question q ORDER BY q.id)) e
          JOIN question q ON q.id = e.id AND q.at = e.created_at
    LOOP
        raised := NULL;
        BEGIN
            document := outbox.filter_document(asked.event);
        EXCEPTION WHEN OTHERS THEN
            raised := format('the event is not what jsonb takes: %s', outbox.without_values(SQLERRM));
        END;
        FOREACH place IN ARRAY asked.places LOOP
            holds := NULL;
            error := raised;
            IF raised IS NULL THEN
                BEGIN
                    holds := coalesce(jsonb_path_query_first(document, filters[place]::jsonpath) NOT IN ('false', 'null'), false);
                EXCEPTION WHEN OTHERS THEN
                    error := outbox.without_values(SQLERRM);
                END;
            END IF;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;

-- Attempts at events of these numbers, from an hour before a time on. None is made before its event,
-- but for what clocks differ; when one was an hour ahead, what was sent then may be sent again.
CREATE FUNCTION outbox.attempts_at(ids bigint[], since timestamptz) RETURNS SETOF outbox.attempt
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF ids = '{}' THEN RETURN; END IF;
    RETURN QUERY EXECUTE
        'SELECT a.* FROM (SELECT DISTINCT * FROM unnest($1) AS k(id)) k CROSS JOIN LATERAL (
             SELECT * FROM outbox.attempt a WHERE a.event_id = k.id AND a.started_at >= $2 OFFSET 0) a'
        USING ids, least(since, statement_timestamp()) - interval '1 hour';
END $$;

-- When the last requests to an endpoint started, newest first.
CREATE FUNCTION outbox.recent_starts(endpoint_id uuid, period interval, most int) RETURNS SETOF timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE
        'SELECT a.started_at FROM outbox.attempt a WHERE a.endpoint_id = $1 AND a.started_at > $2
          ORDER BY a.started_at DESC LIMIT $3'
        USING endpoint_id, statement_timestamp() - period, most;
END $$;

CREATE FUNCTION outbox.events_of(batches bigint[]) RETURNS SETOF outbox.event
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT e.* FROM outbox.batch b CROSS JOIN LATERAL outbox.events_in(b.ids, b.first_at, b.last_at) e
     WHERE b.id = ANY (events_of.batches);
END;

-- Deliveries of events that are cut, for lanes that somebody had locked at that moment: nobody
-- waits for one lane. The next cut that finds the lane free puts them in line, before anything
-- later of it (`catch_up`).
CREATE TABLE outbox.unrouted (
    event_id     bigint NOT NULL,
    endpoint_id  uuid NOT NULL,
    event_at     timestamptz NOT NULL,
    ordering_key text,              -- its line, as in outbox.delivery
    deliver_at   timestamptz,
    pass         bigint NOT NULL,
    noted_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (event_id, endpoint_id, event_at)
);
CREATE INDEX ON outbox.unrouted (endpoint_id, pass, event_id);
CREATE INDEX ON outbox.unrouted (endpoint_id, ordering_key, pass, event_id);

-- Puts the events of new batches into the lanes of the endpoints that keep order, behind what
-- stands there, and names these endpoints in the batches, so that nobody else sends them. It is
-- done here, in the one place that sees the events in order: two workers that dispatch two batches
-- would put them in line as it happens. Only lanes that get something are locked, and what is for
-- one that somebody else has locked, or that is behind already, goes to outbox.unrouted.
--
-- `is_whole` says that the pass ends with these batches. Otherwise nothing of it is due before its
-- end (`release_order`): it goes by transaction, and of two transactions the later one may have
-- published first.
--
-- Returns the lanes that are behind now, those that were before included.
CREATE FUNCTION outbox.route_ordered(
    batches bigint[], pass bigint, is_whole boolean, behind outbox.lane_place[]) RETURNS outbox.lane_place[]
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
    locked := ARRAY(SELECT l.endpoint_id FROM outbox.lane l WHERE l.endpoint_id = ANY (keepers)
                     ORDER BY l.endpoint_id FOR UPDATE SKIP LOCKED);
    -- Whoever changes whether an endpoint keeps order locks its lane: of those that we have it stays
    -- as it is now.
    keepers := ARRAY(SELECT n.id FROM outbox.endpoint n
                      WHERE n.id = ANY (keepers) AND n.ordered AND n.deleted_at IS NULL);
    busy := ARRAY(SELECT k FROM unnest(keepers) k
                   WHERE k NOT IN (SELECT unnest(locked)) OR k IN (SELECT b.endpoint_id FROM unnest(behind) b));
    UPDATE outbox.batch b SET ordered = keepers WHERE b.id = ANY (batches);
    -- A disabled one gets none of these events, also when it is enabled before somebody dispatches
    -- the batch.
    WITH line AS MATERIALIZED (
        SELECT e.id AS event_id, n.id AS endpoint_id, e.created_at, e.deliver_at,
               outbox.line_of(e.customer_id, e.ordering_key) AS ordering_key,
               row_number() OVER (PARTITION BY n.id, outbox.line_of(e.customer_id, e.ordering_key)
                                      ORDER BY e.id) AS place,
               n.id IN (SELECT unnest(busy)) AS is_missed
          FROM outbox.events_of(batches) e
         CROSS JOIN LATERAL outbox.keepers_of(e.customer_id, e.type, e.change_type) n
         -- Not as a join, either: one look into a hash table.
         WHERE NOT n.is_disabled AND (n.id IN (SELECT unnest(keepers))) IS TRUE),
    missed AS (
        INSERT INTO outbox.unrouted (event_id, endpoint_id, event_at, ordering_key, deliver_at, pass)
        SELECT l.event_id, l.endpoint_id, l.created_at, l.ordering_key, l.deliver_at,
               CASE WHEN l.ordering_key IS NULL THEN 0 ELSE route_ordered.pass END
          FROM line l WHERE l.is_missed
        ON CONFLICT DO NOTHING RETURNING endpoint_id),
    routed AS (
        INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger, ordering_key, deliver_at, pass)
        SELECT l.event_id, l.endpoint_id, l.created_at,
               CASE WHEN l.ordering_key IS NULL
                      OR is_whole AND l.place = 1 AND NOT outbox.is_blocked(l.endpoint_id, l.ordering_key)
                         AND NOT EXISTS (SELECT FROM outbox.delivery d
                                          WHERE d.endpoint_id = l.endpoint_id AND d.ordering_key = l.ordering_key)
                    THEN greatest(clock_timestamp(), l.deliver_at) ELSE 'infinity' END,
               'first', l.ordering_key, CASE WHEN l.ordering_key IS NOT NULL THEN l.deliver_at END,
               CASE WHEN l.ordering_key IS NULL THEN 0 ELSE route_ordered.pass END
          FROM line l WHERE NOT l.is_missed
        ON CONFLICT DO NOTHING RETURNING endpoint_id, due_at),
    lowered AS (
        UPDATE outbox.lane l SET due_at = r.due_at
          FROM (SELECT endpoint_id, min(due_at) AS due_at FROM routed GROUP BY endpoint_id) r
         WHERE l.endpoint_id = ANY (ARRAY[r.endpoint_id]) AND l.due_at > r.due_at)
    SELECT ARRAY(SELECT DISTINCT m.endpoint_id FROM missed m) INTO late;
    RETURN behind || ARRAY(SELECT ROW(l, NULL)::outbox.lane_place FROM unnest(late) l
                            WHERE l NOT IN (SELECT b.endpoint_id FROM unnest(behind) b));
END $$;

-- The first pass that is not at its end; NULL when all are.
CREATE FUNCTION outbox.first_incomplete(k outbox.cut) RETURNS bigint
LANGUAGE sql IMMUTABLE RETURN least(k.pass, k.large_pass[1]);

-- Of each of these keys whose line stands still, lets the first delivery go, unless a dead letter
-- blocks it or it is of a pass that is not before `until`. `after_loss`: a request of the key may
-- still be under way that nobody waits for, so it goes only when that one has timed out. The caller
-- has locked the lanes.
CREATE FUNCTION outbox.let_go(endpoints uuid[], keys text[], until bigint, after_loss boolean) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    WITH head AS (
        SELECT h.event_id, h.event_at, h.endpoint_id,
               greatest(clock_timestamp() + CASE WHEN after_loss THEN n.timeout + interval '1 s' ELSE '0' END,
                        h.deliver_at) AS due_at
          FROM (SELECT DISTINCT * FROM unnest(endpoints, keys) AS u(endpoint_id, ordering_key)) k
          JOIN outbox.endpoint n ON n.id = k.endpoint_id
         CROSS JOIN LATERAL (
               SELECT * FROM outbox.delivery d WHERE d.endpoint_id = k.endpoint_id AND d.ordering_key = k.ordering_key
                ORDER BY d.pass, d.event_id LIMIT 1) h
            -- As a scalar: whatever the statistics say of how many are due, it stays a look into an
            -- index.
         WHERE (SELECT true FROM outbox.delivery d WHERE d.endpoint_id = k.endpoint_id AND d.ordering_key = k.ordering_key
                                                     AND d.due_at < 'infinity' LIMIT 1) IS NULL
           AND NOT outbox.is_blocked(k.endpoint_id, k.ordering_key) AND NOT coalesce(h.pass >= until, false)
           -- What stands before it may not be in line yet.
           AND NOT EXISTS (SELECT FROM outbox.unrouted u
                            WHERE u.endpoint_id = k.endpoint_id AND u.ordering_key = k.ordering_key
                              AND (u.pass, u.event_id) < (h.pass, h.event_id))),
    moved AS (
        UPDATE outbox.delivery d SET due_at = h.due_at FROM head h
         WHERE d.event_id = ANY (ARRAY[h.event_id]) AND d.endpoint_id = ANY (ARRAY[h.endpoint_id]) AND d.event_at = ANY (ARRAY[h.event_at])
        RETURNING d.endpoint_id, d.due_at)
    UPDATE outbox.lane l SET due_at = m.due_at
      FROM (SELECT endpoint_id, min(due_at) AS due_at FROM moved GROUP BY endpoint_id) m
     WHERE l.endpoint_id = ANY (ARRAY[m.endpoint_id]) AND l.due_at > m.due_at;
END;

-- After something of these keys was taken out: lets the next ones go.
CREATE FUNCTION outbox.advance(endpoints uuid[], keys text[], after_loss boolean) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    SELECT outbox.let_go(endpoints, keys, (SELECT outbox.first_incomplete(c) FROM outbox.cut c ORDER BY c.id DESC LIMIT 1), after_loss);
END;

-- The same, and nobody waits for one delivery: returns the lanes in which something was locked, and
-- nothing was let go.
CREATE FUNCTION outbox.let_go_unless_locked(endpoints uuid[], keys text[], until bigint) RETURNS uuid[]
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
        -- Who has locked that many has locked them all.
        IF cardinality(missed) >= 10 THEN
            missed := missed || lane;
            CONTINUE;
        END IF;
        BEGIN
            PERFORM outbox.let_go(array_agg(u.endpoint_id), array_agg(u.ordering_key), until, false)
               FROM unnest(endpoints, keys) u(endpoint_id, ordering_key) WHERE u.endpoint_id = lane;
        EXCEPTION
            WHEN lock_not_available THEN missed := missed || lane;
        END;
    END LOOP;
    RETURN missed;
END $$;

-- The lines of all lanes in order, after a place.
CREATE FUNCTION outbox.next_lines(after outbox.lane_place, step int) RETURNS SETOF outbox.lane_place
LANGUAGE sql STABLE BEGIN ATOMIC
    WITH RECURSIVE line AS (
        (SELECT d.endpoint_id, d.ordering_key FROM outbox.delivery d
          WHERE d.ordering_key IS NOT NULL
            AND (d.endpoint_id, d.ordering_key) > ((next_lines.after).endpoint_id, (next_lines.after).ordering_key)
          ORDER BY d.endpoint_id, d.ordering_key LIMIT 1)
        UNION ALL
        SELECT n.* FROM line l CROSS JOIN LATERAL (
            SELECT d.endpoint_id, d.ordering_key FROM outbox.delivery d
             WHERE d.ordering_key IS NOT NULL AND (d.endpoint_id, d.ordering_key) > (l.endpoint_id, l.ordering_key)
             ORDER BY d.endpoint_id, d.ordering_key LIMIT 1) n)
    SELECT l.endpoint_id, l.ordering_key FROM line l LIMIT next_lines.step;
END;

-- A walk along all keys that lets go what was held, up to the first look that is not complete: so
-- many keys a step. Returns where it stands.
CREATE FUNCTION outbox.release_order(k outbox.cut, pass bigint, step int) RETURNS outbox.cut
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    endpoints uuid[];
    keys      text[];
    locked    uuid[];
    missed    uuid[];
BEGIN
    IF k.release_to IS NULL THEN
        k.release_to := coalesce(outbox.first_incomplete(k), pass + 1);
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
    locked := ARRAY(SELECT l.endpoint_id FROM outbox.lane l WHERE l.endpoint_id = ANY (endpoints)
                     ORDER BY l.endpoint_id FOR UPDATE SKIP LOCKED);
    missed := outbox.let_go_unless_locked(
        ARRAY(SELECT u.endpoint_id FROM unnest(endpoints) u(endpoint_id) WHERE u.endpoint_id IN (SELECT unnest(locked))),
        ARRAY(SELECT u.ordering_key FROM unnest(endpoints, keys) u(endpoint_id, ordering_key)
               WHERE u.endpoint_id IN (SELECT unnest(locked))), k.release_to);
    -- Nobody waits for one lane: whoever catches up with it begins at its first key.
    missed := missed || ARRAY(SELECT DISTINCT e FROM unnest(endpoints) e WHERE e NOT IN (SELECT unnest(locked)));
    IF missed <> '{}' THEN
        k.behind := ARRAY(SELECT b FROM unnest(k.behind) b WHERE b.endpoint_id NOT IN (SELECT unnest(missed)))
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

-- Catches up with lanes that are behind and free now: puts in line what waits for that, in its
-- order, and lets go what a walk had to leave. So many deliveries and lines a step, the same for
-- each lane, and some hundred lanes: those that are still locked come last in the next one.
CREATE FUNCTION outbox.catch_up(k outbox.cut, step int, OUT behind outbox.lane_place[], OUT is_unfinished boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    until  bigint := outbox.first_incomplete(k);
    first  outbox.lane_place[] := k.behind[1:500];
    locked uuid[] := ARRAY(SELECT l.endpoint_id FROM outbox.lane l
                            WHERE l.endpoint_id = ANY (ARRAY(SELECT b.endpoint_id FROM unnest(first) b))
                            ORDER BY l.endpoint_id FOR UPDATE SKIP LOCKED);
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
         CROSS JOIN LATERAL (SELECT * FROM outbox.unrouted u WHERE u.endpoint_id = b.endpoint_id
                              ORDER BY u.pass, u.event_id LIMIT share) u
          JOIN outbox.endpoint n ON n.id = u.endpoint_id),
    gone AS (
        DELETE FROM outbox.unrouted u USING next x
         WHERE u.event_id = ANY (ARRAY[x.event_id]) AND u.endpoint_id = ANY (ARRAY[x.endpoint_id])
           AND u.event_at = ANY (ARRAY[x.event_at])),
    -- Where order has ended meanwhile nothing stands in line.
    routed AS (
        INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger, ordering_key, deliver_at, pass)
        SELECT x.event_id, x.endpoint_id, x.event_at,
               CASE WHEN x.is_in_line THEN 'infinity' ELSE x.first_due_at END, 'first',
               CASE WHEN x.is_in_line THEN x.ordering_key END, CASE WHEN x.is_in_line THEN x.deliver_at END,
               CASE WHEN x.is_in_line THEN x.pass ELSE 0 END
          FROM next x
        ON CONFLICT DO NOTHING RETURNING endpoint_id, due_at, ordering_key),
    lowered AS (
        UPDATE outbox.lane l SET due_at = r.due_at
          FROM (SELECT endpoint_id, min(due_at) AS due_at FROM routed GROUP BY endpoint_id) r
         WHERE l.endpoint_id = ANY (ARRAY[r.endpoint_id]) AND l.due_at > r.due_at)
    SELECT array_agg(r.endpoint_id), array_agg(r.ordering_key) INTO lanes, keys
      FROM routed r WHERE r.ordering_key IS NOT NULL;
    missed := outbox.let_go_unless_locked(lanes, keys, until);
    FOREACH place IN ARRAY first LOOP
        IF place.endpoint_id = ANY (missed) THEN
            place.ordering_key := '';
        ELSIF place.ordering_key IS NOT NULL AND place.endpoint_id = ANY (locked) THEN
            keys := ARRAY(SELECT n.ordering_key FROM outbox.next_lines(place, share) n
                           WHERE n.endpoint_id = place.endpoint_id);
            IF outbox.let_go_unless_locked(array_fill(place.endpoint_id, ARRAY[cardinality(keys)]), keys, until) = '{}' THEN
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
