-- The stream: newly committed events become batches.
--
-- The newest row of outbox.cut says which events are in a batch: `done` is a snapshot, and every
-- event whose transaction is visible in it is. `large` names committed transactions that are left
-- out of `done` because of their size; the events of each up to its place in `large_at` are in
-- batches, too (outbox.is_cut). The invariants, and why they hold:
--
-- S1. A committed event is in exactly one batch that was ever made if is_cut(newest row, tx, id),
--     and else in none. Proof by steps: the first row has made none, and S4 for each later one.
-- S2. `done` only grows: every transaction visible in it stays visible. Its xmax never goes back
--     (`greatest`), and every transaction that it hides is still open, large, or at or after
--     `until`.
-- S3. Each transaction in `large` is committed, hidden in `done` by its xip, and uncut except for
--     its events up to its place in `large_at`.
-- S4. A step makes batches of exactly the events for which is_cut is true with its new row and
--     false with its old one. It reads the transactions that were hidden or not begun in the old
--     `done` and are visible now, up to `until`, without the large ones; that is the difference of
--     the two snapshots.
--
-- *One at a time.* The worker that cuts holds the lock of outbox.cutting. The newest row is read by
-- a separate statement after that, and so sees the last cutter's commit.
--
-- *Two snapshots, read committed.* `seen` is taken by one statement, and the rows are read by a
-- later one, with a younger snapshot. In a transaction that is read committed, every row visible in
-- `seen` is visible to every later statement, so no row is missing; rows that only the younger
-- snapshot sees are filtered out (pg_visible_in_snapshot). In an older snapshot the last cut would
-- be missing: require_read_committed refuses that.
--
-- *Every step makes progress.* Of more than `most` events a step reads the first most + 1 by (tx,
-- id). If their last transaction is not large, everything before it is complete or large, and
-- something is cut or moved to `large`. If it is large, it moves there. A large transaction then
-- gives up to `budget` events a step, and leaves `large` with the step that finds fewer.
--
-- An example, with a budget of 5,000. Transaction 82 has inserted event 1 and is open; 83 commits
-- event 2; 85 commits the events 3 to 12002; 86 commits event 12003; 82 commits after step 2.
--
--     step   done           large   large_at   scan   in new batches
--     1      82:84:82       {}      {}         -      2
--     2      82:86:82,85    {85}    {5002}     2      3 to 5002, of the large one
--     3      85:88:85       {85}    {10002}    -      1 and 12003, and 5003 to 10002
--     4      89:89:         {}      {}         -      10003 to 12002
--
-- Event 1 comes late and is not lost, 12003 does not wait for the 12,000 before it, and `scan` says
-- that scan 2 was not complete: none of its events is released to lines that keep order until it
-- is.
--
-- The technique is that of txid snapshots in queues (Skytools, PgQ); the parts of large
-- transactions are our addition.
--
-- Besides that position the row holds two more things: whose turn it is (`turn`, `last_turn`,
-- `first_turn`, `first_id`; see group_batches), and the position of the walk that releases ordered
-- keys (`unreleased`, `release_to`, `release_next`, `release_endpoint`, `release_key`, `behind`;
-- see v0005_order.sql).

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

-- True when the stream was cut elsewhere: the database is a copy, or its transaction ids have
-- started over. (An upgraded cluster looks the same; rebasing it changes nothing.)
CREATE FUNCTION outbox.is_restored(k outbox.cut) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN NOT outbox.is_home()
           OR pg_snapshot_xmax(k.done) > pg_snapshot_xmax(pg_current_snapshot());
END $$;

-- True when the event is in a batch.
CREATE FUNCTION outbox.is_cut(k outbox.cut, tx xid8, id bigint) RETURNS boolean
LANGUAGE sql STABLE
RETURN pg_visible_in_snapshot(tx, k.done)
       OR coalesce(id <= k.large_at[array_position(k.large, tx)], false);

-- The columns that the cut needs of events that may be in no batch, in the order of (tx, id): the
-- events after `at_id` of the transactions `late`, and the events from `newer` on that are visible
-- in `target`; at most `most` rows.
--
-- The rows of a transaction are selected as a range of (tx, id), which matches the order of one
-- index. With `tx = x` and an order by id the planner may walk all ids instead.
--
-- The statement is planned with its values, so that a closed partition is not even locked: a cached
-- plan locks all partitions.
CREATE FUNCTION outbox.uncut(late xid8[], at_id bigint, newer xid8, target pg_snapshot, most int)
RETURNS TABLE (tx xid8, id bigint, created_at timestamptz, customer_id text, bytes int)
LANGUAGE plpgsql STABLE
SET enable_sort = off SET jit = off SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before timestamptz := coalesce((SELECT max(c.before) FROM outbox.closed c), '-infinity');
    events text := 'SELECT e.tx, e.id, e.created_at, e.customer_id::text, e.bytes
                      FROM outbox.event e
                     WHERE e.created_at >= $6 AND ';
    strays text := 'SELECT e.tx, e.id, e.created_at, e.customer_id, e.bytes
                      FROM outbox.stray e
                     WHERE ';
    source text;
    parts  text[];
BEGIN
    FOREACH source IN ARRAY
        ARRAY[events] || CASE WHEN EXISTS (SELECT FROM outbox.stray) THEN ARRAY[strays] END
    LOOP
        IF late <> '{}' THEN
            parts := parts || format(
                '(SELECT o.*
                    FROM unnest($1) AS x(tx)
                   CROSS JOIN LATERAL (
                         %s (e.tx, e.id) > (x.tx, $2) AND e.tx <= x.tx
                          ORDER BY e.tx, e.id LIMIT $5) o)',
                source);
        END IF;
        IF newer < pg_snapshot_xmax(target) THEN
            parts := parts || format(
                '(%s e.tx >= $3 AND e.tx < pg_snapshot_xmax($4)
                     AND pg_visible_in_snapshot(e.tx, $4)
                   ORDER BY e.tx, e.id LIMIT $5)',
                source);
        END IF;
    END LOOP;
    IF parts <> '{}' THEN
        RETURN QUERY EXECUTE
            format('SELECT * FROM (%s) u ORDER BY u.tx, u.id LIMIT $5',
                   array_to_string(parts, ' UNION ALL '))
            USING late, at_id, newer, target, most, before;
    END IF;
END $$;

-- A snapshot in which everything before `xmax` is visible except these transactions.
CREATE FUNCTION outbox.snapshot(xmax xid8, hidden xid8[]) RETURNS pg_snapshot
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT format('%s:%s:%s', coalesce(min(x), xmax::text::bigint), xmax,
                  string_agg(x::text, ',' ORDER BY x))::pg_snapshot
      FROM (SELECT DISTINCT h::text::bigint AS x FROM unnest(hidden) h WHERE h < xmax) u;
END;

-- The place of a batch in the queue of unclaimed batches.
CREATE TYPE outbox.batch_place AS (turn bigint, id bigint);

-- The events that a step puts into batches, one array element per event, and how far the step got.
CREATE TYPE outbox.chosen AS (
    ids       bigint[],
    times     timestamptz[],
    customers text[],
    bytes     int[],
    large     xid8[],   -- transactions that are left out because of their size
    until     xid8,     -- NULL, or from which transaction on everything is left for the next step
    last_id   bigint    -- the last event that was read
);

-- Chooses the events that became visible from `done` to `target`, or, `within` one transaction,
-- those after `at_id`; at most `most`.
--
-- When there are more, the transactions with more than half of `most` events are `large`: they are
-- left out, and so is everything from `until` on.
CREATE FUNCTION outbox.choose_events(
    done pg_snapshot, target pg_snapshot, late xid8[], within boolean, at_id bigint, most int)
RETURNS outbox.chosen
LANGUAGE plpgsql
-- With a sort the planner reads and orders all remaining events of a giant transaction at every
-- step.
SET enable_sort = off SET jit = off SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    result outbox.chosen;
BEGIN
    WITH candidate AS MATERIALIZED (
        SELECT u.tx, u.id, u.created_at, u.customer_id, u.bytes
          FROM outbox.uncut(late, at_id, pg_snapshot_xmax(done), target,
                            most + (NOT within)::int) u),
    total AS MATERIALIZED (
        SELECT t.is_more,
               CASE WHEN t.is_more
                    THEN (SELECT c.tx FROM candidate c ORDER BY c.tx DESC LIMIT 1) END AS last_tx,
               CASE WHEN t.is_more
                    THEN ARRAY(SELECT c.tx
                                 FROM candidate c
                                GROUP BY c.tx
                               HAVING count(*) > greatest(1, most / 2))
                    ELSE '{}' END AS large
          FROM (SELECT count(*) > most AS is_more FROM candidate) t),
    ends AS MATERIALIZED (
        SELECT t.*,
               CASE WHEN t.last_tx = ANY (t.large)
                    THEN (t.last_tx::text::bigint + 1)::text::xid8
                    ELSE t.last_tx END AS until
          FROM total t),
    picked AS (
        SELECT c.*
          FROM candidate c, ends t
         WHERE NOT t.is_more
            OR c.tx < t.until AND c.tx <> ALL (t.large))
    SELECT array_agg(p.id), array_agg(p.created_at), array_agg(p.customer_id), array_agg(p.bytes),
           (SELECT t.large FROM ends t), (SELECT t.until FROM ends t),
           (SELECT c.id FROM candidate c ORDER BY c.tx DESC, c.id DESC LIMIT 1)
      INTO result
      FROM picked p;
    RETURN result;
END $$;

-- Makes batches of up to `batch_size` of these events. A batch of large events has fewer: a worker
-- reads it whole, so it ends at outbox.max_bytes_at_a_time().
--
-- Batches have turns, and are claimed by turn: a customer that makes up a good part of this step
-- gets separate batches, each a turn after the one before; the batches of all other customers are
-- due in turn `now_turn`. So ten events never wait behind another customer's million, and several
-- customers with a million each take turns (start-time fair queueing, Goyal et al. 1996, with
-- batches in place of packets). `shares`: other batches may be waiting.
CREATE FUNCTION outbox.group_batches(
    chosen outbox.chosen, batch_size int, now_turn bigint, shares boolean,
    OUT n int, OUT batches bigint[], OUT last_turn bigint)
LANGUAGE plpgsql SET enable_sort = off SET jit = off SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    total int := coalesce(cardinality(chosen.ids), 0);
    most  bigint := outbox.max_bytes_at_a_time();
BEGIN
    WITH event AS MATERIALIZED (
        SELECT u.id, u.created_at, u.customer_id, u.bytes
          FROM unnest(chosen.ids, chosen.times, chosen.customers, chosen.bytes)
               u(id, created_at, customer_id, bytes)),
    heavy AS MATERIALIZED (
        SELECT CASE WHEN shares OR total > batch_size
                    THEN ARRAY(SELECT e.customer_id
                                 FROM event e
                                GROUP BY e.customer_id
                               HAVING count(*) > greatest(20, total / 8)) END AS customers),
    owned AS (
        SELECT e.id, e.created_at, e.bytes,
               array_position((SELECT h.customers FROM heavy h), e.customer_id) AS owner
          FROM event e),
    numbered AS (
        SELECT *, (row_number() OVER (PARTITION BY owner ORDER BY id) - 1) / batch_size AS part
          FROM owned),
    by_count AS (
        SELECT owner, part, 0::bigint AS mebibyte, range_agg(int8range(id, id + 1)) AS ids,
               count(*) AS size, min(created_at) AS first_at, max(created_at) AS last_at,
               sum(bytes) AS bytes
          FROM numbered
         GROUP BY owner, part),
    -- For batches that have too many bytes, where each mebibyte begins.
    divided AS (
        SELECT e.*,
               sum(e.bytes) OVER (PARTITION BY e.owner, e.part ORDER BY e.id) / most AS mebibyte
          FROM by_count p
          JOIN numbered e ON e.part = p.part AND e.owner IS NOT DISTINCT FROM p.owner
         WHERE p.bytes >= most),
    batch AS (
        SELECT u.*, (SELECT h.customers[u.owner] FROM heavy h) AS customer_id,
               row_number() OVER (PARTITION BY u.owner ORDER BY u.part, u.mebibyte) AS number
          FROM (SELECT owner, part, mebibyte, ids, size, first_at, last_at
                  FROM by_count
                 WHERE bytes < most
                UNION ALL
                SELECT owner, part, mebibyte, range_agg(int8range(id, id + 1)), count(*),
                       min(created_at), max(created_at)
                  FROM divided
                 GROUP BY owner, part, mebibyte) u),
    made AS (
        INSERT INTO outbox.batch (ids, size, first_at, last_at, customer_id, turn)
        SELECT b.ids, b.size, b.first_at, b.last_at, b.customer_id,
               CASE WHEN b.owner IS NULL THEN now_turn
                    ELSE greatest(now_turn,
                                  1 + coalesce((SELECT max(o.turn)
                                                  FROM outbox.batch o
                                                 WHERE o.customer_id = b.customer_id
                                                   AND o.claims = 0
                                                   AND o.turn >= now_turn), 0))
                         + b.number - 1 END
          FROM batch b
         ORDER BY b.number
        RETURNING id, turn)
    SELECT total, ARRAY(SELECT m.id FROM made m ORDER BY m.id), (SELECT max(m.turn) FROM made m)
      INTO n, batches, last_turn;
END $$;

-- The result of a call of outbox.cut: how many events it put into batches, and how much is left.
--   done     nothing
--   more     there is more to do at once
--   enough   more, and enough batches wait to be claimed
--   busy     another worker is cutting
CREATE TYPE outbox.cut_result AS (events int, state text);

-- In an older snapshot the last cut is not visible, and the events in its batches would be cut
-- again.
CREATE FUNCTION outbox.require_read_committed() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION USING errcode = 'OB014',
            message = format('wrong_isolation: this takes a transaction that is read committed, '
                             'and this one is %s', current_setting('transaction_isolation')),
            hint = 'BEGIN ISOLATION LEVEL READ COMMITTED; then call it again.';
    END IF;
END $$;

-- True when a part of this large transaction, whose events up to `at_id` are in batches, may be put
-- into batches: while fewer than a hundred batches wait to be claimed, or else fewer than twenty of
-- the customer whose event is next. So however many events are waiting, cutting never runs far
-- ahead of delivery, and the table of batches stays small; and however many batches of a customer
-- wait whose receivers do not answer, nobody else waits for that. Only order needs all of it at
-- once (v0005_order.sql).
CREATE FUNCTION outbox.may_be_cut(k outbox.cut, tx xid8, at_id bigint, waiting int) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    customer text;
BEGIN
    IF waiting < 100 OR outbox.keeps_order() THEN RETURN true; END IF;
    SELECT u.customer_id INTO customer
      FROM outbox.uncut(ARRAY[tx], at_id, pg_snapshot_xmax(k.done), k.done, 1) u;
    RETURN 20 > (SELECT count(*)
                   FROM (SELECT
                           FROM outbox.batch b
                          WHERE b.customer_id = customer AND b.claims = 0 AND b.turn >= k.first_turn
                          LIMIT 20) w);
END $$;

-- Turns newly committed events into batches, up to about twice `budget` of them. A transaction that
-- commits late is cut late and never skipped, and one that stays open holds up only its own rows.
-- The scan starts at xmax of the last snapshot and visits the transactions that were open then one
-- by one, so that its cost follows the new events and never the age of the oldest transaction.
--
-- A large transaction does not hold up transactions that are committed after it: it still counts as
-- open, and is cut beside the others, a budget at a time. Large transactions take turns
-- (outbox.may_be_cut).
--
-- Its commit does not have to reach the disk before it returns: the claim that follows waits for
-- the log up to its own commit, and with it for this one and for every event that is about to be
-- sent. (An ordered delivery that is found by the current owner of its lane may be sent before;
-- after a crash of the server it is then cut, and sent, once more.)
CREATE FUNCTION outbox.cut(batch_size int, budget int) RETURNS outbox.cut_result
LANGUAGE plpgsql SET jit = off SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k                outbox.cut;
    seen             pg_snapshot;
    late             xid8[];
    scan             bigint;                 -- the number of this scan of the stream
    waits            outbox.batch_place[];   -- a hundred of the unclaimed batches
    waiting          int;
    chosen           outbox.chosen;
    made             record;
    total            int := 0;
    changed          boolean := false;
    incomplete       boolean;                -- an earlier scan is
    behind           outbox.lane_place[];
    is_behind        boolean := false;       -- some lanes are behind, and could be caught up with
    first_unreleased bigint;    -- the first scan that was incomplete before this cut, or this one
    last             int;       -- the end of the line of large transactions
    is_enough        boolean;   -- none of them may be cut
BEGIN
    PERFORM outbox.require_read_committed();
    BEGIN
        LOCK TABLE outbox.cutting IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
    EXCEPTION
        WHEN lock_not_available THEN RETURN ROW (0, 'busy')::outbox.cut_result;
    END;
    PERFORM set_config('synchronous_commit', 'off', true);
    -- A new statement: sees the last cutter's commit.
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;
    IF outbox.is_restored(k) THEN
        PERFORM outbox.require_home();
        RAISE EXCEPTION USING errcode = 'OB010',
            message = 'restored_database: the stream was last cut by transaction ids '
                      'that this cluster has not reached',
            hint = 'Stop producers and workers, then: {db.rebase}';
    END IF;
    scan := coalesce(k.scan, k.id);
    first_unreleased := coalesce(outbox.first_incomplete(k), scan);
    waits := ARRAY(SELECT ROW(b.turn, b.id)::outbox.batch_place
                     FROM outbox.batch b
                    WHERE b.claims = 0 AND (b.turn, b.id) >= (k.first_turn, k.first_id)
                    ORDER BY b.turn, b.id
                    LIMIT 100);
    waiting := cardinality(waits);
    -- The turn that is being claimed: it never goes back, and an empty queue begins a new one. When
    -- it has many batches, new batches go into the next turn: the few events of many customers,
    -- too, take turns with the many events of a few.
    k.turn := CASE WHEN waiting = 0 THEN k.last_turn + 1 ELSE greatest(k.turn, waits[1].turn) END;
    IF waits[17].turn <= k.turn THEN k.turn := k.turn + 1; END IF;
    k.last_turn := greatest(k.last_turn, k.turn);
    IF waiting > 0 THEN
        k.first_turn := waits[1].turn;
        k.first_id := waits[1].id;
    END IF;
    incomplete := k.scan IS NOT NULL OR k.large <> '{}';
    IF k.behind <> '{}' THEN
        SELECT c.behind, c.is_unfinished INTO behind, is_behind FROM outbox.catch_up(k, 10000) c;
        changed := behind <> k.behind;
        k.behind := behind;
    END IF;

    -- The new events.
    seen := pg_current_snapshot();
    late := ARRAY(SELECT x
                    FROM pg_snapshot_xip(k.done) x
                   WHERE pg_visible_in_snapshot(x, seen)
                  EXCEPT
                  SELECT unnest(k.large));
    -- Usually there are none, which is cheap to check.
    IF EXISTS (SELECT FROM outbox.uncut(late, 0, pg_snapshot_xmax(k.done), seen, 1)) THEN
        chosen := outbox.choose_events(k.done, seen, late, false, 0, budget);
        made := outbox.group_batches(chosen, batch_size, k.turn, waiting > 0);
        total := made.n;
        changed := true;
        k.last_turn := greatest(k.last_turn, made.last_turn);
        IF waiting = 0 AND made.n > 0 THEN
            k.first_turn := k.turn;
            k.first_id := made.batches[1];
        END IF;
        k.large := k.large || chosen.large;
        k.large_scan := k.large_scan || array_fill(scan, ARRAY[cardinality(chosen.large)]);
        k.large_at := k.large_at || array_fill(0::bigint, ARRAY[cardinality(chosen.large)]);
        -- Not complete yet: the rest belongs to the same scan.
        k.scan := CASE WHEN chosen.until IS NOT NULL THEN scan END;
        k.behind := outbox.route_ordered(
            made.batches, scan, k.scan IS NULL AND k.large = '{}', k.behind);
        -- It never goes back: late transactions from `until` on stay late.
        k.done := outbox.snapshot(
            greatest(coalesce(chosen.until, pg_snapshot_xmax(seen)), pg_snapshot_xmax(k.done)),
            ARRAY(SELECT pg_snapshot_xip(seen))
                || k.large
                || ARRAY(SELECT x FROM unnest(late) x WHERE x >= chosen.until));
    ELSE
        changed := changed
                   OR k.scan IS NOT NULL
                   OR pg_snapshot_xmax(seen)::text::bigint
                      - pg_snapshot_xmax(k.done)::text::bigint > 1000;
        k.scan := NULL;
        k.done := outbox.snapshot(
            pg_snapshot_xmax(seen), ARRAY(SELECT pg_snapshot_xip(seen)) || k.large);
    END IF;

    -- A part of the first large transaction that may be cut; it goes to the end of the line, as do
    -- those that are passed over.
    is_enough := k.large <> '{}';
    last := cardinality(k.large);
    -- So many, since a cut has a deadline.
    FOR turn IN 1 .. least(last, 50) LOOP
        k.large := k.large[2:] || k.large[1];
        k.large_scan := k.large_scan[2:] || k.large_scan[1];
        k.large_at := k.large_at[2:] || k.large_at[1];
        IF outbox.may_be_cut(k, k.large[last], k.large_at[last], waiting) THEN
            is_enough := false;
            EXIT;
        END IF;
    END LOOP;
    IF last > 0 AND NOT is_enough THEN
        chosen := outbox.choose_events(
            k.done, k.done, k.large[last:], true, k.large_at[last], budget);
        made := outbox.group_batches(chosen, batch_size, k.turn, true);
        total := total + made.n;
        k.last_turn := greatest(k.last_turn, made.last_turn);
        k.behind := outbox.route_ordered(made.batches, k.large_scan[last], false, k.behind);
        k.large_at[last] := chosen.last_id;
        IF made.n < budget THEN
            -- All other hidden transactions stay hidden.
            k.done := outbox.snapshot(
                pg_snapshot_xmax(k.done),
                ARRAY(SELECT x FROM pg_snapshot_xip(k.done) x WHERE x <> k.large[last]));
            k.large := k.large[:last - 1];
            k.large_scan := k.large_scan[:last - 1];
            k.large_at := k.large_at[:last - 1];
        END IF;
    END IF;
    changed := changed OR last > 50 OR last > 0 AND NOT is_enough;

    -- Deliveries put in line by incomplete scans, before or in this cut, are released when those
    -- scans are complete.
    IF (incomplete OR k.scan IS NOT NULL OR k.large <> '{}') AND outbox.keeps_order() THEN
        k.unreleased := coalesce(k.unreleased, first_unreleased);
        k.release_next := CASE WHEN k.release_to IS NOT NULL
                               THEN coalesce(k.release_next, k.release_to) END;
    END IF;
    IF k.unreleased IS NOT NULL THEN
        k := outbox.release_order(k, scan, 10000);
        changed := true;
    END IF;

    -- Nothing new and little else happened: keep the old row, so that an idle database gets no
    -- writes.
    IF changed THEN
        INSERT INTO outbox.cut (
            done, large, large_scan, large_at, scan,
            unreleased, release_to, release_next, release_endpoint, release_key, behind,
            turn, last_turn, first_turn, first_id)
        VALUES (
            k.done, k.large, k.large_scan, k.large_at, k.scan,
            k.unreleased, k.release_to, k.release_next, k.release_endpoint, k.release_key, k.behind,
            k.turn, k.last_turn, k.first_turn, k.first_id);
    END IF;
    RETURN ROW (total, CASE
        WHEN is_behind
             OR k.release_to IS NOT NULL
             OR k.scan IS NOT NULL
             OR k.large <> '{}' AND NOT is_enough
        THEN 'more'
        WHEN k.large <> '{}' THEN 'enough'
        ELSE 'done' END)::outbox.cut_result;
END $$;

-- Undoes the calling statement when it held fewer leases than expected.
CREATE FUNCTION outbox.require_leases(deleted bigint, expected bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF deleted <> expected THEN
        RAISE EXCEPTION USING errcode = 'OB011',
            message = 'lease_lost: another worker holds it';
    END IF;
END $$;

-- Makes a copy a home: events that were not cut yet and events published here since become batches,
-- all other events count as cut, and in another cluster the stream switches to that cluster's
-- transaction ids. Nothing is lost and nothing repeated. Producers are locked out meanwhile.
-- Returns how many events became batches and how many rows were changed.
--
-- `new_instance` gives the installation a new name, so that none of its webhook-ids is the
-- original's; with `disable_endpoints` nothing is sent until an operator enables an endpoint. With
-- either it may be run anywhere: a snapshot of a disk cannot be told from the original.
--
-- In another cluster, rows that were published here are told from restored ones by the transaction
-- that wrote them: a restore creates its triggers after it has loaded its rows, and producers write
-- after that. In the same cluster transaction ids continue, and are sufficient to tell.
CREATE FUNCTION outbox_private.rebase(
    caller name, batch_size int, new_instance boolean, disable_endpoints boolean,
    OUT requeued bigint, OUT changed bigint)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET enable_sort = on SET lock_timeout = '10s' AS $$
DECLARE
    k          outbox.cut;
    batches    bigint[];
    -- The age of the restore, by the objects that it creates after the data: rows that are not
    -- older were written since.
    restored   int;
    is_foreign boolean;
BEGIN
    PERFORM outbox.require_read_committed();
    BEGIN
        LOCK TABLE outbox.cutting IN SHARE UPDATE EXCLUSIVE MODE;
        LOCK TABLE outbox.event IN SHARE ROW EXCLUSIVE MODE;
    EXCEPTION
        WHEN lock_not_available THEN
            RAISE EXCEPTION USING errcode = '55P03',
                message = 'another session has held outbox.event for ten seconds, or cuts it',
                hint = 'Stop producers and workers. See: SELECT pid FROM pg_locks WHERE relation '
                       'IN (''outbox.event''::regclass, ''outbox.cutting''::regclass)';
    END;
    -- Locks in the order that every session keeps.
    PERFORM FROM outbox.lane l ORDER BY l.endpoint_id FOR UPDATE;
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;
    -- In another cluster, or transaction ids have started over here.
    is_foreign := (SELECT cluster <> outbox.cluster_identifier() FROM outbox.setting)
                  OR pg_snapshot_xmax(k.done) > pg_snapshot_xmax(pg_current_snapshot());
    requeued := 0;
    changed := 0;
    IF outbox.is_restored(k) THEN
        -- The oldest of several: an object altered since is younger, and with its age events
        -- published before the change would be lost.
        SELECT max(age(made.xmin)) INTO STRICT restored
          FROM (SELECT t.xmin
                  FROM pg_trigger t
                 WHERE t.tgrelid IN ('outbox.event'::regclass, 'outbox.endpoint'::regclass)
                   AND NOT t.tgisinternal
                UNION ALL
                SELECT c.xmin
                  FROM pg_constraint c
                 WHERE c.connamespace = 'outbox'::regnamespace
                   AND c.contype = 'f') made;
        CREATE TEMPORARY TABLE uncut ON COMMIT DROP AS
        SELECT e.id, e.created_at, e.bytes
          FROM outbox.event e
         -- A negative age means over two thousand million transactions.
         WHERE is_foreign AND age(e.xmin) BETWEEN 0 AND restored - 1
            OR NOT outbox.is_cut(k, e.tx, e.id);
        -- By time first: the numbers of restored and of new events may be the same.
        WITH made AS (
            INSERT INTO outbox.batch (ids, size, first_at, last_at, turn)
            SELECT range_agg(int8range(id, id + 1)), count(*), min(created_at), max(created_at),
                   k.turn
              FROM (SELECT *, (row_number() OVER line - 1) / batch_size AS part,
                           sum(bytes) OVER line / outbox.max_bytes_at_a_time() AS mebibyte
                      FROM pg_temp.uncut
                    WINDOW line AS (ORDER BY created_at, id ROWS UNBOUNDED PRECEDING)) n
             GROUP BY part, mebibyte
             ORDER BY part, mebibyte
            RETURNING id)
        SELECT array_agg(id) INTO batches FROM made;
        k.behind := outbox.route_ordered(batches, k.id, true, k.behind);
        SELECT count(*) INTO requeued FROM pg_temp.uncut;
        -- Transaction ids in this cluster's future would be cut again when it reaches them. '3' is
        -- the first transaction id that any cluster assigns.
        UPDATE outbox.event SET tx = '3' WHERE tx >= pg_snapshot_xmin(pg_current_snapshot());
        GET DIAGNOSTICS changed = ROW_COUNT;
        -- They are in batches now.
        DELETE FROM outbox.stray;
        INSERT INTO outbox.cut (
            done, unreleased, behind, turn, last_turn, first_turn, first_id)
        VALUES (
            pg_current_snapshot(), coalesce(k.unreleased, outbox.first_incomplete(k)), k.behind,
            k.turn, k.last_turn, k.first_turn, k.first_id);
        UPDATE outbox.setting
           SET cluster = outbox.cluster_identifier(),
               database = outbox.database_identifier();
        -- Their holders are workers of the original.
        UPDATE outbox.batch
           SET lease_id = NULL, lease_until = '-infinity'
         WHERE claims > 0;
        UPDATE outbox.lane
           SET lease_id = NULL, lease_until = '-infinity'
         WHERE lease_until > '-infinity';
        -- Workers here never saw the transactions of another cluster, either.
        UPDATE outbox.lane SET changed_tx = pg_current_xact_id();
        UPDATE outbox.endpoint SET changed_tx = pg_current_xact_id();
    ELSIF NOT new_instance AND NOT disable_endpoints THEN
        RAISE EXCEPTION USING errcode = 'OB012',
            message = 'not_restored: this database is at home, '
                      'and no copy that could be told from it',
            hint = 'There is nothing to repair. For a clone of its disk: '
                   '{db.rebase new_instance=true disable_endpoints=true}';
    END IF;
    IF new_instance THEN
        UPDATE outbox.setting
           SET instance = left(replace(gen_random_uuid()::text, '-', ''), 8);
    END IF;
    IF disable_endpoints THEN
        UPDATE outbox.endpoint
           SET disabled_at = clock_timestamp(),
               disabled_reason = 'disabled by db rebase: a copy',
               updated_at = clock_timestamp()
         WHERE disabled_at IS NULL AND deleted_at IS NULL;
    END IF;
    PERFORM outbox_private.append_audit(
        caller, NULL, 'db.rebase', 'database', NULL,
        jsonb_build_object('requeued', requeued, 'changed', changed,
                           'new_instance', new_instance, 'disable_endpoints', disable_endpoints));
END $$;

CREATE FUNCTION outbox.rebase(
    batch_size int, new_instance boolean DEFAULT false, disable_endpoints boolean DEFAULT false,
    OUT requeued bigint, OUT changed bigint)
LANGUAGE sql BEGIN ATOMIC
    SELECT r.requeued, r.changed
      FROM outbox_private.rebase(
               current_user, rebase.batch_size, rebase.new_instance, rebase.disable_endpoints) r;
END;
