-- Which table the checkpoint is of: its snapshots and numbers say nothing about the rows of another one, which could be
-- taken for published. Null until a leader has come by.
alter table relay_checkpoints add column outbox oid;
