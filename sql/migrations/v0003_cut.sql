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
           OR pg_snapshot_xmax(coalesce(k.fresh, k.target, k.done)) > pg_snapshot_xmax(pg_current_snapshot())
      FROM outbox.setting s
$$;

-- True when the event is in a batch.
CREATE FUNCTION outbox.is_cut(k outbox.cut, tx xid8, id bigint) RETURNS boolean
LANGUAGE sql STABLE AS $$
    SELECT pg_visible_in_snapshot(tx, k.done)
           -- A sweep that is under way has got this far, and what was committed after it began, that far.
           OR coalesce(pg_visible_in_snapshot(tx, k.target) AND (tx, id) <= (k.at_tx, k.at_id), false)
           OR coalesce(pg_visible_in_snapshot(tx, k.fresh) AND NOT pg_visible_in_snapshot(tx, k.target), false)
$$;

-- The events between two snapshots, from a position on in order of (tx, id), as batches of up to `batch_size`; returns how
-- many, where it got to, and the batches. Of more than `most` events none is taken when `all_or_none`, else the first ones.
-- A batch of large events has fewer: a worker reads it whole, so it ends at 1 MiB as stored.
--
-- Batches have turns, and are claimed by turn: a customer that makes up a good part of this cut gets batches of its own,
-- each a turn after the one before; everybody else's are due in turn `now_turn`. So ten events never wait behind a million
-- of somebody else's, and several customers with a million each take turns (start-time fair queueing, Goyal et al. 1996,
-- with batches in place of packets).
CREATE FUNCTION outbox.make_batches(
    done pg_snapshot, target pg_snapshot, at_tx xid8, at_id bigint, late xid8[], batch_size int, most int, all_or_none boolean,
    now_turn bigint, shares boolean, OUT n int, OUT last_tx xid8, OUT last_id bigint, OUT batches bigint[], OUT last_turn bigint)
LANGUAGE plpgsql
-- With a sort the planner reads and orders everything that is left of a giant transaction at every step.
SET enable_sort = off SET jit = off AS $$
DECLARE
    -- One row comparison bounds the scan of the new transactions. Beside it, `tx >= …` would be no help: the index scan
    -- starts at one of the two conditions, and it is not the better one.
    from_tx xid8   := greatest(at_tx, pg_snapshot_xmax(done));
    from_id bigint := CASE WHEN at_tx >= pg_snapshot_xmax(done) THEN at_id ELSE 0 END;
    lim     int    := most + all_or_none::int;
BEGIN
    WITH candidate AS MATERIALIZED (
        SELECT * FROM (
            (SELECT e.tx, e.id, e.created_at, e.customer_id, outbox.stored_size(e.before, e.after) AS bytes FROM outbox.event e
              WHERE e.tx = ANY (late) AND (e.tx, e.id) > (at_tx, at_id) ORDER BY e.tx, e.id LIMIT lim)
            UNION ALL
            (SELECT e.tx, e.id, e.created_at, e.customer_id, outbox.stored_size(e.before, e.after) FROM outbox.event e
              WHERE (e.tx, e.id) > (from_tx, from_id) AND e.tx < pg_snapshot_xmax(target)
                AND pg_visible_in_snapshot(e.tx, target) ORDER BY e.tx, e.id LIMIT lim)) u
        ORDER BY u.tx, u.id LIMIT lim),
    total AS MATERIALIZED (SELECT count(*) AS n FROM candidate),
    heavy AS MATERIALIZED (
        SELECT ARRAY(SELECT c.customer_id::text FROM candidate c GROUP BY c.customer_id
                     HAVING count(*) > greatest(20, (SELECT t.n FROM total t) / 8)) AS customers
          FROM total t WHERE shares OR t.n > batch_size),
    owned AS (
        SELECT c.id, c.created_at, c.bytes, array_position((SELECT h.customers FROM heavy h), c.customer_id::text) AS owner
          FROM candidate c, total t WHERE t.n <= most OR NOT all_or_none),
    numbered AS (SELECT *, (row_number() OVER (PARTITION BY owner ORDER BY id) - 1) / batch_size AS part FROM owned),
    part AS (
        SELECT owner, part, 0::bigint AS mebibyte, range_agg(int8range(id, id + 1)) AS ids, count(*) AS size,
               min(created_at) AS first_at, max(created_at) AS last_at, sum(bytes) AS bytes
          FROM numbered GROUP BY owner, part),
    sized AS (
        SELECT n.*, sum(n.bytes) OVER (PARTITION BY n.owner, n.part ORDER BY n.id) / 1048576 AS mebibyte
          FROM part p JOIN numbered n ON n.part = p.part AND n.owner IS NOT DISTINCT FROM p.owner WHERE p.bytes >= 1048576),
    batch AS (
        SELECT u.*, (SELECT h.customers[u.owner] FROM heavy h) AS customer_id,
               row_number() OVER (PARTITION BY u.owner ORDER BY u.part, u.mebibyte) AS number
          FROM (SELECT owner, part, mebibyte, ids, size, first_at, last_at FROM part WHERE bytes < 1048576
                UNION ALL
                SELECT owner, part, mebibyte, range_agg(int8range(id, id + 1)), count(*), min(created_at), max(created_at)
                  FROM sized GROUP BY owner, part, mebibyte) u),
    made AS (
        INSERT INTO outbox.batch (ids, size, first_at, last_at, customer_id, turn)
        SELECT b.ids, b.size, b.first_at, b.last_at, b.customer_id,
               CASE WHEN b.owner IS NULL THEN now_turn
                    ELSE greatest(now_turn, 1 + coalesce((SELECT max(o.turn) FROM outbox.batch o
                                                           WHERE o.customer_id = b.customer_id AND o.claims = 0), 0)) + b.number - 1 END
          FROM batch b ORDER BY b.number RETURNING id, turn)
    SELECT t.n, l.tx, l.id, ARRAY(SELECT m.id FROM made m), (SELECT max(m.turn) FROM made m)
      INTO n, last_tx, last_id, batches, last_turn
      FROM total t LEFT JOIN LATERAL (SELECT c.tx, c.id FROM candidate c ORDER BY c.tx DESC, c.id DESC LIMIT 1) l ON true;
    IF all_or_none AND n > most THEN n := 0; END IF;
END $$;

-- Turns newly committed events into batches, up to about `budget` of them; returns how many, -1 when another worker is
-- cutting, or -2 when enough batches wait to be claimed. "Newly committed" is the difference of two snapshots: a transaction
-- that commits late is cut late and never skipped, and one that stays open holds up only its own rows. The scan starts at
-- xmax of the last snapshot and visits the transactions that were open then one by one, so that its cost follows the new
-- events and never the age of the oldest transaction.
--
-- A sweep with more than the budget takes several cuts, and goes on only while fewer than a hundred batches wait: however
-- much is waiting, cutting never runs far ahead of delivering, and the table of batches stays small. What is committed
-- meanwhile does not wait for its end: each cut takes that first, up to the snapshot `fresh`, as long as it is within the
-- budget.
--
-- Its commit need not reach the disk before it returns: the claim that follows waits for the log up to its own commit,
-- and with it for this one and for every event that is about to be sent.
CREATE FUNCTION outbox.cut(batch_size int, budget int) RETURNS int
LANGUAGE plpgsql SET jit = off AS $$
DECLARE
    k      outbox.cut;
    now_snapshot pg_snapshot;
    seen   pg_snapshot;   -- up to here everything is cut, or part of the sweep
    late   xid8[];
    step   record;
    fresh  int := 0;
    waiting int;
BEGIN
    IF NOT pg_try_advisory_xact_lock(7231, 1) THEN RETURN -1; END IF;
    PERFORM set_config('synchronous_commit', 'off', true);
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;   -- a new statement: sees the last cutter's commit
    IF outbox.is_restored(k) THEN
        RAISE EXCEPTION USING errcode = 'OB010',
            message = 'restored_database: the stream was last cut by the transaction ids of another cluster',
            hint = 'This database was restored from a dump. Stop producers and workers and run: outboxctl db rebase';
    END IF;
    IF k.target IS NULL AND k.sweep IS NOT NULL THEN
        -- The sweep is at its end, and what keeps order is let go.
        waiting := outbox.release_sweep(k.sweep, 10000);
        IF waiting < 10000 THEN
            INSERT INTO outbox.cut (done, turn, last_turn) VALUES (k.done, k.turn, k.last_turn);
        END IF;
        -- Not nothing: the next look is worth it.
        RETURN greatest(waiting, 1);
    END IF;
    SELECT count(*) INTO waiting FROM (SELECT FROM outbox.batch WHERE claims = 0 ORDER BY turn, id LIMIT 100) w;
    -- The turn that is being claimed: it never goes back.
    k.turn := CASE WHEN waiting = 0 THEN k.last_turn
                   ELSE greatest(k.turn, (SELECT turn FROM outbox.batch WHERE claims = 0 ORDER BY turn, id LIMIT 1)) END;
    now_snapshot := pg_current_snapshot();

    IF k.target IS NOT NULL THEN
        seen := coalesce(k.fresh, k.target);
        late := ARRAY(SELECT x FROM pg_snapshot_xip(seen) x WHERE pg_visible_in_snapshot(x, now_snapshot));
        -- Mostly there is nothing, and that is cheap to see.
        IF EXISTS (SELECT FROM outbox.event e WHERE e.tx >= pg_snapshot_xmax(seen) AND e.tx < pg_snapshot_xmax(now_snapshot)
                                                AND pg_visible_in_snapshot(e.tx, now_snapshot))
        OR EXISTS (SELECT FROM outbox.event e WHERE e.tx = ANY (late)) THEN
            step := outbox.make_batches(seen, now_snapshot, '0', 0, late, batch_size, budget, true, k.turn, true);
            fresh := step.n;
        END IF;
        IF fresh > 0 THEN
            PERFORM outbox.route_ordered(step.batches, k.id, false);
            k.fresh := now_snapshot;
            k.last_turn := greatest(k.last_turn, step.last_turn);
        END IF;
        IF waiting >= 100 THEN
            IF fresh = 0 THEN RETURN -2; END IF;
            INSERT INTO outbox.cut (done, target, at_tx, at_id, late, sweep, fresh, turn, last_turn)
            VALUES (k.done, k.target, k.at_tx, k.at_id, k.late, k.sweep, k.fresh, k.turn, k.last_turn);
            RETURN fresh;
        END IF;
    ELSE
        k.sweep := k.id;
        k.target := now_snapshot;
        k.late := ARRAY(SELECT x FROM pg_snapshot_xip(k.done) x WHERE pg_visible_in_snapshot(x, k.target));
        k.at_tx := '0';
        k.at_id := 0;
    END IF;

    step := outbox.make_batches(k.done, k.target, k.at_tx, k.at_id, k.late, batch_size, budget, false, k.turn, waiting > 0);
    IF step.n > 0 THEN PERFORM outbox.route_ordered(step.batches, k.sweep, step.n < budget AND k.at_id = 0); END IF;
    k.last_turn := greatest(k.last_turn, step.last_turn);
    IF step.n >= budget THEN
        INSERT INTO outbox.cut (done, target, at_tx, at_id, late, sweep, fresh, turn, last_turn)
        VALUES (k.done, k.target, step.last_tx, step.last_id, k.late, k.sweep, k.fresh, k.turn, k.last_turn);
    ELSIF step.n > 0 OR k.at_id > 0
       OR pg_snapshot_xmax(k.target)::text::bigint - pg_snapshot_xmax(k.done)::text::bigint > 1000 THEN
        -- Nothing new and little else happened: keep the old row, so that an idle database is not written to. After several
        -- cuts the sweep's number stays, until what keeps order is let go.
        INSERT INTO outbox.cut (done, sweep, turn, last_turn)
        VALUES (coalesce(k.fresh, k.target),
                CASE WHEN k.at_id > 0 AND EXISTS (SELECT FROM outbox.endpoint n WHERE n.ordered) THEN k.sweep END, k.turn, k.last_turn);
    END IF;
    RETURN fresh + step.n;
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
        OR NOT outbox.is_cut(k, e.tx, e.id);
    WITH made AS (
        INSERT INTO outbox.batch (ids, size, first_at, last_at, turn)
        SELECT range_agg(int8range(id, id + 1)), count(*), min(created_at), max(created_at), k.turn
          FROM (SELECT *, (row_number() OVER (ORDER BY id) - 1) / batch_size AS part FROM uncut) n GROUP BY part ORDER BY part
        RETURNING id)
    SELECT array_agg(id) INTO batches FROM made;
    PERFORM outbox.route_ordered(batches, k.id, true);
    SELECT count(*) INTO requeued FROM uncut;
    -- What lies in the future here would be cut again when this cluster gets there. '3' is the first transaction id that
    -- any cluster gives out.
    UPDATE outbox.event SET tx = '3' WHERE tx >= pg_snapshot_xmin(pg_current_snapshot());
    GET DIAGNOSTICS changed = ROW_COUNT;
    INSERT INTO outbox.cut (done, turn, last_turn) VALUES (pg_current_snapshot(), k.turn, k.last_turn);
    UPDATE outbox.setting SET cluster = outbox.cluster_identifier();
    INSERT INTO outbox.audit (action, object, detail)
    VALUES ('db.rebase', 'database', jsonb_build_object('requeued', requeued, 'changed', changed));
END $$;
