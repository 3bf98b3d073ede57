-- Partitions are made ahead; rows that nobody prepared for land in the DEFAULT partition, where
-- nothing is lost and outbox.problems reports them. These functions run with the owner's rights:
-- workers own no table.

SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);

CREATE FUNCTION outbox.partition_bounds(around timestamptz, OUT suffix text, OUT lower timestamptz, OUT upper timestamptz)
LANGUAGE sql STABLE SET timezone = 'UTC' BEGIN ATOMIC
    SELECT to_char(date_trunc(s.partition_unit, around), CASE s.partition_unit WHEN 'day' THEN 'YYYYMMDD' ELSE 'YYYYMMDDHH24' END),
           date_trunc(s.partition_unit, around), date_trunc(s.partition_unit, around) + ('1 ' || s.partition_unit)::interval
      FROM outbox.setting s;
END;

-- Makes the partitions of now and of the next three units of both logs; returns how many it made. A
-- partition is made beside its parent and then attached, which does not stop producers; a lock that
-- is not had at once is left for the next time.
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
                -- A change of the unit overlaps what exists; rows of that time already sit in the
                -- DEFAULT partition; another worker is making it; a reader holds the DEFAULT
                -- partition. All of them keep working as they are, and outbox.problems tells when
                -- the DEFAULT partition is used.
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

-- True when something still needs the events of a partition: batches, deliveries and dead letters
-- of that time, or, in the partition itself, events that are not in a batch yet.
CREATE FUNCTION outbox.is_needed(parent name, partition oid, lower timestamptz, upper timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    k     outbox.cut;
    found boolean;
BEGIN
    IF EXISTS (SELECT FROM outbox.batch b WHERE b.first_at < is_needed.upper) THEN RETURN true; END IF;
    IF is_needed.parent <> 'event' THEN RETURN false; END IF;
    IF EXISTS (SELECT FROM outbox.delivery d WHERE d.event_at >= is_needed.lower AND d.event_at < is_needed.upper)
    OR EXISTS (SELECT FROM outbox.unrouted u WHERE u.event_at >= is_needed.lower AND u.event_at < is_needed.upper)
    OR EXISTS (SELECT FROM outbox.dead_letter d WHERE d.event_at >= is_needed.lower AND d.event_at < is_needed.upper) THEN
        RETURN true;
    END IF;
    SELECT * INTO STRICT k FROM outbox.cut ORDER BY id DESC LIMIT 1;
    EXECUTE format('SELECT EXISTS (SELECT FROM %s WHERE NOT pg_visible_in_snapshot(tx, $1))', partition::regclass)
       INTO found USING k.done;
    RETURN found;
END $$;

-- Has no rows: whoever has its lock keeps house, as with outbox.cutting.
CREATE TABLE outbox.keeping ();

-- Partitions past their retention, the oldest first.
CREATE FUNCTION outbox.expired_partitions()
RETURNS TABLE (oid oid, name name, parent name, lower timestamptz, upper timestamptz)
LANGUAGE sql STABLE BEGIN ATOMIC
    SELECT x.oid, x.name, x.parent, x.lower, x.upper FROM outbox.partitions x, outbox.setting s
     WHERE x.upper < clock_timestamp()
                     - CASE x.parent WHEN 'event' THEN s.event_retention ELSE s.attempt_retention END
     ORDER BY x.upper;
END;

-- True when this transaction keeps house now: one at a time does.
CREATE FUNCTION outbox.keeps_house() RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE outbox.keeping IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
    RETURN true;
EXCEPTION
    WHEN lock_not_available THEN RETURN false;
END $$;

-- Locks a partition of which nothing is needed; false for one that is needed, or that somebody has
-- locked: it is left for the next time.
CREATE FUNCTION outbox.lock_unneeded(parent name, partition oid, lower timestamptz, upper timestamptz) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF outbox.is_needed(parent, partition, lower, upper) THEN RETURN false; END IF;
    EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE NOWAIT', partition::regclass);
    -- Asked again under the lock: a cut may just have made a batch of what is in here.
    RETURN NOT outbox.is_needed(parent, partition, lower, upper);
EXCEPTION
    WHEN lock_not_available THEN RETURN false;
END $$;

-- Empties one expired partition, and returns its name; NULL when there is none, or somebody else
-- keeps house. This takes a lock on the partition only, and so neither stops a producer nor waits
-- for one.
CREATE FUNCTION outbox.empty_expired_partition() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    p record;
BEGIN
    IF NOT outbox.keeps_house() THEN RETURN NULL; END IF;
    FOR p IN SELECT * FROM outbox.expired_partitions() LOOP
        IF pg_relation_size(p.oid) > 0 AND outbox.lock_unneeded(p.parent, p.oid, p.lower, p.upper) THEN
            EXECUTE format('TRUNCATE outbox.%I', p.name);
            RETURN p.name;
        END IF;
    END LOOP;
    RETURN NULL;
END $$;

-- Drops one expired partition that is empty, and returns its name; NULL when there is none, or it
-- is not to be had now. That takes a lock on the parent, which every open transaction of a producer
-- has in use, and who comes after us waits, too: so it is tried once, and not for long. What a view
-- or a column of somebody else's depends on is left for the next time, and keeps no other.
CREATE FUNCTION outbox.drop_expired_partition() RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '50ms' AS $$
DECLARE
    p record;
BEGIN
    IF NOT outbox.keeps_house() THEN RETURN NULL; END IF;
    FOR p IN SELECT * FROM outbox.expired_partitions() LOOP
        CONTINUE WHEN pg_relation_size(p.oid) > 0 OR NOT outbox.lock_unneeded(p.parent, p.oid, p.lower, p.upper)
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
