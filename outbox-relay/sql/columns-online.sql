-- Gives a table of events that is in use the two columns by which outbox-relay finds what is due. Writers go on all the
-- while, and need not be changed. Replace `outboxevent` by the table's name, and run it with psql outside of a
-- transaction, as the table's owner:
--
--   psql -v ON_ERROR_STOP=1 -f columns-online.sql $DATABASE_URL
--
-- No statement rewrites the table or looks at its rows under a lock that writers wait for. Steps 1 and 4 take the
-- strongest lock (ACCESS EXCLUSIVE), for the moment in which they change the catalog. They wait for transactions that
-- have written to the table, and writers queue behind them meanwhile: hence the short lock_timeout. If it strikes, give the
-- writers a second, and run that step once more, then those behind it. Less than deadlock_timeout (1 s) would be too little:
-- only then does autovacuum make way.
set lock_timeout = '2s';

-- 1. Columns without a default: one with a volatile default would rewrite the whole table under that lock.
alter table outboxevent add column xid xid8, add column seq bigint;

-- 2. The numbers. Cache 1, because a cached range would be handed out by several sessions out of order.
create sequence outboxevent_seq as bigint cache 1 owned by outboxevent.seq;

-- 3. The indexes, while there is nothing to find yet. Writers don't wait (SHARE UPDATE EXCLUSIVE); these two wait for
-- transactions that are open now, however long that takes. One that fails leaves an invalid index: drop that first.
set lock_timeout = 0;
create index concurrently outboxevent_seq_idx on outboxevent (seq);
create index concurrently outboxevent_xid_idx on outboxevent (xid, seq);

-- 4. The defaults. From here on each new row has both. Every row without them was committed before this statement had its
-- lock: those are for whatever has shipped this table until now, and the relay never looks at them.
set lock_timeout = '2s';
alter table outboxevent
    alter column xid set default pg_current_xact_id(),
    alter column seq set default nextval('outboxevent_seq');

-- The log up to here has all rows that are not for the relay: when Debezium has confirmed this place, it can end. What is
-- inserted and not what is written, because a commit under synchronous_commit = off may not be written yet.
select pg_current_wal_insert_lsn();
