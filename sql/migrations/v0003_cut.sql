-- The stream: newly committed events become batches.

-- Turns up to `budget` newly committed events into batches of `batch_size`; returns how many, or -1 when another worker
-- is cutting. "Newly committed" is the difference of two snapshots: a transaction that commits late is cut late and
-- never skipped, and one that stays open holds up only its own rows. The scan starts at xmax of the last snapshot and
-- visits the transactions that were open then one by one, so that its cost follows the new events and never the age of
-- the oldest transaction.
--
-- Its commit need not reach the disk before it returns: the claim that follows waits for the log up to its own commit,
-- and with it for this one and for every event that is about to be sent.
CREATE FUNCTION outbox.cut(batch_size int, budget int) RETURNS int
LANGUAGE plpgsql
-- With a sort the planner reads and orders everything that is left of a giant transaction at every step.
SET enable_sort = off SET jit = off AS $$
DECLARE
    k    outbox.cut;
    from_tx xid8;
    from_id bigint;
    last record;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7231, 1) THEN RETURN -1; END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;   -- a new statement: sees the last cutter's commit
    IF pg_snapshot_xmax(coalesce(k.target, k.done)) > pg_snapshot_xmax(pg_current_snapshot()) THEN
        RAISE EXCEPTION USING errcode = 'OB010',
            message = 'restored_database: the stream was last cut in the future of this cluster''s transaction ids',
            hint = 'This database was restored from a dump. Stop the workers and run: outboxctl db rebase';
    END IF;
    IF k.target IS NULL THEN
        k.target := pg_current_snapshot();
        k.late := ARRAY(SELECT x FROM pg_snapshot_xip(k.done) x WHERE pg_visible_in_snapshot(x, k.target));
        k.at_tx := '0';
        k.at_id := 0;
    END IF;
    -- One row comparison bounds the scan of the new transactions. Beside it, `tx >= …` would be no help: the index scan
    -- starts at one of the two conditions, and it is not the better one.
    from_tx := greatest(k.at_tx, pg_snapshot_xmax(k.done));
    from_id := CASE WHEN k.at_tx >= pg_snapshot_xmax(k.done) THEN k.at_id ELSE 0 END;
    WITH candidate AS MATERIALIZED (
        SELECT * FROM (
            (SELECT tx, id, created_at FROM outbox.event
              WHERE tx = ANY (k.late) AND (tx, id) > (k.at_tx, k.at_id) ORDER BY tx, id LIMIT budget)
            UNION ALL
            (SELECT tx, id, created_at FROM outbox.event
              WHERE (tx, id) > (from_tx, from_id) AND tx < pg_snapshot_xmax(k.target)
                AND pg_visible_in_snapshot(tx, k.target) ORDER BY tx, id LIMIT budget)) u
        ORDER BY tx, id LIMIT budget),
    numbered AS (SELECT *, (row_number() OVER (ORDER BY id) - 1) / batch_size AS part FROM candidate),
    made AS (
        INSERT INTO outbox.batch (ids, size, first_at, last_at)
        SELECT range_agg(int8range(id, id + 1)), count(*), min(created_at), max(created_at)
          FROM numbered GROUP BY part ORDER BY part RETURNING 1)
    SELECT (SELECT count(*) FROM candidate) AS n, c.tx, c.id, (SELECT count(*) FROM made) INTO last
      FROM (VALUES (1)) v LEFT JOIN LATERAL (SELECT tx, id FROM candidate ORDER BY tx DESC, id DESC LIMIT 1) c ON true;
    IF last.n >= budget THEN
        INSERT INTO outbox.cut (done, target, at_tx, at_id, late) VALUES (k.done, k.target, last.tx, last.id, k.late);
    ELSIF last.n > 0 OR k.at_id > 0
       OR pg_snapshot_xmax(k.target)::text::bigint - pg_snapshot_xmax(k.done)::text::bigint > 1000 THEN
        -- Nothing new and little else happened: keep the old row, so that an idle database is not written to.
        INSERT INTO outbox.cut (done) VALUES (k.target);
    END IF;
    RETURN last.n;
END $$;

-- Undoes the statement that asks when fewer leases than expected turned out to be its own.
CREATE FUNCTION outbox.require_leases(deleted bigint, expected bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF deleted <> expected THEN RAISE EXCEPTION USING errcode = 'OB011', message = 'lease_lost: another worker holds it'; END IF;
END $$;
