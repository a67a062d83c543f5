-- The Postgres cluster of the checkpoint's snapshots (`pg_control_system()`). In another cluster, after a restore from a dump,
-- they are meaningless. Null until a leader with the privilege has read it.
alter table relay_checkpoints add column system_identifier bigint;

-- Replaces transaction ids that are ahead of this cluster's, after a restore from a dump of another cluster. The relay could
-- not read such rows before this cluster reaches those ids. No visible row that was written here has such an id, so an
-- unnecessary call has no effect. `outbox-relay reset` calls it. A running relay never writes to the outbox.
create function outbox_adopt_foreign_rows() returns void
language sql security definer set search_path from current as $$
    update outbox set xid = default where xid >= pg_snapshot_xmax(pg_current_snapshot())
$$;
