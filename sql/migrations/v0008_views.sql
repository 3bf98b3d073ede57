-- The contract for dashboards and for `-o json`: column names here are public. A use case in
-- braces, as in {endpoint.resume 7}, is what a door of the service shows as its own: the command
-- line as a command, where `name=value` is an option.

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- The id by which receivers know an event, the same in every request for it: the installation, the
-- microsecond in which the event was inserted (base 32, eleven digits 0-9a-v), and its number. It
-- follows from the event's row alone, so that two events have different ids, even after losses,
-- restores and copies: equal ids would take the same number in the same microsecond.
CREATE FUNCTION outbox.webhook_id(event_id bigint, created_at timestamptz) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER BEGIN ATOMIC
    SELECT concat('evt_', s.instance, '_',
                  (SELECT string_agg(substr('0123456789abcdefghijklmnopqrstuv',
                                            ((t.us >> (digit * 5)) & 31)::int + 1, 1),
                                     '' ORDER BY digit DESC)
                     FROM generate_series(0, 10) digit),
                  '_', event_id)
      FROM outbox.setting s,
           (SELECT (extract(epoch FROM created_at) * 1000000)::bigint AS us) t;
END;

-- A URL with the values of its query masked, since they may be tokens. (The same as Masking.url.)
CREATE FUNCTION outbox.masked_url(url text) RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN strpos(url, '?') = 0 THEN url
            ELSE left(url, strpos(url, '?'))
                 || regexp_replace(
                        regexp_replace(substr(url, strpos(url, '?') + 1),
                                       '(^|&)([^=&]*)=[^&]*', '\1\2=***', 'g'),
                        '(^|&)[^=&]+(?=&|$)', '\1***', 'g') END;

-- Headers without the values that are marked secret, or whose names suggest a secret.
CREATE FUNCTION outbox.masked_headers(headers jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT coalesce(
               jsonb_agg(
                   jsonb_build_object(
                       'name', x ->> 'name',
                       'secret', coalesce(x -> 'secret', 'false') <> 'false',
                       'value', CASE
                           WHEN coalesce(x -> 'secret', 'false') <> 'false'
                                OR x ->> 'name'
                                   ~* '(auth|token|secret|key|cookie|password|signature)'
                           THEN '***'
                           ELSE x ->> 'value' END)
                   ORDER BY place),
               '[]')
      FROM jsonb_array_elements(headers) WITH ORDINALITY y(x, place);
END;

-- The written form of patterns (Sources/Outbox/Endpoints/EventPattern.swift).
CREATE FUNCTION outbox.written_patterns(patterns jsonb) RETURNS jsonb
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT jsonb_agg(CASE p ->> 'kind'
                          WHEN 'any' THEN '*'
                          WHEN 'prefix' THEN p ->> 'text' || '*'
                          ELSE CASE WHEN p ->> 'text' LIKE '%*' OR p ->> 'text' LIKE '=%' THEN '='
                                    ELSE '' END || (p ->> 'text') END
                     ORDER BY place)
      FROM jsonb_array_elements(patterns) WITH ORDINALITY y(p, place);
END;

-- The same in words.
CREATE FUNCTION outbox.patterns_in_words(patterns jsonb) RETURNS text
LANGUAGE sql IMMUTABLE BEGIN ATOMIC
    SELECT string_agg(p, ', ' ORDER BY place)
      FROM jsonb_array_elements_text(outbox.written_patterns(patterns)) WITH ORDINALITY y(p, place);
END;

-- Endpoints with their configuration as Sources/Outbox/Endpoints/EndpointDocument.swift reads it.
-- Secrets are not in it: they are sealed in outbox.secret. `masked` also leaves out possible
-- secrets.
--
-- A view and not a function: a function that contains queries is called once per row, which costs
-- ten times as much.
CREATE VIEW outbox.endpoint_document AS
SELECT c.*,
       jsonb_set(c.document, '{authentication,token_url}',
                 coalesce(to_jsonb(outbox.masked_url(
                              c.document -> 'authentication' ->> 'token_url')), 'null'))
       || jsonb_build_object('url', outbox.masked_url(c.document ->> 'url'),
                             'headers', outbox.masked_headers(c.document -> 'headers')) AS masked
  FROM (SELECT n.id, n.name, n.customer_id, n.event_types, n.change_types, n.ordered,
               n.deleted_at,
               jsonb_build_object(
                   'name', n.name,
                   'customer_id', n.customer_id,
                   'description', n.description,
                   'event_types', CASE n.event_types
                       WHEN '[{"kind": "any"}]' THEN '["*"]'
                       ELSE outbox.written_patterns(n.event_types) END,
                   'change_types', CASE n.change_types
                       WHEN '[{"kind": "any"}]' THEN '["*"]'
                       ELSE outbox.written_patterns(n.change_types) END,
                   'filter', n.filter,
                   'url', n.url,
                   'url_parameters', n.url_parameters,
                   'method', n.method,
                   'format', n.format,
                   'template', n.template,
                   'template_kind', n.template_kind,
                   'headers', n.headers,
                   'authentication',
                   '{"user": null, "header": null, "token_url": null, "client_id": null, '
                   '"scope": null, "client_auth": null, "secret": null}'
                       || n.authentication,
                   'tls', jsonb_build_object(
                       'ca_certificates', n.ca_certificates,
                       'client_certificate', n.client_certificate,
                       'client_key', CASE WHEN n.client_certificate IS NOT NULL THEN '***' END),
                   'http2', n.http2,
                   'max_body_bytes', n.max_body_bytes,
                   'response_rules',
                   '{"success": "200-299", "permanent": "413,415", "body": "any", "rules": [], '
                   '"throttled_texts": [], "rule_failure_final": false}'
                       || n.response_rules,
                   'timeout_seconds', trim_scale(extract(epoch FROM n.timeout)),
                   'connect_timeout_seconds', trim_scale(extract(epoch FROM n.connect_timeout)),
                   'retry_schedule_seconds',
                   ARRAY(SELECT trim_scale(extract(epoch FROM wait))
                           FROM unnest(n.retry_schedule) WITH ORDINALITY w(wait, place)
                          ORDER BY place),
                   'max_in_flight', n.max_in_flight,
                   'max_concurrency', n.max_concurrency,
                   'rates', n.rates,
                   'ordered', n.ordered,
                   'on_dead', n.on_dead) AS document
          FROM outbox.endpoint n) c;

-- Writes one line of the audit log, in the caller's transaction. The caller does not choose the
-- time and the session: they are the session's role and, if different, the role that it acts as. A
-- caller that acts for others, as the HTTP API does, names them (`actor`); all other actors are
-- roles of the database.
CREATE FUNCTION outbox_private.append_audit(
    caller name, actor text, action text, object text, reason text, detail jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER BEGIN ATOMIC
    INSERT INTO outbox.audit (at, actor, session, action, object, reason, detail)
    SELECT clock_timestamp(), coalesce(append_audit.actor, 'database:' || s.name), s.name,
           append_audit.action, append_audit.object, append_audit.reason,
           coalesce(append_audit.detail, '{}')
      FROM (SELECT session_user
                       || CASE WHEN caller = session_user THEN '' ELSE ' as ' || caller END
                   AS name) s;
END;

-- Functions of the schema write their own audit rows: no caller can write a row for one of their
-- actions.
CREATE FUNCTION outbox_private.record_audit(
    caller name, actor text, action text, object text, reason text, detail jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF starts_with(record_audit.action, 'db.')
       OR starts_with(record_audit.action, 'producer.') THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = format('invalid_value: the action %s is written by the function that does it',
                             record_audit.action);
    END IF;
    IF record_audit.actor !~ '^(token|portal|integration|service):.'
       OR length(record_audit.actor) > 600 THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = format('invalid_value: %L is no actor', left(record_audit.actor, 64)),
            hint = 'Write it as token:NAME, portal:NAME, integration:NAME or service:NAME; '
                   'NULL is the role of the session.';
    END IF;
    PERFORM outbox_private.append_audit(
        caller, record_audit.actor, record_audit.action, record_audit.object,
        record_audit.reason, record_audit.detail);
END $$;

CREATE FUNCTION outbox.record_audit(
    actor text, action text, object text, reason text, detail jsonb) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    SELECT outbox_private.record_audit(
        current_user, record_audit.actor, record_audit.action, record_audit.object,
        record_audit.reason, record_audit.detail);
END;

-- Allows a role to publish for these customers only, by outbox_api.publish: it gets no right to
-- insert, which would hold for all customers, and no right to name anything in the schema outbox.
-- An empty array removes the right. Events that it published stay.
CREATE FUNCTION outbox_private.grant_publish(caller name, role name, customers text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    verb text := CASE WHEN cardinality(customers) > 0 THEN 'GRANT %s TO %I'
                      ELSE 'REVOKE %s FROM %I' END;
BEGIN
    IF role IN ('outbox_producer', 'outbox_worker', 'outbox_reader', 'outbox_operator')
       OR EXISTS (SELECT FROM pg_roles r
                   WHERE r.rolname = grant_publish.role
                     AND pg_has_role(r.oid, current_user, 'MEMBER')) THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = format('invalid_value: %s has rights of the service itself', role),
            hint = 'Name a role of an application.';
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = grant_publish.role) THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = format('invalid_value: there is no role %s', role),
            hint = 'Create it first: CREATE ROLE … LOGIN';
    END IF;
    IF cardinality(customers) > 0 AND has_schema_privilege(role, 'outbox', 'USAGE') THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = format('invalid_value: %s may use the schema outbox, as a member of '
                             'outbox_producer or another role, and is bound to nobody', role),
            hint = format('REVOKE outbox_producer FROM %I; and run this again.', role);
    END IF;
    IF array_position(customers, NULL) IS NOT NULL THEN
        RAISE EXCEPTION USING errcode = 'OB002', message = 'invalid_value: a customer is NULL';
    END IF;
    -- Also rows under a former name of the role.
    DELETE FROM outbox.producer_customer p
     USING pg_roles r
     WHERE r.rolname = grant_publish.role
       AND (p.role = r.rolname OR p.role_oid = r.oid);
    -- Only a right that was granted here is removed here.
    IF NOT FOUND AND coalesce(cardinality(customers), 0) = 0 THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = format('invalid_value: %s was given no customers', role),
            hint = 'See: SELECT * FROM outbox.producer_customer';
    END IF;
    INSERT INTO outbox.producer_customer (role, role_oid, customer_id)
    SELECT DISTINCT r.rolname, r.oid, c
      FROM pg_roles r, unnest(customers) c
     WHERE r.rolname = grant_publish.role;
    EXECUTE format(verb, 'USAGE ON SCHEMA outbox_api', role);
    EXECUTE format(verb, 'EXECUTE ON FUNCTION '
        'outbox_api.publish(text, json, text, text, json, text, uuid, text, text, timestamptz, '
        'jsonb, timestamptz), '
        'outbox_api.begin_operation(uuid, text), outbox_api.emit(), '
        -- The functions that those are bound to.
        'outbox_private.publish(name, text, json, text, text, json, text, uuid, text, text, '
        'timestamptz, jsonb, timestamptz), '
        'outbox.current_transaction_id(), outbox.transaction_uuid(timestamptz, xid8)', role);
    PERFORM outbox_private.append_audit(
        caller, NULL, 'producer.grant', 'role/' || role, NULL,
        jsonb_build_object('customers', customers));
END $$;

CREATE FUNCTION outbox.grant_publish(role name, customers text[]) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    SELECT outbox_private.grant_publish(
        current_user, grant_publish.role, grant_publish.customers);
END;

-- Appends an endpoint test to the attempt log, and nothing else: a success of any other trigger
-- would resolve a delivery.
CREATE FUNCTION outbox_private.record_endpoint_test(
    caller name, endpoint_id uuid, event_id bigint, event_at timestamptz, trigger text,
    lease_id uuid, started_at timestamptz, timing int[], success boolean, status int,
    error_class text, error text, response bytea, request_id text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF outbox.is_delivery(record_endpoint_test.trigger) THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = 'invalid_value: a trial has the trigger test or evaluate';
    END IF;
    INSERT INTO outbox.attempt (
        event_id, event_at, endpoint_id, number, trigger, lease_id, worker, started_at,
        dns_us, connect_us, tls_us, first_byte_us, total_us,
        outcome, status, error_class, error, response, request_id)
    VALUES (
        record_endpoint_test.event_id, record_endpoint_test.event_at,
        record_endpoint_test.endpoint_id, 1, record_endpoint_test.trigger,
        record_endpoint_test.lease_id, caller, record_endpoint_test.started_at,
        timing[1], timing[2], timing[3], timing[4], coalesce(timing[5], 0),
        CASE WHEN success THEN 'success' ELSE 'failure' END, record_endpoint_test.status,
        record_endpoint_test.error_class, record_endpoint_test.error,
        record_endpoint_test.response, record_endpoint_test.request_id);
END $$;

CREATE FUNCTION outbox.record_endpoint_test(
    endpoint_id uuid, event_id bigint, event_at timestamptz, trigger text,
    lease_id uuid, started_at timestamptz, timing int[], success boolean, status int,
    error_class text, error text, response bytea, request_id text) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    SELECT outbox_private.record_endpoint_test(
        current_user, record_endpoint_test.endpoint_id, record_endpoint_test.event_id,
        record_endpoint_test.event_at, record_endpoint_test.trigger,
        record_endpoint_test.lease_id, record_endpoint_test.started_at,
        record_endpoint_test.timing, record_endpoint_test.success,
        record_endpoint_test.status, record_endpoint_test.error_class,
        record_endpoint_test.error, record_endpoint_test.response,
        record_endpoint_test.request_id);
END;

-- Columns of views are text and not of a domain: a value that already has a domain's type is not
-- checked again when a session inserts it.
CREATE VIEW outbox.deliveries AS
WITH pair AS (
    SELECT d.event_id, d.endpoint_id, d.event_at,
           CASE WHEN outbox.is_paused(l) OR n.disabled_at IS NOT NULL THEN 'paused'
                ELSE 'waiting' END AS state,
           d.attempts, d.trigger, outbox.sent_at_the_earliest(l, d.due_at) AS due_at,
           d.last_at, d.last_status, d.last_error_class, d.last_error,
           NULL::text AS reason
      FROM outbox.delivery d
      JOIN outbox.lane l USING (endpoint_id)
      JOIN outbox.endpoint n ON n.id = d.endpoint_id
    UNION ALL
    SELECT u.event_id, u.endpoint_id, u.event_at,
           CASE WHEN outbox.is_paused(l) OR n.disabled_at IS NOT NULL THEN 'paused'
                ELSE 'waiting' END,
           0, 'first', NULL,
           NULL, NULL, NULL, NULL,
           NULL
      FROM outbox.unrouted u
      JOIN outbox.lane l USING (endpoint_id)
      JOIN outbox.endpoint n ON n.id = u.endpoint_id
    UNION ALL
    SELECT d.event_id, d.endpoint_id, d.event_at,
           CASE d.reason WHEN 'cancelled' THEN 'cancelled' ELSE 'dead' END,
           d.attempts, NULL, NULL,
           d.dead_at, d.status, d.error_class, d.error,
           d.reason
      FROM outbox.dead_letter d
    UNION ALL
    -- The last success of a delivery that has nothing outstanding. A success of a missing event is
    -- a true record of a request, and no delivery.
    SELECT a.event_id, a.endpoint_id, a.event_at,
           'delivered',
           a.number, a.trigger, NULL,
           a.started_at, a.status, NULL, NULL,
           NULL
      FROM outbox.attempt a
     WHERE a.outcome = 'success'
       AND outbox.is_delivery(a.trigger)
       AND EXISTS (SELECT FROM outbox.event e
                    WHERE e.id = a.event_id AND e.created_at = a.event_at)
       AND NOT EXISTS (SELECT FROM outbox.delivery d
                        WHERE d.event_id = a.event_id
                          AND d.event_at = a.event_at
                          AND d.endpoint_id = a.endpoint_id)
       AND NOT EXISTS (SELECT FROM outbox.dead_letter d
                        WHERE d.event_id = a.event_id
                          AND d.event_at = a.event_at
                          AND d.endpoint_id = a.endpoint_id)
       AND NOT EXISTS (SELECT FROM outbox.attempt o
                        -- Not `=`: the index by endpoint and time would be walked from its
                        -- beginning for every row.
                        WHERE o.event_id = a.event_id
                          AND o.event_at = a.event_at
                          AND o.endpoint_id IS NOT DISTINCT FROM a.endpoint_id
                          AND o.outcome = 'success'
                          AND outbox.is_delivery(o.trigger)
                          AND (o.started_at, o.number, o.lease_id)
                              > (a.started_at, a.number, a.lease_id)))
SELECT p.event_id || ':' || p.endpoint_id AS id, p.event_id,
       outbox.webhook_id(p.event_id, p.event_at) AS webhook_id, p.endpoint_id, n.name AS endpoint,
       e.customer_id::text, e.type::text AS event_type, e.change_type::text, e.transaction_id,
       p.state, p.attempts, p.trigger, p.due_at, p.last_at, p.last_status, p.last_error_class,
       p.last_error, p.reason, p.event_at AS created_at
  FROM pair p
  LEFT JOIN outbox.event e ON e.id = p.event_id AND e.created_at = p.event_at
  LEFT JOIN outbox.endpoint n ON n.id = p.endpoint_id;

CREATE VIEW outbox.attempts AS
SELECT a.event_id, outbox.webhook_id(a.event_id, a.event_at) AS webhook_id, a.endpoint_id,
       n.name AS endpoint, a.number, a.trigger, a.started_at, a.outcome, a.status, a.error_class,
       a.error, a.dns_us, a.connect_us, a.tls_us, a.first_byte_us, a.total_us, a.request_id,
       a.worker, a.lease_id, a.event_at AS created_at
  FROM outbox.attempt a
  LEFT JOIN outbox.endpoint n ON n.id = a.endpoint_id;

CREATE VIEW outbox.dead_letters AS
SELECT d.event_id || ':' || d.endpoint_id AS id, d.event_id,
       outbox.webhook_id(d.event_id, d.event_at) AS webhook_id, d.endpoint_id, n.name AS endpoint,
       e.customer_id::text, e.type::text AS event_type, e.change_type::text, e.transaction_id,
       d.reason, d.attempts, d.status, d.error_class, d.error, d.fingerprint, d.dead_at,
       d.event_at AS created_at
  FROM outbox.dead_letter d
  LEFT JOIN outbox.event e ON e.id = d.event_id AND e.created_at = d.event_at
  LEFT JOIN outbox.endpoint n ON n.id = d.endpoint_id
 WHERE d.reason <> 'cancelled';

-- How many events are committed and not yet cut, up to 10,000, and since when. It runs with the
-- owner's rights, for roles that may see the backlog and not the events.
CREATE FUNCTION outbox.stream_backlog(OUT waiting bigint, OUT oldest_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER BEGIN ATOMIC
    SELECT count(*), min(u.created_at)
      FROM (SELECT e.created_at
              FROM (SELECT * FROM outbox.cut c ORDER BY c.id DESC LIMIT 1) n
             CROSS JOIN LATERAL (
                   SELECT e.created_at
                     FROM unnest(n.large, n.large_at) l(tx, at_id)
                    CROSS JOIN LATERAL outbox.uncut(
                          ARRAY[l.tx], l.at_id, pg_snapshot_xmax(n.done), n.done, 10000) e
                   UNION ALL
                   SELECT e.created_at
                     FROM outbox.uncut(ARRAY(SELECT x
                                               FROM pg_snapshot_xip(n.done) x
                                             EXCEPT
                                             SELECT unnest(n.large)), 0,
                                       pg_snapshot_xmax(n.done), pg_current_snapshot(),
                                       10000) e) e
             LIMIT 10000) u;
END;

-- The backlog by stage: committed but not yet cut, cut but not yet dispatched, waiting in an
-- endpoint's lane.
CREATE VIEW outbox.backlog AS
SELECT 'stream' AS stage, NULL::uuid AS endpoint_id, NULL::text AS endpoint, s.waiting, s.oldest_at
  FROM outbox.stream_backlog() s
UNION ALL
SELECT 'batch', NULL, NULL, coalesce(sum(size), 0), min(first_at)
  FROM outbox.batch
UNION ALL
SELECT 'lane', n.id, n.name, count(*), min(d.event_at)
  FROM (SELECT endpoint_id, event_at FROM outbox.delivery
        UNION ALL
        SELECT endpoint_id, event_at FROM outbox.unrouted) d
  JOIN outbox.endpoint n ON n.id = d.endpoint_id
 GROUP BY n.id, n.name;

-- The state of an endpoint from its lane and its own row, without counting any rows.
CREATE VIEW outbox.endpoint_state AS
SELECT n.id AS endpoint_id, n.name AS endpoint, n.customer_id,
       CASE WHEN n.disabled_at IS NOT NULL THEN 'disabled'
            WHEN outbox.is_paused(l) THEN 'paused'
            ELSE 'active' END AS state,
       coalesce(n.disabled_reason,
                CASE WHEN l.paused_until > statement_timestamp() THEN l.pause_reason END)
       AS state_reason,
       l.failing_since::timestamptz AS failing_since,
       nullif(l.paused_from::timestamptz, '-infinity') AS paused_from,
       CASE WHEN l.paused_until > statement_timestamp()
            THEN l.paused_until::timestamptz END AS paused_until,
       nullif(l.resting_until::timestamptz, '-infinity') AS resting_until,
       CASE WHEN l.paused_until > statement_timestamp() THEN l.paused_by END AS paused_by,
       l.drain_rate AS resume_rate,
       CASE WHEN l.trips > 0 AND l.resting_until > statement_timestamp() THEN 'open'
            WHEN l.trips > 0 THEN 'probing'
            ELSE 'closed' END AS breaker
  FROM outbox.endpoint n
  JOIN outbox.lane l ON l.endpoint_id = n.id
 WHERE n.deleted_at IS NULL;

CREATE VIEW outbox.endpoint_health AS
SELECT s.*, coalesce(w.waiting, 0) AS waiting, w.oldest_at,
       coalesce(x.dead_letters, 0) AS dead_letters,
       r.attempts_5m, r.successes_5m, r.last_success_at, r.last_failure_at
  FROM outbox.endpoint_state s
  LEFT JOIN (SELECT d.endpoint_id, count(*) AS waiting, min(d.event_at) AS oldest_at
               FROM outbox.delivery d
              GROUP BY d.endpoint_id) w
    ON w.endpoint_id = s.endpoint_id
  -- One scan of all dead letters, or of one endpoint's: never one for each endpoint, which may be a
  -- scan of all.
  LEFT JOIN (SELECT d.endpoint_id, count(*) AS dead_letters
               FROM outbox.dead_letter d
              WHERE d.reason <> 'cancelled'
              GROUP BY d.endpoint_id) x
    ON x.endpoint_id = s.endpoint_id
 CROSS JOIN LATERAL (
       SELECT count(*) AS attempts_5m,
              count(*) FILTER (WHERE a.outcome = 'success') AS successes_5m,
              max(a.started_at) FILTER (WHERE a.outcome = 'success') AS last_success_at,
              max(a.started_at) FILTER (WHERE a.outcome = 'failure') AS last_failure_at
         FROM outbox.attempt a
        WHERE a.endpoint_id = s.endpoint_id
          AND a.started_at > statement_timestamp() - interval '5 min'
          AND outbox.is_delivery(a.trigger)) r;

CREATE VIEW outbox.transactions AS
SELECT e.transaction_id, min(e.created_at) AS first_at, max(e.created_at) AS last_at,
       count(*) AS events, array_agg(DISTINCT e.customer_id::text) AS customers,
       array_agg(DISTINCT e.type::text) AS event_types,
       array_agg(DISTINCT e.identity::text) FILTER (WHERE e.identity IS NOT NULL) AS identities
  FROM outbox.event e
 GROUP BY e.transaction_id;

-- The rights of the service's roles here.
CREATE VIEW outbox.grants AS
SELECT r.rolname AS role, o.kind, o.object, o.column_name, a.privilege_type AS privilege
  FROM (SELECT 'SCHEMA' AS kind, quote_ident(n.nspname) AS object, NULL::text AS column_name,
               n.nspname, n.nspacl AS acl
          FROM pg_namespace n
        UNION ALL
        SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END,
               format('%I.%I', n.nspname, c.relname), NULL,
               n.nspname, c.relacl
          FROM pg_class c
          JOIN pg_namespace n ON n.oid = c.relnamespace
        UNION ALL
        SELECT 'TABLE', format('%I.%I', n.nspname, c.relname), quote_ident(t.attname),
               n.nspname, t.attacl
          FROM pg_attribute t
          JOIN pg_class c ON c.oid = t.attrelid
          JOIN pg_namespace n ON n.oid = c.relnamespace
        UNION ALL
        SELECT 'FUNCTION', format('%I.%I(%s)', n.nspname, p.proname,
                                  pg_get_function_identity_arguments(p.oid)), NULL,
               n.nspname, p.proacl
          FROM pg_proc p
          JOIN pg_namespace n ON n.oid = p.pronamespace) o
 CROSS JOIN LATERAL aclexplode(o.acl) a
  JOIN pg_roles r ON r.oid = a.grantee
 WHERE o.nspname IN ('outbox', 'outbox_api', 'outbox_private')
   AND r.rolname IN ('outbox_producer', 'outbox_worker', 'outbox_reader', 'outbox_operator');

-- The same rights, as they were when the schema was made.
CREATE TABLE outbox.granted AS SELECT * FROM outbox.grants WITH NO DATA;

-- A count that stops at `most`, in words.
CREATE FUNCTION outbox.up_to(n bigint, most int) RETURNS text
LANGUAGE sql IMMUTABLE RETURN CASE WHEN n >= most THEN 'at least ' ELSE '' END || n;

-- At most `most` of the newest events, from the last eight partitions: no other partition is even
-- locked.
CREATE FUNCTION outbox.newest_events(most int)
RETURNS TABLE (created_at timestamptz, customer_id text, type text, change_type text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN QUERY EXECUTE
        'SELECT e.created_at, e.customer_id::text, e.type::text, e.change_type::text
           FROM outbox.event e
          WHERE e.created_at >= $1
          ORDER BY e.id DESC
          LIMIT $2'
        USING (SELECT min(n.lower)
                 FROM (SELECT x.lower
                         FROM outbox.partitions x
                        WHERE x.parent = 'event' AND x.lower <= clock_timestamp()
                        ORDER BY x.lower DESC
                        LIMIT 8) n), most;
END $$;

-- Faults, and how to fix them. Empty is healthy.
CREATE VIEW outbox.problems AS
SELECT 'default_partition_used' AS problem,
       format('%s rows in outbox.%s_default', outbox.up_to(n, 10000), parent) AS detail,
       'They are delivered all the same. A worker moves some ten thousand at a time into '
       'partitions of their own; more than that stay until their retention ends.' AS fix
  FROM (SELECT 'event' AS parent, count(*) AS n
          FROM (SELECT FROM outbox.event_default LIMIT 10000) e
        UNION ALL
        SELECT 'attempt', count(*)
          FROM (SELECT FROM outbox.attempt_default LIMIT 10000) a) d
 WHERE n > 0
UNION ALL
(SELECT 'partition_kept',
        format('%s should have gone a day ago, and is kept by %s',
               x.name, outbox.what_keeps(x.parent, x.oid, x.lower, x.upper)),
        'Replay or drop the dead letters, or delete the endpoints that no worker delivers to any '
        'more; for a lock: SELECT pid, usename, query FROM pg_stat_activity'
   FROM outbox.expired_partitions() x, outbox.setting s
  WHERE x.upper < clock_timestamp() - interval '1 day'
                  - CASE x.parent WHEN 'event' THEN s.event_retention
                                  ELSE s.attempt_retention END
  ORDER BY x.upper
  LIMIT 3)
UNION ALL
SELECT 'delivery_in_limbo',
       format('%s deliveries of endpoint %s are due before their lane says so',
              count(*), d.endpoint_id),
       format('UPDATE outbox.lane SET due_at = ''-infinity'' WHERE endpoint_id = ''%s'';',
              d.endpoint_id)
  FROM outbox.delivery d
  LEFT JOIN outbox.lane l USING (endpoint_id)
 WHERE l.endpoint_id IS NULL
    OR (l.lease_until < clock_timestamp() AND d.due_at < l.due_at)
 GROUP BY d.endpoint_id
UNION ALL
SELECT 'delivery_in_limbo',
       format('ordering key of %s:%s stands still', d.event_id, d.endpoint_id),
       format('BEGIN; SELECT FROM outbox.lane WHERE endpoint_id = ''%1$s'' FOR UPDATE; '
              'SELECT outbox.advance(''{%1$s}'', ARRAY[%2$L], true); COMMIT;',
              d.endpoint_id, d.ordering_key)
  FROM (SELECT * FROM outbox.delivery d WHERE d.due_at = 'infinity' LIMIT 2000) d
 WHERE NOT outbox.is_blocked(d.endpoint_id, d.ordering_key)
   AND NOT EXISTS (SELECT FROM outbox.delivery o
                    WHERE o.endpoint_id = d.endpoint_id
                      AND o.ordering_key = d.ordering_key
                      AND (o.due_at < 'infinity'
                           OR (o.scan, o.event_id) < (d.scan, d.event_id)))
   AND NOT coalesce(d.scan >= (SELECT least(c.unreleased, outbox.first_incomplete(c))
                                 FROM outbox.cut c
                                ORDER BY c.id DESC
                                LIMIT 1), false)
   AND d.endpoint_id NOT IN (SELECT b.endpoint_id
                               FROM (SELECT * FROM outbox.cut c ORDER BY c.id DESC LIMIT 1) c,
                                    unnest(c.behind) b)
UNION ALL
SELECT 'delivery_in_limbo',
       format('event %s is not in line at endpoint %s, and no cut knows of it',
              u.event_id, u.endpoint_id),
       'Tell the developers: this must not happen.'
  FROM outbox.unrouted u
 WHERE u.endpoint_id NOT IN (SELECT b.endpoint_id
                               FROM (SELECT * FROM outbox.cut c ORDER BY c.id DESC LIMIT 1) c,
                                    unnest(c.behind) b)
UNION ALL
SELECT 'lane_locked',
       format('another session has locked the lane of endpoint %s, or locks it again and again: '
              'deliveries wait for it since %s',
              n.name,
              to_char(min(u.noted_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
       'End the transaction that holds it; the oldest: SELECT pid, usename, xact_start, state '
       'FROM pg_stat_activity ORDER BY xact_start LIMIT 5'
  FROM outbox.unrouted u
  JOIN outbox.endpoint n ON n.id = u.endpoint_id
 GROUP BY n.id, n.name
HAVING min(u.noted_at) < clock_timestamp() - interval '30 s'
UNION ALL
-- Twenty of each kind, and the total: when a network is down, all endpoints fail.
SELECT 'endpoint_failing',
       concat(
           format('%s (%s) fails since %s, and %s deliveries wait for it',
                  f.name, f.id,
                  to_char(f.failing_since AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                  (SELECT outbox.up_to(count(*), 10000)
                     FROM (SELECT FROM outbox.delivery d
                            WHERE d.endpoint_id = f.id
                            LIMIT 10000) w)),
           CASE WHEN f.all_of_them > 20
                THEN format('; %s endpoints fail in all', f.all_of_them) END),
       format('See what it answers: {attempt.list endpoint=%1$s state=failure}; '
              'a probe goes out every few minutes, or at once: {endpoint.resume %1$s}', f.id)
  FROM (SELECT n.id, n.name, l.failing_since, count(*) OVER () AS all_of_them
          FROM outbox.lane l
          JOIN outbox.endpoint n ON n.id = l.endpoint_id
         WHERE l.trips > 0
           AND l.failing_since < clock_timestamp() - interval '30 s'
           AND n.deleted_at IS NULL
           AND n.disabled_at IS NULL
           AND NOT outbox.is_paused(l)
         ORDER BY l.failing_since
         LIMIT 20) f
UNION ALL
-- No command removes the last secret: an operator deleted its row, or let it expire.
SELECT 'endpoint_unsigned',
       concat(
           format('%s (%s) has no signing secret that is valid: what is sent to it is not signed',
                  n.name, n.id),
           CASE WHEN n.all_of_them > 20 THEN format('; %s endpoints have none', n.all_of_them) END),
       format('{endpoint.secret.rotate %s}', n.id)
  FROM (SELECT n.id, n.name, count(*) OVER () AS all_of_them
          FROM outbox.endpoint n
         WHERE n.deleted_at IS NULL
           AND NOT EXISTS (SELECT FROM outbox.secret x
                            WHERE x.endpoint_id = n.id
                              AND x.kind IN ('v1', 'v1a')
                              AND x.expires_at > clock_timestamp())
         ORDER BY n.id
         LIMIT 20) n
UNION ALL
-- An operator who disables an endpoint knows it; it is reported when the service did it, or when
-- events are not routed to it.
SELECT 'endpoint_disabled',
       concat(
           format('%s (%s) is disabled since %s (%s): '
                  '%s of the newest 10000 events were not routed to it',
                  n.name, n.id,
                  to_char(n.disabled_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
                  n.disabled_reason, m.events),
           CASE WHEN n.all_of_them > 20
                THEN format('; %s endpoints are disabled in all', n.all_of_them) END),
       format('{endpoint.enable %1$s}; or: {endpoint.delete %1$s}', n.id)
  FROM (SELECT n.*, n AS whole, count(*) OVER () AS all_of_them
          FROM outbox.endpoint n
         WHERE n.disabled_at IS NOT NULL AND n.deleted_at IS NULL
         ORDER BY n.disabled_at DESC
         LIMIT 20) n
 CROSS JOIN LATERAL (
       SELECT count(*) AS events
         FROM outbox.newest_events(10000) e
        WHERE e.created_at > n.disabled_at
          AND outbox.wants(n.whole, e.customer_id, e.type, e.change_type)) m
 WHERE m.events > 0
    OR n.disabled_reason IN ('failing for five days', 'gone: the receiver answered 410')
UNION ALL
SELECT 'stream_stands',
       format('%s events wait to be cut, the oldest since %s, though a worker is there',
              outbox.up_to(b.waiting, 10000),
              to_char(b.oldest_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
       'See the log of the workers; and who holds outbox.cutting: '
       'SELECT pid FROM pg_locks WHERE relation = ''outbox.cutting''::regclass'
  FROM outbox.backlog b
 WHERE b.stage = 'stream'
   AND b.oldest_at < clock_timestamp() - interval '1 min'
   AND EXISTS (SELECT FROM outbox.worker
                WHERE heartbeat_at > clock_timestamp() - interval '30 s')
UNION ALL
SELECT c ->> 'problem',
       format('worker %s %s (since %s)',
              w.id, c ->> 'detail',
              to_char((c ->> 'since')::timestamptz AT TIME ZONE 'UTC',
                      'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
       c ->> 'fix'
  FROM outbox.worker w
 CROSS JOIN LATERAL jsonb_array_elements(w.complaints) c
 WHERE w.heartbeat_at > clock_timestamp() - interval '30 s'
UNION ALL
SELECT 'order_blocked',
       format('%s dead letters of %s (%s) hold up what comes after them in their ordering keys',
              outbox.up_to(b.blocking, 1000), n.name, n.id),
       format('{dead.list endpoint=%1$s}; then replay or drop them, or let others pass: '
              '{endpoint.update %1$s on_dead=skip}', n.id)
  FROM (SELECT *
          FROM outbox.endpoint n
         WHERE n.ordered AND n.on_dead = 'block' AND n.deleted_at IS NULL
           AND EXISTS (SELECT FROM outbox.dead_letter x
                        WHERE x.endpoint_id = n.id
                          AND x.ordering_key IS NOT NULL
                          AND x.reason <> 'cancelled' OFFSET 0)
         LIMIT 20) n
 CROSS JOIN LATERAL (
       SELECT count(*) AS blocking
         FROM (SELECT x.ordering_key
                 FROM outbox.dead_letter x
                WHERE x.endpoint_id = n.id
                  AND x.ordering_key IS NOT NULL
                  AND x.reason <> 'cancelled'
                LIMIT 1000) x
        WHERE EXISTS (SELECT FROM outbox.delivery d
                       WHERE d.endpoint_id = n.id
                         AND d.ordering_key = x.ordering_key OFFSET 0)) b
 WHERE b.blocking > 0
UNION ALL
SELECT 'grant_missing',
       format('the role %s lacks %s on %s %s, which the service needs',
              g.role, g.what, lower(g.kind), g.object),
       format('GRANT %s ON %s %s TO %I', g.what, g.kind, g.object, g.role)
  FROM (SELECT m.role, m.kind, m.object,
               string_agg(concat(m.privilege, ' (' || m.column_name || ')'), ', '
                          ORDER BY m.privilege, m.column_name) AS what
          FROM (SELECT * FROM outbox.granted EXCEPT SELECT * FROM outbox.grants) m
         GROUP BY m.role, m.kind, m.object
         ORDER BY m.role, m.object
         LIMIT 20) g
UNION ALL
SELECT 'lease_not_taken_over',
       format('batch %s has been without a worker since %s', id, lease_until),
       'Start a worker: {run}'
  FROM outbox.batch
 WHERE claims > 0
   AND lease_until < clock_timestamp() - interval '5 min'
UNION ALL
SELECT 'restored_database',
       'this database is a copy of another, or was restored from a dump; nothing is sent from it',
       'To go on here in its place, stop producers and workers, then: {db.rebase}. '
       'To work beside it: {db.rebase new_instance=true disable_endpoints=true}'
  FROM (SELECT * FROM outbox.cut ORDER BY id DESC LIMIT 1) k
 WHERE outbox.is_restored(k)
UNION ALL
SELECT 'timeline_changed',
       format('timeline %s since %s, %s before: a failover, or a recovery to a point in time',
              t.timeline,
              to_char(t.noted_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
              t.before),
       'Nothing is to be done for what is here. Commits that the old primary alone had are lost: '
       'see outbox.ghost for those that were sent. (Shown for a day.)'
  FROM (SELECT noted_at, timeline,
               lag(timeline) OVER (PARTITION BY cluster, database
                                       ORDER BY noted_at, timeline) AS before
          FROM outbox.timeline) t
 WHERE t.before IS NOT NULL
   AND t.noted_at > clock_timestamp() - interval '1 day'
UNION ALL
SELECT 'ghosts',
       format('%s events were sent that this database does not have, noted from %s to %s',
              count(*),
              to_char(min(noted_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
              to_char(max(noted_at) AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')),
       'A failover or a restore lost them after they had been sent: receivers know of what never '
       'happened here. '
       'Their webhook-ids: SELECT outbox.webhook_id(event_id, event_at) FROM outbox.ghost; '
       'when that is dealt with: DELETE FROM outbox.ghost'
  FROM outbox.ghost
HAVING count(*) > 0
UNION ALL
SELECT 'private_schema_open',
       format('the role %s may name the functions of outbox_private, '
              'and say there that another role publishes or acts', r.rolname),
       'Take from it what lets it: USAGE on the schema, '
       'or membership in pg_read_all_data or pg_write_all_data'
  FROM pg_roles r, pg_namespace n
 WHERE n.nspname = 'outbox_private'
   AND NOT r.rolsuper
   AND NOT pg_has_role(r.oid, n.nspowner, 'USAGE')
   AND has_schema_privilege(r.oid, n.oid, 'USAGE')
   AND (has_schema_privilege(r.oid, 'outbox', 'USAGE')
        OR has_schema_privilege(r.oid, 'outbox_api', 'USAGE'))
   AND NOT starts_with(r.rolname, 'pg_')
UNION ALL
SELECT 'no_worker',
       'events or deliveries wait and no worker has reported for 30 seconds',
       'Start a worker: {run}'
 WHERE NOT EXISTS (SELECT FROM outbox.worker
                    WHERE heartbeat_at > clock_timestamp() - interval '30 s')
   AND (EXISTS (SELECT FROM outbox.batch)
        OR EXISTS (SELECT FROM outbox.delivery)
        OR EXISTS (SELECT FROM outbox.backlog WHERE stage = 'stream' AND waiting > 0));
