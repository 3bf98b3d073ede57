-- The functions that producers call. Everything here runs in the producer's own transaction and
-- costs it one row.

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- Until when a worker sleeps, in seconds since the epoch; 1 while all are awake. A sequence,
-- because other sessions see its new value at once, and setting it writes neither a row version
-- nor, as it is unlogged, anything to the log; a worker that dies while it sleeps needs no sweeper,
-- since its time ends; and setting it takes a privilege, so that no stranger can make every commit
-- notify. (A NOTIFY in every transaction would serialise all commits of the database.)
CREATE UNLOGGED SEQUENCE outbox.asleep_until;

-- The notification is a hint: without one a worker scans every poll interval. Where transactions
-- may be prepared, PostgreSQL refuses those that have notified: there no producer notifies, and
-- workers poll.
CREATE FUNCTION outbox.wake_worker() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- A full notification queue, which a stranger can cause, would fail the producer's transaction.
    IF pg_sequence_last_value('outbox.asleep_until') > date_part('epoch', clock_timestamp())
       AND current_setting('max_prepared_transactions') = '0'
       AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('outbox', '');
    END IF;
    RETURN NULL;
END $$;
-- One comparison, since PostgreSQL parses the condition again for every statement: each further
-- comparison costs a tenth of an insert.
CREATE TRIGGER wake_worker AFTER INSERT ON outbox.event FOR EACH STATEMENT
    WHEN (pg_sequence_last_value('outbox.asleep_until') > 1)
    EXECUTE FUNCTION outbox.wake_worker();

-- For partitions that the cut no longer scans (outbox.close_partition).
CREATE FUNCTION outbox_private.note_stray() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO outbox.stray (tx, id, created_at, customer_id, bytes)
    VALUES (NEW.tx, NEW.id, NEW.created_at, NEW.customer_id, NEW.bytes);
    RETURN NULL;
END $$;

-- Throws unless the role, which is not a member of outbox_producer, may publish for the customer:
-- outbox.grant_publish allows it some customers, and operators may publish for all.
CREATE FUNCTION outbox_private.check_producer(caller name, customer text) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_has_role(caller, 'outbox_operator', 'USAGE')
       OR pg_has_role(caller, current_user, 'USAGE') THEN
        RETURN;
    END IF;
    IF NOT EXISTS (SELECT FROM outbox.producer_customer p
                     JOIN pg_roles r ON r.oid = p.role_oid AND r.rolname = p.role
                    WHERE p.customer_id = check_producer.customer
                      AND pg_has_role(caller, r.oid, 'USAGE')) THEN
        RAISE EXCEPTION USING errcode = 'OB004',
            message = format('not_permitted: the role %s may not publish for this customer',
                             caller),
            hint = 'Have an operator run: SELECT outbox.grant_publish(role, ARRAY[customer]); '
                   'or grant outbox_producer, for all customers.';
    END IF;
END $$;

CREATE FUNCTION outbox_private.publish(
    caller name, type text, after json, change_type text, customer_id text, before json,
    identity text, transaction_id uuid, ordering_key text, dedup_key text,
    deliver_at timestamptz, headers jsonb, occurred_at timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_id bigint;
BEGIN
    IF publish.type IS NULL OR publish.type = '' THEN
        RAISE EXCEPTION USING errcode = 'OB002', message = 'invalid_value: an event needs a type',
            hint = 'Call it as outbox.publish(''order.created'', ''{"id":42}'').';
    END IF;
    -- The domain of types lets the owner of this function pass.
    IF starts_with(publish.type, 'outbox.') THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = 'invalid_value: types that begin with outbox. are the service''s own',
            hint = 'Choose another beginning, such as the name of your application.';
    END IF;
    -- This is the first of the checks in check_producer; most roles need no other, and a call costs
    -- a twentieth of this function.
    IF NOT pg_has_role(caller, 'outbox_producer', 'USAGE') THEN
        PERFORM outbox_private.check_producer(caller, coalesce(publish.customer_id, 'default'));
    END IF;
    IF octet_length(publish.dedup_key) NOT BETWEEN 1 AND 256 THEN
        RAISE EXCEPTION USING errcode = 'OB002',
            message = format('invalid_value: the dedup_key has %s bytes, allowed are 1 to 256',
                             octet_length(publish.dedup_key)),
            hint = 'Use a hash of the key.';
    END IF;
    IF publish.dedup_key IS NULL THEN
        INSERT INTO outbox.event (
            type, after, change_type, customer_id, before, identity, transaction_id,
            ordering_key, deliver_at, headers, occurred_at)
        VALUES (
            publish.type, publish.after, coalesce(publish.change_type, 'Create'),
            coalesce(publish.customer_id, 'default'), publish.before,
            coalesce(publish.identity, outbox.current_identity()),
            coalesce(publish.transaction_id, outbox.current_transaction_id()),
            publish.ordering_key, publish.deliver_at, coalesce(publish.headers, '{}'),
            publish.occurred_at)
        RETURNING id INTO new_id;
        RETURN new_id;
    END IF;

    -- The key is inserted before the event: a second producer waits here until the first has
    -- committed, and then finds its id.
    new_id := nextval('outbox.event_id_seq');
    INSERT INTO outbox.dedup (producer, customer_id, key, event_id)
    VALUES (caller, coalesce(publish.customer_id, 'default'), publish.dedup_key, new_id)
    ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT d.event_id INTO STRICT new_id
          FROM outbox.dedup d
         WHERE d.producer = caller
           AND d.customer_id = coalesce(publish.customer_id, 'default')
           AND d.key = publish.dedup_key;
        RETURN new_id;
    END IF;
    INSERT INTO outbox.event (
        id, type, after, change_type, customer_id, before, identity, transaction_id,
        ordering_key, deliver_at, headers, occurred_at)
    OVERRIDING SYSTEM VALUE
    VALUES (
        new_id, publish.type, publish.after, coalesce(publish.change_type, 'Create'),
        coalesce(publish.customer_id, 'default'), publish.before,
        coalesce(publish.identity, outbox.current_identity()),
        coalesce(publish.transaction_id, outbox.current_transaction_id()),
        publish.ordering_key, publish.deliver_at, coalesce(publish.headers, '{}'),
        publish.occurred_at);
    RETURN new_id;
END $$;

-- The functions that producers call are in two schemas: outbox, whose tables may be named as well,
-- and outbox_api for roles that may publish for some customers only (outbox.grant_publish). Those
-- roles have no right to name anything in outbox: a role that can name a table can queue for a lock
-- on it, with CREATE RULE, CREATE VIEW or PREPARE, before PostgreSQL checks whether that is
-- permitted. The functions are bound to the functions that they call, and so calling them takes no
-- right to name those.
CREATE SCHEMA outbox_api;
DO $make$
DECLARE
    door text;
BEGIN
    FOREACH door IN ARRAY ARRAY['outbox', 'outbox_api'] LOOP
        EXECUTE replace($sql$
CREATE FUNCTION @door@.publish(
    type text,
    after json DEFAULT NULL,
    change_type text DEFAULT 'Create',
    customer_id text DEFAULT 'default',
    before json DEFAULT NULL,
    identity text DEFAULT NULL,
    transaction_id uuid DEFAULT NULL,
    ordering_key text DEFAULT NULL,
    dedup_key text DEFAULT NULL,
    deliver_at timestamptz DEFAULT NULL,
    headers jsonb DEFAULT '{}',
    occurred_at timestamptz DEFAULT NULL
) RETURNS bigint
LANGUAGE sql BEGIN ATOMIC
    SELECT outbox_private.publish(
        current_user, publish.type, publish.after, publish.change_type, publish.customer_id,
        publish.before, publish.identity, publish.transaction_id, publish.ordering_key,
        publish.dedup_key, publish.deliver_at, publish.headers, publish.occurred_at);
END;

-- Sets the TransactionId and the identity of everything that the rest of this transaction
-- publishes.
CREATE FUNCTION @door@.begin_operation(
    transaction_id uuid DEFAULT NULL, identity text DEFAULT NULL) RETURNS uuid
LANGUAGE sql BEGIN ATOMIC
    SELECT set_config('outbox.identity', begin_operation.identity::outbox.identity::text, true)
     WHERE begin_operation.identity IS NOT NULL;
    SELECT set_config(
        'outbox.transaction_id',
        coalesce(begin_operation.transaction_id, outbox.current_transaction_id())::text,
        true)::uuid;
END;

-- A row trigger for the producer's own tables:
--     CREATE TRIGGER emit AFTER INSERT OR UPDATE OR DELETE ON orders
--     FOR EACH ROW EXECUTE FUNCTION outbox.emit('order', 'tenant_id');
-- Both arguments may be left out: the event's type (the table's name) and the column that names the
-- customer. It runs with the rights of the role that changes the row, which therefore has to be
-- allowed to publish: turning a row into JSON runs casts and output functions that the table's
-- owner has made.
CREATE FUNCTION @door@.emit() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old_row json;
    new_row json;
    customer text := 'default';
BEGIN
    IF TG_LEVEL <> 'ROW' OR TG_WHEN <> 'AFTER' THEN
        RAISE EXCEPTION USING errcode = 'OB003',
            message = 'outbox.emit() works as a row trigger AFTER the change only',
            hint = 'Create the trigger with AFTER INSERT OR UPDATE OR DELETE … FOR EACH ROW.';
    END IF;
    IF TG_OP <> 'INSERT' THEN old_row := row_to_json(OLD); END IF;
    IF TG_OP <> 'DELETE' THEN new_row := row_to_json(NEW); END IF;
    IF TG_NARGS > 1 THEN
        customer := coalesce(new_row, old_row) ->> TG_ARGV[1];
        IF customer IS NULL THEN
            RAISE EXCEPTION USING errcode = 'OB003',
                message = format('outbox.emit(): column %I of %I.%I is missing or NULL',
                                 TG_ARGV[1], TG_TABLE_SCHEMA, TG_TABLE_NAME),
                hint = 'The second argument of the trigger names the column '
                       'that holds the customer.';
        END IF;
    END IF;
    PERFORM outbox_api.publish(
        -- For a partition, the name of the partitioned table.
        type => coalesce(
            TG_ARGV[0],
            (SELECT relname
               FROM pg_class
              WHERE oid = coalesce(pg_partition_root(TG_RELID), TG_RELID))),
        customer_id => customer,
        before => old_row,
        after => new_row,
        change_type => CASE TG_OP
            WHEN 'INSERT' THEN 'Create'
            WHEN 'UPDATE' THEN 'Update'
            ELSE 'Delete' END);
    RETURN NULL;
END $$;
$sql$, '@door@', door);
    END LOOP;
END $make$;
