-- The outbox table of the checkpoint. The rows of another table would wrongly count as published. Null until the first leader.
alter table relay_checkpoints add column outbox oid;
