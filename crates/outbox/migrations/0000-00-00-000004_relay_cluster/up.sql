-- Which cluster of databases the checkpoint's snapshots are of (`pg_control_system()`): a dump that is restored elsewhere
-- takes the row along, and transaction ids mean nothing there. Null until a leader may ask and has.
alter table relay_checkpoints add column system_identifier bigint;
