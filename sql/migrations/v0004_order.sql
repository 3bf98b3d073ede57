-- Order. The events of an ordering key stand in line in the lane of an endpoint that keeps order,
-- at the place (pass, event_id), where a pass is one look through the stream. Only one of a key may
-- be due, and it is the first; the others have no due time until somebody takes the first one out
-- and lets the next one go. Everything here is done with the lane locked.

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

-- Puts the events of new batches into the lanes of the endpoints that keep order, behind what
-- stands there, and names these endpoints in the batches, so that nobody else sends them. It is
-- done here, in the one place that sees the events in order: two workers that dispatch two batches
-- would put them in line as it happens.
--
-- `is_whole` says that the pass ends with these batches. Otherwise nothing of it is due before its
-- end (`release_order`): it goes by transaction, and of two transactions the later one may have
-- published first.
CREATE FUNCTION outbox.route_ordered(batches bigint[], pass bigint, is_whole boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    keepers uuid[] := ARRAY(SELECT n.id FROM outbox.endpoint n WHERE n.ordered AND n.deleted_at IS NULL);
BEGIN
    IF keepers = '{}' OR batches = '{}' THEN RETURN; END IF;
    PERFORM FROM outbox.lane l WHERE l.endpoint_id = ANY (keepers) ORDER BY l.endpoint_id FOR UPDATE;
    -- Whoever changes whether an endpoint keeps order locks its lane: now it stays as it is. A
    -- disabled one gets none of these events, also when it is enabled before somebody dispatches
    -- the batch.
    keepers := ARRAY(SELECT n.id FROM outbox.endpoint n WHERE n.id = ANY (keepers) AND n.ordered AND n.deleted_at IS NULL);
    UPDATE outbox.batch b SET ordered = keepers WHERE b.id = ANY (batches);
    WITH line AS (
        SELECT e.id AS event_id, n.id AS endpoint_id, e.created_at, e.deliver_at, outbox.line_of(e.customer_id, e.ordering_key) AS ordering_key,
               row_number() OVER (PARTITION BY n.id, outbox.line_of(e.customer_id, e.ordering_key) ORDER BY e.id) AS place
          FROM outbox.batch b
         CROSS JOIN LATERAL unnest(b.ids) AS range
         CROSS JOIN LATERAL (
               SELECT * FROM outbox.event e WHERE e.id >= lower(range) AND e.id < upper(range)
                  AND e.created_at >= b.first_at AND e.created_at <= b.last_at) e
         CROSS JOIN outbox.endpoint n
         WHERE b.id = ANY (batches) AND n.id = ANY (keepers) AND n.disabled_at IS NULL AND n.customer_id IN ('*', e.customer_id)
           AND (n.event_type = e.type OR n.event_type = '*' AND e.type NOT LIKE 'outbox.%') AND n.change_type IN ('*', e.change_type)),
    routed AS (
        INSERT INTO outbox.delivery (event_id, endpoint_id, event_at, due_at, trigger, ordering_key, pass)
        SELECT l.event_id, l.endpoint_id, l.created_at,
               CASE WHEN l.ordering_key IS NULL
                      OR is_whole AND l.place = 1 AND NOT outbox.is_blocked(l.endpoint_id, l.ordering_key)
                         AND NOT EXISTS (SELECT FROM outbox.delivery d
                                          WHERE d.endpoint_id = l.endpoint_id AND d.ordering_key = l.ordering_key)
                    THEN greatest(clock_timestamp(), l.deliver_at) ELSE 'infinity' END,
               'first', l.ordering_key, CASE WHEN l.ordering_key IS NULL THEN 0 ELSE route_ordered.pass END
          FROM line l
        ON CONFLICT DO NOTHING RETURNING endpoint_id, due_at)
    UPDATE outbox.lane l SET due_at = r.due_at
      FROM (SELECT endpoint_id, min(due_at) AS due_at FROM routed GROUP BY endpoint_id) r
     WHERE l.endpoint_id = ANY (ARRAY[r.endpoint_id]) AND l.due_at > r.due_at;
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
                        (SELECT e.deliver_at FROM outbox.event e WHERE e.id = h.event_id AND e.created_at = h.event_at)) AS due_at
          FROM (SELECT DISTINCT * FROM unnest(endpoints, keys) AS u(endpoint_id, ordering_key)) k
          JOIN outbox.endpoint n ON n.id = k.endpoint_id
         CROSS JOIN LATERAL (
               SELECT * FROM outbox.delivery d WHERE d.endpoint_id = k.endpoint_id AND d.ordering_key = k.ordering_key
                ORDER BY d.pass, d.event_id LIMIT 1) h
            -- As a scalar: whatever the statistics say of how many are due, it stays a look into an
            -- index.
         WHERE (SELECT true FROM outbox.delivery d WHERE d.endpoint_id = k.endpoint_id AND d.ordering_key = k.ordering_key
                                                     AND d.due_at < 'infinity' LIMIT 1) IS NULL
           AND NOT outbox.is_blocked(k.endpoint_id, k.ordering_key) AND NOT coalesce(h.pass >= until, false)),
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

-- A walk along all keys that lets go what was held, up to the first look that is not complete: so
-- many keys a step. Returns where it stands.
CREATE FUNCTION outbox.release_order(k outbox.cut, pass bigint, step int) RETURNS outbox.cut
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    endpoints uuid[];
    keys      text[];
BEGIN
    IF k.held_until IS NULL THEN
        k.held_until := coalesce(outbox.first_incomplete(k), pass + 1);
        IF k.held_until <= k.held THEN
            k.held_until := NULL;
            RETURN k;
        END IF;
        k.held_endpoint := '00000000-0000-0000-0000-000000000000';
        k.held_key := '';
        k.held_next := outbox.first_incomplete(k);
    END IF;
    WITH RECURSIVE line AS (
        (SELECT d.endpoint_id, d.ordering_key FROM outbox.delivery d
          WHERE d.ordering_key IS NOT NULL AND (d.endpoint_id, d.ordering_key) > (k.held_endpoint, k.held_key)
          ORDER BY d.endpoint_id, d.ordering_key LIMIT 1)
        UNION ALL
        SELECT n.* FROM line l CROSS JOIN LATERAL (
            SELECT d.endpoint_id, d.ordering_key FROM outbox.delivery d
             WHERE d.ordering_key IS NOT NULL AND (d.endpoint_id, d.ordering_key) > (l.endpoint_id, l.ordering_key)
             ORDER BY d.endpoint_id, d.ordering_key LIMIT 1) n)
    SELECT array_agg(u.endpoint_id), array_agg(u.ordering_key) INTO endpoints, keys FROM (SELECT * FROM line LIMIT step) u;
    PERFORM FROM outbox.lane l WHERE l.endpoint_id = ANY (endpoints) ORDER BY l.endpoint_id FOR UPDATE;
    PERFORM outbox.let_go(endpoints, keys, k.held_until, false);
    IF coalesce(cardinality(keys), 0) = step THEN
        k.held_endpoint := endpoints[step];
        k.held_key := keys[step];
    ELSE
        k.held := k.held_next;
        k.held_until := NULL;
        k.held_next := NULL;
    END IF;
    RETURN k;
END $$;
