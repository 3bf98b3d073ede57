-- The tables. Rows that are written once are never updated; tables with updates are small
-- (docs/architecture/storage.md says why).

-- Names mean PostgreSQL's own objects here, regardless of the migrating role's search_path: bodies,
-- defaults, checks and views are bound for good when they are made. SQL functions have such a body
-- (BEGIN ATOMIC or RETURN), and the others set the path themselves. All migrations are one
-- transaction.
SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- In SQL_ASCII a byte that is not UTF-8 would stop the stream for every customer, and other
-- encodings lack characters that occur in responses.
DO $$
BEGIN
    IF current_setting('server_version_num')::int < 150000 THEN
        RAISE EXCEPTION USING errcode = 'OB015',
            message = format('PostgreSQL %s is too old: 15 or later is needed',
                             current_setting('server_version'));
    END IF;
    IF current_setting('server_encoding') <> 'UTF8' THEN
        RAISE EXCEPTION USING errcode = 'OB015',
            message = format('the database %s has the encoding %s, and UTF8 is needed',
                             current_database(), current_setting('server_encoding')),
            hint = 'Make another: createdb -E UTF8 -T template0 …';
    END IF;
END $$;

-- Functions that run with the owner's rights for a caller, who is their first argument. No role has
-- a right to this schema, so no caller can name them and pass another role: callable functions are
-- in outbox and outbox_api, run with the caller's rights, and pass on current_user. session_user
-- would not do, since ANALYZE and REFRESH run functions of a table's owner in a superuser's
-- session.
DO $$
DECLARE
    taken name := (SELECT min(nspname)
                     FROM pg_namespace
                    WHERE nspname IN ('outbox_api', 'outbox_private'));
BEGIN
    IF taken IS NOT NULL THEN
        RAISE EXCEPTION USING errcode = 'OB020',
            message = format('there is a schema %s already', taken),
            hint = format('It is a leftover, or another user created it. '
                          'If nothing in it is needed: DROP SCHEMA %I CASCADE; then migrate again.',
                          taken);
    END IF;
END $$;
CREATE SCHEMA outbox_private;

-- Not in SQL, here and in is_home: every claim and cut calls them, and an SQL function that reads a
-- table is planned at every call.
CREATE FUNCTION outbox.cluster_identifier() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT system_identifier FROM pg_control_system());
END $$;

CREATE FUNCTION outbox.database_identifier() RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT oid::bigint FROM pg_database WHERE datname = current_database());
END $$;

-- The timeline that is being written. After a promotion pg_control_checkpoint() still reports the
-- old one for a while.
CREATE FUNCTION outbox.current_timeline() RETURNS int
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int;
END;

-- True for a time span without negative parts that is within the bounds in both ways in which
-- PostgreSQL counts months and years.
CREATE FUNCTION outbox.is_span(span interval, lowest interval, highest interval) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN span BETWEEN lowest AND highest
       AND extract(epoch FROM span) BETWEEN extract(epoch FROM lowest)
                                        AND extract(epoch FROM highest)
       AND least(extract(year FROM span), extract(month FROM span), extract(day FROM span),
                 extract(hour FROM span), extract(minute FROM span),
                 extract(second FROM span)) >= 0;

-- One row: the identity of this installation and its retention.
CREATE TABLE outbox.setting (
    singleton           boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    -- Part of every webhook-id, so that two source databases never collide at one receiver.
    instance            text NOT NULL
                        DEFAULT left(replace(gen_random_uuid()::text, '-', ''), 8)
                        CHECK (instance ~ '^[0-9a-z]{1,32}$'),
    -- Where it is at home. Anywhere else it is a copy, which sends nothing until it is rebased
    -- (outbox.rebase): the original already sends, and in another cluster the stream's transaction
    -- ids mean other transactions. The name is not part of it: a database may be renamed.
    cluster             bigint NOT NULL DEFAULT outbox.cluster_identifier(),
    database            bigint NOT NULL DEFAULT outbox.database_identifier(),
    partition_unit      text NOT NULL DEFAULT 'day' CHECK (partition_unit IN ('hour', 'day')),
    event_retention     interval NOT NULL DEFAULT '30 days'
                        CHECK (outbox.is_span(event_retention, '1 hour', '1000 years')),
    attempt_retention   interval NOT NULL DEFAULT '30 days'
                        CHECK (outbox.is_span(attempt_retention, '1 hour', '1000 years'))
);
INSERT INTO outbox.setting DEFAULT VALUES;

-- True where the installation is at home, and is the expected one; NULL for any.
CREATE FUNCTION outbox.is_home(instance text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT s.cluster = outbox.cluster_identifier()
                   AND s.database = outbox.database_identifier()
                   AND coalesce(is_home.instance = s.instance, true)
              FROM outbox.setting s);
END $$;

-- Called by every connection of a worker before anything else.
CREATE FUNCTION outbox.require_home(instance text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s outbox.setting;
BEGIN
    -- The code of a server that is still starting: a process that waits for a database waits for
    -- this one, too.
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION USING errcode = '57P03',
            message = 'the server is a standby, and takes no writes until it is promoted',
            hint = 'To be led to the primary, name all servers, '
                   'with target_session_attrs=read-write.';
    END IF;
    SELECT * INTO STRICT s FROM outbox.setting;
    IF require_home.instance IS NOT NULL AND require_home.instance <> s.instance THEN
        RAISE EXCEPTION USING errcode = 'OB013',
            message = format('wrong_instance: this database is the installation %s, '
                             'and %s is expected', s.instance, require_home.instance),
            hint = 'Connect to the right database; or, when it got a new instance on purpose, '
                   'restart with that one in OUTBOX_INSTANCE.';
    END IF;
    IF NOT outbox.is_home() THEN
        RAISE EXCEPTION USING errcode = 'OB010',
            message = CASE
                WHEN s.cluster = outbox.cluster_identifier()
                THEN 'restored_database: this is a copy of another database of this cluster; '
                     'nothing is sent from it'
                ELSE 'restored_database: this is a copy of a database of another cluster; '
                     'nothing is sent from it' END,
            hint = 'To go on here in its place, stop producers and workers, then: {db.rebase}. '
                   'To work beside it, as a staging system does: '
                   '{db.rebase new_instance=true disable_endpoints=true}';
    END IF;
END $$;

-- Where the installation has been: cluster, database and timeline, and since when a worker has seen
-- it. A new timeline is a failover or a recovery to a point in time.
CREATE TABLE outbox.timeline (
    cluster  bigint NOT NULL DEFAULT outbox.cluster_identifier(),
    database bigint NOT NULL DEFAULT outbox.database_identifier(),
    timeline int NOT NULL DEFAULT outbox.current_timeline(),
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (cluster, database, timeline)
);
INSERT INTO outbox.timeline DEFAULT VALUES;

-- True when the installation has been elsewhere: rows written there may be missing here.
CREATE FUNCTION outbox.has_gone_back() RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM outbox.timeline t
                    WHERE t.timeline <> outbox.current_timeline()
                       OR t.cluster <> outbox.cluster_identifier()
                       OR t.database <> outbox.database_identifier());
END;

-- Events that were sent and are not in this database: a failover or a restore has lost them. Their
-- attempts are true records of requests, and do not count for another event of the same number.
CREATE TABLE outbox.ghost (
    event_id bigint NOT NULL,
    event_at timestamptz NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker   text NOT NULL,
    PRIMARY KEY (event_id, event_at)
);

-- One UUID (version 7, RFC 9562) for everything that a database transaction publishes. It is
-- computed from properties of the transaction, so that it needs no state and survives savepoints:
-- milliseconds of its start, then a hash. This and the two functions after it are single
-- expressions that the planner puts into the producer's statement: a call of any other SQL function
-- would cost a third of the insert.
CREATE FUNCTION outbox.transaction_uuid(started timestamptz, tx xid8) RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN overlay(
           overlay(
               md5(tx::text || ' ' || extract(epoch FROM started)::text)
               PLACING lpad(to_hex((extract(epoch FROM started) * 1000)::bigint), 12, '0') || '7'
               FROM 1 FOR 13)
           PLACING '8' FROM 17 FOR 1)::uuid;

CREATE FUNCTION outbox.current_transaction_id() RETURNS uuid
LANGUAGE sql STABLE
RETURN coalesce(nullif(current_setting('outbox.transaction_id', true), '')::uuid,
                outbox.transaction_uuid(now(), pg_current_xact_id()));

CREATE FUNCTION outbox.current_identity() RETURNS text
LANGUAGE sql STABLE
RETURN coalesce(nullif(current_setting('outbox.identity', true), ''), session_user::text);

-- True for the roles that may act for the service itself: its workers, and the schema's owner, who
-- restores it.
CREATE FUNCTION outbox.is_service() RETURNS boolean
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM pg_roles r
                    WHERE r.rolname = 'outbox_worker'
                      AND pg_has_role(current_user, r.oid, 'MEMBER'))
        OR EXISTS (SELECT FROM pg_namespace n
                    WHERE n.nspname = 'outbox'
                      AND pg_has_role(current_user, n.nspowner, 'MEMBER'));
END;

-- The constraints on an event's values. Domains and not table constraints: the server keeps a
-- domain's check ready for the whole session, while it reads and plans a table's constraints again
-- for every statement (a third of an insert's cost). Types that begin with `outbox.` are events of
-- the service about itself, and receivers trust them.
CREATE DOMAIN outbox.event_type AS text
    CONSTRAINT has_1_to_256_characters CHECK (length(VALUE) BETWEEN 1 AND 256)
    CONSTRAINT does_not_begin_with_outbox
        CHECK (NOT starts_with(VALUE, 'outbox.') OR outbox.is_service());
CREATE DOMAIN outbox.change_type AS text
    CONSTRAINT has_1_to_256_characters CHECK (length(VALUE) BETWEEN 1 AND 256);
CREATE DOMAIN outbox.customer_id AS text
    CONSTRAINT has_1_to_256_characters CHECK (length(VALUE) BETWEEN 1 AND 256);
CREATE DOMAIN outbox.ordering_key AS text
    CONSTRAINT has_at_most_256_characters CHECK (length(VALUE) <= 256);
CREATE DOMAIN outbox.event_time AS timestamptz
    CONSTRAINT is_of_the_years_1_to_9999 CHECK (VALUE BETWEEN '0001-01-01' AND '9999-12-31');
CREATE DOMAIN outbox.identity AS text
    CONSTRAINT has_at_most_256_bytes CHECK (octet_length(VALUE) <= 256);
-- 256 bytes, even compressed, never hold more; only larger values are measured.
CREATE DOMAIN outbox.headers AS jsonb
    CONSTRAINT is_an_object CHECK (jsonb_typeof(VALUE) = 'object')
    CONSTRAINT has_at_most_64_kib
        CHECK (pg_column_size(VALUE) <= 256 OR octet_length(VALUE::text) <= 65536);

-- Called only when a body is too large, so that the check costs one comparison and the message
-- still says what to do.
CREATE FUNCTION outbox.refuse_body(size bigint, most bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING errcode = 'OB001',
        message = format('payload_too_large: a body of %s bytes, the limit is %s', size, most),
        hint = 'Publish a reference instead of the data, '
               'or raise the limit with outbox.set_body_limit(bytes).';
END $$;

-- Even compressed, 4 KiB never hold more than 1 MiB; only larger values are measured.
CREATE DOMAIN outbox.body AS json CONSTRAINT is_within_the_limit CHECK (
    VALUE IS NULL OR pg_column_size(VALUE) <= 4096 OR octet_length(VALUE::text) <= 1048576
    OR outbox.refuse_body(octet_length(VALUE::text)::bigint, 1048576::bigint));

-- An event is identified by (id, created_at), everywhere and for good. The number alone is reused
-- when the database goes back: after a failover that lost commits, in a restored backup, in a copy.
CREATE TABLE outbox.event (
    id             bigint GENERATED ALWAYS AS IDENTITY,
    -- The top-level transaction, also inside savepoints.
    tx             xid8 NOT NULL DEFAULT pg_current_xact_id(),
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    customer_id    outbox.customer_id NOT NULL DEFAULT 'default',
    type           outbox.event_type NOT NULL,
    change_type    outbox.change_type NOT NULL DEFAULT 'Create',
    transaction_id uuid NOT NULL DEFAULT outbox.current_transaction_id(),
    identity       outbox.identity DEFAULT outbox.current_identity(),
    before         outbox.body,   -- json, not jsonb: the producer's bytes are kept
    after          outbox.body,
    occurred_at    outbox.event_time,
    ordering_key   outbox.ordering_key,
    deliver_at     outbox.event_time,
    headers        outbox.headers NOT NULL DEFAULT '{}',
    -- Of both bodies, as they lie in a worker's memory. Stored, since the size of a compressed body
    -- could only be found out by reading it.
    bytes          int NOT NULL GENERATED ALWAYS AS (
        coalesce(octet_length(before::text), 0) + coalesce(octet_length(after::text), 0)) STORED
) PARTITION BY RANGE (created_at);
CREATE INDEX ON outbox.event (id);
CREATE INDEX ON outbox.event (tx, id);
CREATE INDEX ON outbox.event (transaction_id, id);
CREATE TABLE outbox.event_default PARTITION OF outbox.event DEFAULT;

-- The cut scans no partition that ends before the newest of these times: every event in such a
-- partition is in a batch (outbox.close_partition), or in outbox.stray.
CREATE TABLE outbox.closed (before timestamptz PRIMARY KEY);

-- Events that were created before that time, because a clock was set back or because a session
-- wrote created_at: the columns that the cut needs.
CREATE TABLE outbox.stray (
    tx          xid8 NOT NULL,
    id          bigint NOT NULL,
    created_at  timestamptz NOT NULL,
    customer_id text NOT NULL,
    bytes       int NOT NULL
);
CREATE INDEX ON outbox.stray (tx, id);

CREATE FUNCTION outbox_private.set_body_limit(caller name, bytes bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF bytes IS NULL OR bytes < 1 OR bytes > 104857600 THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = 'invalid_value: the body limit must be 1 to 104857600 bytes';
    END IF;
    ALTER DOMAIN outbox.body DROP CONSTRAINT is_within_the_limit;
    -- NOT VALID: only new values are checked, so that lowering the limit scans nothing.
    EXECUTE format(
        'ALTER DOMAIN outbox.body ADD CONSTRAINT is_within_the_limit CHECK ('
        'VALUE IS NULL OR pg_column_size(VALUE) <= %1$s OR octet_length(VALUE::text) <= %2$s '
        'OR outbox.refuse_body(octet_length(VALUE::text)::bigint, %2$s::bigint)) NOT VALID',
        bytes / 256, bytes);
    PERFORM outbox_private.append_audit(
        caller, NULL, 'db.set_body_limit', 'database', NULL, jsonb_build_object('bytes', bytes));
END $$;

CREATE FUNCTION outbox.set_body_limit(bytes bigint) RETURNS void
LANGUAGE sql BEGIN ATOMIC
    SELECT outbox_private.set_body_limit(current_user, set_body_limit.bytes);
END;

-- A lane, and one of its lines.
CREATE TYPE outbox.lane_place AS (endpoint_id uuid, ordering_key text);

-- How far the stream has been cut. One row per cut, newest last; never updated, so that a held
-- snapshot cannot slow down the read of the newest row.
CREATE TABLE outbox.cut (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,

    -- The position (v0003_cut.sql).
    done       pg_snapshot NOT NULL,          -- everything visible here is in a batch
    large      xid8[] NOT NULL DEFAULT '{}',  -- hidden in it because of their size, in turn ...
    large_at   bigint[] NOT NULL DEFAULT '{}',    -- ... and how far each of them is cut
    -- Scans of the stream have numbers: the number of the scan that found each large transaction,
    -- and of the scan under way.
    large_scan bigint[] NOT NULL DEFAULT '{}',
    scan       bigint,

    -- The release of ordered keys (v0005_order.sql). Deliveries put in line by incomplete scans,
    -- from scan `unreleased` on, are released by a walk along the keys: up to the scan
    -- `release_to`. The walk has got as far as this endpoint and key. The next walk begins at
    -- `release_next`.
    unreleased       bigint,
    release_to       bigint,
    release_endpoint uuid,
    release_key      text,
    release_next     bigint,
    -- Lanes that another session had locked when a delivery had to be put in line there, or had to
    -- be released after the named line.
    behind     outbox.lane_place[] NOT NULL DEFAULT '{}',

    -- The fair turns (outbox.group_batches).
    turn       bigint NOT NULL DEFAULT 0,     -- the turn that is being claimed ...
    last_turn  bigint NOT NULL DEFAULT 0,     -- ... and the last assigned one
    -- The first batch that waited: dead rows before it are skipped.
    first_turn bigint NOT NULL DEFAULT 0,
    first_id   bigint NOT NULL DEFAULT 0
);
INSERT INTO outbox.cut (done) VALUES (pg_current_snapshot());

-- Has no rows: the worker that cuts locks it. Unlike an advisory lock, holding this lock takes a
-- right, and waiting for it takes the right to name the table, which no role that is bound to
-- customers has; and unlike a row's lock it writes nothing.
CREATE TABLE outbox.cutting ();

CREATE TABLE outbox.batch (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    ids         int8multirange NOT NULL,
    size        int NOT NULL,
    first_at    timestamptz NOT NULL,   -- the created_at range of its events, for partition pruning
    last_at     timestamptz NOT NULL,
    -- Its customer, when all its events belong to one customer with very many.
    customer_id text,
    turn        bigint NOT NULL DEFAULT 0,   -- claimed in this order
    -- Endpoints that keep order and already have its events in their lanes.
    ordered     uuid[] NOT NULL DEFAULT '{}',
    -- Counted at the claim, so that a payload that kills its worker is noticed.
    claims      int NOT NULL DEFAULT 0,
    lease_id    uuid,
    worker      text,
    lease_until timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX ON outbox.batch (turn, id) WHERE claims = 0;
CREATE INDEX ON outbox.batch (id) WHERE claims > 0;
CREATE INDEX ON outbox.batch (customer_id, turn) WHERE claims = 0 AND customer_id IS NOT NULL;

-- Limits for a row that an operator writes by hand: a value that no worker can use would close the
-- endpoint, or do more harm.
CREATE FUNCTION outbox.is_schedule(waits interval[]) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN cardinality(waits) <= 100
       AND coalesce((SELECT bool_and(coalesce(outbox.is_span(wait, '0', '30 days'), false))
                       FROM unnest(waits) wait), true);
-- A time in the life of an endpoint; or never, or always.
CREATE DOMAIN outbox.time_or_none AS timestamptz
    CONSTRAINT is_of_the_years_1_to_9999
        CHECK (VALUE BETWEEN '0001-01-01' AND '9999-12-31' OR VALUE IN ('infinity', '-infinity'));

-- The time after a delay from now, or the latest possible time.
CREATE FUNCTION outbox.due_in(delay interval) RETURNS timestamptz
LANGUAGE sql VOLATILE RETURN least(clock_timestamp() + delay, timestamptz '9999-12-31 00:00+00');

-- True for the attempts of deliveries, and not for those of endpoint test and evaluate
-- (Trigger.isDelivery).
CREATE FUNCTION outbox.is_delivery(trigger text) RETURNS boolean
LANGUAGE sql IMMUTABLE RETURN trigger NOT IN ('test', 'evaluate');

-- The max bytes of events that a worker takes into memory at a time: in a batch, and in a page of a
-- lane.
CREATE FUNCTION outbox.max_bytes_at_a_time() RETURNS bigint
LANGUAGE sql IMMUTABLE RETURN 1048576;

-- Patterns of event types or change types, as Sources/Outbox/Endpoints/EventPattern.swift reads and
-- writes them: [{"kind": "any"}, {"kind": "prefix", "text": "order."}, {"kind": "exact", "text":
-- "a"}].
CREATE FUNCTION outbox.are_patterns(patterns jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE
RETURN jsonb_typeof(patterns) = 'array' AND jsonb_array_length(patterns) BETWEEN 1 AND 100
       AND NOT EXISTS (
           SELECT FROM jsonb_array_elements(patterns) p
            WHERE (p ->> 'kind' = 'any' AND NOT p ? 'text'
                   OR p ->> 'kind' = 'exact' AND length(p ->> 'text') BETWEEN 1 AND 256
                   OR p ->> 'kind' = 'prefix' AND length(p ->> 'text') BETWEEN 1 AND 256
                      AND p ->> 'text' LIKE '%.') IS NOT TRUE);

-- Who gets which events, and how: the columns of
-- Sources/Outbox/Endpoints/EndpointConfiguration.swift, and the state that the service keeps of the
-- endpoint.
CREATE TABLE outbox.endpoint (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name            text NOT NULL CHECK (length(name) BETWEEN 1 AND 128),
    customer_id     text NOT NULL DEFAULT '*' CHECK (length(customer_id) <= 256),
    description     text CHECK (length(description) <= 4096),
    event_types     jsonb NOT NULL DEFAULT '[{"kind": "any"}]'
                    CHECK (outbox.are_patterns(event_types)),
    change_types    jsonb NOT NULL DEFAULT '[{"kind": "any"}]'
                    CHECK (outbox.are_patterns(change_types)),
    -- A SQL/JSON path on outbox.filter_document: only events for which it holds.
    filter          text
                    CHECK (octet_length(filter) <= 4096
                           AND (filter IS NULL OR filter::jsonpath IS NOT NULL)),
    url             text NOT NULL CHECK (length(url) <= 8192),
    url_parameters  boolean NOT NULL DEFAULT false,
    method          text NOT NULL DEFAULT 'POST' CHECK (method IN ('POST', 'PUT', 'PATCH', 'GET')),
    format          text NOT NULL DEFAULT 'standard'
                    CHECK (format IN ('standard', 'citrix', 'raw', 'cloudevents',
                                      'cloudevents-binary', 'template')),
    template        text,
    template_kind   text NOT NULL DEFAULT 'json' CHECK (template_kind IN ('json', 'xml', 'text')),
    -- [{"name": …, "value": …, "secret": …}]
    headers         jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(headers) = 'array'),
    authentication  jsonb NOT NULL DEFAULT '{"kind": "none"}',   -- without its secrets
    ca_certificates    text,
    client_certificate text,
    http2           boolean NOT NULL DEFAULT false,
    max_body_bytes  int CHECK (max_body_bytes > 0),
    -- When a response is a success.
    response_rules  jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(response_rules) = 'object'),
    timeout         interval NOT NULL DEFAULT '15 s'
                    CHECK (outbox.is_span(timeout, '100 ms', '5 min')),
    connect_timeout interval NOT NULL DEFAULT '5 s'
                    CHECK (outbox.is_span(connect_timeout, '100 ms', '1 min')),
    -- The waits after the first, second ... failure. About three days, then the dead letters.
    retry_schedule  interval[] NOT NULL
                    DEFAULT '{5 s,30 s,2 min,10 min,30 min,1 h,3 h,6 h,12 h,24 h,24 h}'
                    CONSTRAINT has_at_most_100_waits_of_0_to_30_days
                    CHECK (outbox.is_schedule(retry_schedule)),
    -- Per worker process.
    max_in_flight   int NOT NULL DEFAULT 128 CHECK (max_in_flight BETWEEN 1 AND 10000),
    -- For all workers together; with either limit, its deliveries always go through its lane.
    max_concurrency int CHECK (max_concurrency BETWEEN 1 AND 10000),
    -- '60/30s', '1/s burst 3': all of them hold.
    rates           text[] NOT NULL DEFAULT '{}' CHECK (array_position(rates, NULL) IS NULL),
    -- One delivery of an ordering key at a time, in the order of the stream; a dead letter blocks
    -- its key or is skipped.
    ordered         boolean NOT NULL DEFAULT false,
    on_dead         text NOT NULL DEFAULT 'block' CHECK (on_dead IN ('block', 'skip')),
    disabled_at     timestamptz,
    disabled_reason text,
    deleted_at      timestamptz,   -- kept, so that the history still knows the name
    revision        bigint NOT NULL DEFAULT 1,   -- counts the changes to the row
    -- Of the last change (outbox.note_change).
    changed_tx      xid8 NOT NULL DEFAULT pg_current_xact_id(),
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON outbox.endpoint (id) WHERE ordered AND deleted_at IS NULL;
CREATE INDEX ON outbox.endpoint (changed_tx);
CREATE UNIQUE INDEX endpoint_name_is_unique ON outbox.endpoint (customer_id, name)
    WHERE deleted_at IS NULL;

-- Secrets, sealed outside the database (AES-256-GCM): for signing, several while one is being
-- rotated, and one object with all other credentials.
CREATE TABLE outbox.secret (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    endpoint_id uuid NOT NULL REFERENCES outbox.endpoint,
    kind        text NOT NULL CHECK (kind IN ('v1', 'v1a', 'credentials')),
    key_id      text NOT NULL,
    sealed      bytea NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  outbox.time_or_none NOT NULL DEFAULT 'infinity'
);
CREATE INDEX ON outbox.secret (endpoint_id);

CREATE TABLE outbox.lane (
    endpoint_id   uuid PRIMARY KEY REFERENCES outbox.endpoint,
    -- Not later than the earliest waiting delivery in it.
    due_at        outbox.time_or_none NOT NULL DEFAULT 'infinity',
    -- Nothing is sent before this time: Retry-After, or an open breaker.
    resting_until outbox.time_or_none NOT NULL DEFAULT '-infinity',
    -- A pause by an operator: from this time ...
    paused_from   outbox.time_or_none NOT NULL DEFAULT '-infinity',
    -- ... until this time.
    paused_until  outbox.time_or_none NOT NULL DEFAULT '-infinity',
    pause_reason  text,
    paused_by     text,
    -- How fast waiting deliveries go out afterwards.
    drain_rate    text
                  CHECK (drain_rate ~ '^[1-9][0-9]{0,5}/[1-9][0-9]{0,9}(ms|s)'
                                      '( burst [1-9][0-9]{0,5})?$'),
    -- How often in a row its breaker has tripped; 0 is closed.
    trips         int NOT NULL DEFAULT 0 CHECK (trips BETWEEN 0 AND 1000001),
    failing_since outbox.time_or_none,
    -- It answers again: deliveries tried before this time are due.
    recovered_at  outbox.time_or_none,
    claims        int NOT NULL DEFAULT 0 CHECK (claims BETWEEN 0 AND 1000001),
    lease_id      uuid,
    worker        text,
    lease_until   timestamptz NOT NULL DEFAULT '-infinity',
    -- Of the last change to its state (outbox.note_change).
    changed_tx    xid8 NOT NULL DEFAULT pg_current_xact_id()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE INDEX ON outbox.lane (changed_tx);

-- Outstanding work only: a row exists while a delivery waits.
CREATE TABLE outbox.delivery (
    event_id         bigint NOT NULL,
    endpoint_id      uuid NOT NULL,
    event_at         timestamptz NOT NULL,   -- the event's created_at
    -- Infinity: it waits for other deliveries of its ordering key.
    due_at           outbox.time_or_none NOT NULL,
    attempts         int NOT NULL DEFAULT 0,
    -- Sends in a row whose worker died before it recorded them.
    crashes          int NOT NULL DEFAULT 0,
    trigger          text NOT NULL CHECK (trigger IN ('first', 'retry', 'replay')),
    last_at          timestamptz,
    last_status      int,
    last_error_class text,
    last_error       text,
    -- Only where the endpoint keeps order: outbox.line_of(customer, key).
    ordering_key     text,
    -- The event's, while it waits for other deliveries of its ordering key.
    deliver_at       timestamptz,
    scan             bigint NOT NULL DEFAULT 0,   -- the place in its key's line: (scan, event_id)
    PRIMARY KEY (event_id, endpoint_id, event_at)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
-- Not on all rows: a lookup by the key must have no other index to choose. While a held snapshot
-- keeps the dead rows of an otherwise empty table, the planner assumes that all indexes cost the
-- same.
CREATE INDEX ON outbox.delivery (endpoint_id, due_at, event_id) WHERE due_at < 'infinity';
-- The deliveries that a recovered endpoint gets at once, among those scheduled for later.
CREATE INDEX ON outbox.delivery (endpoint_id, due_at, event_id)
    WHERE last_at IS NOT NULL AND due_at < 'infinity';
CREATE INDEX ON outbox.delivery (endpoint_id, ordering_key, scan, event_id)
    WHERE ordering_key IS NOT NULL;

CREATE TABLE outbox.dead_letter (
    event_id    bigint NOT NULL,
    endpoint_id uuid NOT NULL,
    event_at    timestamptz NOT NULL,
    reason      text NOT NULL
                CHECK (reason IN ('exhausted', 'permanent', 'worker_crashed', 'render_error',
                                  'event_missing', 'filter_error', 'cancelled')),
    attempts    int NOT NULL,
    status      int,
    error_class text,
    error       text,
    fingerprint text NOT NULL,   -- the same for failures of the same kind
    dead_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    ordering_key text,
    scan        bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (event_id, endpoint_id, event_at)
);
CREATE INDEX ON outbox.dead_letter (endpoint_id, ordering_key)
    WHERE ordering_key IS NOT NULL AND reason <> 'cancelled';
CREATE INDEX ON outbox.dead_letter (endpoint_id, dead_at);
CREATE INDEX ON outbox.dead_letter (fingerprint);
CREATE INDEX ON outbox.dead_letter (dead_at);

CREATE TABLE outbox.attempt (
    event_id      bigint NOT NULL,
    event_at      timestamptz NOT NULL,
    endpoint_id   uuid NOT NULL,
    number        int NOT NULL,
    trigger       text NOT NULL CHECK (trigger IN ('first', 'retry', 'replay', 'test', 'evaluate')),
    lease_id      uuid NOT NULL,
    worker        text NOT NULL,
    started_at    timestamptz NOT NULL,
    dns_us        int,
    connect_us    int,
    tls_us        int,
    first_byte_us int,
    total_us      int NOT NULL,
    outcome       text NOT NULL CHECK (outcome IN ('success', 'failure')),
    status        int,
    error_class   text,
    error         text,
    response      bytea,
    request_id    text           -- the receiver's own id for the request, if its response has one
) PARTITION BY RANGE (started_at);
CREATE INDEX ON outbox.attempt (event_id);
CREATE INDEX ON outbox.attempt (endpoint_id, started_at);
CREATE INDEX ON outbox.attempt USING brin (started_at)
    WITH (pages_per_range = 32, autosummarize = on);
CREATE TABLE outbox.attempt_default PARTITION OF outbox.attempt DEFAULT;

CREATE TABLE outbox.worker (
    id           text PRIMARY KEY,
    version      text NOT NULL,
    host         text NOT NULL,
    pid          int NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Faults that only this worker knows of, as {"problem":…, "since":…, "detail":…, "fix":…}.
    complaints   jsonb NOT NULL DEFAULT '[]',
    -- What customers share in it: {"requests": {"used":…, "limit":…}, …}.
    budgets      jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);

CREATE TABLE outbox.audit (
    id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor  text NOT NULL,   -- who did it: 'database:role', 'token:identity', 'service:worker' …
    session text NOT NULL,  -- the actor's role in the database
    action text NOT NULL,
    object text NOT NULL,
    reason text,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX ON outbox.audit (object, at);

-- Producers' own keys against publishing twice. The keys of one producer do not affect another.
CREATE TABLE outbox.dedup (
    producer    text NOT NULL,   -- the role that published
    customer_id outbox.customer_id NOT NULL,
    key         text NOT NULL
                CONSTRAINT dedup_key_has_1_to_256_bytes
                CHECK (octet_length(key) BETWEEN 1 AND 256),
    event_id    bigint NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (producer, customer_id, key)
);
CREATE INDEX ON outbox.dedup (created_at);

-- Who may call the HTTP API: the hash of each token, and what it allows. Rows are kept, so that the
-- audit log's actors are known.
CREATE TABLE outbox.token (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name         text NOT NULL CHECK (length(name) BETWEEN 1 AND 256),
    identity     text NOT NULL CHECK (length(identity) BETWEEN 1 AND 256),
    prefix       text NOT NULL,
    hash         bytea NOT NULL UNIQUE CHECK (length(hash) = 32),   -- SHA-256
    scopes       text[] NOT NULL
                 CHECK (scopes <@ ARRAY['events:write', 'evaluate', 'pull', 'read', 'operate',
                                        'admin', 'secrets:reveal']),
    customer_id  outbox.customer_id,   -- the only customer whose data it reaches
    endpoint_ids uuid[],               -- the only endpoints that it may pull from or evaluate
    rate         text,
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   outbox.time_or_none NOT NULL DEFAULT 'infinity',
    revoked_at   timestamptz,
    last_used_at timestamptz
);
CREATE INDEX ON outbox.token (created_at);

-- Calls that must not be carried out twice, with their answers: written in the transaction of the
-- change, so that there is one exactly when the change was made.
CREATE TABLE outbox.idempotency (
    holder     text NOT NULL,    -- whose key it is, as in token/<id>
    key        text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request    bytea NOT NULL CHECK (length(request) = 32),   -- SHA-256
    answer     json,             -- NULL until the transaction's end
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (holder, key)
);
CREATE INDEX ON outbox.idempotency (created_at);

-- The customers whose events a role may publish that is not a member of outbox_producer
-- (outbox.grant_publish). A role is identified by its name and its oid: another role may get the
-- same name later, and in another cluster, where a restore brings these rows, another role may have
-- the same oid.
CREATE TABLE outbox.producer_customer (
    role        name NOT NULL,
    role_oid    oid NOT NULL,
    customer_id outbox.customer_id NOT NULL,
    PRIMARY KEY (role, customer_id)
);
