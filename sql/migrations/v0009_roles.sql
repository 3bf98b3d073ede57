-- Roles belong to the cluster: another database of the cluster may already have made them, or may
-- be making them right now.
SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY
        ARRAY['outbox_producer', 'outbox_worker', 'outbox_reader', 'outbox_operator']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', wanted);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN NULL;
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION USING errcode = 'OB020',
                        message = format('role %s does not exist and %s may not create it',
                                         wanted, current_user),
                        hint = format('Have an administrator run: CREATE ROLE %I NOLOGIN; '
                                      'then migrate again.', wanted);
            END;
        END IF;
    END LOOP;
END $$;

REVOKE ALL ON SCHEMA outbox_private FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox, outbox_api, outbox_private FROM PUBLIC;
GRANT USAGE ON SCHEMA outbox TO outbox_producer, outbox_worker, outbox_reader, outbox_operator;
GRANT USAGE ON SCHEMA outbox_api TO outbox_producer, outbox_operator;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox_api TO outbox_producer, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox_private.publish(name, text, json, text, text, json, text, uuid, text, text, timestamptz,
                           jsonb, timestamptz)
    TO outbox_producer, outbox_operator;

-- Producers publish and insert, nothing else; they can set neither id nor tx nor created_at.
GRANT INSERT (customer_id, type, change_type, transaction_id, identity, before, after, occurred_at,
              ordering_key, deliver_at, headers)
    ON outbox.event TO outbox_producer, outbox_operator;
GRANT INSERT (customer_id, type, change_type, identity, after) ON outbox.event TO outbox_worker;
GRANT EXECUTE ON FUNCTION
    outbox.publish(text, json, text, text, json, text, uuid, text, text, timestamptz, jsonb,
                   timestamptz),
    outbox.begin_operation(uuid, text), outbox.emit(), outbox.wake_worker(), outbox.is_service(),
    outbox.current_transaction_id(), outbox.current_identity(),
    outbox.transaction_uuid(timestamptz, xid8), outbox.refuse_body(bigint, bigint)
    TO outbox_producer, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.current_transaction_id(), outbox.current_identity(),
    outbox.transaction_uuid(timestamptz, xid8), outbox.refuse_body(bigint, bigint),
    outbox.is_service()
    TO outbox_worker;
-- To see whether a worker sleeps; only workers set it.
GRANT SELECT ON SEQUENCE outbox.asleep_until TO outbox_producer, outbox_operator;
GRANT SELECT, UPDATE ON SEQUENCE outbox.asleep_until TO outbox_worker;

GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO outbox_worker;
-- The HTTP API's, which has a connection of its own.
REVOKE ALL ON outbox.token, outbox.idempotency FROM outbox_worker;
GRANT SELECT ON SEQUENCE outbox.batch_id_seq TO outbox_worker;
GRANT INSERT ON
    outbox.cut, outbox.batch, outbox.attempt, outbox.delivery, outbox.unrouted, outbox.dead_letter,
    outbox.worker, outbox.timeline, outbox.ghost, outbox.boot
    TO outbox_worker;
-- The right to lock it, which is the right to cut.
GRANT UPDATE ON outbox.cutting TO outbox_worker;
GRANT UPDATE ON
    outbox.batch, outbox.lane, outbox.delivery, outbox.dead_letter, outbox.worker
    TO outbox_worker;
GRANT UPDATE (disabled_at, disabled_reason, revision, updated_at)
    ON outbox.endpoint TO outbox_worker;
GRANT DELETE ON
    outbox.cut, outbox.stray, outbox.batch, outbox.delivery, outbox.unrouted, outbox.dead_letter,
    outbox.worker, outbox.dedup, outbox.secret, outbox.ghost
    TO outbox_worker;
GRANT EXECUTE ON FUNCTION
    outbox.is_blocked(uuid, text), outbox.let_go(uuid[], text[], bigint, boolean),
    outbox.advance(uuid[], text[], boolean)
    TO outbox_worker, outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.is_blocked(uuid, text) TO outbox_reader;
GRANT EXECUTE ON FUNCTION
    outbox.is_paused(outbox.lane), outbox.accepts_requests(outbox.lane, outbox.endpoint),
    outbox.claimable_at(outbox.lane), outbox.is_well(outbox.lane),
    outbox.sent_at_the_earliest(outbox.lane, timestamptz)
    TO outbox_worker, outbox_reader, outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.line_of(text, text) TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.key_of(text) TO outbox_operator, outbox_reader;
GRANT EXECUTE ON FUNCTION
    outbox.first_incomplete(outbox.cut)
    TO outbox_worker, outbox_operator, outbox_reader;
GRANT EXECUTE ON FUNCTION
    outbox.keeps_order(), outbox.keepers_of(text, text, text), outbox.events_of(bigint[]),
    outbox.events_in(int8multirange, timestamptz, timestamptz),
    outbox.route_ordered(bigint[], bigint, boolean, outbox.lane_place[]),
    outbox.next_lines(outbox.lane_place, int), outbox.release_order(outbox.cut, bigint, int),
    outbox.catch_up(outbox.cut, int), outbox.let_go_unless_locked(uuid[], text[], bigint)
    TO outbox_worker;
GRANT EXECUTE ON FUNCTION
    outbox.choose_events(pg_snapshot, pg_snapshot, xid8[], boolean, bigint, int),
    outbox.group_batches(outbox.chosen, int, bigint, boolean), outbox.snapshot(xid8, xid8[])
    TO outbox_worker;
GRANT EXECUTE ON FUNCTION
    outbox.is_cut(outbox.cut, xid8, bigint)
    TO outbox_worker, outbox_reader, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.events_at(bigint[], timestamptz[]), outbox.few_partitions(),
    outbox.first_events_at(bigint[], timestamptz[])
    TO outbox_worker, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.attempts_at(bigint[], timestamptz), outbox.recent_starts(uuid, interval, int)
    TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.uncut(xid8[], bigint, xid8, pg_snapshot, int) TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.stream_backlog() TO outbox_worker, outbox_reader, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.close_partition(), outbox.delete_strays(int), outbox.cut(int, int),
    outbox.require_read_committed(), outbox.require_leases(bigint, bigint),
    outbox.make_partitions(), outbox.make_next_partition(),
    outbox.empty_expired_partition(), outbox.drop_expired_partition(),
    outbox.move_default_rows(name), outbox.delete_expired_rows(name, int),
    outbox.webhook_id(bigint, timestamptz), outbox.partition_bounds(timestamptz)
    TO outbox_worker;
GRANT EXECUTE ON FUNCTION outbox.needed_partitions() TO outbox_worker;
GRANT EXECUTE ON FUNCTION
    outbox.expired_partitions(), outbox.what_keeps(name, oid, timestamptz, timestamptz)
    TO outbox_worker, outbox_reader, outbox_operator;

GRANT SELECT ON
    outbox.deliveries, outbox.attempts, outbox.dead_letters, outbox.backlog, outbox.endpoint_state,
    outbox.endpoint_health, outbox.transactions, outbox.problems
    TO outbox_reader, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.webhook_id(bigint, timestamptz), outbox.up_to(bigint, int)
    TO outbox_reader, outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.up_to(bigint, int) TO outbox_worker;
GRANT EXECUTE ON FUNCTION
    outbox.newest_events(int)
    TO outbox_worker, outbox_reader, outbox_operator;
GRANT SELECT ON outbox.partitions TO outbox_operator;
-- Read by outbox.is_home(), which outbox.problems calls.
GRANT SELECT ON outbox.setting TO outbox_reader;

GRANT SELECT ON
    outbox.cut, outbox.event, outbox.endpoint, outbox.secret, outbox.lane, outbox.delivery,
    outbox.unrouted, outbox.dead_letter, outbox.attempt, outbox.worker, outbox.audit,
    outbox.setting, outbox.migration, outbox.batch, outbox.timeline, outbox.ghost,
    outbox.producer_customer
    TO outbox_operator;
GRANT INSERT, UPDATE ON
    outbox.endpoint, outbox.secret, outbox.lane, outbox.delivery
    TO outbox_operator;
GRANT INSERT, UPDATE, DELETE ON outbox.dead_letter TO outbox_operator;
GRANT SELECT, INSERT, UPDATE ON outbox.token, outbox.idempotency TO outbox_operator;
GRANT DELETE ON outbox.idempotency TO outbox_operator;
GRANT DELETE ON outbox.delivery, outbox.unrouted, outbox.secret, outbox.ghost TO outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.record_audit(text, text, text, text, jsonb),
    outbox_private.record_audit(name, text, text, text, text, jsonb)
    TO outbox_worker, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.set_body_limit(bigint), outbox.rebase(int, boolean, boolean), outbox.masked_url(text),
    outbox.masked_headers(jsonb), outbox.grant_publish(name, text[]),
    outbox_private.set_body_limit(name, bigint), outbox_private.rebase(name, int, boolean, boolean),
    outbox_private.grant_publish(name, name, text[]),
    outbox_private.record_endpoint_test(name, uuid, bigint, timestamptz, text, uuid, timestamptz,
                                        int[], boolean, int, text, text, bytea, text),
    outbox.record_endpoint_test(uuid, bigint, timestamptz, text, uuid, timestamptz,
                                int[], boolean, int, text, text, bytea, text)
    TO outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.current_timeline(), outbox.has_gone_back(), outbox.due_in(interval)
    TO outbox_worker;
-- Called by a check of outbox.endpoint, with the rights of the role that changes a row.
GRANT EXECUTE ON FUNCTION
    outbox.is_schedule(interval[]), outbox.is_span(interval, interval, interval),
    outbox.are_patterns(jsonb)
    TO outbox_worker, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.written_patterns(jsonb), outbox.patterns_in_words(jsonb)
    TO outbox_worker, outbox_operator, outbox_reader;
GRANT SELECT ON outbox.endpoint_document TO outbox_worker, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.ask_filters(bigint[], timestamptz[], text[]), outbox.filter_document(outbox.event),
    outbox.without_values(text)
    TO outbox_worker;
GRANT EXECUTE ON FUNCTION
    outbox.is_delivery(text), outbox.max_bytes_at_a_time()
    TO outbox_worker, outbox_reader, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.matches(jsonb, text), outbox.takes_type(jsonb, text),
    outbox.wants(outbox.endpoint, text, text, text)
    TO outbox_worker, outbox_reader, outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.require_home(text) TO outbox_worker, outbox_operator;
GRANT EXECUTE ON FUNCTION
    outbox.is_restored(outbox.cut), outbox.is_home(text), outbox.cluster_identifier(),
    outbox.database_identifier()
    TO outbox_worker, outbox_reader, outbox_operator;

-- Remembered so that outbox.problems can report a right that was revoked later, and its purpose.
INSERT INTO outbox.granted SELECT * FROM outbox.grants;

SELECT outbox.make_partitions();
