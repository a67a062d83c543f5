-- Which cluster of databases the checkpoint's snapshots are of (`pg_control_system()`): a dump that is restored elsewhere
-- takes the row along, and transaction ids mean nothing there. Null until a leader may ask and has.
alter table relay_checkpoints add column system_identifier bigint;

-- Gives rows that came from another cluster, in a dump, an id of this one: theirs are of transactions that are still to
-- come here, and nobody would look at the rows until then. No row of this cluster that is visible has such an id, so
-- calling it needlessly does nothing. `outbox-relay reset` does, and the relay itself never writes to the outbox.
create function outbox_adopt_foreign_rows() returns void
language sql security definer set search_path from current as $$
    update outbox set xid = default where xid >= pg_snapshot_xmax(pg_current_snapshot())
$$;
