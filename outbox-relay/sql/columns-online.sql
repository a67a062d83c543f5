-- Gives a table of events that is in use the two columns by which outbox-relay finds what is due. Writers go on all the
-- while, and need not be changed. Replace `outboxevent` by the table's name, here and there as part of another, and `public`
-- (PUBLIC is a role) by its schema; a name that needs quotes needs them in each place. Run it with psql outside of a
-- transaction, as the table's owner:
--
--   psql -v ON_ERROR_STOP=1 -f columns-online.sql $DATABASE_URL
--
-- No statement rewrites the table or looks at its rows under a lock that writers wait for. Steps 1 and 4 take the
-- strongest lock (ACCESS EXCLUSIVE), for the moment in which they change the catalog. They wait for transactions that
-- have written to the table, and writers queue behind them meanwhile: hence the short lock_timeout. If it strikes, give the
-- writers a second, and run all of this once more: what is done is left as it is. Less than deadlock_timeout (1 s) would be
-- too little: only then does autovacuum make way.
set search_path = public;
set lock_timeout = '2s';

-- Postgres makes no index on a partitioned table concurrently: what step 3 does is to be done by hand there.
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
        raise exception 'outboxevent is partitioned: Postgres makes no index on it concurrently'
            using hint = 'alter table outboxevent add column if not exists xid xid8, '
                'add column if not exists seq bigint; ' || by_hand
                || ' create index on outboxevent (seq); create index on outboxevent (xid, seq);'
                || ' then take step 3 out of this file, and run it again.';
    end if;
end
$$;

-- 1. Columns without a default: one with a volatile default would rewrite the whole table under that lock.
alter table outboxevent add column if not exists xid xid8, add column if not exists seq bigint;

-- 2. The numbers. Cache 1, because a cached range would be handed out by several sessions out of order.
-- Whoever may insert needs them from step 4 on. Grant the sequence with the table to those who come later.
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

-- 3. The indexes, while there is nothing to find yet. Writers don't wait (SHARE UPDATE EXCLUSIVE); these two wait for
-- transactions that are open now, however long that takes. One that fails leaves an invalid index: drop that first.
set lock_timeout = 0;
create index concurrently if not exists outboxevent_seq_idx on outboxevent (seq);
create index concurrently if not exists outboxevent_xid_idx on outboxevent (xid, seq);

-- 4. The defaults. From here on each new row has both: the constraint, which looks at no row that is there, rejects one that a
-- writer inserts with null. Every row without them was committed before this statement had its
-- lock: those are for whatever has published this table until now, and the relay never looks at them.
set lock_timeout = '2s';
alter table outboxevent
    alter column xid set default pg_current_xact_id(),
    alter column seq set default nextval('outboxevent_seq'),
    drop constraint if exists outboxevent_relay_columns,
    add constraint outboxevent_relay_columns check (xid is not null and seq is not null) not valid;

-- The log up to here has all rows that are not for the relay: when Debezium has confirmed this place, it can end. What is
-- inserted and not what is written, because a commit under synchronous_commit = off may not be written yet.
select pg_current_wal_insert_lsn();
