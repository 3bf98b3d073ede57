-- The stream: newly committed events become batches.

-- What the bodies of an event take where they are stored: known without reading them. (Not IMMUTABLE, which pg_column_size
-- is not either: the planner would not put it into the statement, and a call costs more than the rest of a cut.)
CREATE FUNCTION outbox.stored_size(before json, after json) RETURNS int
LANGUAGE sql STABLE PARALLEL SAFE AS $$ SELECT coalesce(pg_column_size(before), 0) + coalesce(pg_column_size(after), 0) $$;

-- True when the stream was cut elsewhere: a dump keeps transaction ids as values, and in another cluster they mean other
-- transactions, past or future. (An upgraded cluster looks the same; rebasing it changes nothing.)
CREATE FUNCTION outbox.is_restored(k outbox.cut) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT s.cluster <> outbox.cluster_identifier()
           OR pg_snapshot_xmax(coalesce(k.target, k.done)) > pg_snapshot_xmax(pg_current_snapshot())
      FROM outbox.setting s
$$;

-- Turns up to `budget` newly committed events into batches of `batch_size`; returns how many, -1 when another worker is
-- cutting, or -2 when enough batches wait to be claimed: however much is waiting, cutting never runs far ahead of
-- delivering, and the table of batches stays small. A batch of large events has fewer: a worker reads it whole, so it ends
-- at 1 MiB as stored. "Newly committed" is the difference of two snapshots: a transaction that commits late is cut late and
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
    released int;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7231, 1) THEN RETURN -1; END IF;
    -- Looked up by their numbers: counted from the newest down, the dead rows of finished batches would be passed, too.
    IF (SELECT count(*) FROM outbox.batch b
         WHERE b.id > (SELECT last_value - 100 FROM outbox.batch_id_seq) AND b.claims = 0) >= 100 THEN RETURN -2; END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;   -- a new statement: sees the last cutter's commit
    IF outbox.is_restored(k) THEN
        RAISE EXCEPTION USING errcode = 'OB010',
            message = 'restored_database: the stream was last cut by the transaction ids of another cluster',
            hint = 'This database was restored from a dump. Stop producers and workers and run: outboxctl db rebase';
    END IF;
    IF k.target IS NULL AND k.sweep IS NOT NULL THEN
        released := outbox.release_sweep(k.sweep, 10000);
        IF released < 10000 THEN INSERT INTO outbox.cut (done) VALUES (k.done); END IF;
        -- Not nothing: the next look is worth it.
        RETURN greatest(released, 1);
    END IF;
    IF k.target IS NULL THEN
        k.sweep := k.id;
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
            (SELECT tx, id, created_at, outbox.stored_size(before, after) AS bytes FROM outbox.event
              WHERE tx = ANY (k.late) AND (tx, id) > (k.at_tx, k.at_id) ORDER BY tx, id LIMIT budget)
            UNION ALL
            (SELECT tx, id, created_at, outbox.stored_size(before, after) FROM outbox.event
              WHERE (tx, id) > (from_tx, from_id) AND tx < pg_snapshot_xmax(k.target)
                AND pg_visible_in_snapshot(tx, k.target) ORDER BY tx, id LIMIT budget)) u
        ORDER BY tx, id LIMIT budget),
    numbered AS (SELECT *, (row_number() OVER (ORDER BY id) - 1) / batch_size AS part FROM candidate),
    sized AS (SELECT *, sum(bytes) OVER (PARTITION BY part ORDER BY id) / 1048576 AS mebibyte FROM numbered),
    made AS (
        INSERT INTO outbox.batch (ids, size, first_at, last_at)
        SELECT range_agg(int8range(id, id + 1)), count(*), min(created_at), max(created_at)
          FROM sized GROUP BY part, mebibyte ORDER BY part, mebibyte RETURNING id)
    SELECT (SELECT count(*) FROM candidate) AS n, c.tx, c.id, ARRAY(SELECT id FROM made) AS batches INTO last
      FROM (VALUES (1)) v LEFT JOIN LATERAL (SELECT tx, id FROM candidate ORDER BY tx DESC, id DESC LIMIT 1) c ON true;
    IF last.n > 0 THEN PERFORM outbox.route_ordered(last.batches, k.sweep, last.n < budget AND k.at_id = 0); END IF;
    IF last.n >= budget THEN
        INSERT INTO outbox.cut (done, target, at_tx, at_id, late, sweep)
        VALUES (k.done, k.target, last.tx, last.id, k.late, k.sweep);
    ELSIF last.n > 0 OR k.at_id > 0
       OR pg_snapshot_xmax(k.target)::text::bigint - pg_snapshot_xmax(k.done)::text::bigint > 1000 THEN
        -- Nothing new and little else happened: keep the old row, so that an idle database is not written to.
        -- After several cuts the sweep's number stays, until what keeps order is let go.
        INSERT INTO outbox.cut (done, sweep)
        VALUES (k.target, CASE WHEN k.at_id > 0 AND EXISTS (SELECT FROM outbox.endpoint n WHERE n.ordered) THEN k.sweep END);
    END IF;
    RETURN last.n;
END $$;

-- Undoes the statement that asks when fewer leases than expected turned out to be its own.
CREATE FUNCTION outbox.require_leases(deleted bigint, expected bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF deleted <> expected THEN RAISE EXCEPTION USING errcode = 'OB011', message = 'lease_lost: another worker holds it'; END IF;
END $$;

-- Puts the stream of a restored database onto this cluster's transaction ids: what the old cluster had not cut yet and
-- what was published here since becomes batches; everything else counts as cut. Nothing is lost and nothing repeated.
-- Producers are locked out meanwhile. Returns how many events became batches and how many rows were changed.
--
-- Rows that were published here are told from restored ones by who wrote them: a restore creates its triggers after it
-- has loaded its rows, and producers come after that.
CREATE FUNCTION outbox.rebase(batch_size int, OUT requeued bigint, OUT changed bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_sort = on AS $$
DECLARE
    k        outbox.cut;
    batches  bigint[];
    restored int;   -- the age of the restore: rows that are not older were written since
BEGIN
    PERFORM pg_advisory_xact_lock(7231, 1);
    LOCK TABLE outbox.event IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;
    IF NOT outbox.is_restored(k) THEN
        RAISE EXCEPTION USING errcode = 'OB012', message = 'not_restored: this database was not restored from another cluster',
            hint = 'There is nothing to repair.';
    END IF;
    SELECT age(xmin) INTO STRICT restored FROM pg_trigger WHERE tgrelid = 'outbox.event'::regclass AND tgname = 'wake_worker';

    CREATE TEMPORARY TABLE uncut ON COMMIT DROP AS
    SELECT e.id, e.created_at FROM outbox.event e
     WHERE age(e.xmin) < restored
        OR (NOT pg_visible_in_snapshot(e.tx, k.done)
            -- A sweep that was under way had got this far.
            AND NOT coalesce(pg_visible_in_snapshot(e.tx, k.target) AND (e.tx, e.id) <= (k.at_tx, k.at_id), false));
    WITH made AS (
        INSERT INTO outbox.batch (ids, size, first_at, last_at)
        SELECT range_agg(int8range(id, id + 1)), count(*), min(created_at), max(created_at)
          FROM (SELECT *, (row_number() OVER (ORDER BY id) - 1) / batch_size AS part FROM uncut) n GROUP BY part ORDER BY part
        RETURNING id)
    SELECT array_agg(id) INTO batches FROM made;
    PERFORM outbox.route_ordered(batches, k.id, true);
    SELECT count(*) INTO requeued FROM uncut;
    -- What lies in the future here would be cut again when this cluster gets there. '3' is the first transaction id that
    -- any cluster gives out.
    UPDATE outbox.event SET tx = '3' WHERE tx >= pg_snapshot_xmin(pg_current_snapshot());
    GET DIAGNOSTICS changed = ROW_COUNT;
    INSERT INTO outbox.cut (done) VALUES (pg_current_snapshot());
    UPDATE outbox.setting SET cluster = outbox.cluster_identifier();
    INSERT INTO outbox.audit (action, object, detail)
    VALUES ('db.rebase', 'database', jsonb_build_object('requeued', requeued, 'changed', changed));
END $$;
