-- Deletes published rows of a mapped outbox table, at most 10,000 per run. Run it regularly, each time until it deletes nothing.
-- Replace `outboxevent` by the table's name and `shop` by the source's. Rows without `xid` were not published by the relay, and
-- stay.
with published as materialized (
    select event.seq, event.xid from outboxevent as event, relay_checkpoints as checkpoint
    where checkpoint.source = 'shop' and event.seq <= checkpoint.max_seq
        and pg_visible_in_snapshot(event.xid, checkpoint.snapshot)
    order by event.seq limit 10000
)
delete from outboxevent
where seq = any (array(select seq from published)) and (seq, xid) in (select seq, xid from published);
