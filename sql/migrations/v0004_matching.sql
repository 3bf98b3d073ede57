-- Which events an endpoint wants, and how events and attempts are looked up.
--
-- A pattern is an object with a kind (any, exact, prefix) and a text; `outbox.wants` is the rule,
-- and EndpointDirectory's lookup its twin, which EventPatternTests compares with it. A filter is
-- evaluated after that (`outbox.ask_filters`), because JSON text may contain values that jsonb does
-- not accept, and a path may take long.
--
-- The logs are partitioned by time, and none of our statements may lock more than a hundred
-- relations. So every lookup by a number is also a lookup by a time, and planned with its values: a
-- partition that cannot hold a matching row is not even locked.

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- True when one of the patterns takes the value.
CREATE FUNCTION outbox.matches(patterns jsonb, value text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN EXISTS (SELECT FROM jsonb_to_recordset(patterns) AS p(kind text, text text)
                WHERE p.kind = 'any'
                   OR p.kind = 'exact' AND p.text = matches.value
                   OR p.kind = 'prefix' AND starts_with(matches.value, p.text));

-- True when one of the patterns takes the event type: 'any' does not include events of the service
-- about itself.
CREATE FUNCTION outbox.takes_type(patterns jsonb, type text) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN outbox.matches(
    CASE WHEN takes_type.type LIKE 'outbox.%'
         THEN jsonb_path_query_array(patterns, '$[*] ? (@.kind != "any")')
         ELSE patterns END,
    takes_type.type);

-- True when the endpoint wants such an event, unless its filter excludes it.
CREATE FUNCTION outbox.wants(n outbox.endpoint, customer_id text, type text, change_type text)
RETURNS boolean
LANGUAGE sql STABLE
RETURN n.customer_id IN ('*', wants.customer_id)
       AND outbox.takes_type(n.event_types, wants.type)
       AND outbox.matches(n.change_types, wants.change_type);

-- The document to which a filter is applied. Raises an error for JSON text that jsonb does not
-- accept.
CREATE FUNCTION outbox.filter_document(e outbox.event) RETURNS jsonb
LANGUAGE sql STABLE
RETURN jsonb_build_object(
    'type', e.type, 'change_type', e.change_type, 'customer_id', e.customer_id,
    'identity', e.identity, 'ordering_key', e.ordering_key, 'headers', e.headers,
    'context', e.headers, 'before', e.before::text::jsonb, 'after', e.after::text::jsonb);

-- The time span of sixteen partitions: a statement that reads no more takes fewer than a hundred
-- locks.
CREATE FUNCTION outbox.few_partitions() RETURNS interval
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT 16 * ('1 ' || s.partition_unit)::interval FROM outbox.setting s;
END;

-- Events by their numbers and a range of times.
CREATE FUNCTION outbox.events_in(ids int8multirange, first_at timestamptz, last_at timestamptz)
RETURNS SETOF outbox.event
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE
        'SELECT e.*
           FROM unnest($1) AS range
          CROSS JOIN LATERAL (
                SELECT * FROM outbox.event e
                 WHERE e.id >= lower(range) AND e.id < upper(range)
                   AND e.created_at >= $2 AND e.created_at <= $3 OFFSET 0) e'
        USING ids, first_at, last_at;
END $$;

-- Events by their keys, in their order: only the first ones, as far as few partitions hold them.
-- (`OFFSET 0`, here and elsewhere: each row is looked up by key, regardless of statistics; a join
-- would read all rows.)
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
        n := (SELECT count(*)
                FROM (SELECT max(k.at) OVER so_far <= min(k.at) OVER so_far + few AS is_of_few
                        FROM unnest(times) WITH ORDINALITY AS k(at, place)
                      WINDOW so_far AS (ORDER BY k.place ROWS UNBOUNDED PRECEDING)) s
               WHERE s.is_of_few);
        RETURN QUERY SELECT * FROM outbox.first_events_at(ids[:n], times[:n]);
        RETURN;
    END IF;
    RETURN QUERY EXECUTE
        'SELECT e.*
           FROM unnest($1, $2) WITH ORDINALITY AS k(id, at, place)
          CROSS JOIN LATERAL (
                SELECT * FROM outbox.event e
                 WHERE e.id = k.id AND e.created_at = k.at
                   AND e.created_at >= $3 AND e.created_at <= $4 OFFSET 0) e
          ORDER BY k.place'
        USING ids, times, first_at, last_at;
END $$;

-- Events by their keys, each of which is given once: one lookup for each hour that has some.
CREATE FUNCTION outbox.events_at(ids bigint[], times timestamptz[]) RETURNS SETOF outbox.event
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT e.*
      FROM (SELECT array_agg(k.id) AS ids, array_agg(k.at) AS times
              FROM unnest(events_at.ids, events_at.times) AS k(id, at)
             GROUP BY date_bin('1 hour', k.at, '2000-01-01 00:00+00')) h
     CROSS JOIN LATERAL outbox.first_events_at(h.ids, h.times) e;
END;

-- An error's text without its quoted values.
CREATE FUNCTION outbox.without_values(message text) RETURNS text
LANGUAGE sql IMMUTABLE RETURN regexp_replace(message, '"[^"]*"', '"…"', 'g');

-- Applies filters to events: true when the path's first item is neither false nor null. A filter
-- that fails affects no other filter: its row has the error. The document is made once for each
-- event, and a missing event has no row.
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
            SELECT u.id, u.at, array_agg(u.place) AS places
              FROM unnest(ids, times) WITH ORDINALITY u(id, at, place)
             GROUP BY u.id, u.at)
        SELECT e AS event, q.places
          FROM outbox.events_at(ARRAY(SELECT q.id FROM question q ORDER BY q.id),
                                ARRAY(SELECT q.at FROM question q ORDER BY q.id)) e
          JOIN question q ON q.id = e.id AND q.at = e.created_at
    LOOP
        raised := NULL;
        BEGIN
            document := outbox.filter_document(asked.event);
        EXCEPTION WHEN OTHERS THEN
            raised := format('the event is not what jsonb takes: %s',
                             outbox.without_values(SQLERRM));
        END;
        FOREACH place IN ARRAY asked.places LOOP
            holds := NULL;
            error := raised;
            IF raised IS NULL THEN
                BEGIN
                    holds := coalesce(
                        jsonb_path_query_first(document, filters[place]::jsonpath)
                            NOT IN ('false', 'null'),
                        false);
                EXCEPTION WHEN OTHERS THEN
                    error := outbox.without_values(SQLERRM);
                END;
            END IF;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;

-- Attempts at events with these numbers, from an hour before a time on. No attempt precedes its
-- event, except by the difference of clocks; when a clock was an hour ahead, events sent at that
-- time may be sent again.
CREATE FUNCTION outbox.attempts_at(ids bigint[], since timestamptz) RETURNS SETOF outbox.attempt
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF ids = '{}' THEN RETURN; END IF;
    RETURN QUERY EXECUTE
        'SELECT a.*
           FROM (SELECT DISTINCT * FROM unnest($1) AS k(id)) k
          CROSS JOIN LATERAL (
                SELECT * FROM outbox.attempt a
                 WHERE a.event_id = k.id AND a.started_at >= $2 OFFSET 0) a'
        USING ids, least(since, statement_timestamp()) - interval '1 hour';
END $$;

-- When the last requests to an endpoint started, newest first.
CREATE FUNCTION outbox.recent_starts(endpoint_id uuid, period interval, most int)
RETURNS SETOF timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE
        'SELECT a.started_at
           FROM outbox.attempt a
          WHERE a.endpoint_id = $1 AND a.started_at > $2
          ORDER BY a.started_at DESC LIMIT $3'
        USING endpoint_id, statement_timestamp() - period, most;
END $$;
