-- Adds the two columns by which outbox-relay finds pending rows to a table of events that is in use. Writers continue and
-- need no change. Replace `outboxevent` by the table's name, which is also part of other names, and `public` by its schema (but
-- not the role PUBLIC). Quote names where necessary. Run it with psql outside of a transaction, as the table's owner:
--
--   psql -v ON_ERROR_STOP=1 -f columns-online.sql $DATABASE_URL
--
-- No statement rewrites the table, or scans it under a lock that blocks writers. Parts A and D briefly take the strongest lock
-- (ACCESS EXCLUSIVE) to change the catalog. They wait for transactions that have written to the table, and writers queue
-- behind them: hence the short lock_timeout. After a timeout wait a second and run the whole file again. It skips completed
-- parts. Keep lock_timeout above deadlock_timeout (1 s), after which autovacuum yields.
set search_path = public;
set lock_timeout = '2s';

-- Postgres can't create an index on a partitioned table concurrently. Part C is manual there.
do $$
declare
    by_hand text;
begin
    select string_agg(
        format('create index concurrently on %1$s (seq); create index concurrently on %1$s (xid, seq);', relid), ' ')
    into by_hand
    from pg_partition_tree('outboxevent') join pg_class on oid = 'outboxevent'::regclass and relkind = 'p'
    where isleaf and not exists (
        select from pg_index join pg_attribute on attrelid = indrelid and attnum = indkey[0]
        where indrelid = relid and attname = 'seq' and indisvalid);
    if by_hand is not null then
        raise exception 'outboxevent is partitioned: Postgres can''t create an index on it concurrently'
            using hint = 'Run: alter table outboxevent add column if not exists xid xid8, '
                'add column if not exists seq bigint; ' || by_hand
                || ' create index on outboxevent (seq); create index on outboxevent (xid, seq);'
                || ' Then remove part C from this file and run it again.';
    end if;
end
$$;

-- A. Columns without a default: a volatile default would rewrite the whole table under that lock.
alter table outboxevent add column if not exists xid xid8, add column if not exists seq bigint;

-- B. The sequence. Cache 1 is required: with cached ranges, sessions would draw numbers out of order.
-- All roles that can insert need USAGE from part D on. Grant it to later writers together with the table.
create sequence if not exists outboxevent_seq as bigint cache 1 owned by outboxevent.seq;
do $$
declare
    writer text;
begin
    for writer in
        select distinct case grantee when 0 then 'PUBLIC' else quote_ident(pg_get_userbyid(grantee)) end
        from (
            select grantee, privilege_type from pg_class, aclexplode(relacl)
            where oid = 'outboxevent'::regclass
            union
            select grantee, privilege_type from pg_attribute, aclexplode(attacl)
            where attrelid = 'outboxevent'::regclass
        ) as granted
        where privilege_type = 'INSERT'
    loop
        execute format('grant usage on sequence outboxevent_seq to %s', writer);
    end loop;
end
$$;

-- C. The indexes, while they are empty. Writers don't wait (SHARE UPDATE EXCLUSIVE). These statements wait for all
-- transactions that are open now. A failed statement leaves an invalid index. Drop it before the next run.
set lock_timeout = 0;
create index concurrently if not exists outboxevent_seq_idx on outboxevent (seq);
create index concurrently if not exists outboxevent_xid_idx on outboxevent (xid, seq);

-- D. The defaults. From now on each new row has both columns. The constraint rejects null in new rows and ignores existing rows.
-- All rows without the columns were committed before this statement got its lock. They are left to the previous publisher, and
-- the relay never reads them.
set lock_timeout = '2s';
alter table outboxevent
    alter column xid set default pg_current_xact_id(),
    alter column seq set default nextval('outboxevent_seq'),
    drop constraint if exists outboxevent_relay_columns,
    add constraint outboxevent_relay_columns check (xid is not null and seq is not null) not valid;

-- The WAL position after all rows that are left to Debezium. Stop Debezium when it has confirmed this position. The insert
-- position, because with synchronous_commit = off a commit may not be written yet.
select pg_current_wal_insert_lsn();
