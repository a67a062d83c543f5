drop table relay_checkpoints;
