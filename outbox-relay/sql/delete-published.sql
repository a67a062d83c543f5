-- Deletes what outbox-relay has published of a table that others made, at most 10,000 rows at a time. Run it now and then
-- until it deletes nothing, and replace `outboxevent` by the table's name and `shop` by the source's. A row without `xid` was
-- never for the relay, and stays.
with published as materialized (
    select event.seq, event.xid from outboxevent as event, relay_checkpoints as checkpoint
    where checkpoint.source = 'shop' and event.seq <= checkpoint.max_seq
        and pg_visible_in_snapshot(event.xid, checkpoint.snapshot)
    order by event.seq limit 10000
)
delete from outboxevent
where seq = any (array(select seq from published)) and (seq, xid) in (select seq, xid from published);
