-- What producers call. Everything here runs in the producer's own transaction and costs it one row.

-- Numbers of the advisory locks that this product uses: (7231, 1) cutting, (7231, 2) a worker sleeps, (7231, 3) migrating.

-- A worker that sleeps holds (7231, 2); the producer tries the same lock in shared mode and notifies only when that
-- fails. A NOTIFY in every transaction would serialise all commits of the database. Because the producer keeps its
-- shared lock until it commits, a worker cannot fall asleep between the insert and the commit.
CREATE FUNCTION outbox.wake_worker() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('outbox', '');
    RETURN NULL;
END $$;
-- The lock is tried in the trigger's condition, which costs no call while nobody sleeps.
CREATE TRIGGER wake_worker AFTER INSERT ON outbox.event FOR EACH STATEMENT
    WHEN (NOT pg_try_advisory_xact_lock_shared(7231, 2)) EXECUTE FUNCTION outbox.wake_worker();

CREATE FUNCTION outbox.publish(
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
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_id bigint;
BEGIN
    IF publish.type IS NULL OR publish.type = '' THEN
        RAISE EXCEPTION USING errcode = 'OB002', message = 'invalid_value: an event needs a type',
            hint = 'Call it as outbox.publish(''order.created'', ''{"id":42}'').';
    END IF;
    IF publish.dedup_key IS NULL THEN
        INSERT INTO outbox.event (type, after, change_type, customer_id, before, identity, transaction_id, ordering_key,
                                  deliver_at, headers, occurred_at)
        VALUES (publish.type, publish.after, coalesce(publish.change_type, 'Create'),
                coalesce(publish.customer_id, 'default'), publish.before,
                coalesce(publish.identity, outbox.current_identity()),
                coalesce(publish.transaction_id, outbox.current_transaction_id()), publish.ordering_key,
                publish.deliver_at, coalesce(publish.headers, '{}'), publish.occurred_at)
        RETURNING id INTO new_id;
        RETURN new_id;
    END IF;

    -- The key is taken before the event is written: a second producer waits here until the first has committed, and
    -- then finds its id.
    new_id := nextval('outbox.event_id_seq');
    INSERT INTO outbox.dedup (customer_id, key, event_id)
    VALUES (coalesce(publish.customer_id, 'default'), publish.dedup_key, new_id) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        SELECT d.event_id INTO STRICT new_id FROM outbox.dedup d
         WHERE d.customer_id = coalesce(publish.customer_id, 'default') AND d.key = publish.dedup_key;
        RETURN new_id;
    END IF;
    INSERT INTO outbox.event (id, type, after, change_type, customer_id, before, identity, transaction_id, ordering_key,
                              deliver_at, headers, occurred_at) OVERRIDING SYSTEM VALUE
    VALUES (new_id, publish.type, publish.after, coalesce(publish.change_type, 'Create'),
            coalesce(publish.customer_id, 'default'), publish.before,
            coalesce(publish.identity, outbox.current_identity()),
            coalesce(publish.transaction_id, outbox.current_transaction_id()), publish.ordering_key,
            publish.deliver_at, coalesce(publish.headers, '{}'), publish.occurred_at);
    RETURN new_id;
END $$;

-- Sets the TransactionId and the identity of everything that the rest of this transaction publishes.
CREATE FUNCTION outbox.begin_operation(transaction_id uuid DEFAULT NULL, identity text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('outbox.transaction_id',
                       coalesce(begin_operation.transaction_id, outbox.current_transaction_id())::text, true);
    IF begin_operation.identity IS NOT NULL THEN
        PERFORM set_config('outbox.identity', begin_operation.identity, true);
    END IF;
    RETURN current_setting('outbox.transaction_id')::uuid;
END $$;

-- A row trigger for the producer's own tables:
--     CREATE TRIGGER emit AFTER INSERT OR UPDATE OR DELETE ON orders
--     FOR EACH ROW EXECUTE FUNCTION outbox.emit('order', 'tenant_id');
-- Both arguments may be left out: the event's type (the table's name) and the column that names the customer.
CREATE FUNCTION outbox.emit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    old_row json := CASE WHEN TG_OP <> 'INSERT' THEN row_to_json(OLD) END;
    new_row json := CASE WHEN TG_OP <> 'DELETE' THEN row_to_json(NEW) END;
    customer text := 'default';
BEGIN
    IF TG_LEVEL <> 'ROW' OR TG_OP = 'TRUNCATE' THEN
        RAISE EXCEPTION USING errcode = 'OB003', message = 'outbox.emit() works as a row trigger only',
            hint = 'Create the trigger with FOR EACH ROW on INSERT, UPDATE or DELETE.';
    END IF;
    IF TG_NARGS > 1 THEN
        customer := coalesce(new_row, old_row) ->> TG_ARGV[1];
        IF customer IS NULL THEN
            RAISE EXCEPTION USING errcode = 'OB003',
                message = format('outbox.emit(): column %I of %I.%I is missing or NULL', TG_ARGV[1], TG_TABLE_SCHEMA, TG_TABLE_NAME),
                hint = 'The second argument of the trigger names the column that holds the customer.';
        END IF;
    END IF;
    INSERT INTO outbox.event (type, change_type, customer_id, before, after)
    VALUES (coalesce(TG_ARGV[0], TG_TABLE_NAME),
            CASE TG_OP WHEN 'INSERT' THEN 'Create' WHEN 'UPDATE' THEN 'Update' ELSE 'Delete' END,
            customer, old_row, new_row);
    RETURN NULL;
END $$;
