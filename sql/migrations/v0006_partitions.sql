-- Partitions are made ahead; rows without a prepared partition go to the DEFAULT partition, where
-- nothing is lost and outbox.problems reports them. These functions run with the owner's rights:
-- workers own no table.

SELECT pg_catalog.set_config('standard_conforming_strings', 'on', true);
SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

CREATE FUNCTION outbox.partition_bounds(
    around timestamptz, OUT suffix text, OUT lower timestamptz, OUT upper timestamptz)
LANGUAGE sql STABLE SET timezone = 'UTC' BEGIN ATOMIC
    SELECT to_char(date_trunc(s.partition_unit, around),
                   CASE s.partition_unit WHEN 'day' THEN 'YYYYMMDD' ELSE 'YYYYMMDDHH24' END),
           date_trunc(s.partition_unit, around),
           date_trunc(s.partition_unit, around) + ('1 ' || s.partition_unit)::interval
      FROM outbox.setting s;
END;

CREATE VIEW outbox.partitions AS
SELECT parent.relname AS parent, child.oid AS oid, child.relname AS name,
       -- Without backslashes, which mean something else where standard_conforming_strings is off.
       (regexp_match(pg_get_expr(child.relpartbound, child.oid),
                     'FROM [(]''([^'']+)''[)]'))[1]::timestamptz AS lower,
       (regexp_match(pg_get_expr(child.relpartbound, child.oid),
                     'TO [(]''([^'']+)''[)]'))[1]::timestamptz AS upper
  FROM pg_inherits i
  JOIN pg_class child ON child.oid = i.inhrelid
  JOIN pg_class parent ON parent.oid = i.inhparent
 WHERE parent.oid IN ('outbox.event'::regclass, 'outbox.attempt'::regclass);

-- The partition to be made for a time, or for the uncovered time after it in its unit: it fits
-- between the existing partitions, when the unit was changed.
CREATE FUNCTION outbox.partition_to_make(parent name, around timestamptz)
RETURNS TABLE (name name, lower timestamptz, upper timestamptz)
LANGUAGE sql STABLE SET timezone = 'UTC' BEGIN ATOMIC
    SELECT partition_to_make.parent || '_'
               || CASE WHEN u.lower = b.lower THEN b.suffix
                       ELSE to_char(u.lower, 'YYYYMMDDHH24') END,
           u.lower, u.upper
      FROM outbox.partition_bounds(partition_to_make.around) b
     CROSS JOIN LATERAL (
           SELECT CASE WHEN bool_or(x.lower <= partition_to_make.around) THEN max(x.upper)
                       ELSE partition_to_make.around END AS at
             FROM outbox.partitions x
            WHERE x.parent = partition_to_make.parent
              AND x.lower < b.upper
              AND x.upper > partition_to_make.around) c
     CROSS JOIN LATERAL (
           SELECT greatest(b.lower, max(x.upper) FILTER (WHERE x.upper <= c.at)) AS lower,
                  least(b.upper, min(x.lower) FILTER (WHERE x.lower > c.at)) AS upper
             FROM outbox.partitions x
            WHERE x.parent = partition_to_make.parent) u
     WHERE c.at < b.upper;
END;

-- Makes every insert into a partition leave a note, since the cut does not scan it. The time is in
-- the catalog and not read by the trigger from a table, so that transactions of every age and
-- isolation see it.
CREATE FUNCTION outbox.note_strays(partition regclass, before timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    EXECUTE format('CREATE OR REPLACE TRIGGER note_stray AFTER INSERT ON %s FOR EACH ROW '
                   'WHEN (NEW.created_at < %L) EXECUTE FUNCTION outbox_private.note_stray()',
                   partition, before);
    -- Also for replication and restores.
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER note_stray', partition);
END $$;

-- Attaches a partition. A partition of events is closed from the beginning, as far as it lies
-- before the closed time.
--
-- The lock keeps all sessions from writing to the log meanwhile. Otherwise a session that had
-- already routed a row to the DEFAULT partition, and waited there for us, would get the error that
-- the row does not belong there: a producer would fail. For a time in the future, for which no
-- session should write anything, the lock is only tried: the partition must exist when that time
-- comes, regardless of open transactions.
CREATE FUNCTION outbox.attach_partition(
    parent name, name name, lower timestamptz, upper timestamptz) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    before timestamptz;
BEGIN
    BEGIN
        EXECUTE format('LOCK TABLE outbox.%I IN SHARE ROW EXCLUSIVE MODE', parent);
    EXCEPTION
        WHEN lock_not_available THEN IF lower <= clock_timestamp() THEN RAISE; END IF;
    END;
    IF attach_partition.parent = 'event' THEN
        -- A session that closes a partition meanwhile has this lock.
        LOCK TABLE outbox.event_default IN SHARE UPDATE EXCLUSIVE MODE;
        SELECT max(c.before) INTO before FROM outbox.closed c;
        IF before > lower THEN
            PERFORM outbox.note_strays(format('outbox.%I', name)::regclass, before);
        END IF;
    END IF;
    EXECUTE format('ALTER TABLE outbox.%I ATTACH PARTITION outbox.%I FOR VALUES FROM (%L) TO (%L)',
                   parent, name, lower, upper);
END $$;

-- Makes a partition beside its parent and attaches it, which stops producers for a moment. False
-- when a lock is not available at once, another worker makes it, or rows of that time are in the
-- DEFAULT partition.
CREATE FUNCTION outbox.make_partition(
    parent name, name name, lower timestamptz, upper timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE outbox.%I '
        '(LIKE outbox.%I INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS)',
        name, parent);
    PERFORM outbox.attach_partition(parent, name, lower, upper);
    RETURN true;
EXCEPTION
    WHEN invalid_object_definition OR check_violation OR duplicate_table
         OR lock_not_available OR unique_violation THEN
        RETURN false;
END $$;

-- Makes one of the partitions of now and of the next three units of both logs, and returns its
-- name; NULL when none is missing, or none can be made now. One per statement, since producers wait
-- until it has committed, and with three lock waits of 20 ms at most.
CREATE FUNCTION outbox.make_next_partition() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '20ms' AS $$
DECLARE
    parent name;
    p      record;
    unit   interval := (SELECT ('1 ' || partition_unit)::interval FROM outbox.setting);
BEGIN
    FOREACH parent IN ARRAY ARRAY['event', 'attempt']::name[] LOOP
        FOR n IN 0..3 LOOP
            -- Another session may have the lock on a partition whose bounds are only read here.
            BEGIN
                FOR p IN SELECT *
                           FROM outbox.partition_to_make(parent, clock_timestamp() + n * unit) m
                          WHERE to_regclass(format('outbox.%I', m.name)) IS NULL LOOP
                    IF outbox.make_partition(parent, p.name, p.lower, p.upper) THEN
                        RETURN p.name;
                    END IF;
                END LOOP;
            EXCEPTION
                WHEN lock_not_available THEN NULL;
            END;
        END LOOP;
    END LOOP;
    RETURN NULL;
END $$;

-- Makes all of them at once, when there are no producers yet; returns how many it made.
CREATE FUNCTION outbox.make_partitions() RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made int := 0;
BEGIN
    WHILE outbox.make_next_partition() IS NOT NULL LOOP made := made + 1; END LOOP;
    RETURN made;
END $$;

-- Moves rows of one unit from a DEFAULT partition to one of their own, and returns its name; NULL
-- when there is nothing to move, or too much to move at once: no session is stopped for longer than
-- ten thousand rows, or 16 MiB, take. Larger amounts stay in the DEFAULT partition, are delivered
-- from there, and end with their retention.
--
-- Events move only when nothing is under way with them. A statement with a snapshot from before the
-- move and a plan from after it would look in the new partition for events that it sees only in the
-- old one.
CREATE FUNCTION outbox.move_default_rows(parent name) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '50ms' AS $$
DECLARE
    source regclass := format('outbox.%I', parent || '_default');
    key    name := CASE parent WHEN 'event' THEN 'created_at' ELSE 'started_at' END;
    oldest timestamptz;
    few    boolean;
    columns text;
    p      record;
BEGIN
    -- To attach a partition PostgreSQL reads the whole DEFAULT partition.
    IF NOT outbox.keeps_house() OR pg_table_size(source) > 16777216 THEN RETURN NULL; END IF;
    EXECUTE format('SELECT min(%I) FROM %s', key, source) INTO oldest;
    SELECT * INTO p FROM outbox.partition_to_make(parent, oldest);
    IF p.name IS NULL OR to_regclass(format('outbox.%I', p.name)) IS NOT NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format('SELECT count(*) <= 10000 '
                   'FROM (SELECT FROM %s WHERE %I >= $1 AND %I < $2 LIMIT 10001) r',
                   source, key, key)
       INTO few USING p.lower, p.upper;
    IF NOT few THEN RETURN NULL; END IF;
    IF parent = 'event' AND (
           EXISTS (SELECT FROM outbox.delivery d
                    WHERE d.event_at >= p.lower AND d.event_at < p.upper)
        OR EXISTS (SELECT FROM outbox.unrouted d
                    WHERE d.event_at >= p.lower AND d.event_at < p.upper)
        OR EXISTS (SELECT FROM outbox.dead_letter d
                    WHERE d.event_at >= p.lower AND d.event_at < p.upper)) THEN
        RETURN NULL;
    END IF;
    -- In the lock order of sessions that write (outbox.attach_partition).
    EXECUTE format('LOCK TABLE outbox.%I IN SHARE ROW EXCLUSIVE MODE', parent);
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', source);
    IF outbox.is_under_way(parent, source, p.upper) THEN RETURN NULL; END IF;
    IF parent = 'event' THEN
        -- An event that was under way at the first check may be waiting by now.
        EXECUTE format('SELECT EXISTS (SELECT FROM %s e '
                       'WHERE e.created_at >= $1 AND e.created_at < $2 AND ('
                       '   EXISTS (SELECT FROM outbox.delivery d WHERE d.event_id = e.id)'
                       ' OR EXISTS (SELECT FROM outbox.unrouted d WHERE d.event_id = e.id)'
                       ' OR EXISTS (SELECT FROM outbox.dead_letter d WHERE d.event_id = e.id)))',
                       source)
           INTO few USING p.lower, p.upper;
        IF few THEN RETURN NULL; END IF;
    END IF;
    EXECUTE format(
        'CREATE TABLE outbox.%I '
        '(LIKE outbox.%I INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING CONSTRAINTS)',
        p.name, parent);
    -- What is generated is made anew.
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO STRICT columns
      FROM pg_attribute a
     WHERE a.attrelid = source::regclass
       AND a.attnum > 0
       AND NOT a.attisdropped
       AND a.attgenerated = '';
    EXECUTE format('WITH moved AS (DELETE FROM %s WHERE %I >= $1 AND %I < $2 RETURNING *) '
                   'INSERT INTO outbox.%I (%s) SELECT %s FROM moved',
                   source, key, key, p.name, columns, columns)
      USING p.lower, p.upper;
    PERFORM outbox.attach_partition(parent, p.name, p.lower, p.upper);
    RETURN p.name;
EXCEPTION
    WHEN lock_not_available OR duplicate_table OR invalid_object_definition THEN RETURN NULL;
END $$;

-- Partitions past their retention, the oldest first.
CREATE FUNCTION outbox.expired_partitions()
RETURNS TABLE (oid oid, name name, parent name, lower timestamptz, upper timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER BEGIN ATOMIC
    SELECT x.oid, x.name, x.parent, x.lower, x.upper
      FROM outbox.partitions x, outbox.setting s
     WHERE x.upper < clock_timestamp()
                     - CASE x.parent WHEN 'event' THEN s.event_retention
                                     ELSE s.attempt_retention END
     ORDER BY x.upper;
END;

-- The expired partitions whose events are still needed: by a delivery, a dead letter, a batch. One
-- scan of each of these tables, however many partitions there are: by the hours of their rows.
CREATE FUNCTION outbox.needed_partitions() RETURNS oid[]
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT coalesce(array_agg(DISTINCT x.oid), '{}')
      FROM outbox.expired_partitions() x
      JOIN (SELECT DISTINCT date_bin('1 hour', w.at, '2000-01-01 00:00+00') AS hour, w.is_batch
              FROM (SELECT d.event_at AS at, false AS is_batch FROM outbox.delivery d
                    UNION ALL
                    SELECT u.event_at, false FROM outbox.unrouted u
                    UNION ALL
                    SELECT d.event_at, false FROM outbox.dead_letter d
                    UNION ALL
                    SELECT b.first_at, true FROM outbox.batch b) w
             WHERE w.at < (SELECT max(e.upper) FROM outbox.expired_partitions() e)) n
        ON n.hour < x.upper
       AND (n.is_batch
            OR x.parent = 'event' AND n.hour + interval '1 hour' > x.lower);
END;

-- True when an event in a partition, created before a given time or at any time, is in no batch:
-- checked under its lock, by an index only.
CREATE FUNCTION outbox.has_uncut(partition oid, before timestamptz DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     outbox.cut;
    found boolean;
BEGIN
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s e WHERE e.tx >= pg_snapshot_xmin($1) '
                   'AND NOT outbox.is_cut($2, e.tx, e.id) '
                   'AND ($3 IS NULL OR e.created_at < $3))',
                   partition::regclass)
       INTO found USING k.done, k, before;
    RETURN found;
END $$;

-- True when an event in a partition is not cut, or is in a batch: checked under its lock, by
-- indexes only. Any other row that needs an event has needed it before.
CREATE FUNCTION outbox.is_under_way(parent name, partition oid, upper timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- In this order, each in a separate statement: an event that is cut between the two is in a
    -- batch by then.
    IF is_under_way.parent = 'event' AND outbox.has_uncut(partition) THEN RETURN true; END IF;
    RETURN EXISTS (SELECT FROM outbox.batch b WHERE b.first_at < is_under_way.upper);
END $$;

-- Has no rows: the session that holds its lock keeps house, as with outbox.cutting.
CREATE TABLE outbox.keeping ();

-- True when this transaction keeps house now: only one does at a time. Under a lock it must see the
-- current rows, and not those from when it began.
CREATE FUNCTION outbox.keeps_house() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM outbox.require_read_committed();
    LOCK TABLE outbox.keeping IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
    RETURN true;
EXCEPTION
    WHEN lock_not_available THEN RETURN false;
END $$;

-- Locks a partition that is not needed; false for one that is needed, or that another session has
-- locked: it is left for the next time.
--
-- First against sessions that would add to it: only a transaction as old as the retention does.
-- From then on its rows can only become less needed: events that are not cut or are in a batch may
-- still become deliveries, and so they are checked before deliveries are. Every session can read
-- meanwhile.
CREATE FUNCTION outbox.lock_unneeded(parent name, partition oid, upper timestamptz)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format('LOCK TABLE %s IN SHARE MODE NOWAIT', partition::regclass);
    IF outbox.is_under_way(parent, partition, upper)
       OR partition = ANY ((SELECT outbox.needed_partitions())::oid[]) THEN
        RETURN false;
    END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', partition::regclass);
    RETURN true;
EXCEPTION
    WHEN lock_not_available THEN RETURN false;
END $$;

-- Closes the oldest partition of events that the cut still scans, when it ended an hour ago and all
-- its events are in batches, and returns its name; NULL when there is none, or another session adds
-- to it. However many partitions are kept, a cut reads and locks only those of the last hours.
--
-- Its lock stops only sessions that would add to it, and waits for no session. Under the lock the
-- partition holds no uncommitted row.
CREATE FUNCTION outbox.close_partition() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    p record;
BEGIN
    IF NOT outbox.keeps_house() THEN RETURN NULL; END IF;
    SELECT x.oid::regclass AS partition, x.name, x.upper INTO p
      FROM outbox.partitions x
     WHERE x.parent = 'event'
       AND x.upper > coalesce((SELECT max(c.before) FROM outbox.closed c), '-infinity')
     ORDER BY x.upper
     LIMIT 1;
    IF p.upper IS NULL OR p.upper > clock_timestamp() - interval '1 hour' THEN RETURN NULL; END IF;
    EXECUTE format('LOCK TABLE %s, outbox.event_default IN SHARE ROW EXCLUSIVE MODE NOWAIT',
                   p.partition);
    IF outbox.has_uncut(p.partition)
       OR outbox.has_uncut('outbox.event_default'::regclass, p.upper)
       OR (SELECT outbox.is_restored(c) FROM outbox.cut c ORDER BY c.id DESC LIMIT 1) THEN
        RETURN NULL;
    END IF;
    PERFORM outbox.note_strays(p.partition, p.upper);
    PERFORM outbox.note_strays('outbox.event_default', p.upper);
    INSERT INTO outbox.closed (before) VALUES (p.upper);
    DELETE FROM outbox.closed c WHERE c.before < p.upper - interval '1 day';
    RETURN p.name;
EXCEPTION
    WHEN lock_not_available THEN RETURN NULL;
END $$;

-- Deletes strays that are in batches; returns how many.
CREATE FUNCTION outbox.delete_strays(most int) RETURNS int
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k outbox.cut;
    n int;
BEGIN
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;
    DELETE FROM outbox.stray s
     WHERE s.ctid = ANY (ARRAY(
               SELECT o.ctid
                 FROM outbox.stray o
                WHERE outbox.is_cut(k, o.tx, o.id)
                LIMIT delete_strays.most));
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;

-- Empties one expired partition, and returns its name; NULL when there is none, or another session
-- keeps house. This takes a lock on the partition only, and so neither stops a producer nor waits
-- for one.
CREATE FUNCTION outbox.empty_expired_partition() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    p record;
BEGIN
    IF NOT outbox.keeps_house() THEN RETURN NULL; END IF;
    FOR p IN SELECT * FROM outbox.expired_partitions() x
              WHERE x.oid <> ALL ((SELECT outbox.needed_partitions())::oid[]) LOOP
        IF pg_relation_size(p.oid) > 0 AND outbox.lock_unneeded(p.parent, p.oid, p.upper) THEN
            EXECUTE format('TRUNCATE outbox.%I', p.name);
            RETURN p.name;
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

-- Drops one expired partition that is empty, and returns its name; NULL when there is none, or its
-- lock is not available now. It takes a lock on the parent, which every open transaction of a
-- producer uses, and sessions that queue behind us wait, too: so it is tried once, and not for
-- long. A partition on which another role's view or column depends is left for the next time, and
-- holds up no other partition.
CREATE FUNCTION outbox.drop_expired_partition() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '50ms' AS $$
DECLARE
    p record;
BEGIN
    IF NOT outbox.keeps_house() THEN RETURN NULL; END IF;
    FOR p IN SELECT * FROM outbox.expired_partitions() x
              WHERE x.oid <> ALL ((SELECT outbox.needed_partitions())::oid[]) LOOP
        CONTINUE WHEN pg_relation_size(p.oid) > 0
                      OR NOT outbox.lock_unneeded(p.parent, p.oid, p.upper)
                      OR pg_relation_size(p.oid) > 0;
        BEGIN
            EXECUTE format('DROP TABLE outbox.%I', p.name);
            RETURN p.name;
        EXCEPTION
            WHEN lock_not_available THEN RETURN NULL;
            WHEN dependent_objects_still_exist THEN NULL;
        END;
    END LOOP;
    RETURN NULL;
END $$;

-- Deletes some expired rows of a DEFAULT partition that are no longer needed; returns how many.
CREATE FUNCTION outbox.delete_expired_rows(parent name, most int) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    k outbox.cut;
    n int;
BEGIN
    IF NOT outbox.keeps_house() THEN RETURN 0; END IF;
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;
    IF delete_expired_rows.parent = 'event' THEN
        DELETE FROM outbox.event_default x
         WHERE x.ctid = ANY (ARRAY(
                   SELECT e.ctid
                     FROM outbox.event_default e
                    WHERE e.created_at < clock_timestamp() - (SELECT s.event_retention
                                                                FROM outbox.setting s)
                      AND outbox.is_cut(k, e.tx, e.id)
                      AND NOT EXISTS (SELECT FROM outbox.batch b WHERE b.first_at <= e.created_at)
                      AND NOT EXISTS (SELECT FROM outbox.delivery d
                                       WHERE d.event_id = e.id AND d.event_at = e.created_at)
                      AND NOT EXISTS (SELECT FROM outbox.unrouted d
                                       WHERE d.event_id = e.id AND d.event_at = e.created_at)
                      AND NOT EXISTS (SELECT FROM outbox.dead_letter d
                                       WHERE d.event_id = e.id AND d.event_at = e.created_at)
                    LIMIT delete_expired_rows.most));
    ELSE
        DELETE FROM outbox.attempt_default x
         WHERE x.ctid = ANY (ARRAY(
                   SELECT a.ctid
                     FROM outbox.attempt_default a
                    WHERE a.started_at < clock_timestamp() - (SELECT s.attempt_retention
                                                                FROM outbox.setting s)
                    LIMIT delete_expired_rows.most));
    END IF;
    GET DIAGNOSTICS n = ROW_COUNT;
    RETURN n;
END $$;

-- The reasons why an expired partition still exists, for operators.
CREATE FUNCTION outbox.what_keeps(
    parent name, partition oid, lower timestamptz, upper timestamptz) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER BEGIN ATOMIC
    SELECT coalesce(string_agg(w.what, ', '), 'a lock, or something that depends on it')
      FROM (SELECT format('%s deliveries that wait for %s', count(*), min(n.name)) AS what
              FROM outbox.delivery d
              JOIN outbox.endpoint n ON n.id = d.endpoint_id
             WHERE what_keeps.parent = 'event'
               AND d.event_at >= what_keeps.lower
               AND d.event_at < what_keeps.upper
             GROUP BY n.id
            UNION ALL
            SELECT format('%s dead letters of %s', count(*), min(n.name))
              FROM outbox.dead_letter d
              JOIN outbox.endpoint n ON n.id = d.endpoint_id
             WHERE what_keeps.parent = 'event'
               AND d.event_at >= what_keeps.lower
               AND d.event_at < what_keeps.upper
             GROUP BY n.id
            UNION ALL
            SELECT format('batch %s', b.id) FROM outbox.batch b WHERE b.first_at < what_keeps.upper
             LIMIT 3) w;
END;
