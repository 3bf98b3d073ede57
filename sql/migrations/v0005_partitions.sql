-- Partitions are made ahead; rows that nobody prepared for land in the DEFAULT partition, where nothing is lost and
-- outbox.problems reports them. These functions run with the owner's rights: workers own no table.

SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

CREATE FUNCTION outbox.partition_bounds(around timestamptz, OUT suffix text, OUT lower timestamptz, OUT upper timestamptz)
LANGUAGE sql STABLE SET timezone = 'UTC' BEGIN ATOMIC
    SELECT to_char(date_trunc(s.partition_unit, around), CASE s.partition_unit WHEN 'day' THEN 'YYYYMMDD' ELSE 'YYYYMMDDHH24' END),
           date_trunc(s.partition_unit, around), date_trunc(s.partition_unit, around) + ('1 ' || s.partition_unit)::interval
      FROM outbox.setting s;
END;

-- Makes the partitions of now and of the next three units of both logs; returns how many it made. A partition is made
-- beside its parent and then attached, which does not stop producers; a lock that is not had at once is left for the
-- next time.
CREATE FUNCTION outbox.make_partitions() RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '100ms' AS $$
DECLARE
    parent text;
    b      record;
    child  text;
    unit   interval := (SELECT ('1 ' || partition_unit)::interval FROM outbox.setting);
    made   int := 0;
BEGIN
    FOREACH parent IN ARRAY ARRAY['event', 'attempt'] LOOP
        FOR b IN SELECT p.* FROM generate_series(0, 3) n, LATERAL outbox.partition_bounds(clock_timestamp() + n * unit) p LOOP
            child := parent || '_' || b.suffix;
            CONTINUE WHEN to_regclass(format('outbox.%I', child)) IS NOT NULL;
            BEGIN
                EXECUTE format('CREATE TABLE outbox.%I (LIKE outbox.%I INCLUDING DEFAULTS INCLUDING CONSTRAINTS)', child, parent);
                EXECUTE format('ALTER TABLE outbox.%I ATTACH PARTITION outbox.%I FOR VALUES FROM (%L) TO (%L)',
                               parent, child, b.lower, b.upper);
                made := made + 1;
            EXCEPTION
                -- A change of the unit overlaps what exists; rows of that time already sit in the DEFAULT partition;
                -- another worker is making it; a reader holds the DEFAULT partition. All of them keep working as they
                -- are, and outbox.problems tells when the DEFAULT partition is used.
                WHEN invalid_object_definition OR check_violation OR duplicate_table OR lock_not_available OR unique_violation THEN NULL;
            END;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;

CREATE VIEW outbox.partitions AS
SELECT parent.relname AS parent, child.oid AS oid, child.relname AS name,
       (regexp_match(pg_get_expr(child.relpartbound, child.oid), 'FROM \(''([^'']+)''\)'))[1]::timestamptz AS lower,
       (regexp_match(pg_get_expr(child.relpartbound, child.oid), 'TO \(''([^'']+)''\)'))[1]::timestamptz AS upper
  FROM pg_inherits i
  JOIN pg_class child ON child.oid = i.inhrelid
  JOIN pg_class parent ON parent.oid = i.inhparent
 WHERE parent.oid IN ('outbox.event'::regclass, 'outbox.attempt'::regclass);

-- True when something still needs the events of a partition: batches, deliveries and dead letters of that time, or, in
-- the partition itself, events that are not in a batch yet.
CREATE FUNCTION outbox.is_needed(parent name, partition oid, lower timestamptz, upper timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     outbox.cut;
    found boolean;
BEGIN
    IF EXISTS (SELECT FROM outbox.batch b WHERE b.first_at < is_needed.upper) THEN RETURN true; END IF;
    IF is_needed.parent <> 'event' THEN RETURN false; END IF;
    IF EXISTS (SELECT FROM outbox.delivery d WHERE d.event_at >= is_needed.lower AND d.event_at < is_needed.upper)
    OR EXISTS (SELECT FROM outbox.dead_letter d WHERE d.event_at >= is_needed.lower AND d.event_at < is_needed.upper) THEN
        RETURN true;
    END IF;
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE NOT pg_visible_in_snapshot(tx, $1))', partition::regclass)
       INTO found USING k.done;
    RETURN found;
END $$;

-- Empties partitions that are past their retention and of which nothing is needed any more, and drops one of them; returns its name,
-- or NULL when there is none. One a call, so that no lock is held for long. Emptying takes a lock on the partition only: what was to
-- go goes, also while a producer's transaction, which uses the parent, or something that somebody has made of it keeps it from being
-- dropped. One that somebody has locked keeps no other.
CREATE FUNCTION outbox.drop_expired_partition() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '100ms' AS $$
DECLARE
    p        record;
    may_drop boolean := true;
BEGIN
    FOR p IN SELECT x.* FROM outbox.partitions x, outbox.setting s
              WHERE x.upper < clock_timestamp() - CASE x.parent WHEN 'event' THEN s.event_retention ELSE s.attempt_retention END
              ORDER BY x.upper LOOP
        CONTINUE WHEN outbox.is_needed(p.parent, p.oid, p.lower, p.upper);
        BEGIN
            EXECUTE format('LOCK TABLE outbox.%I IN ACCESS EXCLUSIVE MODE', p.name);
            -- Asked again under the lock: a cut that we waited for may just have made a batch of what is in here.
            CONTINUE WHEN outbox.is_needed(p.parent, p.oid, p.lower, p.upper);
            IF pg_relation_size(p.oid) > 0 THEN EXECUTE format('TRUNCATE outbox.%I', p.name); END IF;
            CONTINUE WHEN NOT may_drop;
            BEGIN
                EXECUTE format('DROP TABLE outbox.%I', p.name);
                RETURN p.name;
            EXCEPTION
                -- Somebody uses the parent, and who comes after us waits, too: once is enough.
                WHEN lock_not_available THEN may_drop := false;
                WHEN dependent_objects_still_exist THEN NULL;
            END;
        EXCEPTION
            WHEN lock_not_available THEN NULL;
        END;
    END LOOP;
    RETURN NULL;
END $$;
